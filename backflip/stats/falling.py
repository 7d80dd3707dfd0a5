"""Has gold begun to fall? A test that may be looked at after every batch of votes, and stopped at any look.

A policy's path is looked at again and again; at look k, at distance d_k from the start, m_k fresh answers are judged
against the untouched model's, each win worth 1, each tie 1/2. The null hypothesis is that the chance of a win has never
fallen so far: 1/2 at the start, and from look to look no lower. The evidence against it is a ratio of likelihoods:
above the line a mixture of curves that rise to a peak and fall, below it the likeliest of all paths that never fall
(isotonic regression). Under the null it exceeds 1 / rate at any look with a chance of at most `rate`.

Source: universal inference, Wasserman, Ramdas & Balakrishnan 2020 (arXiv:1912.11436), its sequential form, with
Ville's inequality; that wins between 0 and 1 are as good as coins: convexity, as in Waudby-Smith & Ramdas 2024
(arXiv:2010.09686). Judgements must be drawn afresh at each look: prompts by lot, answers new.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp

Array = NDArray[np.float64]
PEAKS = np.geomspace(0.4, 10.0, 9)
"""Distances, in square roots of nats, at which the mixture's curves are highest; each curve more costs evidence."""
HEIGHTS = np.array([0.06, 0.15, 0.35, 0.8, 1.8])
"""How high they are, in logits above 1/2."""
DEEPEST = -1.1
"""Logits below which no curve of the mixture falls: 25% wins, what raters who err in a quarter of votes leave."""
EDGE = 1e-9


class Look(NamedTuple):
    """The judgements of one look."""

    d: float
    """Square root of the KL, in nats."""
    wins: float
    """Wins, ties half."""
    judged: int


class Evidence(NamedTuple):
    """What the looks so far say."""

    log_e: float
    """Natural log of the e-value against "gold has never fallen"; the alarm rings at ln(1 / rate)."""
    expected: Array
    """(K,) chance of a win at each look, by the mixture after all looks."""
    peak: float
    """Distance at which gold is highest, median of the mixture."""
    low: float
    """2.5% of the mixture's peaks lie below."""
    high: float
    """2.5% of the mixture's peaks lie above."""

    @property
    def best(self) -> int:
        """The look with the highest expected chance: where to roll back to; -1 when that is the start."""
        place = int(self.expected.argmax())
        return place if self.expected[place] > 0.5 else -1


def weigh(looks: Sequence[Look]) -> Evidence:
    """The evidence after `looks`, in the order in which they were taken.

    Raises: ValueError without a look, or for one without judgements, with wins outside 0 ... judged or d below 0.
    """
    if not looks:
        raise ValueError("there is no look to weigh")
    d, wins, judged = (np.array(x, dtype=np.float64) for x in zip(*looks, strict=True))
    if (judged < 1).any() or (wins < 0).any() or (wins > judged).any() or not (d >= 0).all():
        raise ValueError("a look has 1 or more judgements, 0 to that many wins, and a distance of 0 or more")
    chances = curves(d)
    logs = wins @ np.log(chances).T + (judged - wins) @ np.log1p(-chances).T
    weight = np.exp(logs - logsumexp(logs))
    peaks = np.repeat(np.concatenate([PEAKS, PEAKS]), len(HEIGHTS))
    low, middle, high = _quantiles(peaks, weight, (0.025, 0.5, 0.975))
    null = rising(wins / judged, judged)
    with np.errstate(divide="ignore", invalid="ignore"):
        at_most = np.where(wins > 0, wins * np.log(null), 0.0) + np.where(
            wins < judged, (judged - wins) * np.log1p(-null), 0.0
        )
    log_e = float(logsumexp(logs) - math.log(len(logs)) - at_most.sum())
    return Evidence(log_e, weight @ chances, middle, low, high)


def curves(d: ArrayLike) -> Array:
    """(C, K) chances of a win at distances d (K,) under each curve of the mixture: both forms of `overopt`."""
    u = np.asarray(d, dtype=np.float64)[None] / PEAKS[:, None]
    shapes = np.concatenate([u * (2 - u), u * (1 - np.log(np.maximum(u, EDGE)))])
    logits = np.maximum(shapes[:, None] * HEIGHTS[None, :, None], DEEPEST)
    return np.asarray(expit(logits).reshape(-1, u.shape[1]))


def rising(share: ArrayLike, weight: ArrayLike) -> Array:
    """(K,) the likeliest chances that never fall and begin at 1/2 or more: pool adjacent violators, then clip.

    Source: Barlow et al. 1972; for binomial likelihoods least squares and likelihood agree.
    """
    blocks: list[tuple[float, float, int]] = []
    for value, w in zip(np.asarray(share, dtype=np.float64), np.asarray(weight, dtype=np.float64), strict=True):
        block = (float(value), float(w), 1)
        while blocks and blocks[-1][0] >= block[0]:
            v, u, n = blocks.pop()
            block = ((v * u + block[0] * block[1]) / (u + block[1]), u + block[1], n + block[2])
        blocks.append(block)
    return np.asarray(np.maximum(0.5, np.concatenate([np.full(n, v) for v, _, n in blocks])))


def in_doubt(looks: Sequence[Look]) -> bool:
    """Whether the last policy looked at is expected to lose: more judgements of it may then make sure of that."""
    return bool(looks) and bool(weigh(looks).expected[-1] < 0.5)


def first_alarm(looks: Sequence[Look], rate: float) -> int | None:
    """The first look at which the alarm rings, from 0; None when it never does."""
    for k in range(len(looks)):
        if weigh(looks[: k + 1]).log_e >= math.log(1 / rate):
            return k
    return None


def simulated(d: Array, chance: Array, judged: int, seed: int) -> list[Look]:
    """Looks at distances d (K,) whose judgements win with these chances (K,)."""
    wins = np.random.default_rng(seed).binomial(judged, chance)
    return [Look(float(x), float(w), judged) for x, w in zip(d, wins, strict=True)]


class Power(NamedTuple):
    """What a number of votes a look buys, on simulated paths that peak and fall."""

    judged: int
    """Votes at each look."""
    caught: float
    """Share of paths on which the alarm rang."""
    votes: float
    """Votes until it rang, median over the paths where it did; over all looks where none did."""
    overrun: float
    """Distance past the peak at which it rang, median."""


def power(
    judged: int, *, best: float = 0.6, peak: float = 1.8, until: float = 6.0, spacing: float = 0.4, rate: float = 0.05,
    paths: int = 200, seed: int = 0
) -> Power:  # fmt: skip
    """Simulate paths whose chance of a win rises to `best` at distance `peak` and falls as best of n does.

    Raises: ValueError for numbers that make no such path.
    """
    if not (0.5 < best < 1 and 0 < peak < until and 0 < spacing < until and 0 < rate < 1 and judged >= 1):
        raise ValueError("best lies in 0.5 ... 1, peak below until, spacing below until, rate in 0 ... 1")
    d = np.arange(spacing, until + 1e-9, spacing)
    u = d / peak
    chance = expit(np.maximum(math.log(best / (1 - best)) * u * (2 - u), DEEPEST))
    rang = [first_alarm(simulated(d, chance, judged, seed * paths + i), rate) for i in range(paths)]
    at = [k for k in rang if k is not None]
    if not at:
        return Power(judged, 0.0, float(judged * len(d)), math.nan)
    middle = float(np.median(at))
    return Power(judged, len(at) / paths, judged * (middle + 1), float(np.median(d[at]) - peak))


def _quantiles(values: Array, weight: Array, shares: Sequence[float]) -> list[float]:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order])
    return [float(values[order][min(int(np.searchsorted(reached, s)), len(order) - 1)]) for s in shares]
