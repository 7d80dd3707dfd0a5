"""The key-value cache of sequences that each have their own length, and what each may look at.

Knows nothing of models. A row is a sequence; once it is over, another may take the row.
"""

import math
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BANDS = 4
"""Bands of neighbouring rows, each of which looks at no more tokens than its longest sequence has."""
APART = 32
"""Tokens by which the lengths of two bands must differ: below that one call of attention is cheaper than two."""
WIDER_BY = 32
"""The width is a multiple of this, so that prompts that get longer and longer seldom widen the cache."""


@final
class Cache:
    """Keys and values of every layer, (B, kv, width, D) each; the width grows to what the longest row needs.

    `lengths` (B,) int64 tokens of each row, `held` the same in memory that no GPU has to be asked for; `mask`
    (B, 1, 1, width) is 0 where a row may look, minus infinity beyond its end.
    """

    def __init__(self, layers: int, rows: int, shape: tuple[int, int], like: Tensor) -> None:
        heads, size = shape
        self.keys = [like.new_zeros(rows, heads, 0, size) for _ in range(layers)]
        self.values = [like.new_zeros(rows, heads, 0, size) for _ in range(layers)]
        self.mask = like.new_zeros(rows, 1, 1, 0)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.held = np.zeros(rows, dtype=np.int64)

    def widen(self, width: int) -> None:
        """Make every row at least so many tokens wide."""
        have, wide = self.mask.shape[3], -(-width // WIDER_BY) * WIDER_BY
        if wide <= have:
            return
        for caches in (self.keys, self.values):
            for i, old in enumerate(caches):
                caches[i] = old.new_zeros(*old.shape[:2], wide, old.shape[3])
                caches[i][:, :, :have] = old
        self.mask = F.pad(self.mask, (0, wide - have), value=-math.inf)

    def seat(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Say how long the new sequences in the rows `slots` are."""
        at = torch.tensor(slots, device=self.mask.device)
        self.held[list(slots)] = lengths
        self.lengths[at] = torch.tensor(lengths, device=at.device)
        beyond = torch.arange(self.mask.shape[3], device=at.device)[None] >= self.lengths[at, None]
        self.mask[at] = torch.zeros_like(beyond, dtype=self.mask.dtype).masked_fill_(beyond, -math.inf)[:, None, None]

    def again(self, row: int, length: int, slots: Sequence[int]) -> None:
        """Let the rows `slots` begin with the first `length` tokens of `row`."""
        for cache in (*self.keys, *self.values):
            cache[list(slots), :, :length] = cache[row, :, :length].clone()

    def open_next(self, rows: Tensor) -> None:
        """Let each of the rows look at the token that is about to be written at its end."""
        self.mask[rows, 0, 0, self.lengths[rows]] = 0

    def past(self, window: int | None) -> Tensor:
        """The mask, narrowed to the last `window` tokens, the one about to be written among them."""
        if window is None or int(self.held.max()) < window:
            return self.mask
        places = torch.arange(self.mask.shape[3], device=self.mask.device)[None]
        return self.mask.masked_fill((places <= self.lengths[:, None] - window)[:, None, None], -math.inf)

    def lengthen(self, rows: Sequence[int]) -> None:
        """Count that token."""
        self.held[list(rows)] += 1
        self.lengths[torch.tensor(rows, device=self.lengths.device)] += 1

    def bands(self, rows: Sequence[int]) -> list[tuple[int, int, int]]:
        """(first row, end, tokens to look at) of neighbours among `rows`, the next token included.

        Fewest tokens where longer sequences are in later rows.
        """
        out: list[tuple[int, int, int]] = []
        size = -(-len(rows) // BANDS)
        for at in range(0, len(rows), size):
            band = list(rows[at : at + size])
            first, top = band[0], int(self.held[band].max()) + 1
            if out and abs(out[-1][2] - top) < APART:
                first, _, before = out.pop()
                top = max(top, before)
            out.append((first, band[-1] + 1, top))
        return out

    def keep(self, rows: Tensor) -> None:
        """Drop every row but these."""
        for caches in (self.keys, self.values):
            for i, cache in enumerate(caches):
                caches[i] = cache[rows]
        self.mask, self.lengths, self.held = self.mask[rows], self.lengths[rows], self.held[rows.tolist()]
