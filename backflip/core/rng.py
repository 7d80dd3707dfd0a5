"""Random numbers keyed by place, never carried as state.

The same (seed, place) gives the same draw on every machine, whatever ran before, so that a
resumed run draws what the unbroken run would have drawn.
"""

import hashlib

import numpy as np


def seed_of(seed: int, *place: str | int) -> int:
    """A 63-bit seed for one place, e.g. `seed_of(7, "vote", pair_id, rater_id)`."""
    text = "\x1f".join([str(seed), *(str(p) for p in place)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *place: str | int) -> np.random.Generator:
    """A numpy generator for one place."""
    return np.random.default_rng(seed_of(seed, *place))
