"""How the store reaches its database: connections, transactions, and faults told plainly.

Knows both dialects; does not know the tables.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError

from backflip.core.errors import BackflipError, BusyError, ConfigError

_SHM_WRITE_LOCK = 120
"""Byte of a SQLite `-shm` file that the one writer locks (SQLite's file format, "WAL-Index Format")."""


@final
@dataclass(frozen=True, kw_only=True)
class Database:
    """An open database: what reading and writing need, and the name users know it by."""

    engine: sa.Engine
    label: str
    """Path or URL, without user and password."""
    path: Path | None
    """The SQLite file; None for PostgreSQL."""
    busy_s: float

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection that sees one moment of the database, and changes nothing."""
        options = {"backflip_read": True} if self.path else {"isolation_level": "REPEATABLE READ"}
        with self._plainly(), self.engine.execution_options(**options).connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A write transaction: committed at the end, rolled back when an exception leaves the block."""
        with self._plainly(), self.engine.begin() as connection:
            yield connection

    def scrub(self, tables: Sequence[str]) -> None:
        """Rewrite the disk's copy of `tables`, so that nothing that was deleted can be read from it any more.

        SQLite: the file is written anew and the write-ahead log emptied. PostgreSQL: these tables are written anew;
        the server's own log and backups are its keeper's. Raises: BusyError when others keep reading or writing.
        """
        options = {"backflip_bare": True} if self.path else {"isolation_level": "AUTOCOMMIT"}
        with self._plainly(), self.engine.execution_options(**options).connect() as connection:
            if self.path is None:
                for table in tables:
                    connection.exec_driver_sql(f"VACUUM (FULL, ANALYZE) {table}")
                return
            connection.exec_driver_sql("VACUUM")
            if connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]:
                raise busy_error(self)

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.engine.dispose()

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Turn a database fault the user can cure into a BackflipError."""
        try:
            yield
        except DBAPIError as e:
            fault: BaseException | None = e
            while fault is not None:  # SQLite ends a transaction on a full disk: the savepoint's own end then fails too
                plain = self._plain(fault) if isinstance(fault, DBAPIError) else None
                if plain is not None:
                    raise plain from e
                fault = fault.__context__
            raise

    def _plain(self, error: DBAPIError) -> BackflipError | None:
        return _sqlite_fault(self, error) if self.path else _postgres_fault(self, error)


def connect(where: str | Path, *, busy_s: float) -> Database:
    """The database at `where`, not yet opened; see `open_store`.

    Raises: ConfigError when `where` is neither a path nor a PostgreSQL URL, or the driver is missing.
    """
    if isinstance(where, str) and "://" in where:
        return _postgres(where, busy_s)
    return _sqlite(Path(where), busy_s)


def busy_error(database: Database) -> BusyError:
    """What a user reads when somebody else holds the database for too long."""
    waited = f"(waited {database.busy_s:g} s)"
    if database.path is None:
        return BusyError(
            f"{database.label} is locked by another session {waited}.\n"
            "A long transaction or a maintenance job may hold it: see pg_stat_activity.\n"
            "Let it end, then run the same command again."
        )
    pid = _writer(database.path)
    return BusyError(
        f"{database.label} is locked by {f'process {pid}' if pid else 'another process'} {waited}.\n"
        "Another round may be running: see `backflip status`.\n"
        "Let it end, then run the same command again; for several raters at once, use PostgreSQL."
    )


def _sqlite(path: Path, busy_s: float) -> Database:
    """SQLite as the store wants it: WAL, every commit on the disk, one writer at a time by BEGIN IMMEDIATE."""
    engine = sa.create_engine(
        sa.URL.create("sqlite+pysqlite", database=str(path)),
        connect_args={"timeout": busy_s},
        max_overflow=40,
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, never by the driver
        for pragma in ("synchronous = FULL", "fullfsync = ON", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode = WAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("backflip_bare"):  # what SQLite takes outside of transactions only
            connection.exec_driver_sql("BEGIN" if options.get("backflip_read") else "BEGIN IMMEDIATE")

    return Database(engine=engine, label=str(path), path=path, busy_s=busy_s)


def _postgres(where: str, busy_s: float) -> Database:
    """PostgreSQL through psycopg 3. Writers read what is committed as they go: see `Tx.cast`."""
    try:
        url = sa.make_url(where)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise ConfigError("This is not a database URL.\nWrite it as postgresql://user@host:port/name.") from None
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ConfigError(
            f"A store cannot be opened with {url.drivername}://.\n"
            "Give the path of a file (SQLite), or a URL that begins with postgresql://."
        )
    try:
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            max_overflow=40,
        )
    except ModuleNotFoundError:
        raise ConfigError(
            "PostgreSQL needs the package psycopg, which is not installed.\n"
            "Install it with: pip install 'backflip[postgres]'"
        ) from None

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.autocommit = True
        connection.execute(f"SET lock_timeout = {max(1, round(busy_s * 1000))}")
        connection.execute("SET synchronous_commit = on")  # what is acknowledged is on the disk
        connection.autocommit = False

    label = sa.URL.create("postgresql", host=url.host, port=url.port, database=url.database)
    return Database(engine=engine, label=label.render_as_string(), path=None, busy_s=busy_s)


def _sqlite_fault(database: Database, error: DBAPIError) -> BackflipError | None:
    """The plain words for a SQLite error, or None when it is not the user's to cure."""
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    where = database.label
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return busy_error(database)
    told = {
        sqlite3.SQLITE_FULL: f"{where} cannot grow: the disk is full.\n"
        "Nothing was half-written.\nFree some space, then run the same command again.",
        sqlite3.SQLITE_READONLY: f"{where} cannot be written.\n"
        "The file or its folder belongs to somebody else, or the disk is mounted read-only.\n"
        "Get the right to write there, or copy the run's folder to where you have it.",
        sqlite3.SQLITE_CANTOPEN: f"{where} cannot be opened.\n"
        "It may be a folder, or you may lack the right to read it.\nCheck the path.",
        sqlite3.SQLITE_NOTADB: f"{where} is not a Backflip store.\n"
        "It is some other kind of file, left as it was.\nCheck the path.",
        sqlite3.SQLITE_CORRUPT: f"{where} is damaged.\n"
        "A disk fault or a copy taken while a run was writing may be the cause.\nPut it back from another copy.",
        sqlite3.SQLITE_IOERR: f"{where} cannot be read or written: the disk reports an error.\n"
        "The disk may be full, or a network drive have gone away.\n"
        "Free some space, or put the run on a local disk; the same command carries on.",
    }.get(code)
    return BackflipError(told) if told else None


def _postgres_fault(database: Database, error: DBAPIError) -> BackflipError | None:
    """The plain words for a PostgreSQL error, or None when it is not the user's to cure."""
    state = getattr(error.orig, "sqlstate", None)
    if state in ("55P03", "40P01"):  # lock_not_available, deadlock_detected
        return busy_error(database)
    if state == "53100":
        return BackflipError(
            f"{database.label} cannot grow: the server's disk is full.\n"
            "Nothing was half-written. Free some space there, then run the same command again."
        )
    if state == "42501":
        return BackflipError(
            f"{database.label} refuses this user: {_first_line(error)}.\n"
            "Grant the user the right to create and use tables in this database."
        )
    if error.connection_invalidated or (error.statement is None and state is None):
        return BackflipError(
            f"{database.label} cannot be reached: {_first_line(error)}.\n"
            "The server may be down, or the database, user or password wrong.\n"
            "Check the URL; make the database with `createdb` if it does not exist."
        )
    return None


def _first_line(error: DBAPIError) -> str:
    """The driver's own words, first line."""
    return str(error.orig).strip().split("\n")[0].rstrip(".")


def _writer(path: Path) -> int | None:
    """The process that writes to the SQLite file, where the system tells (Linux)."""
    try:
        inode = path.with_name(path.name + "-shm").stat().st_ino
        return writer_in(Path("/proc/locks").read_text(encoding="ascii"), inode)
    except (OSError, ValueError):
        return None


def writer_in(locks: str, inode: int) -> int | None:
    """The process that holds SQLite's write lock on the `-shm` file `inode`, read from a /proc/locks text."""
    for line in locks.splitlines():
        words = line.split()  # 1: POSIX ADVISORY WRITE 4312 08:01:9263 120 120
        if len(words) < 8 or words[3] != "WRITE" or words[5].rpartition(":")[2] != str(inode):
            continue
        last = float("inf") if words[7] == "EOF" else int(words[7])
        if int(words[6]) <= _SHM_WRITE_LOCK <= last and int(words[4]) > 0:
            return int(words[4])
    return None
