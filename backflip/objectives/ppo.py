"""Proximal policy optimisation: the clipped losses of policy and critic, and what is watched beside them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from backflip.objectives.masked import check, token_count

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +- this (nats), so that one absurd token cannot overflow the batch."""


class PolicyLoss(NamedTuple):
    """Scalars; gradient flows through `loss` only. Parts computed with a common `tokens` add up to the whole."""

    loss: Tensor
    clipfrac: Tensor
    """Share of tokens whose objective the clip holds back (their gradient is 0)."""
    approx_kl: Tensor
    """Mean of ratio - 1 - ln ratio, nats per token: estimates KL(old || new); 0 only if every ratio is 1."""
    ratio: Tensor
    """Mean of pi/pi_old over the tokens."""


class ValueLoss(NamedTuple):
    """Scalars; gradient flows through `loss` only. Parts computed with a common `tokens` add up to the whole."""

    loss: Tensor
    clipfrac: Tensor
    """Share of tokens whose clipped error is the larger one."""


def policy_loss(
    logp: Tensor,
    logp_old: Tensor,
    adv: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    *,
    weight: Tensor | None = None,
    tokens: int | float | None = None,
) -> PolicyLoss:
    """Clipped policy-gradient loss, averaged over the answer tokens.

    loss = -sum_t weight * min(ratio * adv, clip(ratio, 1 - clip, 1 + clip) * adv) / tokens, where
    ratio = exp(logp - logp_old) and the exponent is clamped to +-20.

    Shapes: logp, logp_old, adv, weight are (B, T) float; mask is (B, T) bool, True on answer tokens.
    Units: log-probabilities in nats, taken at the sampling temperature. Gradient flows through `logp` only.
    `tokens` counts the unmasked tokens of the *whole* batch: the losses of its parts then add up to
    the loss of one big batch. Left out, it is this batch's own count. Masked positions may hold anything.
    `weight` corrects for a sampler that is not `logp_old` (see `truncated_importance`).
    Raises: ValueError when shapes or dtypes differ, `clip` is not above 0, or there is no token to average over.
    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7; the clamp and `approx_kl`: Schulman,
    "Approximating KL divergence", 2020 (k3), and Huang et al. 2024 (arXiv:2403.17031).
    """
    check(mask, logp=logp, logp_old=logp_old, adv=adv, **({} if weight is None else {"weight": weight}))
    if not clip > 0:
        raise ValueError(f"clip must be above 0, not {clip}")
    count = token_count(mask, tokens)
    adv = adv.detach().masked_fill(~mask, 0.0)
    log_ratio = logp.masked_fill(~mask, 0.0) - logp_old.detach().masked_fill(~mask, 0.0)
    log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    free, held = ratio * adv, ratio.clamp(1.0 - clip, 1.0 + clip) * adv
    gain = torch.minimum(free, held)
    if weight is not None:
        gain = gain * weight.detach().masked_fill(~mask, 0.0)

    with torch.no_grad():
        clipfrac = (held < free).sum() / count
        approx_kl = (torch.expm1(log_ratio) - log_ratio).sum() / count
        mean_ratio = ratio.masked_fill(~mask, 0.0).sum() / count
    return PolicyLoss(-gain.sum() / count, clipfrac, approx_kl, mean_ratio)


def value_loss(
    value: Tensor,
    value_old: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    *,
    tokens: int | float | None = None,
) -> ValueLoss:
    """Clipped squared error of the critic, averaged over the answer tokens.

    loss = 0.5 * sum_t max((value - returns)^2, (clipped - returns)^2) / tokens, where `clipped` is
    `value` held within +-clip of `value_old`.

    Shapes: value, value_old, returns are (B, T) float; mask is (B, T) bool, True on answer tokens.
    Units: those of the reward; so is `clip`. Gradient flows through `value` only. `tokens` as in `policy_loss`.
    Raises: ValueError when shapes or dtypes differ, `clip` is not above 0, or there is no token to average over.
    Source: Ziegler et al. 2019 (arXiv:1909.08593); Huang et al. 2024 (arXiv:2403.17031).
    """
    check(mask, value=value, value_old=value_old, returns=returns)
    if not clip > 0:
        raise ValueError(f"clip must be above 0, not {clip}")
    count = token_count(mask, tokens)
    value = value.masked_fill(~mask, 0.0)
    value_old = value_old.detach().masked_fill(~mask, 0.0)
    returns = returns.detach().masked_fill(~mask, 0.0)
    clipped = value_old + (value - value_old).clamp(-clip, clip)
    free, held = (value - returns).square(), (clipped - returns).square()
    loss = 0.5 * torch.maximum(free, held).sum() / count
    return ValueLoss(loss, (held > free).sum() / count)


def truncated_importance(logp_old: Tensor, logp_sampler: Tensor, cap: float = 2.0) -> Tensor:
    """Weights for tokens drawn by a sampler that is not quite the trainer: min(exp(logp_old - logp_sampler), cap).

    Shapes: logp_old (the trainer's), logp_sampler and the result are (B, T) float; the result carries no gradient.
    Raises: ValueError when the shapes differ or `cap` is below 1 (it would shrink even exact samples).
    Source: Ionides 2008 (truncated importance sampling); per-step truncation as in Espeholt et al. 2018
    (arXiv:1802.01561).
    """
    if logp_old.shape != logp_sampler.shape:
        raise ValueError(f"logp_old is {tuple(logp_old.shape)}, logp_sampler is {tuple(logp_sampler.shape)}")
    if not cap >= 1:
        raise ValueError(f"cap must be at least 1, not {cap}")
    return (logp_old - logp_sampler).detach().clamp(max=math.log(cap)).exp()


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the distributions that `logits` stand for, in nats.

    Shapes: logits (..., V) float, already divided by the temperature; -inf marks a forbidden token.
    Returns (...), at least float32.
    """
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    p = logp.exp()
    return -(p * logp.masked_fill(p == 0, 0.0)).sum(dim=-1)
