"""Policy against reference, with figures worked by hand."""

import numpy as np
import pytest

from backflip.measure.compare import Side, compare, correlation, distinct_ratio, largest_share, nats_added


def side(**changes: object) -> Side:
    """Two prompts, two answers each."""
    two = np.array([[1.0, 1.0], [1.0, 1.0]])
    keys = {"utility": two, "attributes": {"warmth": two}, "proxy": two, "length": two, "logp_ref": -two, "kl": two}
    return Side(**(keys | {"texts": [["a b", "c d"], ["e f", "g h"]]} | changes))  # type: ignore[arg-type]


def table(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def test_a_prompts_wins_are_counted_over_all_its_pairs_and_ties_half() -> None:
    # prompt 1: 3 > 1, 3 > 2, 1 = 1 (half), 1 < 2: 2.5 of 4; prompt 2: 4 of 4; mean 0.8125
    policy = side(utility=table([3, 1], [5, 6]), proxy=table([1, 1], [0, 0]))
    reference = side(utility=table([1, 2], [0, 4]), proxy=table([0, 0], [1, 1]))

    out = compare(policy, reference, seed=0)

    assert out["win_rate"].value == pytest.approx(0.8125)
    assert (out["win_rate"].low, out["win_rate"].high) == (0.625, 1.0)
    assert out["proxy_win_rate"].value == 0.5
    assert out["utility"].value == 3.75
    assert out["utility_reference"].value == 1.75


def test_kl_length_and_proxy_are_means_over_answers() -> None:
    policy = side(kl=table([2, 4], [6, 0]), length=table([10, 20], [30, 40]), proxy=table([0.5, 1.5], [1, 3]))
    out = compare(policy, side(length=table([4, 6], [8, 6])), seed=0)

    assert out["kl"].value == 3.0
    assert (out["kl"].low, out["kl"].high) == (3.0, 3.0)  # both prompts have mean 3
    assert (out["length"].value, out["length_reference"].value) == (25.0, 6.0)
    assert (out["proxy"].value, out["proxy_reference"].value) == (1.5, 1.0)


def test_an_attributes_gain_is_the_mean_difference_on_the_same_prompts() -> None:
    policy = side(attributes={"warmth": table([1.0, 0.5], [0.25, 0.25])})
    reference = side(attributes={"warmth": table([0.5, 0.5], [0.0, 0.0])})

    out = compare(policy, reference, seed=0)

    # by prompt: 0.75 - 0.5 = 0.25 and 0.25 - 0 = 0.25
    gain = out["attribute_gain/warmth"]
    assert (gain.value, gain.low, gain.high) == (0.25, 0.25, 0.25)
    assert out["attribute/warmth"].value == 0.5
    assert out["attribute_reference/warmth"].value == 0.25


def test_without_a_true_utility_nothing_is_said_about_it() -> None:
    out = compare(side(utility=None, attributes={}), side(utility=None, attributes={}), seed=0)

    assert "proxy_win_rate" in out
    assert not [name for name in out if name.startswith(("win_rate", "utility", "attribute"))]


def test_nats_added_is_per_token_and_paired_by_prompt() -> None:
    # prompt 1: 30 nats in 10 tokens against 8 in 4: 3 - 2 = 1; prompt 2: 8 in 8 against 20 in 10: 1 - 2 = -1
    policy = side(logp_ref=table([-10, -20], [-4, -4]), length=table([4, 6], [4, 4]))
    reference = side(logp_ref=table([-4, -4], [-15, -5]), length=table([2, 2], [5, 5]))

    out = nats_added(policy, reference, seed=0)

    assert (out.value, out.low, out.high) == (0.0, -1.0, 1.0)


def test_a_policy_that_says_less_likely_things_has_added_nats() -> None:
    out = nats_added(side(logp_ref=table([-3, -3], [-3, -3])), side(), seed=0)

    assert out.value == 2.0


def test_distinct_pairs_of_words_are_counted_over_all_answers() -> None:
    # policy: "a b" three times and "b c": 2 distinct; reference: 4; 4 pairs each
    out = distinct_ratio([["a b", "a b"], ["A b", "b c"]], [["a b", "c d"], ["e f", "g h"]], 2, seed=0)

    assert out.value == 0.5


def test_each_duel_is_cut_to_its_shorter_answer() -> None:
    # "a b a b a" has the pairs ab, ba, ab, ba; against "c d e" the first two count, both distinct: 2 and 2 in all
    out = distinct_ratio([["a b a b a"], ["e f"]], [["c d e"], ["g h"]], 2, seed=0)

    assert out.value == 1.0


def test_a_longer_policy_that_repeats_itself_loses_by_it() -> None:
    # pairs ab, ba, ab, ba against cd, de, ef, fg: 2 of 4
    assert distinct_ratio([["a b a b a"], ["a b"]], [["c d e f g"], ["c d"]], 2, seed=0).value == 0.5


def test_one_prompt_alone_has_a_ratio_and_no_error() -> None:
    assert distinct_ratio([["a b"]], [["a b"]], 2, seed=0).value == 1.0


def test_the_interval_of_the_distinct_ratio_has_the_width_of_a_mean_over_prompts() -> None:
    # Each prompt has words of its own and two pairs: both distinct (1) or twice the same (1/2). The ratio is
    # then the mean over 400 prompts of a share with standard deviation 1/4: 1.96 * 0.25 / sqrt(400) = 0.0245.
    repeats = np.random.default_rng(0).permutation([True] * 200 + [False] * 200)
    policy = [[f"x{i} y{i}", f"x{i} y{i}" if r else f"u{i} v{i}"] for i, r in enumerate(repeats)]
    reference = [[f"x{i} y{i}", f"u{i} v{i}"] for i in range(400)]

    out = distinct_ratio(policy, reference, 2, seed=0)

    assert out.value == 0.75
    assert out.high - out.value == pytest.approx(0.0245, rel=0.15)  # 200 draws know it to 5%
    assert out.value - out.low == pytest.approx(out.high - out.value)


def test_the_largest_share_is_of_the_net_gain_by_weight() -> None:
    # worth 2 * 0.1 = 0.2, 1 * 0.3 = 0.3, and -0.1 lost: 0.3 / 0.4
    gains, weights = {"warmth": 0.1, "form": 0.3, "once": -0.1}, {"warmth": 2.0, "form": 1.0, "once": 1.0}

    assert largest_share(gains, weights) == pytest.approx(0.75)


def test_the_largest_share_meets_no_bar_when_utility_did_not_rise() -> None:
    assert largest_share({"warmth": -0.1, "form": 0.1}, {"warmth": 1.0, "form": 1.0}) == float("inf")


def test_the_correlation_is_pearsons_over_all_answers() -> None:
    # a 1 2 3 4, b 1 3 2 4: covariance 1, both variances 1.25: 0.8
    found = correlation(table([1, 2], [3, 4]), table([1, 3], [2, 4]), seed=0)

    assert found is not None
    assert found.value == pytest.approx(0.8)
    assert found.low <= 0.8 <= found.high


def test_the_correlations_interval_is_over_prompts() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(3.0, 1.0, (20, 3))
    b = a + rng.normal(-2.0, 1.0, (20, 3))
    found = correlation(a, b, seed=0)
    drawn = np.random.default_rng(0).integers(20, size=(1000, 20))
    rs = [np.corrcoef(a[rows].ravel(), b[rows].ravel())[0, 1] for rows in drawn]

    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(rs, [0.025, 0.975])))


def test_nothing_goes_together_with_a_length_that_never_changes() -> None:
    assert correlation(table([1, 2], [3, 4]), table([5, 5], [5, 5]), seed=0) is None
