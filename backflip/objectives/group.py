"""Advantages from several answers to one prompt: no critic needed."""

from typing import NamedTuple

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to a group's standard deviation, so that a group whose rewards agree gives zeros."""


@torch.no_grad()
def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """Each answer's reward minus the mean reward of the other answers in its group.

    The baseline is independent of the answer it is taken from, so the policy gradient is unbiased.

    Shapes: reward (B,) float; group (B,) int64 ids, in any order. Returns (B,), no gradient; sums to 0 in a group.
    Raises: ValueError when the shapes differ or a group has one answer only.
    Source: Kool et al. 2019 ("Buy 4 REINFORCE samples, get a baseline for free!"); for language models
    Ahmadian et al. 2024 (arXiv:2402.14740).
    """
    stats = _group_stats(reward, group)
    return stats.centred * stats.size / (stats.size - 1)


@torch.no_grad()
def above_mean(reward: Tensor, group: Tensor) -> Tensor:
    """Each answer's reward minus the mean reward of its group, itself included.

    The gradient points where that of `leave_one_out` does and is (n - 1) / n times as long in a group of n.

    Shapes: reward (B,) float; group (B,) int64 ids, in any order. Returns (B,), no gradient; sums to 0 in a group.
    Raises: ValueError when the shapes differ or a group has one answer only.
    Source: Liu et al. 2025 (arXiv:2503.20783), "Dr. GRPO".
    """
    return _group_stats(reward, group).centred


@torch.no_grad()
def normalised(reward: Tensor, group: Tensor) -> Tensor:
    """`above_mean` divided by the group's standard deviation (of a sample: n - 1), plus `STD_FLOOR`.

    Biased: a prompt whose answers earn nearly the same counts as much as one where they differ widely, so the policy
    tends to another place than the objective's optimum.

    Shapes: reward (B,) float; group (B,) int64 ids, in any order. Returns (B,), no gradient; sums to 0 in a group.
    Raises: ValueError when the shapes differ or a group has one answer only.
    Source: Shao et al. 2024 (arXiv:2402.03300), GRPO with outcome supervision.
    """
    stats = _group_stats(reward, group)
    square = torch.zeros_like(stats.centred).index_add(0, stats.place, stats.centred.square())
    return stats.centred / ((square[stats.place] / (stats.size - 1)).sqrt() + STD_FLOOR)


class _Groups(NamedTuple):
    """(B,) each: the group's number, how many answers it has, the reward above its mean."""

    place: Tensor
    size: Tensor
    centred: Tensor


def _group_stats(reward: Tensor, group: Tensor) -> _Groups:
    """What every advantage here is made of. Raises: ValueError, see above."""
    if reward.ndim != 1 or group.shape != reward.shape:
        raise ValueError(f"reward and group must be (B,), not {tuple(reward.shape)} and {tuple(group.shape)}")
    _, place, size = torch.unique(group, return_inverse=True, return_counts=True)
    if (size < 2).any():
        raise ValueError("a group has one answer only: its others are the baseline, so it needs at least two")
    total = torch.zeros(len(size), dtype=reward.dtype, device=reward.device).index_add(0, place, reward)
    n = size[place]
    return _Groups(place, n, reward - total[place] / n)
