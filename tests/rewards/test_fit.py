"""Fitting a reward to votes: what it recovers, what it refuses, what stays the same after every refit."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from backflip.core.config import Unfit
from backflip.core.errors import DataError
from backflip.core.records import Feedback, Thumbed
from backflip.objectives.preference import bradley_terry_loss, encode
from backflip.rewards import fit as module
from backflip.rewards.ensemble import fit_ensemble
from backflip.rewards.fit import Fit, Reward, fit_reward, fit_votes, require_difference, require_preference
from backflip.stats.evidence import Evidence
from backflip.stats.raters import POSITION, SENSITIVITY, TIES, Pooling, RaterFit

Array = NDArray[np.float64]
FLAT = Fit(prior=(1e-3,))
"""Almost no prior: the fit is the maximum of the likelihood."""


FAIR = Fit(prior=(30.0,))


def vote(a: int, b: int, choice: str, weight: float = 1.0, rater: str = "r", shown: int = 0) -> Feedback:
    return Feedback(a=a, b=b, choice=choice, rater_id=rater, weight=weight, shown=shown)  # type: ignore[arg-type]


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
    in_span = fit_votes(features, feedback, prompt, features, Fit(prior=(1.0,)), seed=0)
    monkeypatch.setattr(module, "_span", lambda z, _: np.eye(z.shape[1]))
    everywhere = fit_reward(features, feedback, prompt, features, Fit(prior=(1.0,)), seed=0)

    assert in_span.rows.shape == (20, 10)
    assert_allclose(in_span.reward.weight, everywhere.weight, atol=1e-3)


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
    seen: list[int] = []
    real = module.fit_raters

    def spy(rows: Array, evidence: Evidence, *rest: object, **keys: object) -> RaterFit:
        fit = real(rows, evidence, *rest, **keys)  # type: ignore[arg-type]
        seen.append(int((np.ptp(fit.score(rows).reshape(4, 4), axis=1) < 1e-9).sum()))
        return fit

    monkeypatch.setattr(module, "fit_raters", spy)
    features = np.kron(np.eye(4), np.array([[1.0], [0.0], [2.0], [0.0]]))  # 4 prompts, 4 answers each
    feedback = [vote(4 * p + 2 * i, 4 * p + 2 * i + 1, "a" if i else "b") for p in range(4) for i in range(2)]
    config = Fit(prior=(1.0, 2.0), folds=4, raters="equal")
    fit_reward(features, feedback, [str(i // 4) for i in range(16)], features, config, seed=0)

    assert seen == [1] * 8 + [0]  # one prompt left out in each fold, at either prior; none at the end


def test_a_feature_that_never_varies_does_not_blow_up():
    features, feedback, prompt, reference = crowd(100)
    features[:, 3], reference[:, 3] = 3.0, 3.0
    features[0, 3] = 4.0
    score = fit_reward(features, feedback, prompt, reference, Fit(), seed=0).score(features)

    assert float(np.abs(score).max()) < 10


@pytest.mark.parametrize("alike", [True, False], ids=["answers all alike", "votes that cancel out"])
def test_a_reward_that_is_the_same_for_every_answer_is_0_and_refused_for_a_climb(alike: bool):
    features, feedback, prompt, reference = crowd(20)
    if alike:
        features, reference = np.ones_like(features), np.ones_like(reference)
    else:
        feedback = [vote(f.a, f.b, c) for f in feedback for c in "ab"]
    fitted = fit_votes(features, feedback, prompt, reference, Fit(), seed=0)
    members = fit_ensemble(fitted, reference, Fit(), seed=0)

    assert not fitted.reward.score(features).any()
    assert not members.score(features).any()
    assert np.isfinite([fitted.reward.slope, fitted.reward.tie, fitted.reward.prior]).all()
    with pytest.raises(DataError, match="same for every answer") as told:
        require_difference(fitted.reward, reference)
    assert len(str(told.value).splitlines()) == 3


def test_a_reward_that_tells_answers_apart_is_fit_for_a_climb():
    features, feedback, prompt, reference = crowd(3)
    require_difference(fit_reward(features, feedback[:1], prompt, reference, Fit(), seed=0), reference)


def test_no_votes_are_refused():
    with pytest.raises(DataError, match="no votes"):
        fit_reward(np.ones((2, 1)), [], ["p", "p"], np.ones((2, 1)), Fit(), seed=0)
    with pytest.raises(DataError, match="no votes"):
        require_preference(["skip", "retract"])


def test_votes_that_are_all_ties_are_refused():
    ties = [vote(0, 1, "tie")] * 3
    with pytest.raises(DataError, match="All 3 votes are ties"):
        fit_reward(np.ones((2, 1)), ties, ["p", "p"], np.ones((2, 1)), Fit(), seed=0)


@pytest.mark.parametrize("width", [0.0, 0.6], ids=["plain Bradley-Terry", "with ties"])
def test_equal_raters_without_lapses_are_plain_bradley_terry(width: float):
    # at the maximum of the likelihood with a normal prior of precision 30, every derivative is 0
    features, feedback, prompt, reference = crowd(300, tie=width)
    feedback = [vote(f.a, f.b, f.choice, rater=f"r{i % 3}", shown=(-1) ** i) for i, f in enumerate(feedback)]
    found = fit_votes(features, feedback, prompt, reference, Fit(prior=(30.0,), raters="equal"), seed=0)
    weight = torch.tensor(found.basis @ found.crowd.weight, requires_grad=True)
    tie = torch.tensor(float(np.exp(found.crowd.usual[TIES])), requires_grad=True)
    z = torch.from_numpy((features - found.reward.mean) / found.reward.scale)
    gap = torch.stack([(z[f.a] - z[f.b]) @ weight for f in feedback])
    loss = bradley_terry_loss(gap, encode([f.choice for f in feedback]), tie if width else 0.0).loss
    (300 * loss + 15 * weight.square().sum()).backward()

    assert weight.grad is not None
    assert float(weight.grad.abs().max()) < 0.02  # of a curvature near 100
    if width:
        assert tie.grad is not None
        assert float(tie.grad.abs()) < 0.02


def test_a_rater_who_votes_the_other_way_is_found_and_read_rightly():
    features, feedback, prompt, reference = crowd(600)
    other = {"a": "b", "b": "a"}
    said = [
        vote(f.a, f.b, other[f.choice] if i % 4 == 0 else f.choice, rater=f"r{i % 4}")  # r0 is against everything
        for i, f in enumerate(feedback)
    ]
    pooled = fit_votes(features, said, prompt, reference, Fit(prior=(3.0,)), seed=0)
    equal = fit_votes(features, said, prompt, reference, Fit(prior=(3.0,), raters="equal"), seed=0)
    truth = np.array([1.0, -2.0, 0.0, 0.0])

    def likeness(reward: Reward) -> float:
        w = reward.weight / reward.scale
        return float(w @ truth / np.linalg.norm(w) / np.linalg.norm(truth))

    assert pooled.raters == ("r0", "r1", "r2", "r3")
    assert pooled.crowd.traits[0, SENSITIVITY] < 0 < pooled.crowd.traits[1:, SENSITIVITY].min()
    assert likeness(pooled.reward) > max(0.99, likeness(equal.reward))
    np.testing.assert_array_equal(equal.crowd.traits[:, SENSITIVITY], 1.0)


def test_a_lean_to_what_is_shown_first_is_the_raters_not_the_rewards():
    # always the answer shown first, and that is the one with the feature in three of four pairs
    features = np.array([[1.0], [0.0]] * 40)
    shown = [-1 if i % 4 == 0 else 1 for i in range(40)]
    feedback = [vote(2 * i, 2 * i + 1, "a" if s > 0 else "b", shown=s) for i, s in enumerate(shown)]
    blind = [vote(f.a, f.b, f.choice) for f in feedback]
    prompt, config = [str(i // 2) for i in range(80)], Fit(prior=(1.0,))
    reference = np.array([[0.0], [2.0]])
    wise = fit_votes(features, feedback, prompt, reference, config, seed=0)
    fooled = fit_reward(features, blind, prompt, reference, config, seed=0)

    assert wise.crowd.usual[POSITION] > 0.5
    assert abs(raw_weights(wise.reward)[0]) < 0.7 * raw_weights(fooled)[0]


def test_one_rater_alone_has_no_sensitivity_of_his_own():
    fitted_alone = fit_votes(*crowd(60), FAIR, seed=0)

    assert fitted_alone.crowd.traits[0, SENSITIVITY] == 1.0
    assert module._pooling(Fit(), [vote(0, 1, "a"), vote(0, 1, "b", rater="s")], ()) == Pooling()


def test_who_cannot_tell_is_undecided_where_raters_are_learned_and_left_out_where_they_are_equal():
    features, feedback, prompt, reference = crowd(100)
    unsure = [vote(f.a, f.b, "skip", rater="s") for f in feedback[:30]]
    equal, both = Fit(prior=(3.0,), raters="equal"), [*feedback, *unsure]

    assert_allclose(
        fit_reward(features, both, prompt, reference, equal, seed=0).weight,
        fit_reward(features, feedback, prompt, reference, equal, seed=0).weight,
    )
    learned = fit_votes(features, both, prompt, reference, FAIR, seed=0)
    assert learned.reward.tie > 0
    assert learned.crowd.cannot_tell[1] > 0.9


def test_thumbs_alone_teach_a_reward_and_add_to_votes():
    draw = np.random.default_rng(5)
    features = draw.normal(size=(300, 2))
    up = draw.random(300) < 1 / (1 + np.exp(1 - 2 * features[:, 0]))  # a thumb asks for more than the mean
    thumbs = [Thumbed(item=i, up=bool(u), rater_id="r") for i, u in enumerate(up)]
    prompt = [str(i // 3) for i in range(300)]
    reward = fit_reward(features, [], prompt, features, Fit(prior=(1.0, 10.0)), seed=0, thumbs=thumbs)
    against = [vote(i, i + 1, "a" if features[i, 1] > features[i + 1, 1] else "b") for i in range(0, 300, 2)]
    both = fit_reward(features, against, prompt, features, Fit(prior=(1.0,)), seed=0, thumbs=thumbs)

    assert raw_weights(reward)[0] == pytest.approx(2.0, abs=0.4)
    assert abs(raw_weights(reward)[1]) < 0.4
    assert raw_weights(both)[0] > 0.7
    assert raw_weights(both)[1] > 0.7


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
