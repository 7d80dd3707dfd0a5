import math

import numpy as np
import pytest

from backflip.stats.calibration import accuracy, calibration_error, expected, log_loss


def test_accuracy_worked_by_hand_with_ties_half():
    # right, wrong, right, a tied vote 1/2, a gap of 0 1/2
    got = accuracy([2.0, 1.0, -3.0, 5.0, 0.0], ["a", "b", "b", "tie", "a"], seed=0)
    assert got.value == pytest.approx(3 / 5)


def test_swapping_the_sides_of_every_pair_changes_nothing():
    rng = np.random.default_rng(0)
    gap, choice = rng.normal(size=60), rng.choice(["a", "b", "tie"], size=60).tolist()
    swapped = [{"a": "b", "b": "a", "tie": "tie"}[c] for c in choice]
    assert accuracy(gap, choice, seed=1) == accuracy(-gap, swapped, seed=1)
    assert log_loss(gap, choice, 1, tie=0.4) == pytest.approx(log_loss(-gap, swapped, 1, tie=0.4))
    assert calibration_error(gap, choice, tie=0.4) == pytest.approx(calibration_error(-gap, swapped, tie=0.4))


def test_log_loss_worked_by_hand():
    # gap ln 3: P(a) = 3/4; gap 0: 1/2
    got = log_loss([math.log(3), math.log(3), 0.0], ["a", "b", "b"], seed=0)
    assert got.value == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2)) / 3)
    # reward ratio 2, theta 3: 2/5, 1/7, 16/35 (Rao & Kupper)
    tied = log_loss([math.log(2)] * 3, ["a", "b", "tie"], 0, tie=math.log(3))
    assert tied.value == pytest.approx(-(math.log(2 / 5) + math.log(1 / 7) + math.log(16 / 35)) / 3)


def test_log_loss_stays_finite_for_large_gaps():
    assert log_loss([1e4, -1e4], ["b", "a"], seed=0).value == pytest.approx(1e4)


def test_votes_on_one_prompt_are_resampled_together():
    gap, choice = [1.0, 1.0, 1.0, 1.0], ["a", "a", "b", "b"]
    got = accuracy(gap, choice, seed=0, level=0.4, unit=["p", "q", "p", "q"])
    # each prompt has one hit and one miss: every resample is exactly 1/2
    assert got == (0.5, 0.5, 0.5)
    assert log_loss(gap, choice, 0, unit=["p", "q", "p", "q"]).low == pytest.approx(log_loss(gap, choice, 0).value)


def test_calibration_error_worked_by_hand():
    # sure 3/4 four times, right twice: |3/4 - 1/2|; sure 1/2 once, a coin: 0; weighted 4 to 1
    gap = [math.log(3)] * 2 + [-math.log(3)] * 2 + [0.0]
    got = calibration_error(gap, ["a", "b", "b", "a", "a"])
    assert got == pytest.approx(0.25 * 4 / 5)


def test_errors_of_opposite_sign_do_not_cancel_across_bins():
    # sure 3/4, right twice of two: 1/4 too shy; sure 9/10, right once of two: 2/5 too bold
    got = calibration_error([math.log(3)] * 2 + [math.log(9)] * 2, ["a", "a", "a", "b"])
    assert got == pytest.approx((2 * 0.25 + 2 * 0.4) / 4)


def test_votes_drawn_from_the_model_are_calibrated_and_inflated_gaps_are_not():
    rng = np.random.default_rng(1)
    gap = rng.normal(scale=2, size=20_000)
    p_a, p_b = 1 / (1 + np.exp(0.5 - gap)), 1 / (1 + np.exp(0.5 + gap))
    u = rng.uniform(size=gap.size)
    choice = np.where(u < p_a, "a", np.where(u < p_a + p_b, "b", "tie")).tolist()
    assert calibration_error(gap, choice, tie=0.5) < 0.02
    assert calibration_error(3 * gap, choice, tie=0.5) > 0.05
    honest = log_loss(gap, choice, 0, tie=0.5, draws=20)
    assert honest.high < log_loss(3 * gap, choice, 0, tie=0.5, draws=20).low
    assert honest.high < log_loss(gap, choice, 0, tie=1.0, draws=20).low


def test_it_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2 votes"):
        accuracy([1.0], ["a", "b"], seed=0)
    with pytest.raises(ValueError, match="skip"):
        accuracy([1.0, 1.0], ["a", "skip"], seed=0)
    with pytest.raises(ValueError, match="not finite"):
        accuracy([math.nan, 1.0], ["a", "b"], seed=0)
    with pytest.raises(ValueError, match="threshold is 0"):
        log_loss([1.0, 1.0], ["a", "tie"], seed=0)
    with pytest.raises(ValueError, match="tie must"):
        log_loss([1.0, 1.0], ["a", "a"], 0, tie=-1.0)
    with pytest.raises(ValueError, match="bins"):
        calibration_error([1.0], ["a"], bins=0)


def test_what_a_vote_is_worth_before_it_is_cast_counts_a_tie_half():
    # reward ratio 2, theta 3: P(a) = 2/5, P(tie) = 16/35
    assert expected([math.log(2), 0.0], tie=math.log(3)) == pytest.approx([2 / 5 + 8 / 35, 1 / 2])
    assert expected([math.log(3)]) == pytest.approx([3 / 4])
