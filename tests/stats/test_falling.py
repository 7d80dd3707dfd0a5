"""The test for falling gold: seldom wrong at any look, and quick where gold falls."""

import math

import numpy as np
import pytest

from backflip.stats.falling import Look, first_alarm, in_doubt, power, rising, simulated, weigh

D = np.arange(0.4, 6.01, 0.4)


def test_the_likeliest_rising_chances_pool_what_falls():
    # 0.8 then 0.6, equally many: 0.7 each; what is below 1/2 is clipped
    assert rising([0.4, 0.8, 0.6], [10, 10, 10]) == pytest.approx([0.5, 0.7, 0.7])
    assert rising([0.9, 0.6], [10, 30]) == pytest.approx([0.675, 0.675])


@pytest.mark.parametrize(
    "chance", [np.full(15, 0.5), 0.5 + 0.004 * np.arange(15), np.full(15, 0.62)], ids=["zero", "small", "plateau"]
)
def test_a_path_that_never_falls_rings_in_at_most_one_of_twenty(chance):
    rang = [first_alarm(simulated(D, chance, 16, seed), 0.05) is not None for seed in range(150)]

    assert np.mean(rang) <= 0.05


def test_gold_that_falls_far_is_caught_after_its_peak():
    d = np.arange(0.4, 8, 0.4)
    chance = 1 / (1 + np.exp(-np.maximum(0.5 * (d / 1.8) * (2 - d / 1.8), -4)))
    rang = [first_alarm(simulated(d, chance, 20, seed), 0.05) for seed in range(40)]

    assert None not in rang
    assert np.median([d[k] for k in rang if k is not None]) < 6
    assert min(d[k] for k in rang if k is not None) > 1.8


def test_the_evidence_names_the_best_look():
    looks = [Look(x, 100 * (0.5 + 0.1 * (2 * x - x * x)), 100) for x in (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)]
    found = weigh(looks)

    assert found.best == 2
    assert found.low <= found.peak <= found.high


def test_a_policy_that_was_never_better_goes_back_to_the_start():
    looks = [Look(x, 100 * (0.5 - 0.1 * x), 100) for x in (1.0, 2.0, 3.0)]

    assert weigh(looks).best == -1
    assert weigh(looks).log_e > math.log(20)


def test_more_votes_catch_sooner():
    few, many = power(8, paths=40), power(40, paths=40)

    assert many.overrun < few.overrun
    assert many.caught == 1.0


@pytest.mark.parametrize("look", [Look(1.0, 3, 2), Look(-1.0, 0, 1), Look(1.0, 0, 0)])
def test_looks_that_cannot_be_are_refused(look):
    with pytest.raises(ValueError, match="a look has"):
        weigh([look])


def test_a_last_policy_that_is_expected_to_lose_is_in_doubt() -> None:
    won = [Look(1.0, 8.0, 12), Look(2.0, 8.0, 12)]

    assert not in_doubt([])
    assert not in_doubt(won)
    assert in_doubt([*won, Look(5.0, 2.0, 12)])
