"""Rewards and raters, learned together from everything the raters said.

Every rater has six traits: how much the rewards count for him (sensitivity; below 0 he votes against them), how often
he does not look (lapse), how readily he calls a tie, how much he leans to what is shown first (position), how good an
answer must be for a thumb (bar), how far apart answers must be for a strong vote (cut). Each is his own departure from
what is usual, and departures cost: a normal prior with a standard deviation per trait (`Pooling`), so that a rater
with three votes stays near the usual. The reward is linear in features; its weights carry a normal prior too.

What the votes alone cannot tell. Only the product of reward and sensitivity is seen: the usual sensitivity is 1, so
rewards are in logits of a usual rater. Both signs turned give the same votes: the search starts at sensitivities of 1
and the prior holds them there, so the reward is the majority's. A crowd with more adversaries than others (by what
they say, not by heads) is read upside down; gold items (`agreement.gold_accuracy`) show it. A rater who
lapses and one whose sensitivity is near 0 differ only on pairs far apart; `reliability` asks for what both mean.

Equal raters without lapses, bias or strengths are Rao & Kupper's model, and without ties plain Bradley-Terry.
Source: Bradley & Terry 1952; Chen et al. 2013 (doi:10.1145/2433396.2433420) for signed raters; see `judgements`.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import Bounds, minimize
from scipy.sparse import coo_array
from scipy.special import expit

from backflip.stats.evidence import Evidence, checked
from backflip.stats.judgements import (
    CANNOT_TELL,
    TIE,
    A,
    B,
    Likelihood,
    TieModel,
    pair_likelihood,
    ranking_likelihood,
    thumb_likelihood,
)

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

TRAITS: Final = ("sensitivity", "lapse", "tie", "position", "bar", "cut")
SENSITIVITY, LAPSE, TIES, POSITION, BAR, CUT = range(6)
CUT_GAP, GUESS = 6, 7
"""Two more numbers that all raters share: ln of the distance between the cuts, logit of a blind "tie"."""
USUAL = np.array([1.0, -2.5, -0.5, 0.0, 0.0, 0.0, 0.0, -1.0])
"""Where the search for what is usual starts, and its prior's mean."""
USUAL_SD = np.array([1.0, 1.0, np.inf, 1.0, 10.0, 10.0, 3.0, 1.0])
BOUNDS = {TIES: (-8.0, 4.0), LAPSE: (-9.0, 3.0), CUT_GAP: (-6.0, 4.0)}
STEP = 1e-4
"""How far a number is moved to see how steep the posterior is in it."""
HABIT = 4.0
"""How many undecided votes the crowd's share of "cannot tell" counts for in a rater's own."""


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How far raters may depart from the usual: a prior's standard deviation for each trait.

    0: all raters are alike in it. None: nobody has it (no lapse, no bias). Sensitivity is a factor, all else logits.
    Measured on two sets of people's votes: docs/log.md.
    """

    sensitivity: float = 0.3
    lapse: float | None = 0.8
    tie: float = 0.8
    position: float | None = 0.1
    bar: float = 1.0
    cut: float = 0.5

    def __post_init__(self) -> None:
        """Raises: ValueError for a deviation below 0."""
        if any(sd is not None and not (np.isfinite(sd) and sd >= 0) for sd in (getattr(self, t) for t in TRAITS)):
            raise ValueError(f"a standard deviation must be a number, 0 or more: {self}")


ALIKE = Pooling(sensitivity=0.0, lapse=None, tie=0.0, position=None, bar=0.0, cut=0.0)
"""Equal raters without lapse or bias: plain Bradley-Terry, with Rao and Kupper's or Davidson's ties."""


class RaterFit(NamedTuple):
    """What was learned. Shapes: weight (F,), traits (R, 6) in the order of `TRAITS`, usual (8,), spread (6,)."""

    weight: Array
    traits: Array
    """Each rater's, the most probable; those of a rater who said nothing are the usual ones."""
    usual: Array
    spread: Array
    """Standard deviations of the prior the traits were fitted under."""
    cannot_tell: Array
    """(R,) share of a rater's undecided votes that say "cannot tell"."""
    has: NDArray[np.bool_]
    """(6,) whether anything said concerns the trait; where not, the likelihood leaves it out."""
    ties: TieModel
    loss: float
    """Negative log-posterior in nats, up to a constant."""

    def score(self, features: Array) -> Array:
        """(N,) rewards of features (N, F), in logits of a usual rater."""
        return np.asarray(features @ self.weight)

    def probabilities(self, gap: Array, rater: Ints, shown: Ints | None = None) -> Array:
        """(P, 4) chance of a, b, tie and "cannot tell" at reward gaps (P,); rater -1 is a usual one.

        `shown` (P,) as in `PairVotes`.
        """
        traits = np.vstack([self.traits, self.usual[:6]])[rater]
        habit = np.append(self.cannot_tell, self.cannot_tell.mean())[rater]
        view = traits[:, SENSITIVITY] * gap
        if shown is not None and self.has[POSITION]:
            view = view + shown * traits[:, POSITION]
        no = np.zeros(len(gap), dtype=np.int64)
        tie, lapse = (traits[:, t] if self.has[t] else None for t in (TIES, LAPSE))
        p = np.zeros((len(gap), 4))
        for code in (A, B, TIE) if tie is not None else (A, B):
            said = pair_likelihood(view, no + code, no, tie, lapse, None, float(self.usual[GUESS]), ties=self.ties)
            p[:, code] = np.exp(said.logp)
        p[:, CANNOT_TELL] = p[:, TIE] * habit
        p[:, TIE] *= 1 - habit
        return p


def fit_raters(
    features: Array,
    evidence: Evidence,
    pooling: Pooling | None = None,
    *,
    prior: float = 1.0,
    ties: TieModel = "rao-kupper",
    start: RaterFit | None = None,
    spread: Array | None = None,
    ftol: float = 1e-9,
) -> RaterFit:
    """The most probable reward and traits, by L-BFGS with a line search and analytic gradients.

    Shapes: features (N, F), one row an item; spread (6,) replaces `pooling`'s deviations where it is given. `prior`
    is the precision of each weight. `start`: an earlier fit of the same features and raters to begin from. For rewards
    that are fixed, see `gaps_as_features`. `ftol`: the search ends when a step gains less, as a share of the posterior.
    Raises: ValueError where shapes or numbers do not fit; DataError when there is nothing to learn from.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or not np.isfinite(features).all() or not prior > 0:
        raise ValueError("features must be (N, F) and finite, and prior above 0")
    posterior = Posterior(features, checked(evidence, len(features)), pooling or Pooling(), prior, ties, spread)
    search = _Search(posterior, posterior.start(start))
    found = minimize(
        search,
        search.start,
        jac=True,
        method="L-BFGS-B",
        bounds=search.bounds,
        options={"maxiter": 1000, "maxcor": 20, "ftol": ftol, "gtol": 1e-5},
    )
    return posterior.fit_at(search.vector(np.asarray(found.x)))


def gaps_as_features(gap: Array) -> tuple[Array, Ints, Ints]:
    """(features, a, b) that make a fit of pairs whose reward gaps (P,) are known: one weight, the gaps' factor."""
    n = len(gap)
    return np.append(gap, 0.0)[:, None], np.arange(n), np.full(n, n)


class Posterior:
    """Negative log-posterior and its gradient, at a vector of numbers that all have prior deviation near 1.

    Laid out as weights (F or fewer), the usual (8,), departures (R * 6); everything that is switched off stays 0.
    """

    def __init__(
        self,
        features: Array,
        evidence: Evidence,
        pooling: Pooling,
        prior: float,
        ties: TieModel,
        spread: Array | None = None,
    ) -> None:
        """`evidence` has been `checked`."""
        pairs, thumbs, rankings = evidence.pairs, evidence.thumbs, evidence.rankings
        assert pairs is not None
        assert thumbs is not None
        assert rankings is not None
        self.pairs, self.thumbs, self.rankings = pairs, thumbs, rankings
        self.raters, self.ties = evidence.raters, ties
        n, f = features.shape
        self._basis = np.linalg.qr(features.T)[0] if n < f else None  # the optimum lies in the items' span
        self._features = features if self._basis is None else features @ self._basis
        self._scale = 1 / np.sqrt(prior)
        sd = [getattr(pooling, t) for t in TRAITS]
        self.has = np.array([s is not None for s in sd])
        self.has[TIES] = bool((pairs.choice >= TIE).any())
        self.has[POSITION] &= bool(np.any(pairs.shown))
        self.has[BAR], self.has[CUT] = len(thumbs.item) > 0, bool(np.any(pairs.strength))
        self.spread = np.where(self.has, [s or 0.0 for s in sd] if spread is None else spread, 0.0)
        blind = self.has[LAPSE] and self.has[TIES]
        self._free = np.concatenate([self.has & (np.arange(6) != SENSITIVITY), [self.has[CUT], blind]])

    @property
    def weights(self) -> int:
        """How many numbers stand for the reward."""
        return int(self._features.shape[1])

    @property
    def still(self) -> Ints:
        """Places in the vector of what is usual in a trait nobody has."""
        return self.weights + np.flatnonzero(~self._free)

    def in_features(self, weight: Array) -> Array:
        """(..., F) weights of the features, from weights as searched."""
        return weight if self._basis is None else np.asarray(weight @ self._basis.T)

    def start(self, fit: RaterFit | None) -> Array:
        """The vector to begin at: the usual, or an earlier fit."""
        at = np.zeros(self.weights + 8 + 6 * self.raters)
        if fit is not None:
            known = fit.weight if self._basis is None else self._basis.T @ fit.weight
            at[: self.weights] = known / self._scale
            at[self.weights : self.weights + 8] = np.where(self._free, fit.usual - USUAL, 0.0)
            sd = np.where(self.spread > 0, self.spread, np.inf)
            at[self.weights + 8 :] = ((fit.traits - fit.usual[:6]) / sd).ravel()
        return at

    def bounds(self) -> Array:
        """(2, V) ends between which each number may move."""
        size = self.weights + 8 + 6 * self.raters
        ends: Array = np.stack([np.full(size, -np.inf), np.full(size, np.inf)])
        for i, between in BOUNDS.items():
            ends[:, self.weights + i] = np.array(between) - USUAL[i]
        ends[:, self.still] = 0.0
        ends[:, self.weights + 8 :][:, np.tile(self.spread == 0, self.raters)] = 0.0
        return ends

    def curvature(self, at: Array) -> Array:
        """(W, W) about how steep the posterior is in the reward's weights at a vector; rankings are left out."""
        w, _, traits = self.parts(at)
        reward, n, p = self._features @ w, len(self._features), self.pairs
        sure = traits[p.rater, SENSITIVITY]
        by_pair = _weighed(sure**2 * _doubt(sure * (reward[p.a] - reward[p.b])), p.weight)
        both = coo_array((np.append(by_pair, by_pair), (np.append(p.a, p.b), np.append(p.b, p.a))), (n, n)).tocsr()
        t = self.thumbs
        sure = traits[t.rater, SENSITIVITY]
        alone = np.bincount(
            t.item, _weighed(sure**2 * _doubt(sure * reward[t.item] - traits[t.rater, BAR]), t.weight), n
        )
        steep = (alone + both.sum(1))[:, None] * self._features - both @ self._features
        return np.asarray(np.eye(self.weights) + self._scale**2 * (self._features.T @ steep))

    def parts(self, at: Array) -> tuple[Array, Array, Array]:
        """(reward weights as searched, usual (8,), traits (R, 6)) that a vector stands for."""
        usual = USUAL + at[self.weights : self.weights + 8]
        traits = usual[:6] + self.spread * at[self.weights + 8 :].reshape(self.raters, 6)
        return self._scale * at[: self.weights], usual, traits

    def __call__(self, at: Array) -> tuple[float, Array]:
        """(value in nats, gradient) at a vector."""
        w, usual, traits = self.parts(at)
        reward = self._features @ w
        by_reward, by_traits, by_shared = np.zeros(len(reward)), np.zeros((self.raters, 6)), np.zeros(2)
        gained = self._add_pairs(reward, usual, traits, by_reward, by_traits, by_shared)
        gained += self._add_thumbs(reward, traits, by_reward, by_traits)
        gained += self._add_rankings(reward, traits, by_reward, by_traits)
        k = self.weights
        precision = np.where(np.isfinite(USUAL_SD), USUAL_SD**-2.0, 0.0)
        away = at[k : k + 8]
        cost = 0.5 * (at[:k] @ at[:k] + (precision * away) @ away + at[k + 8 :] @ at[k + 8 :])
        gradient = np.concatenate(
            [
                at[:k] - self._scale * (self._features.T @ by_reward),
                np.where(self._free, precision * away - np.append(by_traits.sum(0), by_shared), 0.0),
                at[k + 8 :] - (self.spread * by_traits).ravel(),
            ]
        )
        return float(cost - gained), gradient

    def fit_at(self, at: Array) -> RaterFit:
        """The fit that a vector stands for."""
        w, usual, traits = self.parts(at)
        habit = _habits(self.pairs.choice, self.pairs.rater, self.raters)
        return RaterFit(self.in_features(w), traits, usual, self.spread, habit, self.has, self.ties, self(at)[0])

    def _add_pairs(
        self, reward: Array, usual: Array, traits: Array, by_reward: Array, by_traits: Array, by_shared: Array
    ) -> float:
        p = self.pairs
        assert p.shown is not None
        assert p.strength is not None
        own = traits[p.rater]
        gap = reward[p.a] - reward[p.b]
        view = own[:, SENSITIVITY] * gap + (p.shown * own[:, POSITION] if self.has[POSITION] else 0.0)
        tie, lapse = (own[:, t] if self.has[t] else None for t in (TIES, LAPSE))
        step = np.exp(usual[CUT_GAP])
        cut = np.stack([own[:, CUT], own[:, CUT] + step], axis=1) if self.has[CUT] else None
        d = pair_likelihood(view, p.choice, p.strength, tie, lapse, cut, float(usual[GUESS]), ties=self.ties)
        d = Likelihood(*(_weighed(x, p.weight) for x in d))
        by_gap = d.view * own[:, SENSITIVITY]
        by_reward += np.bincount(p.a, by_gap, len(reward)) - np.bincount(p.b, by_gap, len(reward))
        for trait, x in (
            (SENSITIVITY, d.view * gap),
            (LAPSE, d.lapse),
            (TIES, d.tie),
            (POSITION, d.view * p.shown),
            (CUT, d.cut.sum(1)),
        ):
            by_traits[:, trait] += np.bincount(p.rater, x, self.raters)
        by_shared += d.cut[:, 1].sum() * step, d.guess.sum()
        return float(d.logp.sum())

    def _add_thumbs(self, reward: Array, traits: Array, by_reward: Array, by_traits: Array) -> float:
        t = self.thumbs
        own = traits[t.rater]
        view = own[:, SENSITIVITY] * reward[t.item] - own[:, BAR]
        logp, by_view, by_lapse = (
            _weighed(x, t.weight) for x in thumb_likelihood(view, t.up, own[:, LAPSE] if self.has[LAPSE] else None)
        )
        by_reward += np.bincount(t.item, by_view * own[:, SENSITIVITY], len(reward))
        for trait, x in ((SENSITIVITY, by_view * reward[t.item]), (BAR, -by_view), (LAPSE, by_lapse)):
            by_traits[:, trait] += np.bincount(t.rater, x, self.raters)
        return float(logp.sum())

    def _add_rankings(self, reward: Array, traits: Array, by_reward: Array, by_traits: Array) -> float:
        r = self.rankings
        own, there = traits[r.rater], r.order >= 0
        placed = np.where(there, reward[r.order], 0.0)
        view = np.where(there, own[:, SENSITIVITY, None] * placed, -np.inf)
        logp, by_view, by_lapse = (
            _weighed(x, r.weight) for x in ranking_likelihood(view, own[:, LAPSE] if self.has[LAPSE] else None)
        )
        by_each = (by_view * own[:, SENSITIVITY, None])[there]
        by_reward += np.bincount(r.order[there], by_each, len(reward))
        for trait, x in ((SENSITIVITY, (by_view * placed).sum(1)), (LAPSE, by_lapse)):
            by_traits[:, trait] += np.bincount(r.rater, x, self.raters)
        return float(logp.sum())


class _Search:
    """The posterior over the numbers that may move, stretched to be about as steep every way: the search is short."""

    def __init__(self, posterior: Posterior, at: Array) -> None:
        """`at` is the vector to begin at; how steep the posterior is there decides."""
        self._posterior, k = posterior, posterior.weights
        self._root = np.linalg.cholesky(posterior.curvature(at)).T
        low, high = posterior.bounds()
        self._moves = np.flatnonzero(low[k:] < high[k:]) + k
        self._stretch = 1 / np.sqrt(np.maximum(self._steep(at)[self._moves], 1.0))
        self.start = np.concatenate([self._root @ at[:k], at[self._moves] / self._stretch])
        ends = np.stack([low, high])[:, self._moves] / self._stretch
        self.bounds = Bounds(*np.hstack([np.stack([low, high])[:, :k], ends]))

    def vector(self, x: Array) -> Array:
        """The posterior's vector that a vector as searched stands for."""
        k = self._posterior.weights
        at = np.zeros(k + 8 + 6 * self._posterior.raters)
        at[:k] = solve_triangular(self._root, x[:k])
        at[self._moves] = x[k:] * self._stretch
        return at

    def __call__(self, x: Array) -> tuple[float, Array]:
        """(value in nats, gradient)."""
        value, slope = self._posterior(self.vector(x))
        by_weights = solve_triangular(self._root, slope[: self._posterior.weights], trans="T")
        return value, np.concatenate([by_weights, slope[self._moves] * self._stretch])

    def _steep(self, at: Array) -> Array:
        """(V,) curvature in each number that moves and is no weight: one difference a trait serves all raters."""
        first, out, here = self._posterior.weights, np.zeros_like(at), self._posterior(at)[1]
        traits = [slice(first + 8 + t, None, 6) for t in range(6)]
        for group in [slice(first + i, first + i + 1) for i in range(8)] + traits:
            move = np.zeros_like(at)
            move[group] = STEP
            if np.isin(np.flatnonzero(move), self._moves).any():
                out[group] = (self._posterior(at + move)[1] - here)[group] / STEP
        return out


def _doubt(view: Array) -> Array:
    """Curvature of the logistic log-likelihood."""
    return np.asarray(expit(view) * expit(-view))


def _weighed(x: Array, weight: Array | None) -> Array:
    assert weight is not None
    return np.asarray(x * weight.reshape(-1, *[1] * (x.ndim - 1)))


def _habits(choice: Ints, rater: Ints, raters: int) -> Array:
    """(R,) share of "cannot tell" among each rater's undecided votes, drawn towards the crowd's."""
    unsure = np.bincount(rater[choice >= TIE], minlength=raters).astype(np.float64)
    cannot = np.bincount(rater[choice == CANNOT_TELL], minlength=raters).astype(np.float64)
    usual = cannot.sum() / max(unsure.sum(), 1.0)
    return np.asarray((cannot + HABIT * usual) / (unsure + HABIT))
