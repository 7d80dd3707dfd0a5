"""Brings a database to the tables this code expects; several processes may try at once.

Each migration runs in one transaction on both dialects: a killed one leaves nothing behind.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock, Timeout

from backflip.core.errors import BackflipError
from backflip.store.engine import Database, busy_error

VERSION_TABLE = "backflip_schema"
"""Where Alembic keeps the database's revision; our own name, in case a database is shared."""
_ADVISORY_LOCK = 0x6261636B666C6970
"""PostgreSQL advisory lock of a migration: "backflip" in ASCII."""


def migrate(database: Database) -> None:
    """Create or upgrade the tables, one process at a time.

    Raises: BusyError; BackflipError when the database is not ours or newer than this code.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _alone(database), database.write() as connection:
        if database.path is None:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        else:
            _require_wal(database, connection)
        scripts = ScriptDirectory.from_config(config)
        found = revision(connection)
        if found == scripts.get_current_head():
            return
        if found is None:
            _require_empty(database, connection)
        elif found not in {script.revision for script in scripts.walk_revisions()}:
            raise BackflipError(
                f"{database.label} was written by a newer Backflip (schema {found}; "
                f"this one knows up to {scripts.get_current_head()}).\n"
                "An older one would not understand what it holds, and could spoil it.\n"
                "Upgrade with: pip install -U backflip"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def revision(connection: sa.Connection) -> str | None:
    """The schema revision of the database, None when it has no tables of ours."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Hold the file lock beside a SQLite file (turning a new file to WAL needs it too).

    PostgreSQL takes its advisory lock inside the transaction instead.
    """
    if database.path is None:
        yield
        return
    try:
        database.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(database.path.with_name(database.path.name + ".migrating"), timeout=database.busy_s)
        lock.acquire()
    except Timeout:
        raise busy_error(database) from None
    except OSError as e:
        raise BackflipError(
            f"{database.label} cannot be opened: {e.strerror}.\n"
            "Even to look into a run, its database must be writable: it keeps a log beside itself.\n"
            "Get the right to write there, or copy the run's folder to where you have it."
        ) from e
    try:
        yield
    finally:
        lock.release()


def _require_wal(database: Database, connection: sa.Connection) -> None:
    """Refuse a disk on which SQLite cannot keep a write-ahead log."""
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    if mode != "wal":
        raise BackflipError(
            f"{database.label} cannot use a write-ahead log (SQLite stays in mode {mode}).\n"
            "A network drive may be the cause. Put the run on a local disk, or use PostgreSQL."
        )


def _require_empty(database: Database, connection: sa.Connection) -> None:
    """Refuse a SQLite file that holds somebody else's tables."""
    if database.path is not None and (tables := sa.inspect(connection).get_table_names()):
        raise BackflipError(
            f"{database.label} is not a Backflip store: it holds the table {tables[0]}.\n"
            "It belongs to another program and was left as it was. Check the path."
        )
