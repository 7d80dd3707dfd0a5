"""Preferences between two answers: the Bradley-Terry model with ties after Rao and Kupper.

With gap = reward(a) - reward(b) and threshold tie >= 0, both in logits, and s the logistic function:

    P(a) = s(gap - tie)     P(b) = s(-gap - tie)     P(tie) = (exp(2 tie) - 1) * P(a) * P(b)

The rater says "tie" while the noisy difference stays below the threshold; at tie = 0 this is plain Bradley-Terry.
Source: Bradley & Terry 1952; Rao & Kupper 1967 (doi:10.1080/01621459.1967.10482901), theta = exp(tie).
For language models: Christiano et al. 2017 (arXiv:1706.03741), Liu et al. 2024 (arXiv:2410.05328).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

CODES: Final = {"a": 0, "b": 1, "tie": 2}
"""How a choice is written in a tensor."""


class PreferenceLoss(NamedTuple):
    """Both carry gradient."""

    loss: Tensor
    """Scalar: weighted mean of -logp, nats."""
    logp: Tensor
    """(P,) log-likelihood of each vote, unweighted, nats."""


class Probabilities(NamedTuple):
    """(P,) each; they sum to 1."""

    a: Tensor
    b: Tensor
    tie: Tensor


def encode(choices: Sequence[str]) -> Tensor:
    """(P,) int64 codes of "a", "b", "tie". Raises: KeyError for any other choice (drop skips and retractions)."""
    return torch.tensor([CODES[c] for c in choices], dtype=torch.int64)


def bradley_terry_loss(
    gap: Tensor, choice: Tensor, tie: float | Tensor = 0.0, weight: Tensor | None = None
) -> PreferenceLoss:
    """Negative log-likelihood of the votes.

    Shapes: gap (P,) float, reward of a minus reward of b; choice (P,) int64 codes (see `CODES`);
    tie a number or a scalar tensor, >= 0; weight (P,) float >= 0.
    Units: gap and tie in logits. Gradient flows through `gap` and `tie`. The loss is
    sum(weight * -logp) / sum(weight).
    Raises: ValueError when the shapes differ, P is 0, a code is unknown, the weights do not sum to more than 0,
    tie is negative, or a vote is a tie while tie is 0 (it would have probability 0).
    Source: Rao & Kupper 1967, see the module.
    """
    if gap.ndim != 1 or choice.shape != gap.shape or (weight is not None and weight.shape != gap.shape):
        raise ValueError("gap, choice and weight must be (P,) and of one length")
    if len(gap) == 0:
        raise ValueError("no vote: a preference loss needs at least one")
    if not ((choice >= 0) & (choice <= 2)).all():
        raise ValueError(f"choice holds a code that is none of {CODES}")
    threshold = _threshold(gap, tie)
    tied = choice == CODES["tie"]
    if threshold == 0 and tied.any():
        raise ValueError("a vote is a tie but the threshold is 0: give `tie` a value above 0")

    signed = torch.where(choice == CODES["b"], -gap, gap)
    logp = logsigmoid(signed - threshold)
    if tied.any():
        logp = logp.masked_scatter(tied, _log_tie(gap[tied], threshold))
    if weight is None:
        return PreferenceLoss(-logp.mean(), logp)
    weight = weight.detach()
    if (weight < 0).any() or not weight.sum() > 0:
        raise ValueError("weights must be 0 or more and sum to more than 0")
    return PreferenceLoss(-(weight * logp).sum() / weight.sum(), logp)


def probabilities(gap: Tensor, tie: float | Tensor = 0.0) -> Probabilities:
    """How likely each answer to a question is.

    Shapes: gap (P,) float, tie a number or a scalar tensor, >= 0, both in logits. Returns (P,) each.
    Raises: ValueError when tie is negative.
    Source: Rao & Kupper 1967, see the module.
    """
    threshold = _threshold(gap, tie)
    tied = torch.zeros_like(gap) if threshold == 0 else _log_tie(gap, threshold).exp()
    return Probabilities(torch.sigmoid(gap - threshold), torch.sigmoid(-gap - threshold), tied)


def _threshold(gap: Tensor, tie: float | Tensor) -> Tensor:
    """`tie` as a scalar tensor that keeps its gradient."""
    threshold = torch.as_tensor(tie, dtype=gap.dtype, device=gap.device)
    if threshold.ndim != 0 or not threshold >= 0:
        raise ValueError(f"tie must be one number, 0 or more, not {tie}")
    return threshold


def _log_tie(gap: Tensor, threshold: Tensor) -> Tensor:
    """ln P(tie), stable for large gaps and thresholds; the threshold is above 0."""
    log_expm1 = 2 * threshold + torch.log(-torch.expm1(-2 * threshold))
    return log_expm1 + logsigmoid(gap - threshold) + logsigmoid(-gap - threshold)
