"""The protocol of a causal language model here: our Llama forward, or any Hugging Face model."""

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


class Decoder(Protocol):
    """A batch of sequences being continued, with its key-value cache."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens (B,); return logits (B, V) of the next."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence but `rows` (indices into the batch)."""
        ...


class Trunk(Protocol):
    """One set of weights, many roles: `adapter=None` is the model untouched."""

    layers: int
    hidden_size: int
    vocabulary: int
    context: int
    config: Any
    """Hugging Face's configuration of the model."""
    dtype: torch.dtype
    device: torch.device

    def hidden(
        self, batch: Packed, adapter: Adapter | None = None, *, keep: Sequence[int] = (), checkpoint: bool = False
    ) -> Hidden:
        """Hidden states of every token in the batch; `checkpoint` trades time for memory in the backward."""
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

    def start(self, prompts: Sequence[Sequence[int]], repeats: int, room: int) -> tuple[Decoder, Tensor]:
        """Read P prompts; return a decoder for P * repeats sequences (a prompt's repeats adjacent) with room
        for `room` new tokens each, and the logits (P * repeats, V) of the first."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """The weights under their Hugging Face names."""
        ...
