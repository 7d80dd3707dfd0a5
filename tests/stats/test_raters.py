import tracemalloc

import numpy as np
import pytest
import torch

from backflip.core.errors import DataError
from backflip.objectives.preference import bradley_terry_loss
from backflip.stats.evidence import Evidence, PairVotes, Rankings, Thumbs, checked, without_rater
from backflip.stats.judgements import CANNOT_TELL, TIE
from backflip.stats.raters import (
    ALIKE,
    LAPSE,
    POSITION,
    SENSITIVITY,
    TIES,
    Pooling,
    Posterior,
    fit_raters,
    gaps_as_features,
)

ITEMS, FEATURES = 60, 4


def pairs_of(luck: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    a = luck.integers(ITEMS, size=count)
    return a, (a + luck.integers(1, ITEMS, count)) % ITEMS


def crowd(seed: int, sensitivity: list[float], each: int, *, width: float = 0.5, lean: float = 0.0, lapse: float = 0.0):
    """Rao-Kupper votes of raters with these sensitivities on random features: (features, weight, evidence)."""
    luck = np.random.default_rng(seed)
    features, weight = luck.normal(size=(ITEMS, FEATURES)), np.array([1.5, -1.0, 0.5, 0.0])
    rater = np.repeat(np.arange(len(sensitivity)), each)
    a, b = pairs_of(luck, len(rater))
    shown = luck.choice([-1, 1], len(rater))
    view = np.array(sensitivity)[rater] * ((features[a] - features[b]) @ weight) + lean * shown
    noisy = view + luck.logistic(size=len(rater))
    choice = np.where(np.abs(noisy) < width, TIE, np.where(noisy > 0, 0, 1))
    choice = np.where(luck.random(len(rater)) < lapse, luck.integers(2, size=len(rater)), choice)
    return features, weight, Evidence(len(sensitivity), PairVotes(a, b, choice, rater, shown))


def everything(luck: np.random.Generator, *, ties: bool) -> Evidence:
    """Votes, strengths, thumbs and rankings by lot, of six raters."""
    a, b = pairs_of(luck, 150)
    choice, rater = luck.integers(0, 4 if ties else 2, 150), luck.integers(6, size=150)
    votes = PairVotes(
        a, b, choice, rater, luck.integers(-1, 2, 150), luck.integers(0, 4, 150), luck.uniform(0.2, 2, 150)
    )
    order = np.stack([luck.permutation(ITEMS)[:4] for _ in range(30)])
    order[:15, 2:] = -1
    return Evidence(
        6,
        votes,
        Thumbs(luck.integers(ITEMS, size=40), luck.random(40) < 0.5, luck.integers(6, size=40)),
        Rankings(order, luck.integers(6, size=30), luck.uniform(0.2, 2, 30)),
    )


@pytest.mark.parametrize("pooling", [Pooling(), ALIKE], ids=["everybody his own", "all alike"])
@pytest.mark.parametrize("tied", [True, False], ids=["with ties", "without"])
@pytest.mark.parametrize("ties", ["rao-kupper", "davidson"])
def test_the_gradient_is_that_of_the_posterior(ties, tied, pooling):
    luck = np.random.default_rng(0)
    features = luck.normal(size=(ITEMS, FEATURES))
    posterior = Posterior(features, checked(everything(luck, ties=tied), ITEMS), pooling, 1.0, ties)
    at = luck.normal(size=len(posterior.start(None))) * 0.7
    at[posterior.still] = 0.0
    gradient = posterior(at)[1]
    moves = 1e-5 * np.eye(len(at))
    numeric = np.array([(posterior(at + m)[0] - posterior(at - m)[0]) / 2e-5 for m in moves])
    numeric[posterior.still] = 0.0

    assert np.abs(gradient - numeric).max() < 1e-6
    assert np.abs(gradient).max() > 1


@pytest.mark.parametrize("width", [0.5, 0.0], ids=["with ties", "plain Bradley-Terry"])
def test_equal_raters_without_lapses_are_plain_bradley_terry(width):
    features, _, evidence = crowd(0, [1.0] * 5, 40, width=width)
    v, fit = evidence.pairs, fit_raters(features, evidence, ALIKE, prior=3.0)
    weight = torch.tensor(fit.weight, requires_grad=True)
    tie = torch.tensor(float(np.exp(fit.usual[TIES])) if width else 0.0, dtype=torch.float64, requires_grad=True)
    gap = torch.from_numpy(features[v.a] - features[v.b]) @ weight
    loss = bradley_terry_loss(gap, torch.from_numpy(v.choice), tie if width else 0.0).loss
    (len(v.a) * loss + 1.5 * weight.square().sum()).backward()  # 0 at the top of the posterior

    assert weight.grad.abs().max() < 5e-3
    if width:
        assert tie.grad.abs() < 5e-3
    np.testing.assert_array_equal(fit.traits, np.tile(fit.usual[:6], (5, 1)))


def test_fewer_answers_than_features_give_the_same_fit():
    features, _, evidence = crowd(1, [1.0, 0.5], 50)
    wide = np.hstack([features, np.zeros((ITEMS, 100))])  # nothing more is said
    np.testing.assert_allclose(fit_raters(wide, evidence).weight[:4], fit_raters(features, evidence).weight, atol=2e-3)


def test_sensitivity_tie_width_and_lean_are_recovered():
    sensitivity = [1.6, 1.2, 1.0, 0.6, 0.2, -1.0]
    features, weight, evidence = crowd(2, sensitivity, 600, width=0.8, lean=0.5)
    fit = fit_raters(features, evidence, Pooling(sensitivity=1.0, lapse=None, position=0.3), prior=0.1)
    scale = fit.weight @ weight / (weight @ weight)

    np.testing.assert_allclose(fit.weight / scale, weight, atol=0.15)
    np.testing.assert_allclose(fit.traits[:, SENSITIVITY] * scale, sensitivity, atol=0.25)
    np.testing.assert_allclose(np.exp(fit.traits[:, TIES]), 0.8, atol=0.15)
    np.testing.assert_allclose(fit.traits[:, POSITION], 0.5, atol=0.25)


def test_an_adversary_is_found_and_serves_the_reward():
    features, weight, evidence = crowd(3, [1.0] * 7 + [-1.0] * 3, 30)
    truth = features @ weight
    plain = fit_raters(features, evidence, ALIKE).score(features)
    fit = fit_raters(features, evidence, Pooling(sensitivity=1.0))
    found = fit.traits[:, SENSITIVITY]

    assert (found[:7] > 0).all()
    assert (found[7:] < 0).all()
    assert np.corrcoef(fit.score(features), truth)[0, 1] > np.corrcoef(plain, truth)[0, 1] + 0.005


def test_lapses_show_on_pairs_far_apart():
    features, _, careful = crowd(4, [3.0] * 4, 300, width=0.0)
    _, _, careless = crowd(4, [3.0] * 4, 300, width=0.0, lapse=0.4)
    v, w = careful.pairs, careless.pairs
    mine = v.rater < 2
    both = PairVotes(*(np.where(mine, x, y) if x is not None else None for x, y in zip(v, w, strict=True)))
    fit = fit_raters(features, Evidence(4, both), Pooling(sensitivity=0.3, lapse=1.5), prior=0.1)
    chance = 1 / (1 + np.exp(-fit.traits[:, LAPSE]))

    assert (chance[:2] < 0.1).all()
    np.testing.assert_allclose(chance[2:], 0.4, atol=0.12)


def test_a_rater_with_three_votes_does_no_harm():
    features, weight, evidence = crowd(5, [1.0] * 10, 30)
    v = evidence.pairs
    # an eleventh says the opposite of the truth, three times
    far = np.argsort(features @ weight)
    more = PairVotes(
        np.append(v.a, far[:3]), np.append(v.b, far[-3:]), np.append(v.choice, [0, 0, 0]),
        np.append(v.rater, [10] * 3), np.append(v.shown, [1, 1, 1]),
    )  # fmt: skip
    shy = Pooling(lapse=None)
    before, pooled = fit_raters(features, evidence, shy), fit_raters(features, Evidence(11, more), shy)
    alone = fit_raters(features, Evidence(11, more), Pooling(sensitivity=30.0, lapse=None))

    def moved(fit):
        return np.abs(fit.score(features) - before.score(features)).max() / before.score(features).std()

    assert moved(pooled) < 0.2
    assert moved(pooled) < moved(fit_raters(features, Evidence(11, more), ALIKE)) / 2
    assert pooled.traits[10, SENSITIVITY] < pooled.traits[:10, SENSITIVITY].min()
    assert abs(pooled.traits[10, SENSITIVITY] - 1) < 1.5
    assert abs(alone.traits[10, SENSITIVITY] - 1) > 1.5  # without pooling three votes say a lot


def test_a_rater_who_said_nothing_is_a_usual_one():
    features, _, evidence = crowd(6, [1.0, 0.5], 50)
    fit = fit_raters(features, Evidence(3, evidence.pairs))
    np.testing.assert_allclose(fit.traits[2], fit.usual[:6], atol=1e-6)
    p = fit.probabilities(np.array([0.7, 0.7]), np.array([2, -1]))
    np.testing.assert_allclose(p[0], p[1], atol=1e-6)
    assert p.sum(1) == pytest.approx([1, 1])


def test_known_gaps_serve_as_well_as_features():
    features, weight, evidence = crowd(7, [1.5, 1.0, 0.5, -1.0], 200)
    v = evidence.pairs
    gap = (features[v.a] - features[v.b]) @ weight
    column, a, b = gaps_as_features(gap)
    fit = fit_raters(column, Evidence(4, v._replace(a=a, b=b)), Pooling(sensitivity=1.0), prior=0.01)

    np.testing.assert_allclose(fit.weight * fit.traits[:, SENSITIVITY], [1.5, 1.0, 0.5, -1.0], atol=0.35)


def test_thumbs_and_rankings_teach_the_reward_too():
    luck = np.random.default_rng(8)
    features, weight = luck.normal(size=(ITEMS, FEATURES)), np.array([1.5, -1.0, 0.5, 0.0])
    reward = features @ weight
    item, bar = luck.integers(ITEMS, size=600), np.array([-1.0, 1.0])
    rater = luck.integers(2, size=600)
    up = reward[item] - bar[rater] + luck.logistic(size=600) > 0
    thumbs = fit_raters(features, Evidence(2, thumbs=Thumbs(item, up, rater)), Pooling(lapse=None, bar=2.0), prior=0.1)
    order = np.stack([luck.permutation(ITEMS)[:5] for _ in range(150)])
    best_first = np.argsort(-(reward[order] + luck.gumbel(size=order.shape)), axis=1)
    order = np.take_along_axis(order, best_first, axis=1)
    ranked = fit_raters(features, Evidence(1, rankings=Rankings(order, np.zeros(150, int))), ALIKE, prior=0.1)

    np.testing.assert_allclose(thumbs.weight, weight, atol=0.3)
    np.testing.assert_allclose(thumbs.traits[:, 4], bar, atol=0.35)
    np.testing.assert_allclose(ranked.weight, weight, atol=0.3)


def test_strengths_sharpen_the_reward():
    def error(strength: bool, seed: int) -> float:
        luck = np.random.default_rng(seed)
        features, weight = luck.normal(size=(ITEMS, FEATURES)), np.array([0.7, -0.5, 0.3, 0.0])
        a, b = pairs_of(luck, 120)
        gap = (features[a] - features[b]) @ weight
        choice = np.where(gap + luck.logistic(size=120) > 0, 0, 1)
        towards = np.where(choice == 0, gap, -gap)
        u = luck.random(120)
        said = 1 + (u < 1 / (1 + np.exp(-towards))) + (u < 1 / (1 + np.exp(1.5 - towards)))
        votes = PairVotes(a, b, choice, np.zeros(120, int), None, said if strength else None)
        fit = fit_raters(features, Evidence(1, votes), ALIKE, prior=0.5)
        return float(np.square(fit.weight - weight).sum())

    assert np.mean([error(True, s) for s in range(20)]) < 0.85 * np.mean([error(False, s) for s in range(20)])


def test_who_cannot_tell_is_undecided_in_words_of_his_own():
    features, _, evidence = crowd(9, [1.0, 1.0], 150, width=1.0)
    v = evidence.pairs
    mixed = v._replace(choice=np.where((v.choice == TIE) & (v.rater == 1), CANNOT_TELL, v.choice))
    fit, tied = fit_raters(features, Evidence(2, mixed)), fit_raters(features, evidence)
    p = fit.probabilities(np.zeros(2), np.array([0, 1]))

    np.testing.assert_allclose(fit.weight, tied.weight)
    assert p[0, CANNOT_TELL] < 0.05 < 0.3 < p[1, CANNOT_TELL]
    np.testing.assert_allclose(p.sum(1), 1)


def test_leaving_a_rater_out_is_having_never_heard_him():
    features, _, evidence = crowd(10, [1.0, 1.0, -2.0], 60)
    v = evidence.pairs
    whole = fit_raters(features, evidence)
    without = fit_raters(features, without_rater(evidence, 2), start=whole)
    never = fit_raters(features, Evidence(3, PairVotes(*(x[v.rater != 2] for x in v[:5]))))

    np.testing.assert_allclose(without.weight, never.weight, atol=2e-3)
    assert np.abs(whole.weight - never.weight).max() > 0.02


def many_votes(count: int) -> tuple[np.ndarray, Evidence]:
    """Votes of 50 raters on 300 answers with 100 features, each half as large as two before it."""
    luck = np.random.default_rng(15)
    features = luck.normal(size=(300, 100)) * 0.5 ** (np.arange(100) / 2)
    a, rater = luck.integers(300, size=count), luck.integers(50, size=count)
    b = (a + luck.integers(1, 300, count)) % 300
    noisy = 3 * (features[a] - features[b]).sum(1) + luck.logistic(size=count)
    choice = np.where(np.abs(noisy) < 0.5, TIE, np.where(noisy > 0, 0, 1))
    return features, Evidence(50, PairVotes(a, b, choice, rater, luck.choice([-1, 1], count)))


def test_a_search_is_short_however_unlike_the_features(monkeypatch: pytest.MonkeyPatch):
    # 58 looks at the posterior; without the stretching 325
    looks, look = [], Posterior.__call__
    monkeypatch.setattr(Posterior, "__call__", lambda self, at: looks.append(1) or look(self, at))
    fit_raters(*many_votes(3000), Pooling(lapse=None), prior=1e-2)

    assert len(looks) < 100


def test_memory_grows_with_the_votes_by_far_less_than_a_row_of_features_each():
    def peak(votes: int) -> int:
        features, evidence = many_votes(votes)
        tracemalloc.start()
        fit_raters(features, evidence, Pooling(lapse=None), ftol=1e-2)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    one, two, three = peak(5_000), peak(10_000), peak(20_000)
    assert (three - two) == pytest.approx(2 * (two - one), rel=0.2)  # a line
    assert (three - two) / 10_000 < 800  # bytes a vote: as much as 100 features


def test_one_rater_and_answers_all_alike_still_give_a_fit():
    features, weight, evidence = crowd(11, [1.0], 200)
    alone = fit_raters(features, evidence)
    nothing = fit_raters(np.ones_like(features), evidence)

    assert np.corrcoef(alone.score(features), features @ weight)[0, 1] > 0.9
    assert np.abs(nothing.score(features)).max() < 1e-9
    assert np.isfinite(nothing.traits).all()


def test_what_cannot_be_fitted_is_refused():
    features, _, evidence = crowd(12, [1.0, 1.0], 20)
    v = evidence.pairs
    with pytest.raises(DataError, match="All 40 votes are ties") as told:
        fit_raters(features, Evidence(2, v._replace(choice=np.full(40, TIE))))
    assert len(str(told.value).splitlines()) == 3
    with pytest.raises(DataError, match="no votes"):
        fit_raters(features, without_rater(without_rater(evidence, 0), 1))
    for wrong, said in [
        (v._replace(b=v.a), "same item twice"),
        (v._replace(a=v.a + ITEMS), "a holds"),
        (v._replace(rater=v.rater + 1), "pairs.rater holds"),
        (v._replace(choice=v.choice + 2), "choice holds"),
        (v._replace(a=v.a[1:]), "of one length"),
        (v._replace(weight=-np.ones(40)), "weights"),
    ]:
        with pytest.raises(ValueError, match=said):
            fit_raters(features, Evidence(2, wrong))
    with pytest.raises(ValueError, match="an order names"):
        fit_raters(features, Evidence(2, v, rankings=Rankings(np.array([[3, 3]]), np.array([0]))))
    with pytest.raises(ValueError, match="standard deviation"):
        Pooling(tie=-1.0)
