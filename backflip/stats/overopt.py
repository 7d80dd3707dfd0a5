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
