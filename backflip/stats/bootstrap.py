"""Means, differences, ratios and win rates with percentile bootstrap intervals; a share of few with Wilson's.

What is resampled is the unit that was drawn at random, nearly always the prompt: answers to one prompt
are alike, and resampling single answers would make an interval too narrow.
Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float


def bootstrap_mean(
    values: ArrayLike,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    *,
    unit: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean of `values` with a percentile interval.

    Shapes: values (N,) finite; unit (N,) says which unit each value belongs to (say, its prompt): units are then
    resampled whole. Left out, each value is its own unit.
    Raises: ValueError when fewer than 2 units are left to resample, a value is not finite, the shapes differ,
    draws is below 1 or level outside (0, 1).
    """
    x = _column("values", values)
    if unit is None:
        return ratio_of_means(x, np.ones_like(x), seed, draws, level)
    if len(unit) != len(x):
        raise ValueError(f"{len(x)} values but {len(unit)} units")
    places: dict[Hashable, int] = {}
    place = np.array([places.setdefault(u, len(places)) for u in unit], dtype=np.int64)
    sums = np.bincount(place, weights=x, minlength=len(places))
    counts = np.bincount(place, minlength=len(places)).astype(np.float64)
    return ratio_of_means(sums, counts, seed, draws, level)


def wilson(wins: float, judged: int, level: float = 0.95) -> Interval:
    """A share of wins, ties half, and its interval, which is sound also for few.

    Raises: ValueError without a judgement.
    Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953).
    """
    if not 0 <= wins <= judged or judged < 1:
        raise ValueError(f"{wins} wins of {judged}: a share needs 1 judgement or more")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, room = wins / judged, z * z / judged
    middle, half = share + room / 2, math.sqrt(share * (1 - share) * room + room * room / 4)
    return Interval(share, (middle - half) / (1 + room), (middle + half) / (1 + room))


def paired_difference(a: ArrayLike, b: ArrayLike, seed: int, draws: int = 2000, level: float = 0.95) -> Interval:
    """Mean of a - b, unit by unit.

    Shapes: a, b (N,): the same units in the same order. Raises: ValueError as `bootstrap_mean`.
    """
    x, y = _column("a", a), _column("b", b)
    if x.shape != y.shape:
        raise ValueError(f"a has {len(x)} units, b has {len(y)}")
    return bootstrap_mean(x - y, seed, draws, level)


def ratio_of_means(a: ArrayLike, b: ArrayLike, seed: int, draws: int = 2000, level: float = 0.95) -> Interval:
    """mean(a) / mean(b); a unit's a and b are drawn together.

    Shapes: a, b (N,): the same units in the same order, b >= 0.
    Raises: ValueError as `bootstrap_mean`, or when a b is negative or a draw's b are all 0.
    """
    x, y = _column("a", a), _column("b", b)
    if x.shape != y.shape:
        raise ValueError(f"a has {len(x)} units, b has {len(y)}")
    if len(x) < 2:
        raise ValueError(f"{len(x)} unit: an interval needs at least 2")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be 1 or more and level lie in (0, 1), not {draws} and {level}")
    if (y < 0).any() or not y.sum() > 0:
        raise ValueError("the denominators must be 0 or more, and not all 0")
    parts = []
    for drawn in _resamples(len(x), seed, draws):
        below = y[drawn].sum(axis=1)
        if not below.all():
            raise ValueError("a draw's denominators are all 0: too few units have one above 0")
        parts.append(x[drawn].sum(axis=1) / below)
    low, high = np.quantile(np.concatenate(parts), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.sum() / y.sum()), float(low), float(high))


def win_shares(a: ArrayLike, b: ArrayLike) -> Floats:
    """For each prompt, the share of (i, j) with a_i > b_j; ties count half.

    Shapes: a (P, G), b (P, H), utilities of the answers of two policies to the same prompts. Returns (P,).
    To pool runs, average their shares prompt by prompt, then `bootstrap_mean`.
    Raises: ValueError when the prompts differ in number, a policy has no answer or a utility is not finite.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or x.size == 0 or y.size == 0:
        raise ValueError(f"a and b must be (P, G) and (P, H), not {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a utility is not finite")
    gap = x[:, :, None] - y[:, None, :]
    shares: Floats = ((gap > 0) + 0.5 * (gap == 0)).mean(axis=(1, 2))
    return shares


def win_rate(a: ArrayLike, b: ArrayLike, seed: int, draws: int = 2000, level: float = 0.95) -> Interval:
    """How often an answer of a is better than one of b: mean of `win_shares`, interval over prompts.

    Shapes: a (P, G), b (P, H). Raises: ValueError as `win_shares`, or when there are fewer than 2 prompts.
    """
    return bootstrap_mean(win_shares(a, b), seed, draws, level)


def _column(name: str, values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"{name} must be (N,), not {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds a value that is not finite")
    return x


def _resamples(n: int, seed: int, draws: int) -> Iterator[NDArray[np.int64]]:
    """Indices (rows, n) of the resamples, some rows at a time so that memory stays small."""
    rng = np.random.default_rng(seed)
    rows = max(1, 1_000_000 // n)
    for start in range(0, draws, rows):
        yield rng.integers(n, size=(min(rows, draws - start), n))
