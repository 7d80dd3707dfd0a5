"""People: thumbs, flags, demonstrations, guidelines, invitations; votes that say "both bad" or are repeats."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_PURPOSES = "purpose IN ('rate', 'monitor', 'final', 'chat')"
_CHOICES = "choice IN ('a', 'b', 'tie', 'skip', 'bad', 'retract')"
_WANTED = "raters_wanted >= 0"
_REPEATS = "repeat IN (0, 1)"
_ROLES = "role IN ('rater', 'owner')"


def upgrade() -> None:
    postgresql = op.get_context().dialect.name == "postgresql"
    if postgresql:
        _change_in_postgresql()
    else:
        _copy_in_sqlite()
    _thumbs()
    _written()
    _admitted()
    if postgresql:
        _seal_in_postgresql()
    else:
        _seal_in_sqlite("votes")
        _seal_in_sqlite("thumbs")


def _text(name: str, *more: Any, **options: Any) -> sa.Column[str]:
    return sa.Column(name, _TEXT, *more, **{"nullable": False, **options})


def _integer(name: str, **options: Any) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, **{"nullable": False, **options})


def _double(name: str, **options: Any) -> sa.Column[float]:
    return sa.Column(name, sa.Double, **{"nullable": False, **options})


def _place() -> sa.Column[int]:
    return sa.Column("place", sa.Integer, primary_key=True, autoincrement=True)


def _change_in_postgresql() -> None:
    for table, name, check in (
        ("samples", "sample_purpose", _PURPOSES),
        ("pairs", "pair_raters", _WANTED),
        ("votes", "vote_choice", _CHOICES),
    ):
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, check)
    for name in ("repeat", "guidelines"):
        op.add_column("votes", _integer(name, server_default="0"))
    op.create_check_constraint("vote_repeat", "votes", _REPEATS)


def _copy_in_sqlite() -> None:
    """SQLite cannot change a check: the tables are made anew, and what they refer to beside them."""
    _new_samples()
    _new_pairs()
    _new_votes()
    for table in ("samples", "pairs", "votes"):
        more = ", 0, 0" if table == "votes" else ""
        op.execute(f"INSERT INTO {table}_new SELECT *{more} FROM {table}")
    for table in ("votes", "pairs", "samples"):  # those that refer to others go first
        op.drop_table(table)
    for table in ("samples", "pairs", "votes"):
        op.rename_table(f"{table}_new", table)
    op.create_index("samples_by_round", "samples", ["round", "purpose"])
    op.create_index("pairs_by_round", "pairs", ["round", "stream"])
    op.create_index("votes_by_pair", "votes", ["pair_id"])
    op.create_index("votes_by_rater", "votes", ["rater_id"])


def _new_samples() -> None:
    op.create_table(
        "samples_new",
        _text("id", primary_key=True),
        _integer("round"),
        _text("purpose"),
        _text("prompt_id", sa.ForeignKey("prompts.id")),
        _text("policy"),
        _integer("index"),
        _text("text"),
        sa.Column("ended", sa.Boolean, nullable=False),
        _integer("length"),
        _text("artefact"),
        _integer("row"),
        sa.CheckConstraint(_PURPOSES, "sample_purpose"),
        sa.CheckConstraint("length >= 0", "sample_length"),
    )


def _new_pairs() -> None:
    op.create_table(
        "pairs_new",
        _text("id", primary_key=True),
        _integer("round"),
        _text("stream"),
        _text("prompt_id", sa.ForeignKey("prompts.id")),
        _text("sample_a", sa.ForeignKey("samples_new.id")),
        _text("sample_b", sa.ForeignKey("samples_new.id")),
        _text("policy"),
        _double("probability"),
        _integer("raters_wanted"),
        _text("ranking", server_default=""),
        sa.CheckConstraint("stream IN ('fit', 'random', 'reference')", "pair_stream"),
        sa.CheckConstraint("sample_a <> sample_b", "pair_of_two"),
        sa.CheckConstraint("probability > 0 AND probability <= 1", "pair_probability"),
        sa.CheckConstraint(_WANTED, "pair_raters"),
    )


def _new_votes() -> None:
    op.create_table(
        "votes_new",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        _text("key", unique=True),
        _text("pair_id", sa.ForeignKey("pairs_new.id")),
        _text("rater_id", sa.ForeignKey("raters.id")),
        _text("choice"),
        _text("shown"),
        _double("latency_s"),
        _double("at"),
        sa.Column("strength", sa.Integer),
        _text("reason"),
        _text("retracts", sa.ForeignKey("votes_new.key"), unique=True, nullable=True),
        _integer("repeat", server_default="0"),
        _integer("guidelines", server_default="0"),
        sa.CheckConstraint(_CHOICES, "vote_choice"),
        sa.CheckConstraint("shown IN ('ab', 'ba')", "vote_shown"),
        sa.CheckConstraint("strength BETWEEN 1 AND 3", "vote_strength"),
        sa.CheckConstraint("(choice = 'retract') = (retracts IS NOT NULL)", "vote_retracts"),
        sa.CheckConstraint(_REPEATS, "vote_repeat"),
    )


def _thumbs() -> None:
    op.create_table(
        "thumbs",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        _text("key", unique=True),
        _text("sample_id", sa.ForeignKey("samples.id")),
        _text("rater_id", sa.ForeignKey("raters.id")),
        sa.Column("up", sa.Boolean, nullable=False),
        _double("at"),
        _text("retracts", sa.ForeignKey("thumbs.key"), unique=True, nullable=True),
    )
    op.create_index("thumbs_by_sample", "thumbs", ["sample_id"])


def _written() -> None:
    """What people write."""
    op.create_table(
        "flags",
        _place(),
        _text("key", unique=True),
        _text("sample_id", sa.ForeignKey("samples.id")),
        _text("rater_id", sa.ForeignKey("raters.id")),
        _text("reason"),
        _double("at"),
    )
    op.create_table(
        "demonstrations",
        _place(),
        _text("key", unique=True),
        _text("prompt_id", sa.ForeignKey("prompts.id")),
        _text("rater_id", sa.ForeignKey("raters.id")),
        _text("text"),
        _double("at"),
    )
    op.create_table(
        "guidelines",
        _integer("version", primary_key=True, autoincrement=False),
        _text("text"),
        _double("at"),
    )


def _admitted() -> None:
    """Who is let in."""
    op.create_table(
        "invites",
        _place(),
        _text("token_hash", unique=True),
        _text("role"),
        _text("name"),
        _double("at"),
        _double("used_at", nullable=True),
        _text("rater_id", sa.ForeignKey("raters.id"), nullable=True),
        _double("revoked_at", nullable=True),
        sa.CheckConstraint(_ROLES, "invite_role"),
    )
    op.create_table(
        "logins",
        _text("token_hash", primary_key=True),
        _text("rater_id", sa.ForeignKey("raters.id")),
        _text("role"),
        _double("at"),
        _double("revoked_at", nullable=True),
        sa.CheckConstraint(_ROLES, "login_role"),
    )
    op.create_index("logins_by_rater", "logins", ["rater_id"])


def _seal_in_sqlite(table: str) -> None:
    """As 0001 seals votes; a table made anew has lost its triggers."""
    refuse = f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
    op.execute(f"CREATE TRIGGER {table}_keep_update BEFORE UPDATE ON {table} {refuse}")
    op.execute(f"CREATE TRIGGER {table}_keep_delete BEFORE DELETE ON {table} {refuse}")
    taken = f"EXISTS (SELECT 1 FROM {table} WHERE seq = NEW.seq OR key = NEW.key OR retracts = NEW.retracts)"
    op.execute(f"CREATE TRIGGER {table}_keep_replace BEFORE INSERT ON {table} WHEN {taken} {refuse}")


def _seal_in_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION thumbs_keep() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'thumbs are append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER thumbs_keep_rows BEFORE UPDATE OR DELETE ON thumbs FOR EACH ROW EXECUTE FUNCTION thumbs_keep()"
    )
    op.execute(
        "CREATE TRIGGER thumbs_keep_all BEFORE TRUNCATE ON thumbs FOR EACH STATEMENT EXECUTE FUNCTION thumbs_keep()"
    )
