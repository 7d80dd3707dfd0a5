"""What can be written to the store, inside one transaction. The rules of voting are in `ledger`."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from backflip.core.errors import DataError
from backflip.core.records import Metric, ModelVersion, Pair, Prompt, Rater, Sample, ThumbVote, Vote
from backflip.store.ledger import ThumbLedger, VoteLedger
from backflip.store.rows import as_row
from backflip.store.tables import (
    counters,
    metrics,
    models,
    notes,
    pairs,
    prompts,
    raters,
    rounds,
    samples,
    steps,
    thumbs,
    votes,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

B = TypeVar("B", Vote, ThumbVote)
_MOST_IN_A_LIST = 500
"""Values in one SQL IN list; SQLite and PostgreSQL take no more than 32 thousand."""


@final
class Tx:
    """One write transaction; see `Store.begin`. A method that raises has written nothing.

    Every method may be sent the same thing again, as a resumed step does, and stores it once.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add_prompts(self, records: Sequence[Prompt]) -> None:
        """Store prompts. Raises: DataError when an id is stored with other content."""
        self._add(prompts, "prompt", records)

    def add_raters(self, records: Sequence[Rater]) -> None:
        """Store raters. Raises: DataError when an id is stored with other content."""
        self._add(raters, "rater", records)

    def add_samples(self, records: Sequence[Sample]) -> None:
        """Store samples. Raises: DataError on an unknown prompt, or an id stored with other content."""
        self._add(samples, "sample", records)

    def add_pairs(self, records: Sequence[Pair]) -> None:
        """Open pairs for voting. Raises: DataError on an unknown sample, or an id stored with other content."""
        self._add(pairs, "pair", records)

    def add_model(self, record: ModelVersion) -> None:
        """Store where a model lies. Raises: DataError when its id is stored with other content."""
        self._add(models, "model", [record])

    def start_round(self, number: int, policy: str, at: float) -> None:
        """Begin a round with a policy version, `at` seconds since the epoch; the first time counts.

        Raises: DataError when the round has started with another policy.
        """
        with self._whole("round"):
            self._insert_new(rounds, ["number"], [{"number": number, "policy": policy, "at": at}])
            stored = self._connection.execute(sa.select(rounds.c.policy).where(rounds.c.number == number)).scalar_one()
            if stored != policy:
                raise DataError(f"Round {number} has started with policy {stored}; it cannot start with {policy}.")

    def cast(self, ballots: Sequence[Vote]) -> int:
        """Store votes in this order and number them; return how many are new (a known key is not).

        The numbers (`seq`) follow the commits: whoever casts waits here until the transaction that cast
        before has ended, so no vote can appear below a watermark that is already set.

        Raises: DataError on an unknown pair or rater, a second vote by one rater on one pair, a key that
        is taken by another vote, or a retraction that does not fit; then none of `ballots` is stored.
        """
        if not ballots:
            return 0
        with self._whole("vote"):
            last = self._newest()
            return self._number(votes, self._admit(ballots), last)

    def add_thumbs(self, ballots: Sequence[ThumbVote]) -> int:
        """Store thumbs in this order, numbered together with votes; return how many are new (a known key is not).

        Raises: DataError on an unknown answer or rater, a second thumb by one rater on one answer, a key that is
        taken by another thumb, or a retraction that does not fit; then none of `ballots` is stored.
        """
        if not ballots:
            return 0
        with self._whole("thumb"):
            last = self._newest()
            self._require(samples, "sample", {thumb.sample_id for thumb in ballots})
            self._require(raters, "rater", {thumb.rater_id for thumb in ballots})
            log = self._log(ThumbVote, thumbs, "sample_id", ballots)
            ledger = ThumbLedger(sorted(log, key=lambda thumb: thumb.seq or 0))
            return self._number(thumbs, [thumb for thumb in ballots if ledger.admit(thumb)], last)

    def set_watermark(self, round: int) -> int:
        """Fix which votes the round's fit may use: all up to the newest; return its `seq` (0: none yet).

        Set once: later calls return the first answer. Raises: DataError when the round has not started.
        """
        newest = sa.select(counters.c.value).where(counters.c.name == "votes").scalar_subquery()
        self._connection.execute(
            sa.update(rounds).where(rounds.c.number == round, rounds.c.watermark.is_(None)).values(watermark=newest)
        )
        stored = self._connection.execute(sa.select(rounds.c.watermark).where(rounds.c.number == round)).scalar()
        if stored is None:
            raise DataError(f"Round {round} has not started, so it has no watermark.\nStart it first (start_round).")
        return int(stored)

    def add_metrics(self, records: Sequence[Metric]) -> None:
        """Store measurements; the newest counts where round, step, tick and name are the same.

        A value may be NaN; a bound that is NaN is stored as None.
        """
        if records:
            rows = [{**as_row(r), "low": _bound(r.low), "high": _bound(r.high)} for r in records]
            with self._whole("metric"):
                self._replace(metrics, ["round", "step", "tick", "name"], rows)

    def mark_done(self, round: int, step: str, seconds: float) -> None:
        """Note that a step of a started round is done and how long it took; the first time counts.

        Raises: DataError when the round has not started.
        """
        with self._whole("step"):
            self._insert_new(steps, ["round", "step"], [{"round": round, "step": step, "seconds": seconds}])

    def set_note(self, key: str, value: str) -> None:
        """Keep a short text under `key`, in place of what was there."""
        with self._whole("note"):
            self._replace(notes, ["key"], [{"key": key, "value": value}])

    def _add(self, table: sa.Table, what: str, records: Sequence["DataclassInstance"]) -> None:
        """Insert the records whose id is new; refuse an id whose stored content differs."""
        if not records:
            return
        rows = [as_row(r) for r in records]
        with self._whole(what):
            self._insert_new(table, ["id"], rows)
            stored: dict[str, dict[str, Any]] = {}
            for found in self._find(table, "id", [row["id"] for row in rows]):
                stored[found.id] = {name: found._mapping[name] for name in rows[0]}
            for row in rows:
                if stored[row["id"]] != row:
                    names = [name for name in row if stored[row["id"]][name] != row[name]]
                    raise DataError(
                        f"The store has a {what} {row['id']!r} with another {' and '.join(names)}.\n"
                        "What is stored never changes: give what differs an id of its own."
                    )

    def _admit(self, ballots: Sequence[Vote]) -> list[Vote]:
        """The ballots that are new, each checked against the log and those before it."""
        self._require(pairs, "pair", {vote.pair_id for vote in ballots})
        self._require(raters, "rater", {vote.rater_id for vote in ballots})
        log = self._log(Vote, votes, "pair_id", ballots)
        ledger = VoteLedger(sorted(log, key=lambda vote: vote.seq or 0))
        return [vote for vote in ballots if ledger.admit(vote)]

    def _log(self, kind: type[B], table: sa.Table, about: str, ballots: Sequence[B]) -> list[B]:
        """What is stored under the keys of `ballots` or of what they retract, and about the same things."""
        keys = {b.key for b in ballots} | {b.retracts for b in ballots if b.retracts is not None}
        wanted = (("key", keys), (about, {getattr(b, about) for b in ballots}))
        found = {row.key: row for name, known in wanted for row in self._find(table, name, known)}
        return [kind(**row._mapping) for row in found.values()]

    def _newest(self) -> int:
        """The `seq` of the newest vote or thumb. Who has asked is alone in casting until the transaction ends."""
        counter = sa.select(counters.c.value).where(counters.c.name == "votes").with_for_update()
        return int(self._connection.execute(counter).scalar_one())

    def _number(self, table: sa.Table, new: Sequence[B], last: int) -> int:
        """Store ballots under the numbers after `last`; how many they are."""
        rows = [{**as_row(ballot), "seq": last + i} for i, ballot in enumerate(new, start=1)]
        if rows:
            self._connection.execute(sa.insert(table), rows)
            newest = sa.update(counters).where(counters.c.name == "votes").values(value=last + len(rows))
            self._connection.execute(newest)
        return len(rows)

    def _require(self, table: sa.Table, what: str, ids: Iterable[str]) -> None:
        """Refuse votes that name what is not stored."""
        wanted = set(ids)
        if missing := sorted(wanted - {row.id for row in self._find(table, "id", wanted)}):
            raise DataError(
                f"The store has no {what} {missing[0]!r}.\n"
                "The votes may be another run's, or came before what they are about.\n"
                "Vote in the run it belongs to, or add it before votes that name it."
            )

    def _find(self, table: sa.Table, column: str, values: Iterable[str]) -> Iterator[sa.Row[Any]]:
        for chunk in chunks(sorted(set(values))):
            yield from self._connection.execute(sa.select(table).where(table.c[column].in_(chunk)))

    def _insert_new(self, table: sa.Table, key: list[str], rows: list[dict[str, Any]]) -> None:
        statement = self._insert(table).on_conflict_do_nothing(index_elements=key)
        self._connection.execute(statement, rows)

    def _replace(self, table: sa.Table, key: list[str], rows: list[dict[str, Any]]) -> None:
        insert = self._insert(table)
        values = {name: insert.excluded[name] for name in rows[0] if name not in key}
        self._connection.execute(insert.on_conflict_do_update(index_elements=key, set_=values), rows)

    def _insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """Both dialects spell ON CONFLICT alike, but each has its own insert."""
        return sqlite.insert(table) if self._connection.dialect.name == "sqlite" else postgresql.insert(table)

    @contextmanager
    def _whole(self, what: str) -> Iterator[None]:
        """A savepoint: what fails leaves nothing behind, even if the caller carries on.

        A constraint of the tables that refuses a value is told as DataError.
        """
        try:
            with self._connection.begin_nested():
                yield
        except IntegrityError as e:
            raise DataError(
                f"The store refused a {what}: {str(e.orig).strip().splitlines()[0]}.\n"
                "A value is out of range, or names something that is not stored."
            ) from e


def chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """`values` in pieces that fit an SQL IN list."""
    for start in range(0, len(values), _MOST_IN_A_LIST):
        yield values[start : start + _MOST_IN_A_LIST]


def _bound(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
