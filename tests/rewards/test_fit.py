"""Fitting a reward to votes: what it recovers, what it refuses, what stays the same after every refit."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from backflip.core.config import Unfit
from backflip.core.errors import DataError
from backflip.core.records import Feedback
from backflip.rewards import fit as module
from backflip.rewards.fit import Fit, Reward, fit_reward, require_preference

Array = NDArray[np.float64]
FLAT = Fit(prior=(1e-3,))
"""Almost no prior: the fit is the maximum of the likelihood."""


FAIR = Fit(prior=(30.0,))


def vote(a: int, b: int, choice: str, weight: float = 1.0) -> Feedback:
    return Feedback(a=a, b=b, choice=choice, rater_id="r", weight=weight)  # type: ignore[arg-type]


def crowd(count: int, tie: float = 0.0, seed: int = 0) -> tuple[Array, list[Feedback], list[str], Array]:
    """Answers with 4 features, the first two of them worth 1 and -2, and votes drawn from Rao and Kupper's model."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(2 * count, 4)) + 3.0
    gap = (features[::2] - features[1::2]) @ np.array([1.0, -2.0, 0.0, 0.0])
    p_a, p_b = 1 / (1 + np.exp(-(gap - tie))), 1 / (1 + np.exp(gap + tie))
    u = draw.random(count)
    choices = np.where(u < p_a, "a", np.where(u < p_a + p_b, "b", "tie"))
    feedback = [vote(2 * i, 2 * i + 1, str(c)) for i, c in enumerate(choices)]
    return features, feedback, [f"p{i // 4}" for i in range(2 * count)], draw.normal(size=(200, 4)) * 2 + 3.0


def raw_weights(reward: Reward) -> Array:
    """Weights in logits per unit of feature: normalisation undone."""
    return np.asarray(reward.weight / reward.scale * reward.slope)


def fitted(count: int, config: Fit = FLAT, **more: float) -> Reward:
    features, feedback, prompt, reference = crowd(count, **more)  # type: ignore[arg-type]
    return fit_reward(features, feedback, prompt, reference, config, seed=0)


def test_one_feature_and_counted_votes_give_the_log_odds():
    # 3 of 4 votes for a, gap 1: the likeliest weight is ln 3 = 1.0986 logits per unit
    features = np.array([[1.0], [0.0]])
    feedback = [vote(0, 1, "a")] * 3 + [vote(0, 1, "b")]
    reward = fit_reward(features, feedback, ["p", "p"], np.array([[0.0], [2.0]]), Fit(prior=(1e-9,)), seed=0)

    assert_allclose(raw_weights(reward), [1.0986], atol=1e-3)
    assert reward.tie == 0.0


def test_a_known_utility_is_recovered():
    # the standard error of a weight from 4000 votes is about 0.07
    assert_allclose(raw_weights(fitted(4000)), [1.0, -2.0, 0.0, 0.0], atol=0.2)


def test_a_known_utility_and_the_width_of_a_tie_are_recovered():
    reward = fitted(4000, tie=0.8)

    assert_allclose(raw_weights(reward), [1.0, -2.0, 0.0, 0.0], atol=0.2)
    assert reward.tie == pytest.approx(0.8, abs=0.08)


def test_ties_alone_give_the_threshold():
    # Two equal answers, 2 votes each way and 4 ties: P(a) = s(-tie) = 1/4, so tie = ln 3
    features = np.array([[1.0], [1.0]])
    feedback = [vote(0, 1, c) for c in ("a", "a", "b", "b", "tie", "tie", "tie", "tie")]
    reward = fit_reward(features, feedback, ["p", "p"], np.array([[0.0], [2.0]]), FLAT, seed=0)

    assert reward.tie == pytest.approx(np.log(3), abs=1e-3)
    assert_allclose(reward.weight, [0.0], atol=1e-6)


def test_a_vote_counts_as_often_as_it_weighs():
    features = np.array([[1.0], [0.0]])
    reference = np.array([[0.0], [2.0]])
    heavy = [vote(0, 1, "a", 3.0), vote(0, 1, "b"), vote(0, 1, "b", 0.0)]
    reward = fit_reward(features, heavy, ["p", "p"], reference, Fit(prior=(1e-9,)), seed=0)

    assert_allclose(raw_weights(reward), [1.0986], atol=1e-3)


def test_votes_that_weigh_nothing_are_as_if_never_cast():
    features, feedback, prompt, reference = crowd(40)
    ignored = [vote(f.a, f.b, f.choice, 0.0 if prompt[f.a] == "p3" else 1.0) for f in feedback]
    without = [f for f in feedback if prompt[f.a] != "p3"]
    one, two = (fit_reward(features, f, prompt, reference, Fit(folds=20), seed=0) for f in (ignored, without))

    assert_allclose(one.weight, two.weight)
    with pytest.raises(DataError, match="no votes"):
        fit_reward(features, [vote(0, 1, "a", 0.0)], prompt, reference, Fit(), seed=0)


@pytest.mark.parametrize("count", [20, 200, 400])
def test_after_every_refit_the_untouched_models_answers_have_mean_0_and_std_1(count: int):
    features, feedback, prompt, reference = crowd(count)
    score = fit_reward(features, feedback, prompt, reference, Fit(), seed=0).score(reference)

    assert float(score.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(score.std()) == pytest.approx(1.0, abs=1e-9)


def test_an_emphasised_feature_is_as_if_its_standardised_value_were_that_much_larger():
    features, feedback, prompt, reference = crowd(60)
    strong = fit_reward(features, feedback, prompt, reference, FAIR, seed=0, emphasis=np.array([1.0, 5.0, 1.0, 1.0]))
    plain = fit_reward(features, feedback, prompt, reference, FAIR, seed=0)
    even = fit_reward(features, feedback, prompt, reference, FAIR, seed=0, emphasis=np.ones(4))

    assert_allclose(even.score(features), plain.score(features))
    assert strong.scale[1] == pytest.approx(plain.scale[1] / 5)
    shrunk, free = raw_weights(plain)[1], raw_weights(strong)[1]
    assert free < 1.2 * shrunk < 0  # the prior holds the emphasised weight (true value -2) back less


def test_a_gap_times_the_slope_is_the_logit_of_the_vote():
    reward = fitted(4000)
    a, b = np.array([[4.0, 3.0, 3.0, 3.0]]), np.array([[3.0, 3.0, 3.0, 3.0]])

    assert float((reward.score(a) - reward.score(b))[0]) * reward.slope == pytest.approx(raw_weights(reward)[0])


def test_swapping_the_answers_of_every_pair_changes_nothing():
    features, feedback, prompt, reference = crowd(100, tie=0.5)
    other = {"a": "b", "b": "a", "tie": "tie"}
    swapped = [vote(f.b, f.a, other[f.choice]) for f in feedback]
    one, two = (fit_reward(features, f, prompt, reference, Fit(), seed=0) for f in (feedback, swapped))

    assert_allclose(one.weight, two.weight, atol=1e-4)
    assert one.prior == two.prior


def test_fewer_votes_than_features_give_the_same_as_searching_all_of_them(monkeypatch: pytest.MonkeyPatch):
    draw = np.random.default_rng(1)
    features = draw.normal(size=(20, 30))
    feedback = [vote(2 * i, 2 * i + 1, "ab"[i % 2]) for i in range(10)]
    prompt = [str(i // 4) for i in range(20)]
    in_span = fit_reward(features, feedback, prompt, features, Fit(prior=(1.0,)), seed=0)
    monkeypatch.setattr(module.np.linalg, "qr", lambda x: (np.eye(x.shape[0]), None))
    everywhere = fit_reward(features, feedback, prompt, features, Fit(prior=(1.0,)), seed=0)

    assert_allclose(in_span.weight, everywhere.weight, atol=1e-3)


def test_noise_is_answered_with_a_strong_prior_and_clear_votes_with_a_weak_one():
    draw = np.random.default_rng(2)
    features = draw.normal(size=(400, 40))
    prompt = [str(i // 4) for i in range(400)]
    config = Fit(prior=(1.0, 1000.0))
    noise = [vote(2 * i, 2 * i + 1, "ab"[int(c)]) for i, c in enumerate(draw.integers(0, 2, 200))]
    clear = [vote(2 * i, 2 * i + 1, "a" if features[2 * i, 0] > features[2 * i + 1, 0] else "b") for i in range(200)]

    assert fit_reward(features, noise, prompt, features, config, seed=0).prior == 1000.0
    assert fit_reward(features, clear, prompt, features, config, seed=0).prior == 1.0


def test_the_votes_on_one_prompt_share_a_fold():
    prompts = [f"p{i % 10}" for i in range(60)]
    folds = module._folds(prompts, 4, seed=3)

    assert len({(p, int(k)) for p, k in zip(prompts, folds, strict=True)}) == 10
    assert sorted(np.bincount(folds).tolist()) == [12, 12, 18, 18]  # 10 prompts of 6 votes: 3 + 3 + 2 + 2


def test_a_held_out_prompt_is_never_fitted_on(monkeypatch: pytest.MonkeyPatch):
    # Every prompt has its own feature; a weight for a left-out prompt's feature can only come from a leak.
    seen: list[Sequence[float]] = []
    real = module._maximise

    def spy(gaps: Array, *rest: object) -> tuple[Array, float]:
        seen.append(np.abs(gaps).sum(0).tolist())
        return real(gaps, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_maximise", spy)
    features = np.kron(np.eye(4), np.array([[1.0], [0.0], [2.0], [0.0]]))  # 4 prompts, 4 answers each
    feedback = [vote(4 * p + 2 * i, 4 * p + 2 * i + 1, "a" if i else "b") for p in range(4) for i in range(2)]
    fit_reward(features, feedback, [str(i // 4) for i in range(16)], features, Fit(prior=(1.0,), folds=4), seed=0)

    assert [sum(x == 0 for x in s) for s in seen] == [1, 1, 1, 1, 0]  # one left out in each fold, none at the end


def test_a_feature_that_never_varies_does_not_blow_up():
    features, feedback, prompt, reference = crowd(100)
    features[:, 3], reference[:, 3] = 3.0, 3.0
    features[0, 3] = 4.0
    score = fit_reward(features, feedback, prompt, reference, Fit(), seed=0).score(features)

    assert float(np.abs(score).max()) < 10


def test_no_votes_are_refused():
    with pytest.raises(DataError, match="no votes"):
        fit_reward(np.ones((2, 1)), [], ["p", "p"], np.ones((2, 1)), Fit(), seed=0)
    with pytest.raises(DataError, match="no votes"):
        require_preference(["skip", "retract"])


def test_votes_that_are_all_ties_are_refused():
    ties = [vote(0, 1, "tie")] * 3
    with pytest.raises(DataError, match="All 3 votes are ties"):
        fit_reward(np.ones((2, 1)), ties, ["p", "p"], np.ones((2, 1)), Fit(), seed=0)


def test_one_vote_is_enough_to_fit():
    reward = fit_reward(
        np.array([[1.0], [0.0]]), [vote(0, 1, "a")], ["p", "p"], np.array([[0.0], [2.0]]), Fit(), seed=0
    )

    assert reward.score(np.array([[2.0]])) > reward.score(np.array([[0.0]]))


@pytest.mark.parametrize(
    ("key", "values"), [("prior", {"prior": ()}), ("prior", {"prior": (0.0,)}), ("folds", {"folds": 1})]
)
def test_a_fit_that_cannot_work_is_refused(key: str, values: dict[str, object]):
    with pytest.raises(Unfit) as caught:
        Fit(**values)  # type: ignore[arg-type]
    assert caught.value.key == key
