"""How often raters agree: the ceiling for any reward model that learns from them."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import NamedTuple

from backflip.stats.bootstrap import Interval, bootstrap_mean


class Agreement(NamedTuple):
    """Agreement over the pairs that at least two raters judged."""

    share: Interval
    pairs: int
    """Pairs judged by at least two raters."""


def pair_agreement(
    pair: Sequence[Hashable],
    rater: Sequence[Hashable],
    choice: Sequence[str],
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Agreement:
    """Share of doubly judged pairs on which two raters chose the same.

    The same choice counts 1 (two ties too), a tie against a decision 0.5, opposite decisions 0. A pair with more
    than two raters counts once, with the mean over its couples of raters. Pairs are resampled for the interval.

    Shapes: pair, rater, choice (N,), one entry per standing vote; choices are "a", "b", "tie" in the pair's own
    order, not the screen's; "skip" is left out.
    Raises: ValueError when the lengths differ, a choice is unknown, one rater has two votes on a pair, or
    fewer than 2 pairs were judged twice.
    """
    if not len(pair) == len(rater) == len(choice):
        raise ValueError(f"{len(pair)} pairs, {len(rater)} raters, {len(choice)} choices: one each per vote")
    votes: dict[Hashable, dict[Hashable, str]] = defaultdict(dict)
    for p, r, c in zip(pair, rater, choice, strict=True):
        if c == "skip":
            continue
        if c not in ("a", "b", "tie"):
            raise ValueError(f'a choice is "{c}": pass standing votes only ("a", "b", "tie", "skip")')
        if r in votes[p]:
            raise ValueError(f"rater {r!r} has two votes on pair {p!r}: pass standing votes only")
        votes[p][r] = c
    shares = [_share(list(cast.values())) for cast in votes.values() if len(cast) > 1]
    if len(shares) < 2:
        raise ValueError(f"{len(shares)} pairs were judged twice: an interval needs at least 2")
    return Agreement(bootstrap_mean(shares, seed, draws, level), len(shares))


def _share(choices: list[str]) -> float:
    couples = list(combinations(choices, 2))
    return sum(1.0 if x == y else 0.5 if "tie" in (x, y) else 0.0 for x, y in couples) / len(couples)
