"""The reward as a scorer: read at the last real token, whatever stands beside it in the batch."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny import ANSWERS, ASKED, RAGGED, answer, chat, trunk_of

from backflip.core.protocols import Scorer
from backflip.rewards.fit import Reward
from backflip.rewards.model import RewardModel, features_of, load_reward, save_reward
from backflip.sampling.score import Reader


def reward_of(size: int, seed: int = 0) -> Reward:
    """A made-up head on 2 * size features."""
    draw = np.random.default_rng(seed)
    mean, scale, weight = draw.normal(size=2 * size), draw.uniform(0.5, 2, size=2 * size), draw.normal(size=2 * size)
    return Reward(mean, scale, weight, 0.25, 0.5, 2.0, 300.0)


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> RewardModel:
    trunk, _ = trunk_of(request.param)
    return RewardModel(reward_of(32), Reader(trunk, chat()))


def test_a_score_is_standardise_then_linear():
    # ((3 - 1) / 2, (5 - 1) / 4) = (1, 1); 1 * 10 + 1 * -3 + 0.5 = 7.5
    reward = Reward(np.array([1.0, 1.0]), np.array([2.0, 4.0]), np.array([10.0, -3.0]), 0.5, 0.0, 1.0, 1.0)

    assert reward.score(np.array([[3.0, 5.0]])).tolist() == [7.5]


def test_features_are_the_last_tokens_state_and_the_answers_mean(model: RewardModel):
    reading = model.reader.read(ASKED, ANSWERS, layers=(1,))
    features = features_of(reading, 1)

    assert features.shape == (6, 64)
    assert_allclose(features[:, :32], reading.last.numpy())
    assert_allclose(features[:, 32:], reading.pooled[1].numpy())


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
