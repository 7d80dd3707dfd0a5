"""Simulated crowds whose raters' worth is known: careless, adversarial or only unequal.

Their votes follow Davidson's model with sensitivities drawn log-normal, which is neither the tie model nor the prior
of the fit, so that what is recovered is not put in by the same hand.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backflip.stats.evidence import Evidence, PairVotes
from backflip.stats.raters import ALIKE, fit_raters
from backflip.stats.reliability import fit_crowd, posterior_draws, reliability

RATERS, EACH, BAD = 100, 30, 0.3
ITEMS, FEATURES, GROUPS = 1000, 64, 32
PRIOR = 10.0


def simulate(seed: int, mode: Literal["clean", "careless", "adversarial"]) -> dict[str, float]:
    """Accuracy of the reward with equal raters, with the rater model and without the bad ones; r of reliabilities.

    "covered": the share of raters whose reliability lies in its 95% interval.
    """
    luck = np.random.default_rng(seed)
    scale = np.sqrt(np.arange(1, FEATURES + 1))
    features = luck.normal(size=(ITEMS, FEATURES)) / scale
    utility = features @ (luck.normal(size=FEATURES) / scale)
    utility /= utility.std()
    bad = luck.random(RATERS) < (0.0 if mode == "clean" else BAD)
    sensitivity = 1.5 * np.exp(luck.normal(0, 0.6, RATERS)) * np.where(bad & (mode == "adversarial"), -1, 1)
    lapse = np.where(bad & (mode == "careless"), 1.0, luck.beta(1, 6, RATERS) if mode == "clean" else 0.05)
    propensity, lean = -1 + 0.5 * luck.normal(size=RATERS), 0.2 * luck.normal(size=RATERS)
    rater = np.repeat(np.arange(RATERS), EACH)
    a, b = _pairs(luck, len(rater))
    view = sensitivity[rater] * (utility[a] - utility[b]) / 2 + lean[rater]
    weight = np.exp(np.stack([view, -view, propensity[rater]], axis=1))
    eyes = weight / weight.sum(1, keepdims=True)
    chance = (1 - lapse[rater, None]) * eyes + lapse[rater, None] * np.array([0.4, 0.4, 0.2])
    choice = (luck.random((len(rater), 1)) > chance.cumsum(1)[:, :2]).sum(1)
    evidence = Evidence(RATERS, PairVotes(a, b, choice, rater, np.ones(len(rater), dtype=np.int64)))
    first, second = _pairs(luck, 3000)
    gap = utility[first] - utility[second]
    truth = np.array([_decided(*r, np.abs(gap)) for r in zip(sensitivity, lapse, propensity, strict=True)])
    fit = fit_crowd(features, evidence, prior=PRIOR)
    drawn = posterior_draws(features, evidence, fit, seed, prior=PRIOR, draws=200)
    found = reliability(fit, drawn, (features[first] - features[second])[:300])
    votes = evidence.pairs
    assert votes is not None
    good = evidence._replace(pairs=votes._replace(weight=1.0 - bad[rater]))

    def right(reward: NDArray[np.float64]) -> float:
        return float(np.mean(np.sign(reward[first] - reward[second]) == np.sign(gap)))

    return {
        "plain": right(fit_raters(features, evidence, ALIKE, prior=PRIOR).score(features)),
        "full": right(fit.score(features)),
        "oracle": right(fit_raters(features, good, ALIKE, prior=PRIOR).score(features)),
        "r": float(np.corrcoef(found.value, truth)[0, 1]),
        "covered": float(np.mean((found.low <= truth) & (truth <= found.high))),
    }


def _decided(sensitivity: float, lapse: float, propensity: float, gap: NDArray[np.float64]) -> float:
    """Chance that a decided vote is for the better answer, the mean over gaps."""
    weight = np.exp(np.stack([sensitivity * gap / 2, -sensitivity * gap / 2, np.full(len(gap), propensity)]))
    right, wrong, _ = (1 - lapse) * weight / weight.sum(0) + lapse * np.array([[0.4], [0.4], [0.2]])
    return float(np.mean(right / (right + wrong)))


def _pairs(luck: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two different items of one group, `count` times."""
    group, each = luck.integers(GROUPS, size=count), ITEMS // GROUPS
    one = luck.integers(each, size=count)
    other = (one + luck.integers(1, each, count)) % each
    return one * GROUPS + group, other * GROUPS + group
