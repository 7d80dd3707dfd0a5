"""A round that people judge: how many votes it still waits for, and the waiting itself.

The store is the only channel between a run and the server of its pages; nothing is held while waiting.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from backflip.core.errors import Paused
from backflip.cycle.overview import serving
from backflip.cycle.plan import Rate
from backflip.store import Store

if TYPE_CHECKING:  # the server of the pages counts votes too, without torch
    from backflip.cycle.tools import Tools

POLL_S = 0.5
"""How often a waiting round looks into the store."""
SERVER_GONE_S = 60.0
"""How long a server that was there may be away, to be started anew, before the round pauses."""


class Waiting(NamedTuple):
    """What a round has and what it waits for, in votes."""

    cast: int
    wanted: int
    pairs: int
    """Pairs that are still to be judged."""

    @property
    def enough(self) -> bool:
        """Whether the round may go on."""
        return self.cast >= self.wanted


def waiting(store: Store, number: int, rate: Rate) -> Waiting:
    """What round `number` waits for: all the votes its sampled pairs want, or `rate.votes` of them.

    A second judgement is not waited for while there is nobody to give it.
    """
    people = len({login.rater_id for login in store.people.logins() if login.revoked_at is None})
    pairs = [p for p in store.pairs(round=number) if p.stream != "reference"]
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


def wait_for_people(number: int, tools: "Tools") -> None:
    """Wait until round `number` has the votes it waits for, or its deadline has passed.

    Raises: Paused when votes are missing and nobody serves the run's pages.
    """
    seen: float | None = None
    told = False
    now = waiting(tools.store, number, tools.plan.rate)
    if now.enough:
        return
    since = _since(number, tools.store)
    while not now.enough:
        if serving(tools.root) is not None:
            seen = time.monotonic()
        elif seen is None or time.monotonic() - seen > SERVER_GONE_S:
            raise _paused(number, now, tools.root)
        limit = tools.plan.rate.deadline_minutes * 60
        if limit and time.time() - since >= limit and _has_preference(tools.store):
            tools.watcher.say(f"round {number}: the deadline has passed; it goes on with {now.cast} votes")
            return
        if not told:
            tools.watcher.begin(f"round {number}: people rate", now.wanted)
            tools.watcher.advance(now.cast, f"{now.pairs} pairs are still to be judged")
            told = True
        time.sleep(POLL_S)
        before, now = now, waiting(tools.store, number, tools.plan.rate)
        if now.cast != before.cast:
            tools.watcher.advance(now.cast - before.cast, f"{now.pairs} pairs are still to be judged")


def _since(number: int, store: Store) -> float:
    """When the round began to wait, in seconds since the epoch; a resumed one keeps its first moment."""
    key = f"round {number} waits for people since"
    noted = store.note(key)
    if noted is None:
        noted = str(time.time())
        with store.begin() as tx:
            tx.set_note(key, noted)
    return float(noted)


def _has_preference(store: Store) -> bool:
    return any(v.verdict in ("a", "b") for v in store.votes(stream="fit"))


def _paused(number: int, now: Waiting, root: Path) -> Paused:
    return Paused(
        f"Round {number} waits for people: {now.pairs} pairs are still to be judged.\n"
        f"Nobody serves its pages: let people in with `backflip rate {root}`.\n"
        "Start again with the same command, now or once they have answered."
    )
