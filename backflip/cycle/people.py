"""What people are waited for: votes on a round's pairs, and answers that they write for stage 0.

The store is the only channel between a run and the server of its pages; nothing is held while waiting.
"""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from backflip.core.errors import Paused
from backflip.cycle.folder import LOOKS
from backflip.cycle.overview import serving
from backflip.cycle.plan import Rate
from backflip.store import Store

if TYPE_CHECKING:  # the server of the pages counts votes too, without torch
    from backflip.cycle.tools import Tools

POLL_S = 0.5
"""How often a waiting run looks into the store."""
SERVER_GONE_S = 60.0
"""How long a server that was there may be away, to be started anew, before the run pauses."""
LEARNED = "stage 0 learns from"
"""The store's note of the written answers that stage 0 has settled on: their keys as JSON; empty before it has."""


class Waiting(NamedTuple):
    """What there is and what is waited for, in votes or written answers."""

    cast: int
    wanted: int
    left: int
    """Pairs that are still to be judged, or answers to be written."""

    @property
    def enough(self) -> bool:
        """Whether the run may go on."""
        return self.cast >= self.wanted


class _Wish(NamedTuple):
    """What a run asks of people."""

    who: str
    """Who waits: "round 2"."""
    what: str
    """What people do."""
    left: str
    """What is left to be done: "pairs are still to be judged"."""
    unit: str
    deadline_minutes: float
    look: Callable[[], Waiting]
    may_end: Callable[[], bool]
    """Whether there is enough to go on with at the deadline."""


def waiting(store: Store, number: int, rate: Rate, *, reference: bool = False) -> Waiting:
    """What round `number` waits for: all the votes its sampled pairs want, or `rate.votes` of them.

    With `reference`, of its pairs against the untouched model, which the last round waits for before its figures stand.
    A second judgement is not waited for while there is nobody to give it.
    """
    people = len({login.rater_id for login in store.people.logins() if login.revoked_at is None})
    finished = (p for p in store.pairs(round=number) if not p.policy.startswith(LOOKS))  # a climb waits for its own
    pairs = [p for p in finished if (p.stream == "reference") == reference]
    missing = {pair.id: count for pair, count in store.wanting(number)}
    wanted, still, open_pairs = 0, 0, 0
    for p in pairs:
        nobody = max(0, p.raters_wanted - people) if people else 0
        left = max(0, missing.get(p.id, 0) - nobody)
        wanted += p.raters_wanted - nobody
        still += left
        open_pairs += left > 0
    cast = wanted - still
    return Waiting(cast, min(rate.votes, wanted) if rate.votes else wanted, open_pairs)


def wait_for_people(number: int, tools: "Tools", *, reference: bool = False) -> None:
    """Wait until round `number` has the votes it waits for (see `waiting`), or its deadline has passed.

    Raises: Paused when votes are missing and nobody serves the run's pages.
    """
    store, rate = tools.store, tools.plan.rate
    wish = _Wish(
        round_named(number, reference=reference), "people rate", "pairs are still to be judged", "votes",
        rate.deadline_minutes, lambda: waiting(store, number, rate, reference=reference),
        lambda: reference or _has_preference(store),
    )  # fmt: skip
    _wait(wish, tools)


def wait_for_written(tools: "Tools", usable: Callable[[], int], *, least: int) -> None:
    """Wait until people have written the answers that stage 0 wants, or at the deadline until there are `least`.

    `usable` counts those that can be learned from. Raises: Paused when some are missing and nobody serves the pages.
    """
    config = tools.plan.sft

    def look() -> Waiting:
        there = usable()
        return Waiting(there, config.written, max(0, config.written - there))

    wish = _Wish(
        "stage 0", "people write", "answers are still to be written", "answers", config.deadline_minutes,
        look, lambda: usable() >= least,
    )  # fmt: skip
    _wait(wish, tools)


def learned_keys(store: Store) -> set[str] | None:
    """The keys of the written answers that stage 0 has settled on; None before it has."""
    noted = store.note(LEARNED)
    return set(json.loads(noted)) if noted else None


def round_named(number: int, *, reference: bool = False) -> str:
    """Who waits, in words; with `reference`, for votes on its pairs against the untouched model."""
    return f"round {number}" + "'s comparison with the untouched model" * reference


def waits_since(store: Store, who: str) -> float | None:
    """When `who` ("round 2", "stage 0") first began to wait, in seconds since the epoch; None when it never did."""
    noted = store.note(_key(who))
    return None if noted is None else float(noted)


def _wait(wish: _Wish, tools: "Tools") -> None:
    seen: float | None = None
    told = False
    now = wish.look()
    if now.enough:
        return
    since = since_when(_key(wish.who), tools.store)
    while not now.enough:
        if serving(tools.root) is not None:
            seen = time.monotonic()
        elif seen is None or time.monotonic() - seen > SERVER_GONE_S:
            raise Paused(
                f"{wish.who.capitalize()} waits for people: {now.left} {wish.left}.\n"
                f"Nobody serves its pages: let people in with `backflip rate {tools.root}`.\n"
                "Start again with the same command, now or once they are done."
            )
        limit = wish.deadline_minutes * 60
        if limit and time.time() - since >= limit and wish.may_end():
            tools.watcher.say(f"{wish.who}: the deadline has passed; it goes on with {now.cast} {wish.unit}")
            return
        if not told:
            tools.watcher.begin(f"{wish.who}: {wish.what}", now.wanted)
            tools.watcher.advance(now.cast, f"{now.left} {wish.left}")
            told = True
        time.sleep(POLL_S)
        before, now = now, wish.look()
        if now.cast != before.cast:
            tools.watcher.advance(now.cast - before.cast, f"{now.left} {wish.left}")


def since_when(key: str, store: Store) -> float:
    """When a wait that is noted under `key` began, in seconds since the epoch; a resumed one keeps its first moment."""
    noted = store.note(key)
    if noted is None:
        noted = str(time.time())
        with store.begin() as tx:
            tx.set_note(key, noted)
    return float(noted)


def _key(who: str) -> str:
    return f"{who} waits for people since"


def _has_preference(store: Store) -> bool:
    return any(v.verdict in ("a", "b") for v in store.votes(stream="fit"))
