"""Forgets a rater: the one way by which votes ever leave the store.

Votes are append-only, and triggers see to it. Here those triggers stand aside inside one transaction whose only
deletions name the rater; whoever writes meanwhile waits, and a transaction that fails leaves everything as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from backflip.core.errors import DataError
from backflip.store.engine import Database
from backflip.store.tables import demonstrations, flags, invites, logins, notes, raters, thumbs, votes

_THEIRS = (thumbs, flags, demonstrations, invites, logins)
"""What a rater leaves beside votes; each row names them as `rater_id`."""

FORGOTTEN = "forgotten votes"
"""Note: how many votes were removed because their raters asked for it. Nothing else is kept of them."""
_UNSCRUBBED = "unscrubbed"
"""Note: rows were deleted whose bytes are still on the disk; there only between the two halves of `forget_rater`."""


def forget_rater(database: Database, rater_id: str) -> int:
    """Delete a rater, every vote and retraction of theirs and whatever else names them, then their bytes.

    Returns how many votes that were.

    Raises: DataError when there is no such rater; BusyError when somebody reads or writes for too long. If that
    happens to the bytes, the rows are gone already, and the next call for whatever rater ends the work.
    """
    with database.write() as connection:
        unscrubbed = connection.execute(sa.select(notes.c.key).where(notes.c.key == _UNSCRUBBED)).first() is not None
    if unscrubbed:
        _scrub(database)
    with database.write() as connection, _unsealed(connection, "votes"), _unsealed(connection, "thumbs"):
        for table in _THEIRS:
            connection.execute(sa.delete(table).where(table.c.rater_id == rater_id))
        removed = connection.execute(sa.delete(votes).where(votes.c.rater_id == rater_id)).rowcount
        if not connection.execute(sa.delete(raters).where(raters.c.id == rater_id)).rowcount:
            raise DataError(f"The store has no rater {rater_id!r}.\nNothing was removed.")
        before = connection.execute(sa.select(notes.c.value).where(notes.c.key == FORGOTTEN)).scalar()
        connection.execute(sa.delete(notes).where(notes.c.key == FORGOTTEN))
        told = [{"key": FORGOTTEN, "value": str(int(before or 0) + removed)}, {"key": _UNSCRUBBED, "value": "yes"}]
        connection.execute(sa.insert(notes), told)
    _scrub(database)
    return removed


def _scrub(database: Database) -> None:
    """Overwrite what was deleted, then note that it is done."""
    database.scrub([table.name for table in (votes, *_THEIRS, raters)])
    with database.write() as connection:
        connection.execute(sa.delete(notes).where(notes.c.key == _UNSCRUBBED))


@contextmanager
def _unsealed(connection: sa.Connection, table: str) -> Iterator[None]:
    """Take the trigger that refuses deletions out of the way for the rest of the block, inside its transaction."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER {table}_keep_rows")
        yield
        connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE TRIGGER {table}_keep_rows")
        return
    name = f"{table}_keep_delete"
    trigger = f"type = 'trigger' AND name = '{name}'"
    again = connection.exec_driver_sql(f"SELECT sql FROM sqlite_schema WHERE {trigger}").scalar_one()
    connection.exec_driver_sql(f"DROP TRIGGER {name}")
    yield
    connection.exec_driver_sql(again)
