"""Adapters, LoRA or full: plain float32 masters, handed to the forward as an argument.

The adapter's role (policy, reward, value; none is the reference) is decided by whoever calls the
forward; no model carries one as state.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backflip.core.errors import DataError
from backflip.core.rng import generator
from backflip.models.linear import linear

BLOCK = re.compile(r"\.(\d+)\.")
"""The number of its block in a layer's name."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Changes to linear layers: W + scale * B A of low rank, or with rank 0 a full change W + B.

    `a[name]` is (rank, in) and `b[name]` is (out, rank), float32, keyed by the layer's name in the
    Hugging Face model (without ".weight"); with rank 0 `a` is empty and `b[name]` is (out, in): full fine-tuning,
    with the untouched weights beside it. Source: Hu et al. 2021 (arXiv:2106.09685).
    """

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """alpha / rank; 1 for a full change."""
        return self.alpha / self.rank if self.rank else 1.0

    def parameters(self) -> Iterator[Tensor]:
        """The trainable tensors, in the order of their layers' names, so that a loaded adapter has the same."""
        for name in sorted(self.b):
            if self.rank:
                yield self.a[name]
            yield self.b[name]

    def delta(self, name: str) -> Tensor:
        """(out, in) float32 change of one layer's weight."""
        return self.b[name] @ self.a[name] * self.scale if self.rank else self.b[name]

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, detached: in peft's file format, or "NAME.full.weight" for a full change."""
        if not self.rank:
            return {f"{name}.full.weight": change.detach() for name, change in self.b.items()}
        out: dict[str, Tensor] = {}
        for name in self.a:
            out[f"base_model.model.{name}.lora_A.weight"] = self.a[name].detach()
            out[f"base_model.model.{name}.lora_B.weight"] = self.b[name].detach()
        return out


def new_adapter(
    shapes: Mapping[str, tuple[int, int]], *, rank: int, alpha: float, seed: int, device: torch.device | str = "cpu"
) -> Adapter:
    """A fresh adapter for layers of shape (out, in): A uniform as in peft's default (Kaiming), B zero.

    The change is therefore exactly zero at the start. With rank 0 it is full, and zero too.
    """
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for name, (out, fan_in) in shapes.items():
        if not rank:
            b[name] = torch.zeros(out, fan_in, device=device, requires_grad=True)
            continue
        bound = 1.0 / float(np.sqrt(fan_in))
        draw = generator(seed, "lora", name).uniform(-bound, bound, (rank, fan_in)).astype(np.float32)
        a[name] = torch.from_numpy(draw).to(device).requires_grad_()
        b[name] = torch.zeros(out, rank, device=device, requires_grad=True)
    return Adapter(a, b, rank, alpha)


def adapter_from_state(
    state: Mapping[str, Tensor], *, rank: int, alpha: float, device: torch.device | str = "cpu"
) -> Adapter:
    """The adapter saved by `Adapter.state`.

    Raises: DataError when a tensor is no lora_A or lora_B, or one of the two is missing.
    """
    parts: dict[str, dict[str, Tensor]] = {"lora_A": {}, "lora_B": {}} if rank else {"full": {}}
    for key, value in state.items():
        name, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if part not in parts:
            raise DataError(
                f"The adapter holds {key}, which is no plain LoRA weight.\n"
                "It may be a DoRA adapter or carry trained embeddings.\nGive a plain LoRA adapter."
            )
        parts[part][name] = value.detach().to(device, torch.float32).clone().requires_grad_()
    if not rank:
        return Adapter({}, parts["full"], rank, alpha)
    a, b = parts["lora_A"], parts["lora_B"]
    if a.keys() != b.keys():
        raise DataError(
            f"The adapter holds only one half of {min(a.keys() ^ b.keys())}.\n"
            "The file may be incomplete.\nSave or fetch it again."
        )
    return Adapter(a, b, rank, alpha)


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapter: Adapter | None, layers: Mapping[str, int]
) -> Tensor:
    """x W' where `weight` holds the adapter's change already (`changed_weight`).

    Shapes: x (N, in), weight (out, in) -> (N, out); `layers` are those fused row-wise in `weight`, with their rows.
    Gradient flows into x, and into the adapter's tensors as if the sum had not been rounded.
    """
    if adapter is None or not torch.is_grad_enabled() or not any(n in adapter.b for n in layers):
        return linear(x, weight, bias)
    places, tensors, at = [], [], 0
    for name, rows in layers.items():
        if name in adapter.b:
            places.append(slice(at, at + rows))
            tensors += [adapter.a[name], adapter.b[name]] if adapter.rank else [adapter.b[name]]
        at += rows
    return _Adapted.apply(x, weight, bias, places, adapter.scale, *tensors)  # type: ignore[no-untyped-call, no-any-return]


class _Adapted(torch.autograd.Function):
    """The product, with gradients for x and for the adapter: of the low-rank factors, or of the full change."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, places: list[slice], scale: float, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *tensors)
        ctx.weight, ctx.places, ctx.scale = weight, places, scale
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, *tensors = ctx.saved_tensors
        (dy,) = grads
        dx = torch.mm(dy, ctx.weight) if ctx.needs_input_grad[0] else None
        if len(tensors) == len(ctx.places):
            changes = [torch.mm(dy[:, place].T, x).float() for place in ctx.places]
            return dx, None, None, None, None, *changes
        a = torch.cat(tensors[0::2]).to(x.dtype)
        down = torch.mm(x, a.T).chunk(len(ctx.places), 1)
        of_b = [torch.mm(dy[:, p].T, low).float() * ctx.scale for p, low in zip(ctx.places, down, strict=True)]
        up = [torch.mm(dy[:, p], (b * ctx.scale).to(x.dtype)) for p, b in zip(ctx.places, tensors[1::2], strict=True)]
        of_a = torch.mm(torch.cat(up, 1).T, x).float().chunk(len(ctx.places))
        return dx, None, None, None, None, *(g for pair in zip(of_a, of_b, strict=True) for g in pair)


def changed_weight(weight: Tensor, adapter: Adapter, layers: Mapping[str, int]) -> Tensor:
    """`weight` (out, in), fused row-wise from `layers`, with the adapter's change, summed in float32."""
    parts = [
        adapter.delta(n) if n in adapter.b else weight.new_zeros(rows, weight.shape[1], dtype=torch.float32)
        for n, rows in layers.items()
    ]
    return (weight.float() + torch.cat(parts)).to(weight.dtype)


def layers_below(adapter: Adapter) -> int:
    """How many of a model's layers, counted from the bottom, an adapter leaves as they are.

    0 where it changes something outside numbered blocks.
    """
    return min((int(found.group(1)) if (found := BLOCK.search(name)) else 0 for name in adapter.b), default=0)


def upper_layers(shapes: Mapping[str, tuple[int, int]], share: float) -> dict[str, tuple[int, int]]:
    """The linear layers in the top `share` of a model's blocks, by the block's number in the layer's name.

    Layers outside numbered blocks are left out. At least one block is kept.
    """
    block = {name: int(found.group(1)) for name in shapes if (found := BLOCK.search(name))}
    count = max(block.values(), default=-1) + 1
    kept = max(1, round(count * share))
    return {name: shapes[name] for name, index in block.items() if index >= count - kept}
