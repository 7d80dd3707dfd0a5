import numpy as np
import pytest
from scipy.special import expit

from backflip.stats.evidence import Evidence, PairVotes
from backflip.stats.judgements import TIE
from backflip.stats.raters import ALIKE, SENSITIVITY, Pooling, fit_raters
from backflip.stats.reliability import fit_crowd, posterior_draws, reliability

ITEMS, FEATURES = 80, 5
NO_LAPSE = Pooling(lapse=None, position=None)


class Crowd:
    """Rao-Kupper raters of known sensitivity, their votes, and pairs to ask about."""

    def __init__(self, seed: int, sensitivity: np.ndarray, each: int) -> None:
        luck = np.random.default_rng(seed)
        self.features, self.weight = luck.normal(size=(ITEMS, FEATURES)), luck.normal(size=FEATURES)
        rater = np.repeat(np.arange(len(sensitivity)), each)
        a = luck.integers(ITEMS, size=len(rater))
        b = (a + luck.integers(1, ITEMS, len(rater))) % ITEMS
        view = sensitivity[rater] * ((self.features[a] - self.features[b]) @ self.weight)
        noisy = view + luck.logistic(size=len(rater))
        choice = np.where(np.abs(noisy) < 0.5, TIE, np.where(noisy > 0, 0, 1))
        self.evidence = Evidence(len(sensitivity), PairVotes(a, b, choice, rater))
        self.apart = luck.normal(size=(200, FEATURES)) * np.sqrt(2)
        gap = np.abs(self.apart @ self.weight)
        right, wrong = (expit(sign * np.outer(sensitivity, gap) - 0.5) for sign in (1, -1))
        self.reliability = (right / (right + wrong)).mean(1)

    def fit(self, pooling: Pooling = NO_LAPSE):
        return fit_crowd(self.features, self.evidence, pooling)

    def judged(self, fit, seed: int = 0):
        drawn = posterior_draws(self.features, self.evidence, fit, seed, draws=200)
        return reliability(fit, drawn, self.apart)


def test_intervals_of_reliability_cover_the_truth_as_often_as_they_say():
    inside, wide = [], []
    for seed in range(10):
        crowd = Crowd(seed, np.random.default_rng(100 + seed).normal(1.0, 0.4, 20), 30)
        got = crowd.judged(crowd.fit(), seed)
        inside += list((got.low <= crowd.reliability) & (crowd.reliability <= got.high))
        wide += list(got.high - got.low)

    assert 0.9 <= np.mean(inside) <= 0.99
    assert np.mean(wide) < 0.3


def test_weights_are_as_uncertain_as_a_second_crowd_would_make_them():
    sensitivity = np.ones(5)
    truth = Crowd(0, sensitivity, 60)
    drawn = posterior_draws(truth.features, truth.evidence, fit_raters(truth.features, truth.evidence, ALIKE), 0)
    luck, fits = np.random.default_rng(1), []
    v = truth.evidence.pairs
    for _ in range(60):  # resampled votes show the same spread
        again = luck.integers(len(v.a), size=len(v.a))
        votes = PairVotes(v.a[again], v.b[again], v.choice[again], v.rater[again])
        fits.append(fit_raters(truth.features, Evidence(5, votes), ALIKE).weight)

    np.testing.assert_allclose(drawn.weight.std(0), np.std(fits, axis=0), rtol=0.4)


def test_reward_and_sensitivity_are_drawn_together():
    # of one rater's votes only the product of his sensitivity and the rewards is known
    crowd = Crowd(2, np.ones(1), 800)
    fit = fit_raters(crowd.features, crowd.evidence, Pooling(sensitivity=0.3, tie=0.0, lapse=None), prior=0.01)
    drawn = posterior_draws(crowd.features, crowd.evidence, fit, 0, prior=0.01)
    sensitivity, size = drawn.traits[:, 0, SENSITIVITY], np.linalg.norm(drawn.weight, axis=1)

    assert np.corrcoef(sensitivity, size)[0, 1] < -0.5
    assert (sensitivity * size).std() / size.mean() < 0.6 * sensitivity.std()


def test_reliability_tells_experts_from_adversaries():
    crowd = Crowd(3, np.array([3.0, 1.0, 1.0, 1.0, 1.0, 0.0, -1.5]), 60)
    got = crowd.judged(crowd.fit())

    assert got.value[0] > got.value[1:5].max() > 0.6
    assert got.low[5] < 0.5 < got.high[5]
    assert got.high[6] < 0.5
    assert (got.low <= got.value).all()
    assert (got.value <= got.high).all()


def test_more_votes_make_a_rater_better_known():
    few, many = Crowd(4, np.ones(6), 10), Crowd(4, np.ones(6), 160)
    width = [np.mean(j.high - j.low) for j in (c.judged(c.fit()) for c in (few, many))]

    assert width[1] < 0.6 * width[0]


def test_how_far_raters_differ_is_learned():
    alike, apart = Crowd(5, np.ones(30), 40), Crowd(5, np.where(np.arange(30) % 3, 1.0, -1.0), 40)

    assert alike.fit().spread[SENSITIVITY] < 0.3
    assert apart.fit().spread[SENSITIVITY] > 0.8


def test_rewards_do_not_shrink_while_sensitivities_grow():
    # a strong prior on the weights would pay for itself if sensitivities grew in their place
    crowd = Crowd(6, np.random.default_rng(6).normal(1.0, 0.5, 30), 40)
    fit = fit_crowd(crowd.features, crowd.evidence, NO_LAPSE, prior=30.0, passes=30)

    assert fit.spread[SENSITIVITY] < 1


def test_no_pair_is_refused():
    crowd = Crowd(7, np.ones(2), 20)
    with pytest.raises(ValueError, match="at least one"):
        reliability(crowd.fit(), posterior_draws(crowd.features, crowd.evidence, crowd.fit(), 0), crowd.apart[:0])
