"""How well predicted reward gaps foretell held-out votes.

A gap is reward(a) - reward(b) in logits; a vote is "a", "b" or "tie". Probabilities follow Rao & Kupper 1967
(doi:10.1080/01621459.1967.10482901): P(a) = s(gap - tie), P(b) = s(-gap - tie), the rest is a tie.
Votes of one unit (a prompt) are resampled together when `unit` is given.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backflip.stats.bootstrap import Interval, bootstrap_mean

Floats = NDArray[np.float64]

OUTCOME = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""What a vote is worth to answer a."""


def accuracy(
    gap: ArrayLike,
    choice: Sequence[str],
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    *,
    unit: Sequence[Hashable] | None = None,
) -> Interval:
    """Share of votes whose winner has the higher reward; tied votes and gaps of exactly 0 count half.

    Shapes: gap, choice, unit (N,). Raises: ValueError as `bootstrap_mean`, or for an unknown choice.
    """
    return bootstrap_mean(hits(*_votes(gap, choice)), seed, draws, level, unit=unit)


def hits(gap: Floats, outcome: Floats) -> Floats:
    """(N,) whether the winner has the higher reward, 1 or 0; tied votes and gaps of exactly 0 count half.

    Shapes: gap, outcome (N,); the outcome is 1 where a won, 0 where b did, 1/2 for a tie.
    """
    return np.asarray(0.5 + 0.5 * np.sign(gap) * (2 * outcome - 1))


def log_loss(
    gap: ArrayLike,
    choice: Sequence[str],
    seed: int,
    tie: float = 0.0,
    draws: int = 2000,
    level: float = 0.95,
    *,
    unit: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean of -ln P(vote), in nats; ln 2 = 0.693 is what a coin reaches when nobody votes "tie".

    Shapes: gap, choice, unit (N,); tie >= 0, in logits.
    Raises: ValueError as `bootstrap_mean`, for an unknown choice, for a negative tie, or when a vote is a tie
    while tie is 0 (it would have probability 0).
    """
    x, outcome = _votes(gap, choice)
    if not tie >= 0:
        raise ValueError(f"tie must be 0 or more, not {tie}")
    tied = outcome == 0.5
    if tie == 0 and tied.any():
        raise ValueError("a vote is a tie but the threshold is 0: give `tie` a value above 0")
    for_a, for_b = -np.logaddexp(0, tie - x), -np.logaddexp(0, tie + x)
    logp = np.where(outcome == 1.0, for_a, for_b)
    if tied.any():
        logp[tied] = (2 * tie + np.log(-np.expm1(-2 * tie)) + for_a + for_b)[tied]
    return bootstrap_mean(-logp, seed, draws, level, unit=unit)


def expected(gap: ArrayLike, tie: float = 0.0) -> Floats:
    """(N,) what a vote on each gap (N,) is worth to answer a before it is cast: P(a) + P(tie) / 2; tie >= 0."""
    x = np.asarray(gap, dtype=np.float64)
    return np.asarray(0.5 + 0.5 * (np.exp(-np.logaddexp(0, tie - x)) - np.exp(-np.logaddexp(0, tie + x))))


class Bin(NamedTuple):
    """Votes of which the gap is about equally sure: means over `votes` of them."""

    sure: float
    """P + P(tie) / 2 of the likelier answer, 0.5 to 1."""
    right: float
    """How often it won, a tie counting half."""
    votes: int


def reliability_bins(gap: ArrayLike, choice: Sequence[str], tie: float = 0.0, bins: int = 10) -> list[Bin]:
    """How sure the gap is against how often it is right, in `bins` bins of equal width; those without a vote left out.

    Shapes: gap, choice (N,); tie >= 0, in logits.
    Raises: ValueError when there is no vote, for an unknown choice, a negative tie or bins below 1.
    """
    x, outcome = _votes(gap, choice)
    if len(x) == 0 or not tie >= 0 or bins < 1:
        raise ValueError("a calibration error needs votes, tie >= 0 and bins >= 1")
    size = np.abs(x)
    sure = expected(size, tie)
    hit = hits(x, outcome)
    place = np.minimum((2 * (sure - 0.5) * bins).astype(np.int64), bins - 1)
    return [
        Bin(float(sure[place == k].mean()), float(hit[place == k].mean()), int((place == k).sum()))
        for k in np.unique(place)
    ]


def calibration_error(gap: ArrayLike, choice: Sequence[str], tie: float = 0.0, bins: int = 10) -> float:
    """Expected calibration error: mean distance between how sure the gap is and how often it is right.

    Over the votes in `reliability_bins`, whose errors it raises. Biased upwards when bins hold few votes.
    Shapes: gap, choice (N,); tie >= 0, in logits. Returns a number in [0, 1].
    Source: Guo et al. 2017 (arXiv:1706.04599).
    """
    found = reliability_bins(gap, choice, tie, bins)
    return sum(b.votes * abs(b.sure - b.right) for b in found) / len(choice)


def _votes(gap: ArrayLike, choice: Sequence[str]) -> tuple[Floats, Floats]:
    """(N,) gaps and (N,) outcomes for a."""
    x = np.asarray(gap, dtype=np.float64)
    if x.shape != (len(choice),):
        raise ValueError(f"gap is {x.shape}, but there are {len(choice)} votes")
    if not np.isfinite(x).all():
        raise ValueError("a gap is not finite")
    for c in choice:
        if c not in OUTCOME:
            raise ValueError(f'a choice is "{c}": leave out what is not a vote ("a", "b", "tie")')
    return x, np.array([OUTCOME[c] for c in choice], dtype=np.float64)
