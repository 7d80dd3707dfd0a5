"""The store: prompts, samples, pairs, votes and what became of them, in SQLite or PostgreSQL.

It takes and returns the records of `backflip.core.records`; no row, connection or SQL leaves it.
It does not know what a round is for, nor what lies in the artefacts its rows point to.
"""

from pathlib import Path

from backflip.store.engine import connect
from backflip.store.migrate import migrate
from backflip.store.queries import Store
from backflip.store.writes import Tx

__all__ = ["Store", "Tx", "open_store"]


def open_store(where: str | Path, *, busy_s: float = 30.0) -> Store:
    """Open the store at `where`, creating it and bringing its tables up to date first.

    `where` is the path of a SQLite file, or a URL `postgresql://user@host/name` of a database that
    exists. `busy_s` is how many seconds to wait for another process before giving up.

    Raises: BusyError when another process holds it for longer than `busy_s`; BackflipError when it
    cannot be reached, read or written, or was written by a newer Backflip.
    """
    database = connect(where, busy_s=busy_s)
    try:
        migrate(database)
    except BaseException:
        database.close()
        raise
    return Store(database)
