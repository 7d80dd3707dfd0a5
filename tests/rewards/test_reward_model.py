"""The reward as a scorer: read at the last real token, whatever stands beside it in the batch."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny import ANSWERS, ASKED, RAGGED, answer, chat, trunk_of

from backflip.core.protocols import Scorer
from backflip.rewards.classifier import TOKEN_FEATURES, token_features
from backflip.rewards.fit import Reward, emphasis
from backflip.rewards.model import RewardModel, features_of, load_reward, save_reward
from backflip.sampling.score import Reader


def reward_of(size: int, seed: int = 0) -> Reward:
    """A made-up head on the features of a model with `size` hidden units."""
    draw, count = np.random.default_rng(seed), 2 * size + TOKEN_FEATURES
    mean, scale, weight = draw.normal(size=count), draw.uniform(0.5, 2, size=count), draw.normal(size=count)
    return Reward(mean, scale, weight, 0.25, 0.5, 2.0, 300.0)


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> RewardModel:
    trunk, _ = trunk_of(request.param)
    return RewardModel(reward_of(32), Reader(trunk, chat()))


def test_a_score_is_standardise_then_linear():
    # ((3 - 1) / 2, (5 - 1) / 4) = (1, 1); 1 * 10 + 1 * -3 + 0.5 = 7.5
    reward = Reward(np.array([1.0, 1.0]), np.array([2.0, 4.0]), np.array([10.0, -3.0]), 0.5, 0.0, 1.0, 1.0)

    assert reward.score(np.array([[3.0, 5.0]])).tolist() == [7.5]


def test_features_are_the_last_tokens_state_the_answers_mean_and_its_token_figures(model: RewardModel):
    reading = model.reader.read(ASKED, ANSWERS, layers=(1,))
    talk = model.reader.chat
    features = features_of(reading, talk, ASKED, ANSWERS)

    assert features.shape == (6, 69)
    assert_allclose(features[:, :32], reading.last.numpy())
    assert_allclose(features[:, 32:64], reading.pooled[1].numpy())
    figures = [
        token_features(talk.encode(p), a.tokens.tolist(), talk.frame) for p, a in zip(ASKED, ANSWERS, strict=True)
    ]
    assert_allclose(features[:, 64:], figures)


def test_token_figures_tell_length_what_is_taken_from_the_request_and_repetition():
    # distinct 5 6 7 8; of these 5 and 6 are in the request, 7 only in its frame; 4 of 5 tokens are distinct
    figures = token_features([7, 5, 6, 9, 7], [5, 6, 6, 7, 8], {7})

    assert figures == pytest.approx([np.log(5), np.log(5) ** 2, 2 / 4, np.log(3), 4 / 5])


def test_an_answer_without_tokens_has_no_figures():
    with pytest.raises(ValueError, match="no tokens"):
        token_features([1, 2], [], set())


def test_the_token_figures_count_more_than_a_hidden_unit():
    assert emphasis(69).tolist() == [1.0] * 64 + [5.0] * 5


def test_other_answers_in_the_batch_do_not_change_a_score(model: RewardModel):
    scorer: Scorer = model
    together = scorer.score(ASKED, ANSWERS)
    alone = [float(scorer.score([p], [a])[0]) for p, a in zip(ASKED, ANSWERS, strict=True)]

    assert_allclose(together, alone, atol=1e-4)
    assert len(set(np.round(together, 3))) == 6


def test_every_token_up_to_the_last_counts(model: RewardModel):
    # a stop token in the middle is a token like any other; one more at the end is a different answer
    tokens = [[30, 2, 31], [30, 2, 32], [30, 2], [30, 2, 31, 2]]
    scores = model.score([RAGGED[0]] * 4, [answer("short", t, i) for i, t in enumerate(tokens)])

    assert len(set(np.round(scores, 3))) == 4


def test_a_saved_reward_comes_back_bit_by_bit(tmp_path: Path):
    reward = reward_of(32)
    save_reward(reward, tmp_path / "r")
    back = load_reward(tmp_path / "r")

    for name in ("mean", "scale", "weight"):
        assert np.array_equal(getattr(reward, name), getattr(back, name))
    assert reward[3:] == back[3:]


def test_the_token_figures_that_a_fit_emphasises_are_those_that_are_there():
    assert emphasis(20).tolist() == [1.0] * (20 - TOKEN_FEATURES) + [5.0] * TOKEN_FEATURES
