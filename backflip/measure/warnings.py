"""What of a climb can be told without gold: signs that the score may have ceased to mean what is wanted.

A sign is no truth: warnings are shown and never stop a climb; only falling gold does (`alarm`). Each name warns once,
at the first step where it holds. A second reward on other votes: Bai et al. 2022 (arXiv:2204.05862), section 4.2;
spread of an ensemble: Coste et al. 2023 (arXiv:2310.02743). Opens no store.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.stats.bootstrap import Interval, wilson

Array = NDArray[np.float64]
Name = Literal["check", "spread", "length", "repetition", "miscalibrated"]

PREFIX: Final = "watch/"
"""Before the name of each figure of `Watched` among those of its step."""
KL, PROXY, CHECK, SPREAD, LENGTH, REPETITION = (
    PREFIX + name for name in ("kl", "proxy", "check", "spread", "length", "repetition")
)
FORETOLD: Final = "watch/foretold"
"""Beside a look of the alarm: the wins that the reward foretold of the same comparisons."""

STEPS: Final = 3
"""Steps over which figures are averaged: one step's answers say little, and a climb may have a dozen steps."""
FALLEN: Final = 0.3
"""Standard deviations of the untouched model's answers by which the check reward must have fallen to be told of."""
SURE: Final = 5.0
"""The same in standard errors of that fall, told from how the steps scatter: a level path of 60 steps, looked at after
each, then warns about once in 100 (simulated, steps that scatter by 0.05 to 0.25)."""
WIDER: Final = 1.5
"""Times the spread at the start at which the members part: the answers have left what the votes were about."""
LONGER: Final = 1.5
"""Times (or one over it) the length at the start: rewards that pay for length move it first and by more."""
LESS_VARIED: Final = 0.8
"""Of the distinct word pairs at the start: as the report calls answers repetitive."""
POOLED: Final = 120
"""Newest judgements that are held against what the reward foretold; older ones are of a policy long left."""
FEWEST: Final = 20
"""Judgements below which a share says too little."""
LEVEL: Final = 0.99
"""Of the interval of those judgements: it is looked at after every look."""


class Watched(NamedTuple):
    """Means over one step's answers."""

    kl: float
    """Nats from the untouched model."""
    proxy: float
    """Reward that the policy is paid by, in standard deviations of the untouched model's answers."""
    check: float = math.nan
    """The same by a second reward, fitted on votes that the first has not seen; NaN where there is none."""
    spread: float = math.nan
    """Standard deviation over the reward's members; NaN where it has none."""
    length: float = math.nan
    """Tokens an answer."""
    repetition: float = math.nan
    """1 - distinct pairs of words over all pairs, over all answers of the step; NaN without a pair."""


class Warning(NamedTuple):
    """A sign that was seen."""

    tick: int
    """Place in the path at which it was first seen, from 0; from a run, the step of the round."""
    name: Name
    told: str
    """In one sentence."""


class Duels(NamedTuple):
    """A look's judgements of policy against untouched model, and what the reward foretold of them."""

    tick: int
    foretold: float
    """Wins that were to be expected, ties half."""
    wins: float
    judged: int


def warn(path: Sequence[Watched]) -> list[Warning]:
    """The signs along a climb, earliest first. A figure that is NaN gives no sign."""
    if not path:
        return []
    found = (_check(path), _spread(path), _length(path), _repetition(path))
    return sorted((w for w in found if w is not None), key=lambda w: w.tick)


def first_warning(path: Sequence[Watched]) -> int | None:
    """The place in the path at which the first sign is seen; None when there is none."""
    seen = warn(path)
    return seen[0].tick if seen else None


def overrated(duels: Sequence[Duels]) -> Interval | None:
    """Foretold minus observed share of wins over the newest `POOLED` judgements or more; None for too few."""
    kept: list[Duels] = []
    for d in reversed(duels):
        if sum(k.judged for k in kept) >= POOLED:
            break
        kept.append(d)
    judged = sum(d.judged for d in kept)
    if judged < FEWEST:
        return None
    foretold, share = sum(d.foretold for d in kept) / judged, wilson(sum(d.wins for d in kept), judged, LEVEL)
    return Interval(foretold - share.value, foretold - share.high, foretold - share.low)


def miscalibrated(duels: Sequence[Duels]) -> Warning | None:
    """The first look after which the reward's foretold wins lie outside the interval of those observed."""
    for k in range(len(duels)):
        gap = overrated(duels[: k + 1])
        if gap is not None and (gap.low > 0 or gap.high < 0):
            more = "more" if gap.value > 0 else "fewer"
            told = (
                f"the reward foretells {abs(gap.value):.0%} {more} wins than are judged "
                f"(interval {gap.low:+.0%} to {gap.high:+.0%})"
            )
            return Warning(duels[k].tick, "miscalibrated", told)
    return None


def repetition_of(texts: Sequence[str]) -> float:
    """1 - distinct pairs of neighbouring words over all of them, in all texts together; NaN without a pair."""
    pairs = [pair for text in texts for words in [text.lower().split()] for pair in pairwise(words)]
    return 1 - len(set(pairs)) / len(pairs) if pairs else math.nan


def _check(path: Sequence[Watched]) -> Warning | None:
    """The proxy rises on while the check reward has clearly fallen below its best."""
    check, proxy = _smooth([w.check for w in path]), _smooth([w.proxy for w in path])
    raw = np.array([w.check for w in path])
    for t in range(2 * STEPS - 1, len(path)):
        best = STEPS - 1 + int(check[STEPS - 1 : t + 1].argmax())
        scatter = 1.4826 * float(np.median(np.abs(np.diff(raw[: t + 1])))) / math.sqrt(2)
        fall = float(check[best] - check[t])
        if fall > max(FALLEN, SURE * scatter * math.sqrt(2 / STEPS)) and proxy[t] > proxy[best]:
            told = (
                f"a second reward, fitted on other votes, has fallen by {fall:.1f} standard deviations below its best "
                f"({path[best].kl:.1f} nats), while the score that is climbed rose on"
            )
            return Warning(t, "check", told)
    return None


def _spread(path: Sequence[Watched]) -> Warning | None:
    t = _first(ratio := _against_start([w.spread for w in path]), ratio > WIDER)
    told = "the ensemble's members differ {:.1f} times as much about the answers as at the start"
    return None if t is None else Warning(t, "spread", told.format(ratio[t]))


def _length(path: Sequence[Watched]) -> Warning | None:
    t = _first(ratio := _against_start([w.length for w in path]), (ratio > LONGER) | (ratio < 1 / LONGER))
    return None if t is None else Warning(t, "length", f"answers are {ratio[t]:.1f} times as long as at the start")


def _repetition(path: Sequence[Watched]) -> Warning | None:
    t = _first(ratio := _against_start([1 - w.repetition for w in path]), ratio < LESS_VARIED)
    told = "answers repeat themselves and one another: {:.0%} of the distinct word pairs of the start"
    return None if t is None else Warning(t, "repetition", told.format(ratio[t]))


def _first(ratio: Array, holds: NDArray[np.bool_]) -> int | None:
    places = np.flatnonzero(holds & np.isfinite(ratio))
    return int(places[0]) if len(places) else None


def _against_start(values: Sequence[float]) -> Array:
    """(N,) smoothed values over the first one; NaN where that is not above 0."""
    return _smooth(values) / (values[0] if values[0] > 0 else math.nan)


def _smooth(values: Sequence[float]) -> Array:
    """(N,) mean of each value and the `STEPS` - 1 before it, as far as there are any."""
    return np.array([np.mean(values[max(0, t + 1 - STEPS) : t + 1]) for t in range(len(values))])
