"""Advantages from several answers to one prompt: no critic needed."""

import torch
from torch import Tensor


@torch.no_grad()
def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """Each answer's reward minus the mean reward of the other answers in its group.

    Shapes: reward (B,) float; group (B,) int64 ids, in any order. Returns (B,), no gradient; sums to 0 in a group.
    Raises: ValueError when the shapes differ or a group has one answer only.
    Source: Kool et al. 2019 ("Buy 4 REINFORCE samples, get a baseline for free!"); for language models
    Ahmadian et al. 2024 (arXiv:2402.14740).
    """
    if reward.ndim != 1 or group.shape != reward.shape:
        raise ValueError(f"reward and group must be (B,), not {tuple(reward.shape)} and {tuple(group.shape)}")
    _, place, size = torch.unique(group, return_inverse=True, return_counts=True)
    if (size < 2).any():
        raise ValueError("a group has one answer only: leave-one-out needs at least two")
    n = size[place]
    total = torch.zeros(len(size), dtype=reward.dtype, device=reward.device).index_add(0, place, reward)
    adv: Tensor = reward - (total[place] - reward) / (n - 1)
    return adv
