import pytest

from backflip.stats.agreement import pair_agreement


def test_the_share_of_pairs_judged_alike_worked_by_hand():
    # 1: both a = 1; 2: a and b = 0; 3: tie and a = 1/2; 4: both tie = 1; 5: judged once, left out
    votes = [
        ("1", "r", "a"), ("1", "s", "a"),
        ("2", "r", "a"), ("2", "s", "b"),
        ("3", "s", "tie"), ("3", "t", "a"),
        ("4", "t", "tie"), ("4", "r", "tie"),
        ("5", "r", "a"),
    ]  # fmt: skip
    pair, rater, choice = zip(*votes, strict=True)
    got = pair_agreement(pair, rater, choice, seed=0)
    assert got.share.value == 2.5 / 4
    assert got.pairs == 4
    assert got.share.low < got.share.value < got.share.high


def test_three_raters_count_as_one_pair_with_the_mean_of_their_couples():
    # a, a, b: one of three couples agrees; the other pair agrees fully: (1/3 + 1) / 2
    got = pair_agreement("xxxyy", "rstrs", ["a", "a", "b", "b", "b"], seed=0)
    assert got.share.value == pytest.approx(2 / 3)


def test_a_skip_is_no_judgement():
    got = pair_agreement("xxxyy", "rstrs", ["a", "a", "skip", "b", "b"], seed=0)
    assert got.share == (1, 1, 1)
    assert got.pairs == 2


def test_it_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="judged twice"):
        pair_agreement("xxy", "rsr", "aaa", seed=0)
    with pytest.raises(ValueError, match="two votes"):
        pair_agreement("xx", "rr", "ab", seed=0)
    with pytest.raises(ValueError, match="retract"):
        pair_agreement("xx", "rs", ["a", "retract"], seed=0)
    with pytest.raises(ValueError, match="one each"):
        pair_agreement("xx", "rs", "a", seed=0)
