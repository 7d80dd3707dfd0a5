"""How likely a judgement is, given what the judge sees: one answer each for pairs, thumbs and rankings.

Every function takes the view of the rater (the reward gap times his sensitivity, plus his bias) and his habits, and
returns log-likelihoods with their derivatives. Knows nothing of raters as a group or of how rewards are fitted.

Pairs, with view z > 0 where the rater leans to a, s the logistic function, and tie a number in logits:

    Rao-Kupper: P(a) = s(z - t)   P(b) = s(-z - t)   P(undecided) = the rest,   t = exp(tie), a width
    Davidson:   P(a) : P(b) : P(undecided) = exp(z / 2) : exp(-z / 2) : exp(tie),   a propensity

"Tie" and "cannot tell" both mean undecided; which of the two a rater says is a habit of his that tells nothing of the
answers. Among decided votes, P(strength >= 2) = s(u - cut[0]) and P(strength = 3) = s(u - cut[1]), where u is the view
towards the chosen answer: a vote without a strength is that vote with any strength. With probability lapse a rater
does not look, and picks a or b with equal probability, or says he is undecided.
Source: Rao & Kupper 1967 (doi:10.1080/01621459.1967.10482901); Davidson 1970 (doi:10.1080/01621459.1970.10481082);
Plackett 1975 (doi:10.2307/2346567); lapses Christiano et al. 2017 (arXiv:1706.03741), section 2.2.3.
"""

from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, gammaln, log_expit

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
TieModel = Literal["rao-kupper", "davidson"]

A: Final = 0
B: Final = 1
TIE: Final = 2
CANNOT_TELL: Final = 3
CODES: Final = {"a": A, "b": B, "tie": TIE, "skip": CANNOT_TELL}
"""How a choice is written in an array; the first three as in objectives.preference."""
STRENGTHS: Final = 3


class Likelihood(NamedTuple):
    """(P,) each: log-likelihood in nats and its derivatives. `guess` is the logit of a lapsed rater being undecided."""

    logp: Array
    view: Array
    tie: Array
    lapse: Array
    """By the logit of the lapse."""
    cut: Array
    """(P, 2), by the two cuts between strengths."""
    guess: Array


def pair_likelihood(
    view: Array,
    choice: Ints,
    strength: Ints,
    tie: Array | None,
    lapse: Array | None,
    cut: Array | None,
    guess: float = 0.0,
    *,
    ties: TieModel = "rao-kupper",
) -> Likelihood:
    """Log-likelihood of votes on pairs, "tie" and "cannot tell" taken together.

    Shapes: view, choice, strength, tie, lapse (P,); cut (P, 2), rising. strength is 1 to 3, or 0 where none was given.
    `tie` None: nobody may be undecided; `lapse` None: nobody lapses (else its logit); `cut` None: no strengths.
    Derivatives of what is None are 0. Raises: ValueError for an undecided vote where `tie` is None, or a strength
    where `cut` is None: such votes would have no probability.
    """
    undecided = choice >= TIE
    if tie is None and undecided.any():
        raise ValueError("a vote is undecided but `tie` is None: give a tie width")
    if cut is None and strength.any():
        raise ValueError("a vote has a strength but `cut` is None: give the cuts between strengths")
    logp, by_view, by_tie = _choice(view, choice, tie, ties)
    by_cut = np.zeros((len(view), 2))
    graded = (strength > 0) & ~undecided
    if cut is not None and graded.any():
        side = np.where(choice[graded] == A, 1.0, -1.0)
        more, by_side, by_cut[graded] = _strength(side * view[graded], strength[graded], cut[graded])
        logp[graded] += more
        by_view[graded] += side * by_side
    nothing = np.zeros(len(view))
    if lapse is None:
        return Likelihood(logp, by_view, by_tie, nothing, by_cut, nothing)
    unsure = guess if tie is not None else -np.inf
    blind = np.where(undecided, log_expit(unsure), log_expit(-unsure) - np.log(2.0))
    blind = blind - np.where(graded, np.log(STRENGTHS), 0.0)
    by_guess = np.where(undecided, expit(-unsure), -expit(unsure))
    mixed, looked, by_lapse = _mix(logp, blind, lapse)
    return Likelihood(
        mixed, looked * by_view, looked * by_tie, by_lapse, looked[:, None] * by_cut, (1 - looked) * by_guess
    )


def thumb_likelihood(view: Array, up: NDArray[np.bool_], lapse: Array | None) -> tuple[Array, Array, Array]:
    """(log-likelihood, its derivative by the view, by the logit of the lapse) of thumbs: P(up) = s(view).

    Shapes: all (P,). A lapsed thumb is up with probability 1/2.
    """
    side = np.where(up, 1.0, -1.0)
    logp, by_view = log_expit(side * view), side * expit(-side * view)
    if lapse is None:
        return logp, by_view, np.zeros(len(view))
    mixed, looked, by_lapse = _mix(logp, np.full(len(view), -np.log(2.0)), lapse)
    return mixed, looked * by_view, by_lapse


def ranking_likelihood(view: Array, lapse: Array | None) -> tuple[Array, Array, Array]:
    """(log-likelihood (M,), by the view (M, K), by the logit of the lapse (M,)) of orders, best answer first.

    Shapes: view (M, K), rewards times sensitivity in the order given, -inf after the last answer of a shorter order.
    The best of those left is named again and again, each with probability exp(view) / sum of exp(view)
    (Plackett-Luce); a lapsed rater gives every order the same probability.
    """
    there = np.isfinite(view)
    left = np.logaddexp.accumulate(view[:, ::-1], axis=1)[:, ::-1]  # ln sum over the answers not yet named
    logp = np.where(there, np.where(there, view, 0.0) - np.where(there, left, 0.0), 0.0).sum(1)
    by_view = there.astype(np.float64)
    for k in range(view.shape[1]):
        with np.errstate(invalid="ignore"):
            chance = np.exp(view[:, k:] - left[:, k : k + 1])
        by_view[:, k:] -= np.where(there[:, k : k + 1] & there[:, k:], chance, 0.0)
    if lapse is None:
        return logp, by_view, np.zeros(len(view))
    mixed, looked, by_lapse = _mix(logp, -gammaln(there.sum(1) + 1.0), lapse)
    return mixed, looked[:, None] * by_view, by_lapse


def _choice(view: Array, choice: Ints, tie: Array | None, ties: TieModel) -> tuple[Array, Array, Array]:
    """Log-likelihood of a, b or undecided, by the view, by the tie parameter."""
    side = np.where(choice == A, 1.0, -1.0)
    if tie is None:
        return log_expit(side * view), side * expit(-side * view), np.zeros(len(view))
    undecided = choice >= TIE
    if ties == "davidson":
        weight = np.stack([view / 2, -view / 2, tie])
        total = np.logaddexp.reduce(weight)
        p = np.exp(weight - total)
        logp = np.where(undecided, tie, side * view / 2) - total
        by_view = np.where(undecided, 0.0, side / 2) - (p[0] - p[1]) / 2
        return logp, by_view, undecided - p[2]
    width = np.exp(tie)
    beyond_a, beyond_b = expit(width - view), expit(width + view)  # what a and b fall short of
    logp = log_expit(side * view - width)
    by_view = np.where(choice == A, beyond_a, -beyond_b)
    by_width = -np.where(choice == A, beyond_a, beyond_b)
    within = -np.expm1(-2 * width)
    log_tie = 2 * width + np.log(within) + log_expit(view - width) + log_expit(-view - width)
    logp = np.where(undecided, log_tie, logp)
    by_view = np.where(undecided, beyond_a - beyond_b, by_view)
    by_width = np.where(undecided, 2 / within - beyond_a - beyond_b, by_width)
    return logp, by_view, by_width * width


def _strength(side: Array, strength: Ints, cut: Array) -> tuple[Array, Array, Array]:
    """Log-likelihood of strengths 1 to 3, by the view towards the chosen answer, by the two cuts (P, 2)."""
    low, high = side - cut[:, 0], side - cut[:, 1]
    gap = cut[:, 1] - cut[:, 0]
    within = -np.expm1(-gap)  # s(low) - s(high) = s(low) s(-high) (1 - exp(-gap))
    logp = np.choose(
        strength - 1, [log_expit(-low), log_expit(low) + log_expit(-high) + np.log(within), log_expit(high)]
    )
    by_low = np.choose(strength - 1, [-expit(low), expit(-low), 0.0])
    by_high = np.choose(strength - 1, [0.0, -expit(high), expit(-high)])
    by_gap = np.where(strength == 2, np.exp(-gap) / within, 0.0)
    return logp, by_low + by_high, np.stack([-by_low - by_gap, -by_high + by_gap], axis=1)


def _mix(logp: Array, blind: Array, lapse: Array) -> tuple[Array, Array, Array]:
    """A judgement made with open eyes or blindly: (log-likelihood, chance that he looked, by the lapse's logit)."""
    looked, lapsed = log_expit(-lapse) + logp, log_expit(lapse) + blind
    mixed = np.logaddexp(looked, lapsed)
    chance = np.exp(looked - mixed)
    return mixed, chance, (1 - chance) - expit(lapse)
