"""What more votes would buy: the curve, its interval, and how often that interval holds the truth."""

import numpy as np
import pytest
from numpy.typing import NDArray

from backflip.core.errors import DataError
from backflip.core.records import Feedback
from backflip.rewards.budget import HeldOut, what_votes_buy
from backflip.rewards.fit import Fitted, fit_votes
from backflip.rewards.plan import Fit
from backflip.stats.learning_curve import gain_of_more

Array = NDArray[np.float64]
TRUTH = np.array([0.9, -0.9, 0.6, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
PLAN = Fit(prior=(10.0,), raters="equal")
VOTES, MORE, HELD = 100, 60, 40


def voted(votes: int, luck: np.random.Generator) -> tuple[Array, Array]:
    """(gaps of features, 1 or -1): votes by Bradley and Terry's model."""
    apart = luck.normal(size=(votes, len(TRUTH))) * np.sqrt(2)
    return apart, np.where(luck.random(votes) < 1 / (1 + np.exp(-apart @ TRUTH)), 1.0, -1.0)


def fitted(votes: int, luck: np.random.Generator) -> Fitted:
    apart, outcome = voted(votes, luck)
    features = np.stack([apart, np.zeros_like(apart)], axis=1).reshape(-1, apart.shape[1])
    feedback = [
        Feedback(a=2 * i, b=2 * i + 1, choice="a" if o > 0 else "b", rater_id="r") for i, o in enumerate(outcome)
    ]
    reference = np.vstack([np.ones(len(TRUTH)), -np.ones(len(TRUTH))])
    return fit_votes(features, feedback, [str(i // 4) for i in range(2 * votes)], reference, PLAN, seed=0)


def true_share(found: Fitted) -> float:
    """How often the reward foretells a new vote: the gaps along truth and weight are normal, with a known angle."""
    weight = found.basis @ found.crowd.weight
    along = np.linspace(-4, 4, 401)
    size, angle = np.linalg.norm(TRUTH) * np.sqrt(2), weight @ TRUTH / np.linalg.norm(weight) / np.linalg.norm(TRUTH)
    from scipy.stats import norm

    agree = norm.cdf(along * angle / np.sqrt(1 - angle**2))
    right = 1 / (1 + np.exp(-size * along))
    density = norm.pdf(along)
    return float((density * (agree * right + (1 - agree) * (1 - right))).sum() / density.sum())


def test_a_curve_that_follows_the_law_is_read_off_exactly():
    size = np.array([20.0, 40.0, 80.0, 160.0])
    right = np.broadcast_to(0.8 - 1.0 * size**-0.5, (2, 30, 4))
    found = gain_of_more(size, right, [str(i) for i in range(30)], 160, 50, seed=0)

    assert found.now == pytest.approx(0.8 - 160**-0.5)
    assert found.gain.value == pytest.approx(160**-0.5 - 210**-0.5)
    assert found.gain.low == pytest.approx(found.gain.value)
    assert found.curve[0] == (20.0, pytest.approx(0.8 - 20**-0.5))


def test_more_votes_never_make_it_worse_and_a_flat_curve_promises_nothing():
    size = np.array([20.0, 40.0, 80.0])
    falling = np.broadcast_to(np.array([0.7, 0.69, 0.68]), (1, 5, 3))

    assert gain_of_more(size, falling, list("abcde"), 80, 50, seed=0).gain == (0.0, 0.0, 0.0)


def test_votes_that_were_learned_from_do_not_count():
    size = np.array([20.0, 40.0, 80.0])
    right = np.full((2, 4, 3), np.nan)
    right[0, :2], right[1, 2:] = [0.0, 0.5, 1.0], [0.5, 0.5, 0.5]
    found = gain_of_more(size, right, list("abcd"), 80, 50, seed=0)

    assert [a for _, a in found.curve] == [0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="3 sizes"):
        gain_of_more(size[:2], right[:, :, :2], list("abcd"), 80, 50, seed=0)


@pytest.mark.slow
def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    # 90% is claimed; a binomial of 40 at 0.9 is below 31 once in 100
    luck = np.random.default_rng(0)
    shares = {n: np.mean([true_share(fitted(n, luck)) for _ in range(100)]) for n in (VOTES, VOTES + MORE)}
    truth = float(shares[VOTES + MORE] - shares[VOTES])
    hits, width = 0, []
    for run in range(40):
        luck = np.random.default_rng(1000 + run)
        found = fitted(VOTES, luck)
        apart, outcome = voted(HELD, luck)
        held_out = HeldOut(apart, outcome, [f"h{i // 2}" for i in range(HELD)])
        gain = what_votes_buy(found, held_out, MORE, seed=run).gain
        hits += gain.low <= truth <= gain.high
        width.append(gain.high - gain.low)

    assert truth > 0.005
    assert hits >= 31
    assert np.mean(width) < 0.1  # and it says something


def test_what_is_near_its_best_gains_less_than_what_has_a_long_way_to_go():
    luck = np.random.default_rng(3)
    none = HeldOut(np.zeros((0, len(TRUTH))), np.zeros(0), [])
    few, many = (what_votes_buy(fitted(n, luck), none, 50, seed=0) for n in (40, 800))

    assert many.gain.value < 0.5 * few.gain.value
    assert many.now > few.now
    assert many.curve[-1][0] == pytest.approx(600)  # three quarters: one prompt in four is held out


def test_too_few_prompts_are_refused():
    with pytest.raises(DataError, match="10 prompts are too few"):
        what_votes_buy(fitted(20, np.random.default_rng(0)), HeldOut(np.zeros((0, 10)), np.zeros(0), []), 50, seed=0)
