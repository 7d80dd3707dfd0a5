"""The clean room gives the published curve, and both cures."""

import time

import numpy as np
import pytest

from backflip.core.config import Unfit
from backflip.measure.cleanroom import World, climb


def test_the_utility_rises_then_falls_below_its_start_while_the_proxy_rises_on():
    # L 4, J 2, B/L 2: both mentioned attributes reach ln 3 as the budget is spent (2 * 3 + 2 = 8), U = 2 (1 - 1/3);
    # steps of 0.01 along the diagonal: ln 3 * sqrt 2 / 0.01 = 155. The end: 2 (1 - e^3) and 1 - exp(-1.37) twice.
    path = climb(World())

    assert path.utility[path.peak] == pytest.approx(4 / 3, abs=0.002)
    assert path.peak == 155
    assert path.below_start == 234
    assert path.utility[-1] == pytest.approx(-36.7, abs=0.05)
    assert path.proxy[-1] == pytest.approx(1.49, abs=0.005)
    assert (np.diff(path.proxy) >= -1e-12).all()


@pytest.mark.parametrize(
    ("world", "peak", "end"),
    [
        (World(mentioned=3), 1.71, -17.2),
        (World(attributes=8, budget=1.5), 1.33, -112.9),
    ],
    ids=["three of four", "two of eight"],
)
def test_other_worlds_end_where_they_should(world: World, peak: float, end: float):
    path = climb(world)

    assert path.utility.max() == pytest.approx(peak, abs=0.005)
    assert path.utility[-1] == pytest.approx(end, abs=0.05)


def test_what_the_proxy_does_not_mention_stays_when_it_is_frozen():
    path = climb(World(), "freeze")

    assert (path.state[:, 2:] == 0).all()
    assert path.utility[-1] == pytest.approx(4 / 3, abs=1e-6)  # at the budget: twice 1 - 1/3
    assert (np.diff(path.utility) >= -1e-9).all()


def test_a_proxy_that_is_chosen_again_ends_near_the_best_there_is():
    # the best: all four at ln 2 (4 * 2 = 8), U = 4 (1 - 1/2)
    path = climb(World(), "again")

    assert path.below_start is None
    assert path.utility[-1] > 1.95
    assert path.utility.max() <= 2.0


def test_the_budget_and_the_bounds_hold_all_along():
    world = World()
    for cure in ("none", "freeze", "again"):
        state = climb(world, cure).state  # type: ignore[arg-type]
        assert np.exp(state).sum(1).max() <= 8 * (1 + 1e-9)
        assert state.min() >= world.lowest


def test_the_curve_takes_about_a_second():
    began = time.process_time()
    climb(World())

    assert time.process_time() - began < 2


def test_a_proxy_that_mentions_everything_is_refused():
    with pytest.raises(Unfit, match="mentioned"):
        World(mentioned=4)
