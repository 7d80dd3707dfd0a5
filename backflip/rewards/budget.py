"""What more votes would buy, told from the votes there are: rewards refitted on fewer and fewer of them."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.errors import DataError
from backflip.core.rng import generator
from backflip.rewards.fit import Fitted, learned_again, teaches, without
from backflip.stats.calibration import hits
from backflip.stats.judgements import CODES
from backflip.stats.learning_curve import Bought, gain_of_more

Array = NDArray[np.float64]
SHARES: Final = (0.2, 0.35, 0.5, 0.7, 1.0)
"""Shares of the prompts that are not held out, learned from."""
FOLDS: Final = 4
"""One prompt in so many is held out each time."""
REPEATS: Final = 12
"""Ways to take a part; a multiple of `FOLDS`, so that every prompt is held out equally often."""
FEWEST = 12
"""Prompts with votes, below which a part of them teaches nothing."""


class HeldOut(NamedTuple):
    """Votes that served no fit. Shapes: apart (H, F), standardised features of a less b's; outcome (H,) 1, 1/2 or 0."""

    apart: Array
    outcome: Array
    unit: list[str]


def what_votes_buy(fitted: Fitted, held_out: HeldOut, more: int, seed: int) -> Bought:
    """By how much `more` votes would make the reward foretell votes better, with a 90% interval.

    Judged on the votes of prompts that each refit left out, and on those that no fit uses.
    Raises: DataError when too few prompts have votes.
    """
    pairs = fitted.evidence.pairs
    assert pairs is not None
    owner = np.array(fitted.prompt)[pairs.a] if len(pairs.a) else np.zeros(0, dtype=str)
    names = np.unique(owner)
    if len(names) < FEWEST:
        raise DataError(
            f"Votes on {len(names)} prompts are too few to say what more would buy: {FEWEST} are needed.\n"
            "The answer comes from rewards fitted on parts of the votes there are.\n"
            "Rate some more pairs, then ask again."
        )
    outcome = np.where(pairs.choice == CODES["a"], 1.0, np.where(pairs.choice == CODES["b"], 0.0, 0.5))
    own = fitted.rows[pairs.a] - fitted.rows[pairs.b]
    right = np.full((REPEATS, len(owner) + len(held_out.unit), len(SHARES)), np.nan)
    size = np.zeros(len(SHARES))
    for r in range(REPEATS):
        order = generator(seed, "budget", r // FOLDS).permutation(names)
        tested = np.isin(owner, order[r % FOLDS :: FOLDS])
        rest = generator(seed, "budget", "rest", r).permutation(np.setdiff1d(names, order[r % FOLDS :: FOLDS]))
        for s, share in enumerate(SHARES):
            kept = np.isin(owner, rest[: max(2, round(share * len(rest)))])
            size[s] += kept.sum() / REPEATS
            weight = _learned(fitted, kept)
            if weight is None:
                continue
            right[r, : len(owner), s] = np.where(tested, hits(own @ weight, outcome), np.nan)
            right[r, len(owner) :, s] = hits(held_out.apart @ fitted.basis @ weight, held_out.outcome)
    return gain_of_more(size, right, [*owner.tolist(), *held_out.unit], len(owner), more, seed)


def _learned(fitted: Fitted, kept: NDArray[np.bool_]) -> Array | None:
    """(D,) weights learned from some of the votes alone; None where those teach nothing."""
    part = without(fitted.evidence._replace(thumbs=None), ~kept)
    return learned_again(fitted, fitted.rows, part).weight if teaches(part) else None
