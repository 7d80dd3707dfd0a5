"""Best of n without bias, both forms of over-optimisation, and what they foretell."""

import math
from itertools import combinations

import numpy as np
import pytest

from backflip.stats.best_of_n import best_of_n_curve
from backflip.stats.overopt import course, fit_form, foretell, peak_of, turn_of_path

D = np.linspace(0.2, 4.0, 20)


def noisy(mean: np.ndarray, prompts: int = 40, sd: float = 0.1) -> np.ndarray:
    return mean + np.random.default_rng(0).normal(0, sd, (prompts, len(mean)))


def test_best_of_n_is_the_mean_over_every_choice_of_n():
    rng = np.random.default_rng(3)
    proxy, gold = rng.random((2, 9)), rng.normal(size=(2, 9))
    brute = [
        [np.mean([g[max(c, key=lambda i: p[i])] for c in combinations(range(9), n)]) for n in (1, 2, 5, 9)]
        for p, g in zip(proxy, gold, strict=True)
    ]

    assert np.abs(best_of_n_curve(proxy, gold, (1, 2, 5, 9)) - brute).max() <= 1e-9


def test_best_of_n_is_exact_for_many_answers():
    # by whole numbers: C(i - 1, n - 1) / C(512, n)
    gold = np.random.default_rng(4).normal(size=512)
    weight = [math.comb(i - 1, 63) / math.comb(512, 64) for i in range(1, 513)]

    assert best_of_n_curve(np.arange(512.0)[None], gold[None], [64])[0, 0] == pytest.approx(gold @ weight, abs=1e-9)


def test_more_answers_than_there_are_and_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="n must lie in 1 ... 4, not 5"):
        best_of_n_curve(np.zeros((1, 4)), np.zeros((1, 4)), [5])
    with pytest.raises(ValueError, match="not finite"):
        best_of_n_curve(np.zeros((1, 2)), np.array([[0.0, math.nan]]), [1])


def test_the_forms_peak_where_their_slope_is_zero():
    assert peak_of("best_of_n", 3.0, 1.0) == 1.5
    assert peak_of("rl", 2.0, 1.0) == pytest.approx(math.e)
    assert peak_of("rl", 1.0, -0.1) == math.inf


@pytest.mark.parametrize(
    ("form", "curve", "peak"),
    [
        ("best_of_n", D * (1 - 0.25 * D), 2.0),
        ("rl", D * (0.5 - 0.5 * np.log(D)), 1.0),
    ],
)
def test_a_fit_finds_the_peak_with_an_interval_around_it(form, curve, peak):
    turn = fit_form(form, D, noisy(curve), seed=0)

    assert turn.peak is not None
    assert turn.peak.value == pytest.approx(peak, abs=0.05)
    assert turn.peak.low < peak < turn.peak.high


def test_no_peak_is_claimed_where_none_is_seen():
    rising = fit_form("best_of_n", D, noisy(D * (1 - 0.05 * D)), seed=0)  # it would peak at 10

    assert rising.peak is None
    assert fit_form("rl", D, noisy(D), seed=0).peak is None


def test_a_form_that_fits_foretells_better_than_a_flat_guess():
    told = foretell("best_of_n", D, noisy(D * (1 - 0.25 * D)), seen=10, seed=0)

    assert told.error < 0.1 < told.flat_error
    assert told.gain.low > 0


def test_a_form_that_fits_well_may_foretell_badly():
    # the first half is a good parabola (R^2 > 0.95); the second jumps up, which nothing there could tell
    curve = np.where(D < 2.1, D * (1 - 0.25 * D), 3.0)
    told = foretell("best_of_n", D, noisy(curve), seen=10, seed=0)

    assert told.gain.high < 0


def test_too_little_to_fit_is_refused():
    with pytest.raises(ValueError, match="1 prompt"):
        fit_form("rl", D, noisy(D, prompts=1), seed=0)
    with pytest.raises(ValueError, match="3 different distances"):
        fit_form("rl", [0.0, 1.0, 2.0], noisy(np.zeros(3)), seed=0)


def test_a_course_follows_a_line_exactly_and_a_bend_closely():
    line, bend = course(D, 1 + 2 * D, seed=0), course(D, D * (1 - 0.25 * D), seed=0)

    np.testing.assert_allclose(line.middle, 1 + 2 * line.d, atol=1e-4)
    assert (line.d[0], line.d[-1]) == (D[0], D[-1])
    np.testing.assert_allclose(bend.middle, bend.d * (1 - 0.25 * bend.d), atol=0.1)


def test_the_band_of_a_course_holds_the_truth():
    x = np.linspace(0.2, 4.0, 60)
    held = []
    for seed in range(20):
        found = course(x, x + np.random.default_rng(seed).normal(0, 0.3, 60), seed)
        held.append(float(((found.low <= found.d) & (found.d <= found.high)).mean()))

    assert 0.8 < np.mean(held) < 0.99


def test_a_path_turns_where_its_law_is_highest_wherever_it_starts():
    path = 5 + D * (0.5 - 0.5 * np.log(D)) + np.random.default_rng(0).normal(0, 0.02, len(D))
    turn = turn_of_path(D, path, seed=0)

    assert turn is not None
    assert turn.value == pytest.approx(1.0, abs=0.15)
    assert turn.low < 1.0 < turn.high


def test_a_path_that_rises_or_only_wavers_has_no_turn():
    assert turn_of_path(D, D, seed=0) is None
    assert turn_of_path(D, np.random.default_rng(1).normal(size=len(D)), seed=0) is None


def test_too_few_measurements_are_no_path():
    with pytest.raises(ValueError, match="5 finite"):
        course(D[:4], D[:4], seed=0)
    with pytest.raises(ValueError, match="8 measurements"):
        turn_of_path(D[:7], D[:7], seed=0)
