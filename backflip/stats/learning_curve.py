"""What more votes would buy: a power law through how right a reward was with fewer.

right(n) = top - drop x n^-power, with drop >= 0 and the power from a few; the interval comes from resampling both the
prompts that were judged on and the subsets that were learned from.
Source: Hestness et al. 2017 (arXiv:1712.00409) for the law; Efron & Tibshirani 1993, chapter 9, for the bootstrap.
"""

from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.stats.bootstrap import Interval

Array = NDArray[np.float64]
POWERS: Final = (0.25, 0.5, 0.75, 1.0, 1.5)
"""From a long way to go to nearly there; a few points cannot tell more."""


class Bought(NamedTuple):
    """Shares of votes foretold."""

    now: float
    """With the votes there are, by the curve."""
    gain: Interval
    """By how much it would rise with more."""
    curve: tuple[tuple[float, float], ...]
    """(votes, share foretold) as measured on subsets."""


def gain_of_more(
    size: Array, right: Array, unit: Sequence[Hashable], now: int, more: int, seed: int, draws: int = 400,
    level: float = 0.9,
) -> Bought:  # fmt: skip
    """What `more` votes beyond the `now` there are would buy.

    Shapes: size (S,), votes learned from; right (R, V, S), whether a reward learned from so many, in one of R ways to
    take a part of them, foretold each of V votes (a tie half); nan where the vote was among those learned from; unit
    (V,), the prompt of each. Raises: ValueError when the shapes do not fit, or there are fewer than 3 sizes or 2 units.
    """
    repeats, votes, sizes = right.shape
    units = {u: i for i, u in enumerate(dict.fromkeys(unit))}
    if sizes != len(size) or votes != len(unit) or sizes < 3 or len(units) < 2 or now < 1 or more < 1:
        raise ValueError("right must be (R, V, S) with 3 sizes or more, unit (V,) with 2 units or more")
    owner = np.array([units[u] for u in unit])
    there = np.isfinite(right)
    sums, counts = (np.zeros((repeats, len(units), sizes)) for _ in range(2))
    for r in range(repeats):
        np.add.at(sums[r], owner, np.where(there[r], right[r], 0.0))
        np.add.at(counts[r], owner, there[r])
    curve = sums.sum((0, 1)) / counts.sum((0, 1))
    luck, gains = np.random.default_rng(seed), []
    for _ in range(draws):
        of_units = np.bincount(luck.integers(len(units), size=len(units)), minlength=len(units))
        of_repeats = np.bincount(luck.integers(repeats, size=repeats), minlength=repeats)
        weigh = of_repeats[:, None] * of_units
        below = np.einsum("ru,rus->s", weigh, counts)
        if below.all():
            drawn = np.einsum("ru,rus->s", weigh, sums) / below
            gains.append(_rise(size, drawn, now, more)[1])
    level_now, best = _rise(size, curve, now, more)
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    measured = tuple((float(n), float(a)) for n, a in zip(size, curve, strict=True))
    return Bought(level_now, Interval(best, float(low), float(high)), measured)


def _rise(size: Array, right: Array, now: int, more: int) -> tuple[float, float]:
    """(share foretold now, rise with `more`) by the power law of least squares."""
    best = (np.inf, float(right.mean()), 0.0)
    for power in POWERS:
        x = size**-power
        slope = -min(0.0, float(((x - x.mean()) * (right - right.mean())).sum() / ((x - x.mean()) ** 2).sum()))
        top = float(right.mean() + slope * x.mean())
        error = float(np.square(right - (top - slope * x)).sum())
        if error < best[0]:
            best = (error, top - slope * now**-power, slope * (now**-power - (now + more) ** -power))
    return best[1], best[2]
