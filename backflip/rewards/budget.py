"""What more votes would buy, told from the votes there are: rewards refitted on fewer and fewer of them."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.errors import DataError
from backflip.core.rng import generator
from backflip.rewards.fit import QUICK, Fitted, teaches, without
from backflip.stats.evidence import Thumbs
from backflip.stats.judgements import CODES
from backflip.stats.learning_curve import Bought, gain_of_more
from backflip.stats.raters import ALIKE, fit_raters

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
    """Votes that served no fit. Shapes: apart (H, F), standardised features of a less b's; outcome (H,) 1, 0 or -1."""

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
    outcome = np.where(pairs.choice == CODES["a"], 1.0, np.where(pairs.choice == CODES["b"], -1.0, 0.0))
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
            right[r, : len(owner), s] = np.where(tested, _right(own @ weight, outcome), np.nan)
            right[r, len(owner) :, s] = _right(held_out.apart @ fitted.basis @ weight, held_out.outcome)
    return gain_of_more(size, right, [*owner.tolist(), *held_out.unit], len(owner), more, seed)


def _learned(fitted: Fitted, kept: NDArray[np.bool_]) -> Array | None:
    """(D,) weights learned from some of the votes alone; None where those teach nothing."""
    evidence = fitted.evidence
    silenced = None if evidence.thumbs is None else np.ones(len(evidence.thumbs.item), dtype=bool)
    part = without(evidence, ~kept, silenced)
    if not teaches(part):
        return None
    if isinstance(part.thumbs, Thumbs):
        part = part._replace(thumbs=None)
    crowd = fitted.crowd
    pooling = QUICK if crowd.spread.any() else ALIKE
    return fit_raters(
        fitted.rows, part, pooling, prior=fitted.reward.prior, spread=crowd.spread, ftol=1e-7
    ).weight  # fmt: skip


def _right(gap: Array, outcome: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.sign(gap) * outcome)
