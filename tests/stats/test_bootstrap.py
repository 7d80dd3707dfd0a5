import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backflip.stats.bootstrap import bootstrap_mean, paired_difference, ratio_of_means, wilson, win_rate, win_shares


def test_the_value_is_the_mean_and_the_interval_that_of_the_normal_law():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    got = bootstrap_mean(x, seed=1)
    half = 1.96 * x.std() / np.sqrt(1000)
    assert got.value == pytest.approx(x.mean())
    assert got.low == pytest.approx(x.mean() - half, abs=0.015)
    assert got.high == pytest.approx(x.mean() + half, abs=0.015)


def test_two_units_have_three_possible_means():
    # 0 and 1 resampled: mean 0 with 1/4, 1/2 with 1/2, 1 with 1/4
    assert bootstrap_mean([0, 1], seed=0) == (0.5, 0.0, 1.0)
    assert bootstrap_mean([0, 1], seed=0, level=0.4) == (0.5, 0.5, 0.5)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    intervals = [bootstrap_mean(rng.normal(size=60), seed=i, draws=400, level=0.8) for i in range(400)]
    covered = np.mean([i.low <= 0 <= i.high for i in intervals])
    # 0.8 +- 3 standard errors of 400 trials
    assert 0.74 < covered < 0.86


def test_answers_to_one_prompt_are_resampled_together():
    # 20 prompts, 50 identical answers each: the interval is that of 20 values, not of 1000
    means = np.random.default_rng(3).normal(size=20)
    prompts = [f"p{i}" for i in range(20) for _ in range(50)]
    clustered = bootstrap_mean(np.repeat(means, 50), seed=4, unit=prompts)
    alone = bootstrap_mean(means, seed=4)
    assert clustered == pytest.approx(alone)
    naive = bootstrap_mean(np.repeat(means, 50), seed=4)
    assert (naive.high - naive.low) < 0.25 * (clustered.high - clustered.low)


def test_units_of_unequal_size_keep_the_mean_over_values():
    assert bootstrap_mean([1, 1, 1, 5], seed=0, unit=["x", "x", "x", "y"]).value == 2.0


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    x = np.arange(30.0)
    assert bootstrap_mean(x, seed=5) == bootstrap_mean(x, seed=5)
    assert bootstrap_mean(x, seed=5) != bootstrap_mean(x, seed=6)


def test_pairing_removes_what_both_share():
    # a is b plus 1 everywhere: the difference is 1 without doubt
    b = np.random.default_rng(6).normal(0, 100, size=40)
    assert paired_difference(b + 1, b, seed=0) == pytest.approx((1, 1, 1))
    assert paired_difference([3, 5], [1, 1], seed=0).value == 3


def test_a_ratio_draws_both_sides_together():
    # a is twice b everywhere: the ratio is 2 without doubt; the mean of the ratios is not the ratio of the means
    b = np.random.default_rng(7).uniform(1, 9, size=40)
    assert ratio_of_means(2 * b, b, seed=0) == pytest.approx((2, 2, 2))
    assert ratio_of_means([1, 9], [1, 3], seed=0).value == 2.5


def test_many_units_are_resampled_in_several_blocks():
    x = np.random.default_rng(8).normal(size=300_000)
    got = bootstrap_mean(x, seed=0, draws=10)
    assert got.low < got.value < got.high


def test_win_shares_worked_by_hand():
    # prompt 1: 3 beats 1, ties 3; 0 loses twice: 1.5 of 4. prompt 2: all four won.
    a, b = [[3, 0], [9, 9]], [[1, 3], [0, 0]]
    assert win_shares(a, b).tolist() == [0.375, 1.0]
    assert win_rate(a, b, seed=0).value == 0.6875


def test_policies_may_give_different_numbers_of_answers():
    assert win_shares([[1.0]], [[0.0, 1.0, 2.0, 0.5]]).tolist() == [0.625]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_win_rates_of_both_sides_sum_to_one(seed: int):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, size=(6, 3)), rng.integers(0, 4, size=(6, 5))
    there, back = win_rate(a, b, seed=1, draws=50), win_rate(b, a, seed=1, draws=50)
    assert there.value + back.value == pytest.approx(1)
    assert there.low == pytest.approx(1 - back.high)
    assert win_rate(a, a, seed=1, draws=50).value == 0.5


def test_a_policy_against_itself_straddles_one_half():
    rng = np.random.default_rng(9)
    got = win_rate(rng.normal(size=(100, 4)), rng.normal(size=(100, 4)), seed=0)
    assert got.low < 0.5 < got.high


def test_it_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_mean([1.0], seed=0)
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_mean([1.0, 2.0], seed=0, unit=["x", "x"])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_mean([1.0, np.nan], seed=0)
    with pytest.raises(ValueError, match="2 values but 1 units"):
        bootstrap_mean([1.0, 2.0], seed=0, unit=["x"])
    with pytest.raises(ValueError, match="draws"):
        bootstrap_mean([1.0, 2.0], seed=0, draws=0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean([1.0, 2.0], seed=0, level=1.0)
    with pytest.raises(ValueError, match="a has 2"):
        paired_difference([1, 2], [1], seed=0)
    with pytest.raises(ValueError, match="0 or more"):
        ratio_of_means([1, 2], [1, -1], seed=0)
    with pytest.raises(ValueError, match="a draw's denominators"):
        ratio_of_means([1, 2], [1, 0], seed=0)
    with pytest.raises(ValueError, match=r"\(P, G\)"):
        win_shares([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="utility"):
        win_shares([[np.inf]], [[np.inf]])
    with pytest.raises(ValueError, match=r"must be \(N,\)"):
        bootstrap_mean([[1.0, 2.0]], seed=0)


def test_wilsons_interval_worked_by_hand():
    # 15 of 20, z = 1.96: (0.75 + z2/40 -+ z sqrt(0.75 0.25 / 20 + z2/1600)) / (1 + z2/20)
    assert wilson(15, 20) == pytest.approx((0.75, 0.5313, 0.8881), abs=1e-4)
    assert wilson(0, 10).low == pytest.approx(0)
    assert wilson(5, 10, 0.99).high > wilson(5, 10).high
    with pytest.raises(ValueError, match="1 judgement or more"):
        wilson(0, 0)
