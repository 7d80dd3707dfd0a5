import numpy as np
import pytest
from scipy.special import expit

from backflip.stats.selection import (
    disagreement,
    double_thompson,
    draw,
    greedy_variance,
    inclusion,
    information,
    uncertainty,
    with_exploration,
)


def test_uncertainty_and_disagreement_worked_by_hand():
    apart = np.array([[0.0], [np.log(3)]])
    assert uncertainty(apart, np.ones(1)) == pytest.approx([1 / 4, 3 / 16])
    # members say 1/2 and 1/2; 3/4 and 1/4
    assert disagreement(apart, np.array([[1.0], [-1.0]])) == pytest.approx([0, 1 / 4])
    with pytest.raises(ValueError, match="at least 2"):
        disagreement(apart, np.ones((1, 1)))


def test_information_is_what_many_draws_of_the_reward_show():
    luck = np.random.default_rng(0)
    apart, weight, root = luck.normal(size=(6, 3)), luck.normal(size=3), luck.normal(size=(3, 3)) / 2
    p = expit(apart @ (weight[:, None] + root @ luck.normal(size=(3, 200_000))))

    def nats(q):
        return -(q * np.log(q) + (1 - q) * np.log(1 - q))

    want = nats(p.mean(1)) - nats(p).mean(1)
    got = information(apart, weight, root @ root.T)
    np.testing.assert_allclose(got, want, atol=2e-3)
    assert got.max() > 0.02
    assert information(apart, weight, np.zeros((3, 3))) == pytest.approx(np.zeros(6))


def test_greedy_choices_are_those_of_inverting_the_curvature_each_time():
    luck = np.random.default_rng(1)
    apart, weight, root = luck.normal(size=(30, 4)), luck.normal(size=4), luck.normal(size=(4, 4))
    covariance = root @ root.T
    got = greedy_variance(apart, weight, covariance, 8)
    p, curvature, want = expit(apart @ weight), np.linalg.inv(covariance), []
    for _ in range(8):
        variance = ((apart @ np.linalg.inv(curvature)) * apart).sum(1)
        gain = p * (1 - p) * variance
        gain[want] = -1
        want.append(int(gain.argmax()))
        x = apart[want[-1]]
        curvature = curvature + (p * (1 - p))[want[-1]] * np.outer(x, x)

    assert got.tolist() == want


def test_the_same_question_is_not_asked_twice():
    # two pairs alike along the first axis, a weaker one along the second
    apart = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    assert sorted(greedy_variance(apart, np.zeros(2), 4 * np.eye(2), 2).tolist()) == [0, 2]
    with pytest.raises(ValueError, match="4 pairs are wanted of 3"):
        greedy_variance(apart, np.zeros(2), np.eye(2), 4)


def test_double_thompson_worked_by_hand():
    # draws: 0 > 1 > 2, 1 > 2 > 0. Both the first (1/4): 0, 1; both the second (1/4): 1, 2; else (1/2): 0, 1
    got = double_thompson(np.array([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0]]))
    np.testing.assert_allclose(got, [[0, 3 / 4, 0], [0, 0, 1 / 4], [0, 0, 0]])
    assert double_thompson(np.random.default_rng(0).normal(size=(50, 7))).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="two answers"):
        double_thompson(np.ones((3, 1)))


def test_chances_of_being_asked_worked_by_hand():
    # of 2 asked: 1/2 of them alike (1/4 each), 1/2 as the scores 0, 1, 1, 2
    assert inclusion(np.array([0.0, 1, 1, 2]), 2, floor=0.5) == pytest.approx([1 / 4, 1 / 2, 1 / 2, 3 / 4])
    # the last would have 8/5: it is sure, and the other one goes to the rest
    assert inclusion(np.array([1.0, 1, 8]), 2, floor=0.0) == pytest.approx([1 / 2, 1 / 2, 1])
    assert inclusion(np.zeros(4), 1) == pytest.approx([1 / 4] * 4)
    for wrong in (np.array([-1.0, 1]), np.array([np.nan, 1])):
        with pytest.raises(ValueError, match="0 or more"):
            inclusion(wrong, 1)


def test_every_pair_is_asked_as_often_as_its_chance_says():
    luck = np.random.default_rng(2)
    chance = inclusion(luck.exponential(size=12), 5)
    seen = np.zeros(12)
    for _ in range(4000):
        got = draw(chance, luck)
        assert len(set(got.place.tolist())) == 5
        np.testing.assert_array_equal(got.probability, chance[got.place])
        seen[got.place] += 1

    np.testing.assert_allclose(seen / 4000, chance, atol=0.03)
    assert np.ptp(chance) > 0.3
    together = {tuple(sorted(draw(np.full(4, 0.5), luck).place.tolist())) for _ in range(200)}
    assert len(together) == 6  # neighbours in the list may be asked together too
    with pytest.raises(ValueError, match="whole number"):
        draw(np.array([0.5, 0.2]), luck)


def test_exploring_leaves_no_pair_beyond_reach():
    luck, seen = np.random.default_rng(3), np.zeros(6)
    for _ in range(3000):
        got = with_exploration(np.array([4, 1]), 6, 3, luck)
        assert got.place[:2].tolist() == [4, 1]
        assert got.probability.tolist() == [1, 1, 1 / 4]
        seen[got.place] += 1

    np.testing.assert_allclose(seen / 3000, [1 / 4, 1, 1 / 4, 1 / 4, 1, 1 / 4], atol=0.03)
    with pytest.raises(ValueError, match="cannot be asked"):
        with_exploration(np.array([4, 1]), 6, 1, luck)
