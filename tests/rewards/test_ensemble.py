"""Several rewards from the same votes: what their mean and their spread say."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from backflip.core.config import Unfit
from backflip.core.records import Feedback, Thumbed
from backflip.rewards.calibration import calibrate
from backflip.rewards.ensemble import Ensemble, fit_ensemble, load_ensemble, resampled, save_ensemble
from backflip.rewards.fit import Fitted, fit_votes
from backflip.rewards.plan import Fit

Array = NDArray[np.float64]
TRUTH = np.array([1.0, -2.0, 0.0])


def fitted(votes: int, seed: int = 0, **config: object) -> tuple[Fitted, Array, Fit]:
    """A fit of votes by three raters on two answers to each prompt, and the untouched model's answers."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(2 * votes, 3))
    p_a = 1 / (1 + np.exp(-(features[::2] - features[1::2]) @ TRUTH))
    said = ["a" if u < p else "b" for u, p in zip(draw.random(votes), p_a, strict=True)]
    feedback = [Feedback(a=2 * i, b=2 * i + 1, choice=c, rater_id=str(i % 3)) for i, c in enumerate(said)]  # type: ignore[arg-type]
    plan = Fit(**({"prior": (3.0,), "members": 6} | config))  # type: ignore[arg-type]
    reference = draw.normal(size=(300, 3))
    prompt = [str(i // 2) for i in range(2 * votes)]
    return fit_votes(features, feedback, prompt, reference, plan, seed=0), reference, plan


def ensemble(votes: int, seed: int = 0, **config: object) -> tuple[Ensemble, Fitted, Array]:
    found, reference, plan = fitted(votes, seed, **config)
    return fit_ensemble(found, reference, plan, seed=0), found, reference


def test_the_members_mean_is_the_reward_and_each_is_centred_on_the_untouched_models_answers():
    members, found, reference = ensemble(60)
    others = np.random.default_rng(9).normal(size=(7, 3)) + 2.0

    assert members.score(others).shape == (6, 7)
    assert_allclose(members.score(others).mean(0), found.reward.score(others), atol=1e-9)
    assert_allclose(members.score(reference).mean(1), 0.0, atol=1e-9)
    assert members.score(reference).std(1).min() > 0.5
    assert_allclose(members.spread(others), members.score(others).std(0, ddof=1))
    assert members.spread(others).min() > 0


def test_more_votes_leave_less_spread_and_answers_far_from_the_rest_more():
    few, _, reference = ensemble(40)
    many, _, _ = ensemble(640)

    assert many.spread(reference).mean() < 0.5 * few.spread(reference).mean()
    assert few.spread(5 * reference).mean() > 3 * few.spread(reference).mean()


def test_the_spread_is_about_how_far_the_reward_is_from_the_truth():
    # the mean over 30 runs of squared error and of variance, of direction only: both are normalised
    error, variance = [], []
    for seed in range(30):
        members, found, reference = ensemble(50, seed, members=12)
        error.append(np.square(found.reward.score(reference) - reference @ TRUTH / np.linalg.norm(TRUTH)).mean())
        variance.append(np.square(members.spread(reference)).mean())

    assert 0.4 < np.mean(variance) / np.mean(error) < 2.5


def test_a_member_depends_on_its_number_and_the_seed_alone():
    found, reference, plan = fitted(60)
    six = fit_ensemble(found, reference, plan, seed=0)
    three = fit_ensemble(found, reference, Fit(prior=(3.0,), members=3), seed=0)
    other = fit_ensemble(found, reference, plan, seed=1)

    assert_allclose(np.diff(six.weight[:3], axis=0), np.diff(three.weight, axis=0), atol=1e-9)
    assert np.abs(six.weight - other.weight).max() > 1e-3


def test_one_member_is_the_reward_and_never_unsure():
    members, found, reference = ensemble(30, members=1)

    assert_array_equal(members.weight, found.reward.weight[None])
    assert_array_equal(members.spread(reference), np.zeros(300))


def test_members_that_see_a_part_of_the_features_differ_more():
    all_seen, found, reference = ensemble(200)
    part, _, _ = ensemble(200, member_features=0.67)

    assert part.spread(reference).mean() > 2 * all_seen.spread(reference).mean()
    assert_allclose(part.score(reference).mean(0), found.reward.score(reference), atol=1e-9)


def test_prompts_are_resampled_whole():
    found, _, _ = fitted(60)
    weight = resampled(found, np.random.default_rng(3)).pairs.weight  # type: ignore[union-attr]

    assert weight is not None
    assert len(weight) == 60  # one vote a prompt
    assert weight.sum() == 60
    assert set(weight.tolist()) > {0.0, 1.0, 2.0}


def test_a_resample_keeps_thumbs_with_their_prompt_and_some_preference():
    features = np.array([[1.0], [0.0], [1.0], [0.0]])
    votes = [Feedback(a=0, b=1, choice="a", rater_id="r"), Feedback(a=2, b=3, choice="tie", rater_id="r")]
    thumbs = [Thumbed(item=2, up=True, rater_id="r")]
    found = fit_votes(features, votes, ["p", "p", "q", "q"], features, Fit(prior=(1.0,)), seed=0)
    with_thumb = fit_votes(features, votes, ["p", "p", "q", "q"], features, Fit(prior=(1.0,)), seed=0, thumbs=thumbs)

    for seed in range(20):
        pairs = resampled(found, np.random.default_rng(seed)).pairs
        assert pairs is not None
        assert pairs.weight is not None
        assert pairs.weight[0] > 0  # the tie alone would teach nothing
        both = resampled(with_thumb, np.random.default_rng(seed))
        assert both.thumbs.weight[0] == both.pairs.weight[1]  # type: ignore[union-attr,index]


def test_members_are_saved_and_read_back(tmp_path: Path):
    members, _, reference = ensemble(30)
    assert load_ensemble(tmp_path) is None  # beside a reward of an earlier version
    save_ensemble(members, tmp_path)
    back = load_ensemble(tmp_path)

    assert back is not None
    assert_array_equal(back.score(reference), members.score(reference))


def test_a_temperature_undoes_what_was_inflated_and_finds_the_ties():
    # gaps drawn, votes by Rao and Kupper with tie width 0.5; told as twice as large, they are halved again
    draw = np.random.default_rng(0)
    gap = draw.normal(size=8000) * 1.5
    p_a, p_b = 1 / (1 + np.exp(0.5 - gap)), 1 / (1 + np.exp(0.5 + gap))
    u = draw.random(8000)
    choice = np.where(u < p_a, 0, np.where(u < p_a + p_b, 1, 2))
    found = calibrate(2 * gap, choice, np.ones(8000), 0.1)

    assert found.sharpness == pytest.approx(0.5, abs=0.03)
    assert found.tie == pytest.approx(0.5, abs=0.03)


def test_few_votes_hardly_move_the_temperature_and_none_leaves_it():
    one = calibrate(np.array([2.0]), np.array([1]), np.ones(1), 0.0)

    assert 0.6 < one.sharpness < 1
    assert one.tie == 0.0
    assert calibrate(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0), 0.3) == (1.0, 0.3)
    with pytest.raises(ValueError, match="finite"):
        calibrate(np.array([np.nan]), np.array([1]), np.ones(1), 0.0)


def test_a_fit_is_calibrated_on_prompts_that_it_left_out():
    # 40 features, 60 votes, next to no prior: sure of its own votes and far too sure of others
    draw = np.random.default_rng(0)
    features = draw.normal(size=(240, 40))
    gap = features[::2, 0] - features[1::2, 0]
    said = np.where(draw.random(120) < 1 / (1 + np.exp(-gap)), "a", "b")
    feedback = [Feedback(a=2 * i, b=2 * i + 1, choice=c, rater_id="r") for i, c in enumerate(said)]  # type: ignore[arg-type]
    found = fit_votes(features, feedback, [str(i // 4) for i in range(240)], features, Fit(prior=(1.0,)), seed=0)
    raw = float(np.std(found.rows @ found.crowd.weight))

    assert found.reward.slope < 0.7 * raw


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("members", {"members": 0}),
        ("member_features", {"member_features": 0.0}),
        ("member_features", {"member_features": 1.5}),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(key: str, values: dict[str, object]):
    with pytest.raises(Unfit) as caught:
        Fit(**values)  # type: ignore[arg-type]
    assert caught.value.key == key
