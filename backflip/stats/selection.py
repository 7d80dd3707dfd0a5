"""What a vote on a pair would teach, and how likely each pair is to be asked about.

A strategy gives each candidate a score; `inclusion` turns scores into exact chances of being asked, never 0, so that
what is learned from chosen pairs can be weighed back to all pairs; `draw` picks as many as wanted with those chances.
Knows nothing of prompts, samples or raters. A candidate is the gap between two answers' features, (C, F).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, xlogy

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class Chosen(NamedTuple):
    """What is asked: candidates' places (P,), in the order they were chosen, and the chance of each (P,)."""

    place: Ints
    probability: Array


def uncertainty(apart: Array, weight: Array) -> Array:
    """(C,) p(1 - p) of each candidate under the reward `weight` (F,): how far the winner is from known."""
    p = expit(apart @ weight)
    return np.asarray(p * (1 - p))


def disagreement(apart: Array, weights: Array) -> Array:
    """(C,) standard deviation over the members' weights (K, F) of P(first answer wins).

    Source: Christiano et al. 2017 (arXiv:1706.03741), section 2.2.4. Raises: ValueError for fewer than 2 members.
    """
    if len(weights) < 2:
        raise ValueError(f"{len(weights)} member: disagreement needs at least 2")
    return np.asarray(expit(apart @ weights.T).std(axis=1))


def information(apart: Array, weight: Array, covariance: Array, points: int = 21) -> Array:
    """(C,) nats that a vote is expected to tell of the reward (BALD), for weights normal around `weight`.

    Shapes: covariance (F, F). The mean over the gap's normal law is Gauss and Hermite's with so many points.
    Source: Houlsby et al. 2011 (arXiv:1112.5745), eq. 2.
    """
    node, share = np.polynomial.hermite_e.hermegauss(points)
    spread = np.sqrt(_variances(apart, covariance))
    p = expit((apart @ weight)[:, None] + spread[:, None] * node)
    share = share / share.sum()
    return np.asarray(np.maximum(_entropy(p @ share) - _entropy(p) @ share, 0.0))


def greedy_variance(apart: Array, weight: Array, covariance: Array, count: int) -> Ints:
    """Places of `count` candidates, each the one with the highest p(1 - p) x variance given those before it.

    A vote on x adds p(1 - p) x x^T to what is known, whatever it says, so that the covariance falls by a product of
    rank one: like candidates are not asked about twice. Best for finding the best of many answers, not for accuracy.
    Raises: ValueError when there are fewer candidates than wanted.
    """
    if not 0 <= count <= len(apart):
        raise ValueError(f"{count} pairs are wanted of {len(apart)}")
    p = expit(apart @ weight)
    known, left = p * (1 - p), covariance.copy()
    variance, chosen = _variances(apart, covariance), []
    free = np.ones(len(apart), dtype=bool)
    for _ in range(count):
        best = int(np.argmax(np.where(free, known * variance, -1.0)))
        free[best] = False
        chosen.append(best)
        towards = left @ apart[best]
        factor = known[best] / (1 + known[best] * variance[best])
        left -= factor * np.outer(towards, towards)
        variance = np.maximum(variance - factor * (apart @ towards) ** 2, 0.0)
    return np.array(chosen, dtype=np.int64)


def double_thompson(rewards: Array) -> Array:
    """(N, N) chance of each pair of N answers when two draws of the reward each name their best.

    Shapes: rewards (S, N), draws of the answers' rewards; both draws are taken by lot, with replacement. Where both
    name the same answer, the second names its second best. The chances above the diagonal sum to 1, all others are 0.
    Source: Wu & Liu 2016 (arXiv:1604.07101); for language models Dwaracherla et al. 2024 (arXiv:2402.00396).
    Raises: ValueError for fewer than 2 answers or no draw.
    """
    draws, answers = rewards.shape
    if answers < 2 or draws < 1:
        raise ValueError(f"two answers and a draw are needed, not {answers} and {draws}")
    order = np.argsort(-rewards, axis=1, kind="stable")
    best = np.bincount(order[:, 0], minlength=answers) / draws
    chance = np.outer(best, best)
    for first, second in order[:, :2]:  # both named `first`: the draw's second best takes its place
        chance[first, second] += best[first] / draws
    return np.asarray(np.triu(chance + chance.T, 1))


def inclusion(score: Array, count: int, floor: float = 0.1) -> Array:
    """(C,) chances of being asked that sum to `count`: a share `floor` alike for all, the rest as the scores (C,).

    No chance passes 1; what is cut off goes to the others, as their scores. Scores that are all 0 count alike.
    Raises: ValueError when scores are negative or not finite, `count` does not fit or floor lies outside [0, 1].
    """
    n = len(score)
    if not (np.isfinite(score).all() and (score >= 0).all()) or not 0 <= count <= n or not 0 <= floor <= 1:
        raise ValueError(f"scores must be 0 or more, and count {count} of {n} and floor {floor} fit")
    mixed = np.full(n, 1.0) if not score.sum() > 0 else floor / n + (1 - floor) * score / score.sum()
    sure = np.zeros(n, dtype=bool)
    while True:
        rest = mixed * ~sure
        spare = count - int(sure.sum())
        chance = np.where(sure, 1.0, rest * spare / rest.sum() if rest.sum() > 0 else 0.0)
        over = (chance > 1 + 1e-12) & ~sure
        if not over.any():
            return np.minimum(chance, 1.0)
        sure |= over


def draw(chance: Array, luck: np.random.Generator) -> Chosen:
    """As many candidates as the chances (C,) sum to, each included with exactly its own chance.

    Systematic sampling over a random order. Source: Madow 1949, Annals of Mathematical Statistics 20.
    Raises: ValueError when the chances do not lie in [0, 1] or do not sum to a whole number.
    """
    count = round(float(chance.sum()))
    if (chance < 0).any() or (chance > 1).any() or abs(chance.sum() - count) > 1e-6:
        raise ValueError("chances must lie in [0, 1] and sum to a whole number")
    order = luck.permutation(len(chance))
    ends = np.cumsum(chance[order])
    hit = np.searchsorted(ends, luck.random() + np.arange(count), side="right")
    place = order[np.minimum(hit, len(chance) - 1)]
    return Chosen(place, chance[place])


def with_exploration(chosen: Ints, candidates: int, count: int, luck: np.random.Generator) -> Chosen:
    """The `chosen` candidates, sure to be asked, and others by lot until there are `count`.

    Each other has the same chance, so that none is beyond reach. Raises: ValueError when the numbers do not fit.
    """
    spare, others = count - len(chosen), np.setdiff1d(np.arange(candidates), chosen)
    if not 0 <= spare <= len(others):
        raise ValueError(f"{count} of {candidates} cannot be asked with {len(chosen)} chosen")
    drawn = luck.permutation(others)[:spare]
    chance = spare / max(len(others), 1)
    return Chosen(np.append(chosen, drawn), np.append(np.ones(len(chosen)), np.full(spare, chance)))


def _variances(apart: Array, covariance: Array) -> Array:
    return np.asarray(np.maximum(((apart @ covariance) * apart).sum(1), 0.0))


def _entropy(p: Array) -> Array:
    return np.asarray(-xlogy(p, p) - xlogy(1 - p, 1 - p))
