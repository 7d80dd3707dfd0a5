import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from backflip.core.errors import BackflipError, BusyError, ConfigError
from backflip.core.records import Prompt
from backflip.store import Store, open_store
from backflip.store.engine import connect, writer_in

Spawn = Callable[..., subprocess.Popen[str]]

HOLD = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


def pragma(connection: sa.Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


@pytest.mark.parametrize("kind", ["read", "write"])
def test_every_sqlite_connection_is_durable_and_checks_references(tmp_path: Path, kind: str):
    open_store(tmp_path / "run.db").close()
    database = connect(tmp_path / "run.db", busy_s=30.0)

    with getattr(database, kind)() as connection:
        assert pragma(connection, "journal_mode") == "wal"
        assert pragma(connection, "synchronous") == 2  # FULL
        assert pragma(connection, "fullfsync") == 1
        assert pragma(connection, "foreign_keys") == 1
        assert pragma(connection, "busy_timeout") == 30_000
    database.close()


def test_a_postgresql_session_waits_for_a_lock_as_long_as_asked(postgresql_url: str):
    database = connect(postgresql_url, busy_s=12.5)

    with database.write() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "12500ms"
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar_one() == "read committed"
    with database.read() as connection:
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar_one() == "repeatable read"
    database.close()


def test_a_read_sees_one_moment(made: str):
    database, other = connect(made, busy_s=5.0), connect(made, busy_s=5.0)
    count = sa.text("SELECT count(*) FROM notes")

    with database.read() as reader:
        assert reader.execute(count).scalar_one() == 0
        with other.write() as writer:
            writer.execute(sa.text("INSERT INTO notes VALUES ('k', 'v')"))
        assert reader.execute(count).scalar_one() == 0
    with database.read() as reader:
        assert reader.execute(count).scalar_one() == 1
    database.close()
    other.close()


def test_sqlite_takes_the_write_lock_when_the_transaction_begins(tmp_path: Path):
    with (
        open_store(tmp_path / "run.db", busy_s=0.1) as one,
        open_store(tmp_path / "run.db", busy_s=0.1) as two,
        one.begin(),
        pytest.raises(BusyError),
        two.begin(),
    ):
        raise AssertionError("the second writer was let in")


def test_a_locked_sqlite_store_says_who_waited_and_what_helps(tmp_path: Path, spawn: Spawn):
    path = tmp_path / "joke.db"
    with open_store(path, busy_s=0.2) as store:
        holder = spawn(HOLD, str(path))
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        with pytest.raises(BusyError) as told, store.begin() as tx:
            tx.set_note("k", "v")

        fact, cause, cure = str(told.value).split("\n")
        assert fact in (
            f"{path} is locked by another process (waited 0.2 s).",
            f"{path} is locked by process {holder.pid} (waited 0.2 s).",
        )
        assert cause == "Another round may be running: see `backflip status`."
        assert "PostgreSQL" in cure

        assert store.note("k") is None  # reading needs no lock
        holder.communicate("go\n")
        with store.begin() as tx:  # and the store is as good as before
            tx.set_note("k", "v")
        assert store.note("k") == "v"


def test_a_locked_sqlite_store_is_told_when_opening_too(tmp_path: Path, spawn: Spawn):
    path = tmp_path / "run.db"
    open_store(path).close()
    holder = spawn(HOLD, str(path))
    assert holder.stdout is not None
    holder.stdout.readline()

    with pytest.raises(BusyError, match="is locked by"):
        open_store(path, busy_s=0.1)


def test_a_locked_postgresql_store_says_who_waited(postgresql_url: str):
    with open_store(postgresql_url, busy_s=0.2) as store:
        holder = connect(postgresql_url, busy_s=5.0)
        with holder.write() as connection:
            connection.exec_driver_sql("LOCK TABLE notes")
            with pytest.raises(BusyError, match=r"is locked by another session \(waited 0.2 s\)"), store.begin() as tx:
                tx.set_note("k", "v")
        holder.close()


def test_a_writer_waits_for_the_one_before(store: Store):
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        entered.wait()
        with store.begin() as tx:
            tx.set_note("k", "second")
        order.append("second done")

    thread = threading.Thread(target=second)
    thread.start()
    with store.begin() as tx:
        tx.set_note("k", "first")
        entered.set()
        thread.join(timeout=0.2)
        order.append("first done")
    thread.join()

    assert order == ["first done", "second done"]
    assert store.note("k") == "second"


def test_an_exception_leaves_nothing_behind(store: Store):
    def fail() -> None:
        with store.begin() as tx:
            tx.add_prompts([Prompt(id="q", split="train", text="Hi")])
            tx.set_note("k", "v")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()

    assert store.prompts() == []
    assert store.note("k") is None


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path):
    with open_store(tmp_path / "run.db") as store:
        with store._database.write() as connection:
            pages = pragma(connection, "page_count")
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(BackflipError, match="the disk is full"), store.begin() as tx:
            tx.add_prompts([Prompt(id=f"q{i}", split="train", text="x" * 1000) for i in range(100)])
        assert store.prompts() == []


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda path: path.write_text("not a database at all" * 100), "is not a Backflip store"),
        (lambda path: path.mkdir(), "cannot be opened"),
    ],
    ids=["a text file", "a folder"],
)
def test_what_is_not_a_database_is_named(tmp_path: Path, make: Callable[[Path], object], fact: str):
    make(tmp_path / "run.db")

    with pytest.raises(BackflipError, match=fact) as told:
        open_store(tmp_path / "run.db")
    assert str(tmp_path / "run.db") in str(told.value)


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "postgresql+psycopg2://host/db", "http://[", "postgresql://host:port/db"]
)
def test_other_urls_are_refused(url: str):
    with pytest.raises(ConfigError, match="postgresql://"):
        open_store(url)


@pytest.mark.parametrize("option", ["", "?bogus=1"])
def test_an_unreachable_server_is_told_without_the_password(option: str):
    with pytest.raises(BackflipError, match="cannot be reached") as told:
        open_store(f"postgresql://ann:secret@127.0.0.1:1/run{option}")

    assert str(told.value).startswith("postgresql://127.0.0.1:1/run cannot be reached")
    assert "secret" not in str(told.value)


def test_the_path_may_lie_in_a_folder_that_does_not_exist_yet(tmp_path: Path):
    open_store(tmp_path / "runs" / "first" / "run.db").close()

    assert (tmp_path / "runs" / "first" / "run.db").exists()


LOCKS = """\
1: POSIX  ADVISORY  READ  900 08:01:77 123 123
2: POSIX  ADVISORY  WRITE 901 08:01:77 121 121
3: POSIX  ADVISORY  WRITE 902 08:01:78 120 120
4: FLOCK  ADVISORY  WRITE 903 08:01:79 0 EOF
5: POSIX  ADVISORY  WRITE 4312 08:01:77 120 120
5: -> POSIX  ADVISORY  WRITE 905 08:01:77 120 120
"""


def test_the_writer_is_who_holds_byte_120_of_the_shm_file():
    assert writer_in(LOCKS, 77) == 4312
    assert writer_in(LOCKS, 78) == 902
    assert writer_in(LOCKS, 79) == 903
    assert writer_in(LOCKS, 80) is None
