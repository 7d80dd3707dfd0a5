"""Signs along a climb without gold: each is seen where it is planted, and seldom where there is nothing."""

import math

import numpy as np
import pytest

from backflip.measure.warnings import (
    Duels,
    Watched,
    first_warning,
    miscalibrated,
    overrated,
    repetition_of,
    warn,
)


def level(steps: int = 30, **figures: float) -> list[Watched]:
    """A climb whose score rises by 0.1 a step and of which nothing else changes."""
    same = {"check": 0.5, "spread": 0.4, "length": 20.0, "repetition": 0.1} | figures
    return [Watched(kl=k / 2, proxy=k / 10, **same) for k in range(steps)]


def test_a_climb_of_which_only_the_score_changes_gives_no_sign():
    assert warn(level()) == []
    assert first_warning(level()) is None
    assert warn([]) == []


def test_what_was_not_measured_gives_no_sign():
    bare = [Watched(kl=w.kl, proxy=w.proxy) for w in level()]

    assert warn(bare) == []


def test_a_check_reward_that_falls_while_the_score_rises_is_told_once():
    # means of three: 1.0 up to step 12, then 0.9, 0.8, 0.7, 0.6 (the first that is more than 0.3 below)
    path = [w._replace(check=min(1.0, 2.2 - k / 10)) for k, w in enumerate(level())]
    [seen] = warn(path)

    assert (seen.name, seen.tick) == ("check", 17)
    assert "fallen by 0.4 standard deviations" in seen.told


def test_a_check_reward_that_falls_together_with_the_score_is_no_sign():
    path = [w._replace(check=2 - k / 10, proxy=2 - k / 10) for k, w in enumerate(level())]

    assert warn(path) == []


def test_a_check_reward_that_only_scatters_seldom_warns():
    luck = np.random.default_rng(0)
    paths = [[w._replace(check=x) for w, x in zip(level(), luck.normal(0.5, 0.3, 30), strict=True)] for _ in range(100)]

    assert sum(first_warning(p) is not None for p in paths) <= 3


@pytest.mark.parametrize(
    ("figure", "last", "name"),
    [("spread", 0.8, "spread"), ("length", 40, "length"), ("length", 10, "length"), ("repetition", 0.4, "repetition")],
)
def test_a_figure_that_leaves_its_start_far_behind_is_a_sign(figure, last, name):
    path = [w._replace(**{figure: last}) if k >= 10 else w for k, w in enumerate(level())]
    seen = warn(path)

    assert [w.name for w in seen] == [name]
    assert 10 <= seen[0].tick <= 12


def test_signs_come_in_the_order_in_which_they_were_seen():
    path = [w._replace(length=20.0 + k, spread=0.4 if k < 3 else 2.0) for k, w in enumerate(level())]

    assert [w.name for w in warn(path)] == ["spread", "length"]
    assert first_warning(path) == warn(path)[0].tick


def test_repetition_counts_pairs_of_words_over_all_answers():
    # pairs: (a b) (b a) (a b), (A b), and (b a) (a c): 3 distinct of 6
    assert repetition_of(["a b a b", "A b", "b a c", "d"]) == 0.5
    assert math.isnan(repetition_of(["one", ""]))


def test_a_reward_that_foretells_what_is_judged_gives_no_sign():
    assert miscalibrated([Duels(k, 15.0, 15.0, 24) for k in range(20)]) is None


def test_a_reward_that_foretells_wins_that_do_not_come_is_a_sign():
    duels = [Duels(2 * k, 16.0, 16.0 if k < 5 else 8.0, 24) for k in range(20)]
    seen = miscalibrated(duels)

    assert seen is not None
    assert seen.name == "miscalibrated"
    assert 10 <= seen.tick <= 18  # old judgements are forgotten: 5 looks of 24 are pooled
    gap = overrated(duels)
    assert gap is not None
    assert gap.value == pytest.approx(1 / 3)
    assert "33% more" in miscalibrated(duels[5:]).told  # type: ignore[union-attr]


def test_a_few_judgements_say_nothing_of_a_reward():
    assert overrated([Duels(0, 10.0, 0.0, 10)]) is None


def test_figures_that_never_change_or_are_nothing_give_no_sign():
    path = [Watched(kl=0.0, proxy=0.0, check=0.0, spread=0.0, length=0.0, repetition=1.0)] * 20

    assert warn(path) == []
    assert miscalibrated([]) is None
    assert overrated([Duels(1, 0.0, 0.0, 0)] * 9) is None  # nobody judged
