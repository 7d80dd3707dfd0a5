"""Forgetting a rater: all of them goes, from the disk too, and nobody else's vote is touched."""

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from backflip.core.errors import BusyError, DataError
from backflip.core.records import Rater, Vote
from backflip.store import Store, open_store
from backflip.store.engine import Database, connect

Ballot = Callable[..., Vote]
NAME = "Zebedee Quillfeather"


@pytest.fixture
def zeb(voted: Store, ballot: Ballot) -> Store:
    """Ann and bob have voted; so has zeb, who took one vote back and cast another."""
    with voted.begin() as tx:
        tx.add_raters([Rater(id="zebedee-q", kind="person", name=NAME)])
        tx.cast([ballot("k1", "p1", "ann"), ballot("k2", "p2", "bob")])
        tx.cast([ballot("zebedee-q/1", "p1", "zebedee-q"), ballot("zebedee-q/2", "p2", "zebedee-q")])
        tx.cast([ballot("zebedee-q/3", "p1", "zebedee-q", "retract", "zebedee-q/1")])
        tx.cast([ballot("zebedee-q/4", "p1", "zebedee-q", "b"), ballot("k3", "p3", "ann", "tie")])
    return voted


def files_with(words: str, folder: Path) -> list[str]:
    """The files of a folder whose bytes hold `words`."""
    return [p.name for p in sorted(folder.rglob("*")) if p.is_file() and words.encode() in p.read_bytes()]


def test_a_forgotten_rater_and_their_votes_are_gone_and_no_other_vote_is_touched(zeb: Store):
    others = [v for v in zeb.vote_log() if v.rater_id != "zebedee-q"]
    removed = zeb.forget_rater("zebedee-q")

    assert removed == 4  # two votes, a retraction, a vote
    assert zeb.vote_log() == others
    assert [v.seq for v in zeb.vote_log()] == [1, 2, 7]
    assert [r.id for r in zeb.raters()] == ["ann", "bob"]
    assert zeb.note("forgotten votes") == "4"
    assert zeb.note("unscrubbed") is None


def test_votes_are_sealed_again_afterwards(zeb: Store, made: str):
    zeb.forget_rater("zebedee-q")
    zeb.close()
    database = connect(made, busy_s=5.0)
    for statement in ("DELETE FROM votes", "UPDATE votes SET choice = 'b'"):
        with (
            pytest.raises(sa.exc.DBAPIError, match="votes are append-only"),
            database.engine.begin() as connection,
        ):
            connection.exec_driver_sql(statement)
    database.close()


def test_later_votes_get_numbers_above_every_watermark(zeb: Store, ballot: Ballot):
    with zeb.begin() as tx:
        assert tx.set_watermark(1) == 7
    zeb.forget_rater("zebedee-q")
    with zeb.begin() as tx:
        tx.cast([ballot("k4", "p2", "ann")])

    assert zeb.vote_log()[-1].seq == 8
    assert [v.key for v in zeb.votes(upto=7)] == ["k1", "k2", "k3"]


def test_the_name_is_left_in_no_file_of_the_store(tmp_path: Path):
    path, order = tmp_path / "run.db", random.Random(0).sample(range(400), 400)
    open_store(path).close()
    with sqlite3.connect(path) as raw:  # as written where SQLite leaves old bytes behind: pages split, rows move
        raw.execute("PRAGMA secure_delete = OFF")
        rows = [(f"rater-{i}-q", f"<{NAME} {i}>" * 20) for i in order]
        raw.executemany("INSERT INTO raters (id, kind, name) VALUES (?, 'person', ?)", rows)
    raw.close()
    with open_store(path) as store:
        for i in (order[0], order[57], order[399]):
            assert files_with(f"<{NAME} {i}>", tmp_path) == ["run.db"]
            store.forget_rater(f"rater-{i}-q")
            assert files_with(f"<{NAME} {i}>", tmp_path) == []
            assert files_with(f"rater-{i}-q", tmp_path) == []
        assert len(store.raters()) == 397
        assert files_with(f"<{NAME} {order[5]}>", tmp_path) == ["run.db"]


def test_an_unknown_rater_removes_nothing(zeb: Store, ballot: Ballot):
    log = zeb.vote_log()
    with pytest.raises(DataError, match="has no rater 'eve'"):
        zeb.forget_rater("eve")

    assert zeb.vote_log() == log
    assert zeb.note("forgotten votes") is None
    with zeb.begin() as tx:
        assert tx.cast([ballot("k9", "p2", "ann")]) == 1


def test_the_count_adds_up_over_several_raters(zeb: Store):
    assert [zeb.forget_rater(name) for name in ("zebedee-q", "bob")] == [4, 1]
    assert zeb.note("forgotten votes") == "5"


def test_bytes_that_could_not_be_overwritten_go_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "run.db"
    with open_store(path) as store:
        with store.begin() as tx:
            tx.add_raters([Rater(id=i, kind="person", name=n) for i, n in (("zeb", NAME), ("ann", "Ann"))])
        with monkeypatch.context() as patch:
            patch.setattr(Database, "scrub", lambda *_: (_ for _ in ()).throw(BusyError("locked")))
            with pytest.raises(BusyError):
                store.forget_rater("zeb")
        assert [r.id for r in store.raters()] == ["ann"]
        assert files_with(NAME, tmp_path) != []

        with pytest.raises(DataError, match="no rater 'zeb'"):
            store.forget_rater("zeb")
        assert files_with(NAME, tmp_path) == []


def test_a_reader_that_stays_is_told_as_busy(tmp_path: Path):
    path = tmp_path / "run.db"
    with open_store(path, busy_s=0.2) as store:
        with store.begin() as tx:
            tx.add_raters([Rater(id="zeb", kind="person", name=NAME)])
        database = connect(path, busy_s=0.2)
        with database.read() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM raters").scalar()
            with pytest.raises(BusyError, match="is locked"):
                store.forget_rater("zeb")
        database.close()
