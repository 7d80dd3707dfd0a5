"""What can be asked of the store. Every question is one short read transaction, answered in a stable order.

Prompts, raters and models come in the order they were added; the rest by the keys each method names,
text compared by code point, so that both dialects and a resumed run give the same order.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar, final

import sqlalchemy as sa

from backflip.core.errors import DataError
from backflip.core.records import (
    Metric,
    ModelVersion,
    Pair,
    Prompt,
    Purpose,
    Rater,
    Sample,
    Split,
    Stream,
    ThumbVote,
    Vote,
)
from backflip.store.engine import Database
from backflip.store.forget import forget_rater
from backflip.store.people import People
from backflip.store.rows import as_record, having
from backflip.store.tables import metrics, models, notes, pairs, prompts, raters, rounds, samples, steps, thumbs, votes
from backflip.store.writes import Tx, chunks

R = TypeVar("R")


@final
class Store:
    """An open store. Threads may share it; a forked process must open its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.people = People(database)
        """Who is let in, and what they wrote beside votes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the database."""
        self._database.close()

    @contextmanager
    def begin(self) -> Iterator[Tx]:
        """One short write transaction: everything in the block is stored at its end, or nothing is.

        Compute first, then begin: until the block ends, no other process can write to a SQLite store.

        Raises: BusyError when another process writes for too long; BackflipError on a full disk and the like.
        """
        with self._database.write() as connection:
            yield Tx(connection)

    def forget_rater(self, rater_id: str) -> int:
        """Delete a rater and all their votes for good; return how many votes. See `backflip.store.forget`.

        Raises: DataError when there is no such rater; BusyError.
        """
        return forget_rater(self._database, rater_id)

    def prompts(self, split: Split | None = None) -> list[Prompt]:
        """All prompts, or those of one split."""
        return self._records(Prompt, having(prompts, split=split).order_by(prompts.c.place))

    def prompts_by_id(self, ids: Iterable[str]) -> dict[str, Prompt]:
        """The prompts with these ids; one that is not stored is left out."""
        with self._database.read() as connection:
            rows = [
                row
                for chunk in chunks(sorted(set(ids)))
                for row in connection.execute(sa.select(prompts).where(prompts.c.id.in_(chunk)))
            ]
        return {row.id: as_record(Prompt, row) for row in rows}

    def raters(self) -> list[Rater]:
        """Everybody who may vote."""
        return self._records(Rater, sa.select(raters).order_by(raters.c.place))

    def rounds(self) -> list[int]:
        """The numbers of the rounds that have started, ascending."""
        return [row.number for row in self._rows(sa.select(rounds.c.number).order_by(rounds.c.number))]

    def round_policy(self, round: int) -> str:
        """The policy version the round started with. Raises: DataError when it has not started."""
        for row in self._rows(sa.select(rounds.c.policy).where(rounds.c.number == round)):
            return str(row.policy)
        raise DataError(f"Round {round} has not started.\nStarted so far: {self.rounds() or 'none'}.")

    def steps_done(self, round: int) -> set[str]:
        """The steps of the round that are done."""
        return set(self.seconds(round))

    def seconds(self, round: int) -> dict[str, float]:
        """How long each done step of the round took, by name."""
        query = sa.select(steps).where(steps.c.round == round).order_by(steps.c.step)
        return {row.step: row.seconds for row in self._rows(query)}

    def samples(
        self, *, round: int | None = None, purpose: Purpose | None = None, policy: str | None = None
    ) -> list[Sample]:
        """Samples by round, purpose, prompt, policy, index and id; a filter left out matches all."""
        c = samples.c
        query = having(samples, round=round, purpose=purpose, policy=policy)
        return self._records(Sample, query.order_by(c.round, c.purpose, c.prompt_id, c.policy, c.index, c.id))

    def samples_by_id(self, ids: Iterable[str]) -> dict[str, Sample]:
        """The samples with these ids, in the order asked for. Raises: DataError when one is not stored."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Sample] = {}
        with self._database.read() as connection:
            for chunk in chunks(wanted):
                for row in connection.execute(sa.select(samples).where(samples.c.id.in_(chunk))):
                    found[row.id] = as_record(Sample, row)
        if missing := [i for i in wanted if i not in found]:
            raise DataError(
                f"The store has no sample {missing[0]!r} ({len(missing)} of {len(wanted)} asked for are missing).\n"
                "The run folder may have been mixed with another one's."
            )
        return {i: found[i] for i in wanted}

    def pairs(self, *, round: int | None = None, stream: Stream | None = None) -> list[Pair]:
        """Pairs by round and id; a filter left out matches all."""
        return self._records(Pair, having(pairs, round=round, stream=stream).order_by(pairs.c.round, pairs.c.id))

    def votes(
        self,
        *,
        round: int | None = None,
        stream: Stream | None = None,
        upto: int | None = None,
        repeats: bool = False,
    ) -> list[Vote]:
        """The votes in force, in commit order: retractions and what they retract are left out.

        `round` and `stream` are those of the vote's pair. With `upto`, a watermark, the answer is what
        it was when that watermark was set: neither later votes nor later retractions count. With `repeats`,
        the votes of raters who judged a pair once more are among them; else each rater has one vote on a pair.
        """
        query = _in_force(upto).join(pairs, pairs.c.id == votes.c.pair_id).order_by(votes.c.seq)
        if not repeats:
            query = query.where(votes.c.repeat == 0)
        if round is not None:
            query = query.where(pairs.c.round == round)
        if stream is not None:
            query = query.where(pairs.c.stream == stream)
        return self._records(Vote, query)

    def vote_log(self, *, after: int = 0) -> list[Vote]:
        """Every vote and retraction ever cast, in commit order; those after the `seq` `after` alone."""
        return self._records(Vote, sa.select(votes).where(votes.c.seq > after).order_by(votes.c.seq))

    def vote(self, key: str) -> Vote | None:
        """The vote or retraction with this key, retracted or not; None when there is none."""
        found = self._records(Vote, having(votes, key=key))
        return found[0] if found else None

    def thumbs(self, *, upto: int | None = None) -> list[ThumbVote]:
        """The thumbs in force, in commit order; `upto` as in `votes`."""
        undo = thumbs.alias("undo")
        undone = sa.select(undo.c.seq).where(undo.c.retracts == thumbs.c.key)
        query = sa.select(thumbs).where(thumbs.c.retracts.is_(None))
        if upto is not None:
            undone, query = undone.where(undo.c.seq <= upto), query.where(thumbs.c.seq <= upto)
        return self._records(ThumbVote, query.where(~undone.exists()).order_by(thumbs.c.seq))

    def thumb(self, key: str) -> ThumbVote | None:
        """The thumb or retraction with this key, retracted or not; None when there is none."""
        found = self._records(ThumbVote, having(thumbs, key=key))
        return found[0] if found else None

    def pair(self, id: str) -> Pair | None:
        """The pair with this id; None when there is none."""
        found = self._records(Pair, having(pairs, id=id))
        return found[0] if found else None

    def count_pairs(self) -> int:
        """How many pairs there are."""
        [row] = self._rows(sa.select(sa.func.count().label("n")).select_from(pairs))
        return int(row.n)

    def wanting(self, round: int | None = None) -> list[tuple[Pair, int]]:
        """The pairs that still want votes, by round and id, and how many.

        A pair wants `raters_wanted` votes in force from as many raters; a skip counts as one.
        """
        force = _in_force(None).subquery()
        had = (
            sa.select(force.c.pair_id, sa.func.count(sa.distinct(force.c.rater_id)).label("n"))
            .group_by(force.c.pair_id)
            .subquery()
        )
        missing = (pairs.c.raters_wanted - sa.func.coalesce(had.c.n, 0)).label("missing")
        query = sa.select(pairs, missing).outerjoin(had, had.c.pair_id == pairs.c.id).where(missing > 0)
        if round is not None:
            query = query.where(pairs.c.round == round)
        rows = self._rows(query.order_by(pairs.c.round, pairs.c.id))
        return [(as_record(Pair, row), row.missing) for row in rows]

    def watermark(self, round: int) -> int | None:
        """The `seq` of the last vote the round's fit may use; None while the fit has not started."""
        for row in self._rows(sa.select(rounds.c.watermark).where(rounds.c.number == round)):
            return None if row.watermark is None else int(row.watermark)
        return None

    def models(self, kind: str | None = None) -> list[ModelVersion]:
        """Saved models, oldest first."""
        return self._records(ModelVersion, having(models, kind=kind).order_by(models.c.place))

    def metrics(self, *, round: int | None = None, step: str | None = None, name: str | None = None) -> list[Metric]:
        """Measurements by round, step, tick and name; a filter left out matches all."""
        c = metrics.c
        query = having(metrics, round=round, step=step, name=name)
        return self._records(Metric, query.order_by(c.round, c.step, c.tick, c.name))

    def note(self, key: str) -> str | None:
        """What was noted under `key`, None when nothing was."""
        for row in self._rows(sa.select(notes.c.value).where(notes.c.key == key)):
            return str(row.value)
        return None

    def _rows(self, query: sa.Select[Any]) -> list[sa.Row[Any]]:
        with self._database.read() as connection:
            return list(connection.execute(query))

    def _records(self, kind: type[R], query: sa.Select[Any]) -> list[R]:
        return [as_record(kind, row) for row in self._rows(query)]


def _in_force(upto: int | None) -> sa.Select[Any]:
    """The votes in force, seen from `seq` `upto` (None: now)."""
    undo = votes.alias("undo")
    undone = sa.select(undo.c.seq).where(undo.c.retracts == votes.c.key)
    query = sa.select(votes).where(votes.c.choice != "retract")
    if upto is not None:
        undone = undone.where(undo.c.seq <= upto)
        query = query.where(votes.c.seq <= upto)
    return query.where(~undone.exists())
