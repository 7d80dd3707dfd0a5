import numpy as np
import pytest

from backflip.stats.agreement import gold_accuracy, krippendorff_alpha, pair_agreement, self_consistency


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


# Four coders, twelve units, a missing value as a dot: the example of Krippendorff 2011.
CODERS = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
EXAMPLE = [(unit, coder, int(v)) for coder, row in enumerate(CODERS) for unit, v in enumerate(row) if v != "."]


@pytest.mark.parametrize(("scale", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_of_the_published_example(scale, published):
    got = krippendorff_alpha(*zip(*EXAMPLE, strict=True), scale, seed=0)
    assert got.value == pytest.approx(published, abs=5e-4)
    assert got.low < got.value < got.high


def test_an_order_counts_a_tie_as_half_way():
    # the raters differ on pair 3 only: a against tie, or a against b
    near = krippendorff_alpha("112233", "rsrsrs", [1, 1, -1, -1, 1, 0], "ordinal", seed=0)
    far = krippendorff_alpha("112233", "rsrsrs", [1, 1, -1, -1, 1, -1], "ordinal", seed=0)
    assert near.value > far.value


def test_alphas_interval_covers_what_many_pairs_show():
    # two raters who each see the truth with probability 0.85: alpha = (2 * 0.85 - 1)^2 = 0.49
    luck, inside = np.random.default_rng(0), 0
    for seed in range(100):
        truth = luck.integers(2, size=100)
        said = truth ^ (luck.random((2, 100)) < 0.15)
        got = krippendorff_alpha([*range(100)] * 2, "r" * 100 + "s" * 100, said.ravel().tolist(), "nominal", seed, 300)
        inside += got.low <= 0.49 <= got.high
    assert 88 <= inside <= 99


def test_alpha_refuses_what_tells_nothing():
    with pytest.raises(ValueError, match="always said the same"):
        krippendorff_alpha("1122", "rsrs", [1, 1, 1, 1], "nominal", seed=0)
    with pytest.raises(ValueError, match="judged twice"):
        krippendorff_alpha("112", "rsr", [1, 0, 1], "nominal", seed=0)
    with pytest.raises(ValueError, match="two values"):
        krippendorff_alpha("11", "rr", [1, 0], "nominal", seed=0)


def test_repeats_show_who_says_the_same_twice():
    # r: pair 1 alike = 1, pair 2 a and tie = 1/2; s repeats nothing but a skip; t contradicts himself
    said = [("1", "r", "a"), ("1", "r", "a"), ("2", "r", "a"), ("2", "r", "tie"), ("3", "r", "b"),
            ("1", "s", "a"), ("1", "s", "skip"), ("1", "t", "a"), ("1", "t", "b")]  # fmt: skip
    got = self_consistency(*zip(*said, strict=True))
    assert set(got) == {"r", "t"}
    assert got["r"].share.value == 1.5 / 2
    assert got["r"].judged == 2
    assert got["t"].share.value == got["t"].share.low == 0


def test_known_answers_show_who_is_right():
    got = gold_accuracy(["a", "b", "a", "a", "b"], "rrrrs", ["a", "b", "tie", "skip", "a"])
    assert got["r"].share.value == 2.5 / 3
    assert got["r"].judged == 3
    assert got["s"].share.value == 0
    assert 0.5 < got["s"].share.high < 1  # one wrong answer proves little
    missed = got["s"].share
    hit = gold_accuracy(["a"], "s", ["a"])["s"].share
    assert (1 - hit.high, 1 - hit.low) == pytest.approx((missed.low, missed.high))
    with pytest.raises(ValueError, match="known answer"):
        gold_accuracy(["skip"], "r", ["a"])
