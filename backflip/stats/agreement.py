"""How often raters agree with one another, with themselves and with known answers.

Agreement is the ceiling for any reward model that learns from them.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from backflip.stats.bootstrap import Interval, bootstrap_mean

Array = NDArray[np.float64]
ORDER: Final = {"b": -1, "tie": 0, "a": 1}
"""A choice as a number for `krippendorff_alpha`: the tie lies between the two."""


class Share(NamedTuple):
    """One rater's share and what it was counted on."""

    share: Interval
    judged: int


class Agreement(NamedTuple):
    """Agreement over the pairs that at least two raters judged."""

    share: Interval
    pairs: int
    """Pairs judged by at least two raters."""


def pair_agreement(
    pair: Sequence[Hashable],
    rater: Sequence[Hashable],
    choice: Sequence[str],
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Agreement:
    """Share of doubly judged pairs on which two raters chose the same.

    The same choice counts 1 (two ties too), a tie against a decision 0.5, opposite decisions 0. A pair with more
    than two raters counts once, with the mean over its couples of raters. Pairs are resampled for the interval.

    Shapes: pair, rater, choice (N,), one entry per standing vote; choices are "a", "b", "tie" in the pair's own
    order, not the screen's; "skip" is left out.
    Raises: ValueError when the lengths differ, a choice is unknown, one rater has two votes on a pair, or
    fewer than 2 pairs were judged twice.
    """
    if not len(pair) == len(rater) == len(choice):
        raise ValueError(f"{len(pair)} pairs, {len(rater)} raters, {len(choice)} choices: one each per vote")
    votes: dict[Hashable, dict[Hashable, str]] = defaultdict(dict)
    for p, r, c in zip(pair, rater, choice, strict=True):
        if not _is_judgement(c):
            continue
        if r in votes[p]:
            raise ValueError(f"rater {r!r} has two votes on pair {p!r}: pass standing votes only")
        votes[p][r] = c
    shares = [_share(list(cast.values())) for cast in votes.values() if len(cast) > 1]
    if len(shares) < 2:
        raise ValueError(f"{len(shares)} pairs were judged twice: an interval needs at least 2")
    return Agreement(bootstrap_mean(shares, seed, draws, level), len(shares))


def krippendorff_alpha(
    pair: Sequence[Hashable],
    rater: Sequence[Hashable],
    value: Sequence[int],
    scale: Literal["nominal", "ordinal"],
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Krippendorff's alpha: 1 - observed / expected disagreement; 1 is full agreement, 0 what chance would give.

    "nominal": two values differ or not; "ordinal": they differ by how much lies between them. Pairs are resampled
    for the interval; a resample in which nobody differs from anybody counts as 1. Pairs judged once tell nothing.
    Shapes: pair, rater, value (N,), one entry per standing vote; for choices see `ORDER`, for strengths -3 to 3.
    Raises: ValueError when the lengths differ, one rater has two values on a pair, fewer than 2 pairs were judged
    twice, all values are the same, or draws or level do not fit.
    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability".
    """
    if not len(pair) == len(rater) == len(value):
        raise ValueError(f"{len(pair)} pairs, {len(rater)} raters, {len(value)} values: one each per vote")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be 1 or more and level lie in (0, 1), not {draws} and {level}")
    said: dict[Hashable, dict[Hashable, int]] = defaultdict(dict)
    for p, r, v in zip(pair, rater, value, strict=True):
        if r in said[p]:
            raise ValueError(f"rater {r!r} has two values on pair {p!r}: pass standing votes only")
        said[p][r] = v
    kinds = {v: i for i, v in enumerate(sorted(set(value)))}
    counts = np.array(
        [np.bincount([kinds[v] for v in s.values()], minlength=len(kinds)) for s in said.values() if len(s) > 1]
    )
    if len(counts) < 2:
        raise ValueError(f"{len(counts)} pairs were judged twice: an interval needs at least 2")
    if (counts.sum(0) > 0).sum() < 2:
        raise ValueError("everybody always said the same: there is nothing to tell agreement from chance by")
    coincidences = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(kinds))
    each = (coincidences / (counts.sum(1) - 1)[:, None, None]).reshape(len(counts), -1)
    luck = np.random.default_rng(seed)
    alphas = []
    for _ in range(draws):
        drawn = np.bincount(luck.integers(len(each), size=len(each)), minlength=len(each))
        alphas.append(_alpha((drawn @ each).reshape(len(kinds), -1), scale))
    low, high = np.quantile(alphas, [(1 - level) / 2, (1 + level) / 2])
    return Interval(_alpha(each.sum(0).reshape(len(kinds), -1), scale), float(low), float(high))


def _alpha(coincidence: Array, scale: str) -> float:
    """Alpha from a matrix of coincidences (V, V)."""
    n = coincidence.sum(1)
    if scale == "ordinal":
        middle = np.cumsum(n) - n / 2
        apart = (middle[:, None] - middle) ** 2
    else:
        apart = 1 - np.eye(len(n))
    expected = (np.outer(n, n) * apart).sum()
    return float(1 - (n.sum() - 1) * (coincidence * apart).sum() / expected) if expected > 0 else 1.0


def self_consistency(
    pair: Sequence[Hashable], rater: Sequence[Hashable], choice: Sequence[str], level: float = 0.95
) -> dict[Hashable, Share]:
    """How often each rater said the same of a pair that he judged more than once, as in `pair_agreement`.

    A pair judged three times counts once, with the mean over its couples. Raters without a repeat are left out.
    Shapes: pair, rater, choice (N,), choices in the pair's own order, not the screen's; "skip" is left out. Intervals
    are Jeffreys's, for a share of few. Raises: ValueError when the lengths differ or a choice is unknown.
    """
    if not len(pair) == len(rater) == len(choice):
        raise ValueError(f"{len(pair)} pairs, {len(rater)} raters, {len(choice)} choices: one each per vote")
    said: dict[Hashable, dict[Hashable, list[str]]] = defaultdict(lambda: defaultdict(list))
    for p, r, c in zip(pair, rater, choice, strict=True):
        if _is_judgement(c):
            said[r][p].append(c)
    repeats = {r: [_share(c) for c in own.values() if len(c) > 1] for r, own in said.items()}
    return {r: share_of(sum(shares), len(shares), level) for r, shares in repeats.items() if shares}


def gold_accuracy(
    gold: Sequence[str], rater: Sequence[Hashable], choice: Sequence[str], level: float = 0.95
) -> dict[Hashable, Share]:
    """How often each rater gave the known answer to a pair that has one; a tie against a decision counts half.

    Shapes: gold, rater, choice (N,), one entry per vote on such a pair; "skip" is left out. Intervals are Jeffreys's.
    Raises: ValueError when the lengths differ or a choice is unknown.
    """
    if not len(gold) == len(rater) == len(choice):
        raise ValueError(f"{len(gold)} answers, {len(rater)} raters, {len(choice)} choices: one each per vote")
    hits: dict[Hashable, list[float]] = defaultdict(list)
    for g, r, c in zip(gold, rater, choice, strict=True):
        if g not in ORDER:
            raise ValueError(f'a known answer is "{g}": it must be one of {", ".join(ORDER)}')
        if _is_judgement(c):
            hits[r].append(_share([g, c]))
    return {r: share_of(sum(h), len(h), level) for r, h in hits.items()}


def share_of(score: float, count: int, level: float = 0.95) -> Share:
    """`score` of `count`, a share, with the interval of a beta prior (1/2, 1/2). Source: Brown, Cai & DasGupta 2001."""
    ends = beta.ppf([(1 - level) / 2, (1 + level) / 2], score + 0.5, count - score + 0.5)
    low = 0.0 if score == 0 else float(ends[0])
    high = 1.0 if score == count else float(ends[1])
    return Share(Interval(score / count, low, high), count)


def _is_judgement(choice: str) -> bool:
    if choice not in ORDER and choice != "skip":
        raise ValueError(f'a choice is "{choice}": pass standing votes only ("a", "b", "tie", "skip")')
    return choice != "skip"


def _share(choices: list[str]) -> float:
    couples = list(combinations(choices, 2))
    return sum(1.0 if x == y else 0.5 if "tie" in (x, y) else 0.0 for x, y in couples) / len(couples)
