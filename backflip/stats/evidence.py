"""What raters said, as arrays: votes on pairs, thumbs, rankings, each with the number of the rater who gave it.

An item is a row of the features (or rewards) that a fit is given; a rater is a number from 0 to `raters` - 1.
"""

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from backflip.core.errors import DataError
from backflip.stats.judgements import CODES, TIE, A, B

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class PairVotes(NamedTuple):
    """Votes on two items. Shapes: (P,) each; None stands for zeros (for `weight`: ones)."""

    a: Ints
    b: Ints
    choice: Ints
    """See `judgements.CODES`."""
    rater: Ints
    shown: Ints | None = None
    """1 where a was shown first, -1 where b was, 0 where it is not known."""
    strength: Ints | None = None
    """1 to 3, 0 where none was given."""
    weight: Array | None = None


class Thumbs(NamedTuple):
    """One item, up or down. Shapes: (P,) each."""

    item: Ints
    up: NDArray[np.bool_]
    rater: Ints
    weight: Array | None = None


class Rankings(NamedTuple):
    """Items from best to worst, without ties: an order with ties is passed as votes on its pairs.

    Shapes: order (M, K), -1 after the last item of a shorter one; rater, weight (M,).
    """

    order: Ints
    rater: Ints
    weight: Array | None = None


class Evidence(NamedTuple):
    """Everything said by `raters` raters. A rater may judge one pair again: each judgement counts."""

    raters: int
    pairs: PairVotes | None = None
    thumbs: Thumbs | None = None
    rankings: Rankings | None = None


Said = TypeVar("Said", PairVotes, Thumbs, Rankings)


def checked(evidence: Evidence, items: int) -> Evidence:
    """The same with arrays of the right kind and nothing left out, votes of weight 0 dropped.

    Raises: ValueError where shapes, item or rater numbers or codes do not fit; DataError when nothing is left, or
    nothing but ties.
    """
    pairs, thumbs, rankings = evidence.pairs, evidence.thumbs, evidence.rankings
    nobody = np.zeros(0, dtype=np.int64)
    p = _pairs(pairs or PairVotes(nobody, nobody, nobody, nobody))
    t = thumbs or Thumbs(nobody, nobody.astype(bool), nobody)
    t = Thumbs(_ints(t.item), np.asarray(t.up, dtype=bool), _ints(t.rater), _weight(t.weight, len(t.rater)))
    r = rankings or Rankings(np.zeros((0, 2), dtype=np.int64), nobody)
    r = Rankings(_ints(r.order), _ints(r.rater), _weight(r.weight, len(r.rater)))
    _check_orders(r)
    for name, rater in (("pairs", p.rater), ("thumbs", t.rater), ("rankings", r.rater)):
        _within(f"{name}.rater", rater, 0, evidence.raters)
    for name, item, low in (("a", p.a, 0), ("b", p.b, 0), ("item", t.item, 0), ("order", r.order, -1)):
        _within(name, item, low, items)
    p, t, r = _kept(p), _kept(t), _kept(r)
    if len(p.rater) + len(t.rater) + len(r.rater) == 0:
        raise DataError(
            "There are no votes to learn from.\n"
            "Nobody has judged anything yet, or every vote has weight 0.\n"
            "Rate some pairs, then start again."
        )
    if len(t.rater) + len(r.rater) == 0 and (p.choice >= TIE).all():
        raise DataError(
            f'All {len(p.rater)} votes are ties or "cannot tell": there is no preference to learn from.\n'
            "The answers may be too alike, or the raters' tie width too large.\n"
            "Sample at a higher temperature, or rate more pairs."
        )
    return Evidence(evidence.raters, p, t, r)


def without_rater(evidence: Evidence, rater: int) -> Evidence:
    """The same evidence with everything `rater` said at weight 0: what would be learned without him."""

    def silenced(said: PairVotes | Thumbs | Rankings | None) -> Array | None:
        return None if said is None else np.where(said.rater == rater, 0.0, _weight(said.weight, len(said.rater)))

    return Evidence(
        evidence.raters,
        evidence.pairs and evidence.pairs._replace(weight=silenced(evidence.pairs)),
        evidence.thumbs and evidence.thumbs._replace(weight=silenced(evidence.thumbs)),
        evidence.rankings and evidence.rankings._replace(weight=silenced(evidence.rankings)),
    )


def _pairs(p: PairVotes) -> PairVotes:
    n = len(p.rater)
    zeros = np.zeros(n, dtype=np.int64)
    shown = zeros if p.shown is None else _ints(p.shown)
    strength = zeros if p.strength is None else _ints(p.strength)
    out = PairVotes(_ints(p.a), _ints(p.b), _ints(p.choice), _ints(p.rater), shown, strength, _weight(p.weight, n))
    if any(x is None or x.shape != (n,) for x in out):
        raise ValueError("votes on pairs must be (P,) and of one length")
    _within("choice", out.choice, A, len(CODES))
    _within("shown", shown, -1, 2)
    _within("strength", strength, 0, 4)
    if (out.a == out.b).any():
        raise ValueError("a pair holds the same item twice")
    return out._replace(strength=np.where(out.choice <= B, strength, 0))


def _check_orders(r: Rankings) -> None:
    if r.order.ndim != 2 or len(r.order) != len(r.rater):
        raise ValueError(f"order must be (M, K) with one rater each, not {r.order.shape} and {len(r.rater)} raters")
    for row in r.order:
        named = row[row >= 0]
        if len(named) < 2 or len(set(named.tolist())) < len(named) or (row[: len(named)] < 0).any():
            raise ValueError("an order names two or more items, each once, and then -1 to its end")


def _kept(said: Said) -> Said:
    columns: tuple[Any, ...] = tuple(said)
    counts = columns[-1] > 0
    return type(said)(*(x[counts] for x in columns))


def _ints(x: object) -> Ints:
    return np.asarray(x, dtype=np.int64)


def _weight(weight: Array | None, n: int) -> Array:
    out = np.ones(n) if weight is None else np.asarray(weight, dtype=np.float64)
    if out.shape != (n,) or not np.isfinite(out).all() or (out < 0).any():
        raise ValueError("weights must be one for each judgement, 0 or more")
    return out


def _within(name: str, x: Ints, low: int, high: int) -> None:
    if x.size and (x.min() < low or x.max() >= high):
        raise ValueError(f"{name} holds {x.min()} to {x.max()}: it must lie in {low} to {high - 1}")
