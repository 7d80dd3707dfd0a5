"""What is known of people beside their votes: who is let in, and what they wrote. Every call is one transaction.

Tokens never come here: what is stored and looked up is their hash.
"""

import time
from typing import Any, Literal, TypeVar, final

import sqlalchemy as sa

from backflip.core.errors import DataError
from backflip.core.records import Demonstration, Flag, Guidelines, Invite, Login, Rater
from backflip.store.engine import Database
from backflip.store.rows import as_record, as_row, having
from backflip.store.tables import demonstrations, flags, guidelines, invites, logins, prompts, raters, samples

R = TypeVar("R")


@final
class People:
    """Invitations, logins, guidelines, flags and demonstrations of one store; reached as `Store.people`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def invite(self, token_hash: str, role: Literal["rater", "owner"], name: str, at: float) -> None:
        """Let one person in by a token."""
        row = {"token_hash": token_hash, "role": role, "name": name, "at": at}
        with self._database.write() as connection:
            connection.execute(sa.insert(invites), row)

    def join(self, token_hash: str, rater: Rater, login_hash: str, at: float) -> Login | None:
        """Use an invitation up: store who came in and their login. None when it is unknown, used or revoked.

        An invitation is used once, however many ask at the same moment.
        """
        with self._database.write() as connection:
            c = invites.c
            free = (c.token_hash == token_hash) & c.used_at.is_(None) & c.revoked_at.is_(None)
            # the update locks the row, so that only one of several finds it free
            if not connection.execute(sa.update(invites).where(free).values(used_at=at)).rowcount:
                return None
            found = connection.execute(sa.select(invites).where(c.token_hash == token_hash)).one()
            row = {"id": rater.id, "kind": rater.kind, "name": found.name}
            connection.execute(sa.insert(raters), row)
            connection.execute(sa.update(invites).where(c.token_hash == token_hash).values(rater_id=rater.id))
            login = Login(token_hash=login_hash, rater_id=rater.id, role=found.role, at=at)
            connection.execute(
                sa.insert(logins),
                {"token_hash": login_hash, "rater_id": rater.id, "role": found.role, "at": at},
            )
            return login

    def invited(self, token_hash: str) -> str:
        """The name on an invitation; empty for an unknown one."""
        found = self._records(Invite, having(invites, token_hash=token_hash))
        return found[0].name if found else ""

    def let_in(self, token_hash: str) -> tuple[Login, str] | None:
        """The login with this token and the rater's name, when it is there and not revoked."""
        query = having(logins, token_hash=token_hash).where(logins.c.revoked_at.is_(None))
        query = query.add_columns(raters.c.name).join(raters, raters.c.id == logins.c.rater_id)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else (as_record(Login, row), str(row.name))

    def logins(self) -> list[Login]:
        """Every login ever made, oldest first."""
        return self._records(Login, sa.select(logins).order_by(logins.c.at, logins.c.token_hash))

    def invites(self) -> list[Invite]:
        """Every invitation ever made, oldest first."""
        return self._records(Invite, sa.select(invites).order_by(invites.c.place))

    def revoke_rater(self, rater_id: str, at: float) -> bool:
        """Shut a person out; their votes stay. False when they have no login that is in force."""
        with self._database.write() as connection:
            theirs = (logins.c.rater_id == rater_id) & logins.c.revoked_at.is_(None)
            return bool(connection.execute(sa.update(logins).where(theirs).values(revoked_at=at)).rowcount)

    def revoke_invite(self, token_hash: str, at: float) -> bool:
        """Make an unused invitation void. False when there is none."""
        with self._database.write() as connection:
            c = invites.c
            free = (c.token_hash == token_hash) & c.used_at.is_(None) & c.revoked_at.is_(None)
            return bool(connection.execute(sa.update(invites).where(free).values(revoked_at=at)).rowcount)

    def guidelines(self) -> list[Guidelines]:
        """Every version of the guidelines, oldest first."""
        return self._records(Guidelines, sa.select(guidelines).order_by(guidelines.c.version))

    def add_guidelines(self, text: str) -> Guidelines:
        """Store a new version of the guidelines; the same text again is the same version."""
        with self._database.write() as connection:
            newest = connection.execute(sa.select(guidelines).order_by(guidelines.c.version.desc()).limit(1)).first()
            if newest is not None and newest.text == text:
                return as_record(Guidelines, newest)
            record = Guidelines(version=newest.version + 1 if newest else 1, text=text, at=time.time())
            connection.execute(sa.insert(guidelines), as_row(record))
            return record

    def flags(self) -> list[Flag]:
        """Every answer that was called harmful, oldest first."""
        return self._records(Flag, sa.select(flags).order_by(flags.c.place))

    def add_flag(self, flag: Flag) -> bool:
        """Store a flag; False when its key is known. Raises: DataError for an unknown answer, or a taken key."""
        return self._write_once(flags, flag, samples, flag.sample_id)

    def demonstrations(self) -> list[Demonstration]:
        """Every answer that people wrote themselves, oldest first."""
        return self._records(Demonstration, sa.select(demonstrations).order_by(demonstrations.c.place))

    def add_demonstration(self, written: Demonstration) -> bool:
        """Store an answer; False when its key is known. Raises: DataError for an unknown prompt, or a taken key."""
        return self._write_once(demonstrations, written, prompts, written.prompt_id)

    def _write_once(self, table: sa.Table, record: Flag | Demonstration, about: sa.Table, id: str) -> bool:
        with self._database.write() as connection:
            known = connection.execute(sa.select(table).where(table.c.key == record.key)).first()
            if known is not None:
                row, same = as_row(record), known._mapping
                if any(row[name] != same[name] for name in row if name != "at"):
                    raise DataError(f"The key {record.key!r} is taken.\nGive everything a key of its own.")
                return False
            if connection.execute(sa.select(about.c.id).where(about.c.id == id)).first() is None:
                raise DataError(f"The store has no {about.name.removesuffix('s')} {id!r}.")
            connection.execute(sa.insert(table), as_row(record))
            return True

    def _records(self, kind: type[R], query: sa.Select[Any]) -> list[R]:
        with self._database.read() as connection:
            return [as_record(kind, row) for row in connection.execute(query)]
