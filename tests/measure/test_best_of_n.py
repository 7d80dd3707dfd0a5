"""Best of n: where gold turns, how it is judged, and what is said where nothing turns."""

import math

import numpy as np
import pytest

from backflip.measure.overopt import best_of_n_points, better_law, laws, points_of
from backflip.stats.best_of_n import best_of_n_curve, best_of_n_kl
from backflip.stats.overopt import fit_form


def world(turns: float | None, prompts: int = 60, answers: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Proxies and golds of answers: gold falls with the proxy's square beyond `turns`; None: it never falls."""
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(prompts, answers))
    gold = proxy if turns is None else proxy - proxy**2 / (2 * turns)
    return proxy, gold + rng.normal(0, 0.2, proxy.shape)


def test_the_peak_is_found_where_gold_turns():
    # gold is highest where the best answer's proxy is near 1.2: the mean best of 5 of a normal is 1.16
    proxy, gold = world(1.2)
    found = better_law(laws(proxy, gold, seed=0))
    ns = points_of(64)
    curve = best_of_n_curve(proxy, gold, ns)

    assert found is not None
    assert found.peak is not None
    assert math.log(3) - 2 / 3 < found.peak.value < math.log(9) - 8 / 9
    turn = fit_form(found.form, np.sqrt([best_of_n_kl(n) for n in ns]), curve - curve[:, :1], seed=0)
    assert turn.peak is not None
    assert math.sqrt(found.peak.value) == pytest.approx(turn.peak.value)  # nats, not their root
    assert found.peak.low < found.peak.value < found.peak.high
    assert found.error is not None
    assert found.gain is not None
    assert found.gain.low > 0  # it foretells the fall better than who expects none


def test_no_peak_is_in_sight_where_gold_rises_with_the_proxy():
    assert all(law.peak is None for law in laws(*world(None), seed=0))


def test_the_curve_ends_at_the_best_of_all():
    proxy, gold = np.array([[0.0, 2.0, 1.0], [5.0, 1.0, 3.0]]), np.array([[3.0, 1.0, 2.0], [0.0, 4.0, 2.0]])
    two, three = best_of_n_points(proxy, gold, seed=0)

    # best of 3: gold 1 and 0, against means of 2; proxy 2 and 5, against 1 and 3.
    # best of 2: the three pairs of prompt 1 give 1, 2, 1, those of prompt 2 give 0, 0, 2
    assert (three.n, three.gold.value, three.proxy.value) == (3, pytest.approx(-1.5), pytest.approx(1.5))  # type: ignore[union-attr]
    assert two.gold.value == pytest.approx((4 / 3 + 2 / 3) / 2 - 2)  # type: ignore[union-attr]


def test_what_cannot_be_judged_is_not_judged():
    assert laws(*world(1.2, answers=3), seed=0) == []
    assert laws(*world(1.2, prompts=1), seed=0) == []
    assert [law.error for law in laws(*world(1.2, answers=15), seed=0)] == [None, None]
    assert all(law.error is not None for law in laws(*world(1.2, answers=16), seed=0))


def test_every_small_n_is_looked_at_and_few_large_ones():
    assert points_of(6) == [1, 2, 3, 4, 5, 6]
    assert points_of(20)[-2:] == [16, 20]
    many = points_of(512)
    assert many[:16] == list(range(1, 17))
    assert many[-1] == 512
    assert len(many) < 40
