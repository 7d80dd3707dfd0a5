"""Random numbers keyed by (seed, place)."""

import hashlib
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backflip.core.rng import generator, seed_of

PLACES = st.lists(st.one_of(st.integers(), st.text(alphabet="abcxyz0123", max_size=8)), max_size=4)


def test_a_seed_is_the_low_63_bits_of_a_hash_of_seed_and_place():
    digest = hashlib.blake2b(b"7\x1fvote\x1fp1\x1f3", digest_size=8).digest()

    assert seed_of(7, "vote", "p1", 3) == int.from_bytes(digest, "little") // 2


def test_a_seed_is_the_same_in_another_process():
    code = "from backflip.core.rng import seed_of; print(seed_of(7, 'vote', 'p1'))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)

    assert int(other.stdout) == seed_of(7, "vote", "p1")


@given(seed=st.integers(), place=PLACES)
def test_a_seed_fits_a_signed_64_bit_integer(seed: int, place: list[str | int]):
    assert 0 <= seed_of(seed, *place) < 2**63


def test_neighbouring_places_have_different_seeds():
    places = [(s, *place) for s in range(8) for place in [(), ("a",), ("a", 1), ("a", 11), ("a", 1, 1), ("a1", 1)]]

    assert len({seed_of(*place) for place in places}) == len(places)


def test_the_order_of_a_place_matters():
    assert seed_of(1, "a", "b") != seed_of(1, "b", "a")
    assert seed_of(1, 2) != seed_of(2, 1)


def test_a_number_means_the_same_place_whatever_library_it_came_from():
    assert seed_of(1, "step", int(np.int64(3))) == seed_of(1, "step", np.int64(3)) == seed_of(1, "step", 3)


def test_a_generator_draws_the_same_whatever_was_drawn_before():
    first = generator(7, "vote", 1).standard_normal(4)
    generator(7, "vote", 2).standard_normal(100)
    np.random.default_rng(0).standard_normal(100)

    np.testing.assert_array_equal(generator(7, "vote", 1).standard_normal(4), first)


def test_draws_at_different_places_are_uncorrelated():
    x = np.array([generator(7, "place", i).standard_normal() for i in range(2000)])

    # 2000 independent normals: the mean and the lag-1 correlation each have standard error 0.022
    assert abs(x.mean()) < 0.1
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.1
    assert abs(x.std() - 1) < 0.1
