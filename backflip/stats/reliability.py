"""How sure one may be of each rater, and how far raters differ: what stands around the best fit of `raters`.

The posterior is taken as normal around its top (Laplace's approximation). Given the reward, no rater's judgements say
anything of another's traits, so that its curvature is one block for what all share (the reward, what is usual), one
small block a rater, and what joins the two: differences of the analytic gradient give all of it.
Source: MacKay 2003, "Information Theory, Inference, and Learning Algorithms", chapter 27; the spreads by
expectation-maximisation, Dempster, Laird & Rubin 1977 (doi:10.1111/j.2517-6161.1977.tb01600.x).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from backflip.core.rng import generator
from backflip.stats.evidence import Evidence, checked
from backflip.stats.judgements import A, B, TieModel, pair_likelihood
from backflip.stats.raters import (
    GUESS,
    LAPSE,
    SENSITIVITY,
    STEP,
    TIES,
    TRAITS,
    Pooling,
    Posterior,
    RaterFit,
    fit_raters,
)

Array = NDArray[np.float64]

HELD = 5.0
"""For how many raters the assumed spread of a trait counts, where it is learned."""
FLOOR = 0.1
"""Least curvature in any direction, where the prior alone gives 1."""
LEAST_MEAN = 0.3
"""Below this mean sensitivity a crowd hardly agrees on anything; spreads are not told by less."""
GAPS = 41
"""Quantiles that stand for the gaps a reliability is about."""


class Draws(NamedTuple):
    """S draws of what may be true. Shapes: weight (S, F), traits (S, R, 6)."""

    weight: Array
    traits: Array


class Reliability(NamedTuple):
    """(R,) each: how often a rater who decides picks the better of two answers, with an interval."""

    value: Array
    low: Array
    high: Array


def posterior_draws(
    features: Array, evidence: Evidence, fit: RaterFit, seed: int, *, prior: float = 1.0, draws: int = 400
) -> Draws:
    """Rewards and traits drawn together around a fit of these features and this evidence.

    Each is drawn as uncertain as the votes leave it; a trait that is switched off or the same for all does not vary
    from rater to rater, and a rater who said nothing has the prior's spread. Two gradients for each of the F (or N,
    if fewer) weights are needed.
    """
    posterior = _posterior(features, evidence, fit, prior)
    at, first = posterior.start(fit), posterior.weights + 8
    shared, joint = _shared_curvature(posterior, at)
    inverse = _inverse(_own_curvature(posterior, at))
    follow = np.einsum("rij,srj->sri", inverse, joint)  # how traits answer to a move of what is shared
    flat = follow.reshape(first, -1)
    size, axes = np.linalg.eigh(shared - flat @ joint.reshape(first, -1).T)
    luck = generator(seed, "posterior")
    moved = luck.standard_normal((draws, first)) / np.sqrt(np.maximum(size, FLOOR)) @ axes.T
    own = np.linalg.cholesky(inverse)
    away = np.einsum("rij,drj->dri", own, luck.standard_normal((draws, posterior.raters, 6)))
    away -= (moved @ flat).reshape(draws, posterior.raters, 6)
    parts = [posterior.parts(at + np.concatenate([m, a.ravel()])) for m, a in zip(moved, away, strict=True)]
    return Draws(posterior.in_features(np.array([p[0] for p in parts])), np.array([p[2] for p in parts]))


def fit_crowd(
    features: Array,
    evidence: Evidence,
    pooling: Pooling | None = None,
    *,
    prior: float = 1.0,
    ties: TieModel = "rao-kupper",
    passes: int = 12,
    ftol: float = 1e-9,
) -> RaterFit:
    """`fit_raters`, with how far raters differ in each trait learned from the crowd itself.

    `pooling` is what is assumed before anybody voted and counts for `HELD` raters: with few raters little moves; a
    trait whose deviation is 0 or None stays so. Ends when no spread moves by 3%, or after `passes`. `ftol` as in
    `fit_raters`.
    Raises: as `fit_raters`.
    """
    assumed = pooling or Pooling()
    fit = fit_raters(features, evidence, assumed, prior=prior, ties=ties, ftol=ftol)
    held, heard = fit.spread, _heard(evidence, len(features))
    for _ in range(passes):
        posterior = _posterior(features, evidence, fit, prior)
        variance = trait_variance(posterior, posterior.start(fit))[heard]
        new = np.where(held > 0, _spread(fit, fit.traits[heard], variance, held), 0.0)
        still = bool((np.abs(new - fit.spread) <= 0.03 * fit.spread).all())
        fit = fit_raters(features, evidence, assumed, prior=prior, ties=ties, start=fit, spread=new, ftol=ftol)
        if still:
            break
    return fit


def _spread(fit: RaterFit, traits: Array, variance: Array, held: Array) -> Array:
    """(6,) spreads that the traits (H, 6) of those heard speak for, with their variance.

    Sensitivity is told by its share of the crowd's mean: else rewards could shrink and all sensitivities grow.
    """
    usual = fit.usual[: len(TRAITS)].copy()
    usual[SENSITIVITY] = traits[:, SENSITIVITY].mean()
    square = ((traits - usual) ** 2 + variance).sum(0)
    square[SENSITIVITY] /= max(usual[SENSITIVITY], LEAST_MEAN) ** 2
    return np.asarray(np.sqrt((HELD * held**2 + square) / (HELD + len(traits))))


def _heard(evidence: Evidence, items: int) -> NDArray[np.bool_]:
    """(R,) who said anything that counts."""
    heard = np.zeros(evidence.raters, dtype=bool)
    clean = checked(evidence, items)
    for said in (clean.pairs, clean.thumbs, clean.rankings):
        if said is not None:
            heard[said.rater] = True
    return heard


def _posterior(features: Array, evidence: Evidence, fit: RaterFit, prior: float) -> Posterior:
    """The posterior that `fit` is the top of."""
    has = dict(zip(TRAITS, fit.has, strict=True))
    pooling = Pooling(lapse=0.0 if has["lapse"] else None, position=0.0 if has["position"] else None)
    return Posterior(features, checked(evidence, len(features)), pooling, prior, fit.ties, fit.spread)


def trait_variance(posterior: Posterior, at: Array) -> Array:
    """(R, 6) variance of each rater's departures around the top of the posterior, the reward taken as found."""
    variance = np.diagonal(_inverse(_own_curvature(posterior, at)), axis1=1, axis2=2)
    return np.asarray(variance * posterior.spread**2)


def reliability(fit: RaterFit, drawn: Draws, apart: Array, *, level: float = 0.95) -> Reliability:
    """How often a decided vote of each rater would be for the better answer, of pairs like these.

    Shapes: apart (M, F), features of one answer less those of the other. Lapses count, bias by position does not. 0.5
    is a coin; an adversary is below. Value and interval are the mean and quantiles over the draws, each judging by its
    own reward. Raises: ValueError when there is no pair.
    """
    if len(apart) == 0:
        raise ValueError("reliability is about pairs: give at least one")
    shares = (np.arange(GAPS) + 0.5) / GAPS
    rights = [
        _right(fit, traits, np.quantile(np.abs(apart @ weight), shares))
        for weight, traits in zip(drawn.weight, drawn.traits, strict=True)
    ]
    low, high = np.quantile(rights, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Reliability(np.mean(rights, axis=0), low, high)


def _right(fit: RaterFit, traits: Array, gap: Array) -> Array:
    """(R,) chance that a decided vote is for the better answer, the mean over gaps (M,) above 0."""
    each = np.repeat(traits, len(gap), axis=0)
    tie, lapse = (each[:, t] if fit.has[t] else None for t in (TIES, LAPSE))
    view, no = each[:, SENSITIVITY] * np.tile(gap, len(traits)), np.zeros(len(each), dtype=np.int64)
    said = (pair_likelihood(view, no + c, no, tie, lapse, None, float(fit.usual[GUESS]), ties=fit.ties) for c in (A, B))
    better, worse = (d.logp for d in said)
    return np.asarray(expit(better - worse).reshape(len(traits), -1).mean(1))


def _own_curvature(posterior: Posterior, at: Array) -> Array:
    """(R, 6, 6) curvature of the posterior in each rater's departures: one difference a trait serves all raters."""
    first = posterior.weights + 8
    out = np.zeros((posterior.raters, 6, 6))
    for t in range(6):
        move = np.zeros_like(at)
        move[first + t :: 6] = STEP
        out[:, :, t] = _slope(posterior, at, move)[first:].reshape(-1, 6)
    return (out + out.transpose(0, 2, 1)) / 2


def _shared_curvature(posterior: Posterior, at: Array) -> tuple[Array, Array]:
    """(curvature (S, S) in what all raters share, what joins it to each rater's departures (S, R, 6))."""
    first = posterior.weights + 8
    rows = np.zeros((first, len(at)))
    for i in range(first):
        move = np.zeros_like(at)
        move[i] = STEP
        rows[i] = _slope(posterior, at, move)
    shared = (rows[:, :first] + rows[:, :first].T) / 2
    still = posterior.still
    shared[still, still] = 1 / FLOOR**4  # what is switched off does not move
    return shared, rows[:, first:].reshape(first, posterior.raters, 6)


def _slope(posterior: Posterior, at: Array, move: Array) -> Array:
    return np.asarray((posterior(at + move)[1] - posterior(at - move)[1]) / (2 * STEP))


def _inverse(curvature: Array) -> Array:
    """The inverse of each (6, 6) block, positive however flat the block."""
    size, axes = np.linalg.eigh(curvature)
    return np.asarray((axes / np.maximum(size, FLOOR)[:, None, :]) @ axes.transpose(0, 2, 1))
