"""Direct preference optimisation: the policy is its own reward model.

A policy pays an answer the implicit reward beta * (logp - logp_ref), summed over its tokens, in logits. Fitting those
to votes as Bradley-Terry rewards r leaves a policy that is ref * exp(r / beta) / Z: what a climb on a leash of `beta`
would have reached, with no reward model and no sampling.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class DPOLoss(NamedTuple):
    """Scalars; gradient flows through `loss` only. Parts computed with a common `pairs` add up to the whole."""

    loss: Tensor
    accuracy: Tensor
    """Weighted share of pairs whose implicit rewards stand in the order of the votes; a tie counts half."""
    margin: Tensor
    """Weighted mean by which the winner's implicit reward exceeds the loser's, in logits."""


def dpo_loss(
    log_ratio_a: Tensor,
    log_ratio_b: Tensor,
    wins: Tensor,
    beta: float,
    *,
    weight: Tensor | None = None,
    pairs: float | None = None,
) -> DPOLoss:
    """Cross-entropy between who won and the preference that the policy implies.

    loss = -sum weight * (wins * ln s(gap) + (1 - wins) * ln s(-gap)) / pairs, with s the logistic function and
    gap = beta * (log_ratio_a - log_ratio_b).

    Shapes: log_ratio_a, log_ratio_b (P,) float, the sum of logp - logp_ref over an answer's tokens; wins (P,) float in
    [0, 1]: 1 where a won, 0 where b did, 0.5 for a tie, or the probability that a wins; weight (P,) float >= 0.
    Units: log-ratios in nats, beta in logits per nat, the loss in nats. Gradient flows through the log-ratios.
    `pairs` is the sum of the weights of the *whole* batch: the losses of its parts then add up to the loss of one big
    batch. Left out, it is this batch's own.
    Raises: ValueError when shapes differ, there is no pair, `wins` leaves [0, 1], or beta or the weights are not
    above 0.
    Source: Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; probabilities instead of votes: Guo et al. 2024
    (arXiv:2402.04792), whose online labels have these as their mean.
    """
    weight = torch.ones_like(log_ratio_a) if weight is None else weight.detach()
    if log_ratio_a.ndim != 1 or not log_ratio_a.shape == log_ratio_b.shape == wins.shape == weight.shape:
        raise ValueError("log_ratio_a, log_ratio_b, wins and weight must be (P,) and of one length")
    if not beta > 0:
        raise ValueError(f"beta must be above 0, not {beta}")
    if not ((wins >= 0) & (wins <= 1)).all():
        raise ValueError("wins must lie in [0, 1]")
    total = float(weight.sum()) if pairs is None else float(pairs)
    if (weight < 0).any() or not total > 0:
        raise ValueError("no pair: the weights must be 0 or more and sum to more than 0")
    wins = wins.detach()
    gap = beta * (log_ratio_a - log_ratio_b)
    loss = -(weight * (wins * logsigmoid(gap) + (1 - wins) * logsigmoid(-gap))).sum() / total
    with torch.no_grad():
        side = torch.sign(2 * wins - 1)
        right = 0.5 + 0.5 * side * torch.sign(gap)
        return DPOLoss(loss, (weight * right).sum() / total, (weight * side * gap).sum() / total)
