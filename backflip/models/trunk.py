"""The protocol of a causal language model here: our Llama forward, or any Hugging Face model."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from backflip.models.adapters import Adapter
from backflip.models.packed import Packed


@dataclass(frozen=True, eq=False)
class Hidden:
    """Hidden states: `final` (N, H) after the last norm; `kept[layer]` (N, H) after that many layers.

    As in Hugging Face's `hidden_states`, the last layer's is taken after the last norm: kept[layers] is `final`.
    """

    final: Tensor
    kept: dict[int, Tensor]


SAMPLED = 65_536
"""Weights of a tensor that its fingerprint reads, evenly spread."""


def fingerprint(trunk: "Trunk") -> str:
    """32 hex digits that differ between two models unless their weights agree wherever they are read.

    Every tensor's name, shape and type, and up to `SAMPLED` of its weights.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(trunk.state().items()):
        flat = tensor.detach().reshape(-1)
        part = flat[:: max(1, len(flat) // SAMPLED)].contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(part.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Decoder(Protocol):
    """A batch of sequences being continued, with its key-value cache."""

    def step(self, tokens: Tensor, rows: Sequence[int]) -> Tensor:
        """Append tokens (R,) to the sequences `rows` (R of the B, in order); return logits (R, V) of the next."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but `rows` (indices into the batch)."""
        ...

    def admit(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        """Read prompts and let new sequences take the rows `slots`: `repeats[p]` of them for prompt p, one prompt's
        after the other's; what those rows held is gone. Returns the logits (len(slots), V) of their first tokens.

        A prompt is read once, also when it was the last one of the call before. Where the trunk does not refill,
        this is called once, for all rows.
        """
        ...


class Trunk(Protocol):
    """One set of weights, many roles: `adapter=None` is the model untouched."""

    layers: int
    hidden_size: int
    vocabulary: int
    context: int
    config: Any
    """Hugging Face's configuration of the model."""
    refills: bool
    """Whether new sequences may take rows of a decoder while others go on."""
    dtype: torch.dtype
    device: torch.device

    def hidden(
        self,
        batch: Packed,
        adapter: Adapter | None = None,
        *,
        keep: Sequence[int] = (),
        checkpoint: bool = False,
        after: tuple[int, Tensor] | None = None,
    ) -> Hidden:
        """Hidden states of every token in the batch; `checkpoint` trades time for memory in the backward.

        `after` is a number of layers and the states (N, H) after them, where they are known: a trunk may go on from
        there. Nothing below is kept then.
        """
        ...

    def head(self) -> tuple[Tensor, Tensor | None]:
        """(V, H) weight and (V,) bias of the output layer."""
        ...

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear layer an adapter may change, by Hugging Face name."""
        ...

    def merged(self, adapter: Adapter | None) -> "Trunk":
        """A copy with the adapter's change folded in, made from the float32 masters; itself for None."""
        ...

    def start(self, rows: int, room: int) -> Decoder:
        """A decoder for `rows` sequences of a prompt and `room` new tokens each; nothing is read yet."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """The weights under their Hugging Face names."""
        ...
