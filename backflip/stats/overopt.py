"""How gold goes with the distance from the start: the two forms of over-optimisation, and how well they foretell.

With d = sqrt(KL), best of n follows R = d (alpha - beta d), and RL follows R = d (alpha - beta ln d); gold peaks at
alpha / (2 beta) and exp(alpha / beta - 1). Both are linear in alpha and beta. A form is judged by what it foretells of
distances and prompts it has not seen, never by R^2, which is high also where nothing peaks.
Source: Gao, Schulman & Hilton 2022 (arXiv:2210.10760).
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backflip.stats.bootstrap import Interval, bootstrap_mean

Array = NDArray[np.float64]
Form = Literal["best_of_n", "rl"]
LEVEL = 0.95
FEWEST = 8
"""Measurements of a path below which nothing is said of its turn."""


class Turn(NamedTuple):
    """A form fitted to a curve."""

    form: Form
    alpha: Interval
    beta: Interval
    peak: Interval | None
    """Distance d at which gold is highest; None: no peak in sight (see `fit_form`)."""
    seen_to: float
    """The largest d that was fitted."""

    def at(self, d: ArrayLike) -> Array:
        """Gold at distances d, relative to the start."""
        return np.asarray(columns(self.form, d) @ np.array([self.alpha.value, self.beta.value]))


class Foretold(NamedTuple):
    """What a form fitted to the near part of a curve foretold of its far part, on other prompts."""

    turn: Turn
    error: float
    """Root mean square error on the far part, in units of gold."""
    flat_error: float
    """The same for who expects gold to stay as it was at the last distance seen."""
    gain: Interval
    """Squared error of the flat guess minus that of the form, mean over the far part; interval over new prompts."""


def columns(form: Form, d: ArrayLike) -> Array:
    """(D, 2) what alpha and beta are multiplied by at distances d (D,). Raises: ValueError for a d below 0."""
    x = np.asarray(d, dtype=np.float64)
    if x.ndim != 1 or not (x >= 0).all() or not np.isfinite(x).all():
        raise ValueError("distances must be (D,), finite and 0 or more")
    bend = x * x if form == "best_of_n" else x * np.log(np.where(x > 0, x, 1.0))
    return np.stack([x, -bend], 1)


def peak_of(form: Form, alpha: float, beta: float) -> float:
    """Where the curve is highest: infinite where it never falls (beta <= 0), 0 where it falls from the start."""
    if beta <= 0:
        return math.inf
    if form == "rl":
        return math.exp(min(alpha / beta - 1, 700.0))
    return max(0.0, alpha / (2 * beta))


def fit_form(form: Form, d: ArrayLike, gold: ArrayLike, seed: int, draws: int = 1000) -> Turn:
    """Least squares over the mean of `gold` (P, D), relative to the start, at distances d (D,); bootstrap over prompts.

    A peak is in sight when the point estimate and 97.5% of the bootstrap's curves turn within the distances seen.
    Raises: ValueError with fewer than 2 prompts or 3 different distances, or for numbers that are not finite.
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if y.ndim != 2 or y.shape[1:] != x.shape or not np.isfinite(y).all():
        raise ValueError(f"gold must be (P, D), finite, with D = {x.size} distances, not {y.shape}")
    if len(y) < 2:
        raise ValueError(f"{len(y)} prompt: an interval needs at least 2")
    if len(np.unique(x[x > 0])) < 3:
        raise ValueError("a curve needs at least 3 different distances above 0")
    solve = np.linalg.pinv(columns(form, x))
    drawn = np.random.default_rng(seed).integers(len(y), size=(draws, len(y)))
    counts = np.stack([np.bincount(row, minlength=len(y)) for row in drawn]) / len(y)
    fits = counts @ y @ solve.T
    alpha, beta = solve @ y.mean(0)
    peaks = np.array([peak_of(form, a, b) for a, b in fits])
    best, far = peak_of(form, float(alpha), float(beta)), float(x.max())
    tail = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    ends = np.quantile(fits, tail, axis=0)
    of_alpha, of_beta = (Interval(float(v), *e) for v, e in zip((alpha, beta), ends.T.tolist(), strict=True))
    seen = best <= far and float((peaks <= far).mean()) >= tail[1]
    peak = Interval(best, *np.quantile(peaks[peaks <= far], tail).tolist()) if seen else None
    return Turn(form, of_alpha, of_beta, peak, far)


def foretell(form: Form, d: ArrayLike, gold: ArrayLike, seen: int, seed: int) -> Foretold:
    """Fit the first `seen` distances on half of the prompts, drawn by lot, and foretell the rest on the other half.

    Shapes: d (D,) ascending, gold (P, D). Raises: ValueError as `fit_form`, or when nothing is left to foretell.
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if y.ndim != 2 or not 3 <= seen < len(x) or len(y) < 4:
        raise ValueError("foretelling needs 4 prompts, 3 distances to fit and one to foretell")
    order = np.random.default_rng([seed, 1]).permutation(len(y))
    known, new = order[: len(y) // 2], order[len(y) // 2 :]
    turn = fit_form(form, x[:seen], y[known][:, :seen], seed)
    guess, flat = turn.at(x[seen:]), float(y[known][:, seen - 1].mean())
    far = y[new][:, seen:]
    error, flat_error = (float(np.sqrt(((far.mean(0) - g) ** 2).mean())) for g in (guess, flat))
    # (far - flat)^2 - (far - guess)^2 is linear in far: a prompt's own noise cancels, and prompts can be resampled
    gain = ((far - flat) ** 2 - (far - guess) ** 2).mean(1)
    return Foretold(turn, error, flat_error, bootstrap_mean(gain, seed))


class Course(NamedTuple):
    """A quantity along a path, from noisy measurements at some distances."""

    d: Array
    """(A,) distances, ascending."""
    middle: Array
    low: Array
    high: Array
    """(A,) its course there and its 95% band, by bootstrap over the measurements."""


def course(d: ArrayLike, value: ArrayLike, seed: int, *, points: int = 40, draws: int = 400) -> Course:
    """Straight lines fitted to what lies near each of `points` distances, near things weighing more (a normal curve, a
    seventh of the range wide). Shapes: d, value (M,) finite.

    Raises: ValueError with fewer than 5 measurements or all at one distance.
    Source: Fan & Gijbels 1996, "Local Polynomial Modelling and Its Applications".
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(value, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 5 or np.ptp(x) == 0 or not np.isfinite([x, y]).all():
        raise ValueError("a course needs 5 finite measurements, not all at one distance")
    at = np.linspace(x.min(), x.max(), points)
    off = x[None, :] - at[:, None]  # (A, M)
    near = np.exp(-0.5 * (off * 7 / np.ptp(x)) ** 2)
    rows = np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))
    counts = np.stack([np.ones(len(x)), *(np.bincount(row, minlength=len(x)) for row in rows)])
    one, lean, square = (counts @ (near * off**k).T for k in (0, 1, 2))
    much, leaning = (counts @ (near * off**k * y).T for k in (0, 1))
    ridge = 1e-6 * (near * off**2).sum(1)  # where a draw has all its measurements at one distance: their mean
    found = ((square + ridge) * much - lean * leaning) / ((square + ridge) * one - lean**2)
    low, high = np.nanquantile(found[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Course(at, found[0], low, high)


def turn_of_path(d: ArrayLike, gold: ArrayLike, seed: int, draws: int = 1000) -> Interval | None:
    """The distance at which gold is highest by RL's form with a free start, c + d (alpha - beta ln d); None: no peak.

    For a policy measured once at each of M distances, on prompts of its own each time: the bootstrap is over
    measurements. A peak is in sight when the estimate and 97.5% of the draws turn within the distances seen.
    Shapes: d, gold (M,). Raises: ValueError as `columns`, or with fewer than 8 measurements.
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if x.shape != y.shape or len(x) < FEWEST or not np.isfinite(y).all():
        raise ValueError(f"a turn needs {FEWEST} measurements, gold and distance each")
    design = np.concatenate([np.ones((len(x), 1)), columns("rl", x)], 1)
    rng = np.random.default_rng(seed)

    def peak(rows: NDArray[np.int64]) -> float:
        _, alpha, beta = np.linalg.lstsq(design[rows], y[rows], rcond=None)[0]
        return peak_of("rl", float(alpha), float(beta))

    best = peak(np.arange(len(x)))
    peaks = np.array([peak(rng.integers(len(x), size=len(x))) for _ in range(draws)])
    inside = (peaks >= x.min()) & (peaks <= x.max())
    tail = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    if not x.min() <= best <= x.max() or inside.mean() < tail[1]:
        return None
    return Interval(best, *np.quantile(peaks[inside], tail).tolist())
