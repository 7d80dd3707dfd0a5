"""Generalised advantage estimation over padded answers, and whitening."""

from typing import NamedTuple

import torch
from torch import Tensor

from backflip.objectives.masked import check, one_run, token_count


class GAE(NamedTuple):
    """(B, T) each, without gradient, 0 where masked."""

    adv: Tensor
    returns: Tensor
    """adv + value: what the critic learns."""


@torch.no_grad()
def gae(reward: Tensor, value: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> GAE:
    """Advantages and returns of every answer token.

    delta_t = reward_t + gamma * value_{t+1} - value_t and adv_t = delta_t + gamma * lam * adv_{t+1};
    value and advantage after an answer's last token are 0, whatever the padding holds.

    Shapes: reward, value are (B, T) float; mask is (B, T) bool, True on answer tokens, which lie side by side.
    Units: those of the reward. No gradient.
    Raises: ValueError when shapes or dtypes differ, a mask has a hole, or gamma or lam lies outside [0, 1].
    Source: Schulman et al. 2015 (arXiv:1506.02438), eq. 16.
    """
    check(mask, reward=reward, value=value)
    one_run(mask)
    for name, x in (("gamma", gamma), ("lam", lam)):
        if not 0 <= x <= 1:
            raise ValueError(f"{name} must lie in [0, 1], not {x}")
    value = value.masked_fill(~mask, 0.0)
    adv = torch.zeros_like(value)
    ahead = torch.zeros_like(value[:, 0])
    value_next = torch.zeros_like(ahead)
    for t in reversed(range(value.shape[1])):
        delta = reward[:, t] + gamma * value_next - value[:, t]
        ahead = (delta + gamma * lam * ahead).masked_fill(~mask[:, t], 0.0)
        value_next = value[:, t]
        adv[:, t] = ahead
    return GAE(adv, adv + value)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 over the unmasked tokens; also to mean 0 unless `shift_mean` is False.

    The variance is the population's, plus 1e-8: a constant input gives zeros (or itself, unshifted).
    Call it on the whole batch before it is cut into parts.

    Shapes: x (B, T) float, mask (B, T) bool. Returns (B, T), 0 where masked.
    Raises: ValueError when shapes or dtypes differ or no token is unmasked.
    Source: Ziegler et al. 2019 (arXiv:1909.08593): advantages shifted, rewards not.
    """
    check(mask, x=x)
    count = token_count(mask, None)
    x = x.masked_fill(~mask, 0.0)
    mean = x.sum() / count
    centred = (x - mean).masked_fill(~mask, 0.0)
    scaled = centred * torch.rsqrt(centred.square().sum() / count + 1e-8)
    return scaled if shift_mean else (scaled + mean).masked_fill(~mask, 0.0)
