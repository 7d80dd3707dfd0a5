"""Casts votes in a thread of its own: whatever waits goes into one transaction, and is acknowledged after its commit.

A commit reaches the disk before it returns (see `store.engine`), so that what was acknowledged outlives a kill; one
for many votes is what lets a slow disk keep up with hundreds of people.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from typing import final

from backflip.core.errors import BackflipError, DataError
from backflip.core.records import Vote
from backflip.store import Store

MOST_AT_ONCE = 256
GATHER_S = 0.02
"""While votes come together, how long the next ones are waited for before they are cast; one alone never waits."""
_Waiting = tuple[Sequence[Vote], "Future[bool]"]


class _SomeKnown(Exception):
    """Some of the votes are stored already: they must be told apart."""


@final
class BallotBox:
    """Takes ballots from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ballots", daemon=True)
        self._thread.start()

    def cast(self, votes: Sequence[Vote]) -> "Future[bool]":
        """Cast one rater's votes together, all or none; tells whether they are new, once they are on the disk.

        The future raises what `Tx.cast` does, or a BackflipError when the store cannot be written.
        """
        future: Future[bool] = Future()
        self._queue.put((votes, future))
        return future

    def close(self) -> None:
        """Cast what waits, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        open_still, together = True, False
        while open_still:
            waiting = [self._queue.get()]
            if together:
                time.sleep(GATHER_S)
            while len(waiting) < MOST_AT_ONCE and not self._queue.empty():
                waiting.append(self._queue.get())
            open_still, together = None not in waiting, len(waiting) > 1
            if ballots := [w for w in waiting if w is not None]:
                self._cast(ballots)

    def _cast(self, ballots: list[_Waiting]) -> None:
        try:
            outcomes = self._together(ballots)
        except Exception as e:  # noqa: BLE001 - whatever happened, each of them must be told
            outcomes = [e] * len(ballots)
        for (_, future), outcome in zip(ballots, outcomes, strict=True):
            with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def _together(self, ballots: list[_Waiting]) -> list[bool | Exception]:
        """Cast all of them at once; one after another when some are known or break a rule."""
        every = [vote for votes, _ in ballots for vote in votes]
        try:
            with self._store.begin() as tx:
                if tx.cast(every) < len(every):
                    raise _SomeKnown
        except (DataError, _SomeKnown):
            return self._one_by_one(ballots)
        return [True] * len(ballots)

    def _one_by_one(self, ballots: list[_Waiting]) -> list[bool | Exception]:
        outcomes: list[bool | Exception] = []
        with self._store.begin() as tx:
            for votes, _ in ballots:
                try:
                    outcomes.append(tx.cast(votes) > 0)
                except BackflipError as e:
                    outcomes.append(e)
        return outcomes
