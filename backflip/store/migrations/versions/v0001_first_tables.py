"""First tables. Kept as released: written out here, not taken from `tables.py`, which moves on."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    _inputs()
    _rounds()
    _answers()
    _votes()
    _results()
    if op.get_context().dialect.name == "postgresql":
        _seal_votes_in_postgresql()
    else:
        _seal_votes_in_sqlite()


def _text(name: str, *more: Any, **options: Any) -> sa.Column[str]:
    return sa.Column(name, _TEXT, *more, **{"nullable": False, **options})


def _integer(name: str, **options: Any) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, **{"nullable": False, **options})


def _double(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False)


def _place() -> sa.Column[int]:
    return sa.Column("place", sa.Integer, primary_key=True, autoincrement=True)


def _inputs() -> None:
    op.create_table(
        "prompts",
        _place(),
        _text("id", unique=True),
        _text("split"),
        _text("text"),
        _text("topic"),
        _text("form"),
        sa.CheckConstraint("split IN ('train', 'monitor', 'final')", "prompt_split"),
    )
    op.create_table(
        "raters",
        _place(),
        _text("id", unique=True),
        _text("kind"),
        _text("name"),
        sa.CheckConstraint("kind IN ('person', 'persona', 'judge')", "rater_kind"),
    )


def _rounds() -> None:
    op.create_table(
        "rounds",
        _integer("number", primary_key=True, autoincrement=False),
        _text("policy"),
        _double("at"),
        sa.Column("watermark", sa.BigInteger),
    )
    op.create_table(
        "steps",
        sa.Column("round", sa.Integer, sa.ForeignKey("rounds.number"), primary_key=True),
        _text("step", primary_key=True),
        _double("seconds"),
    )


def _answers() -> None:
    op.create_table(
        "samples",
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
        sa.CheckConstraint("purpose IN ('rate', 'monitor', 'final')", "sample_purpose"),
        sa.CheckConstraint("length >= 0", "sample_length"),
    )
    op.create_index("samples_by_round", "samples", ["round", "purpose"])
    op.create_table(
        "pairs",
        _text("id", primary_key=True),
        _integer("round"),
        _text("stream"),
        _text("prompt_id", sa.ForeignKey("prompts.id")),
        _text("sample_a", sa.ForeignKey("samples.id")),
        _text("sample_b", sa.ForeignKey("samples.id")),
        _text("policy"),
        _double("probability"),
        _integer("raters_wanted"),
        sa.CheckConstraint("stream IN ('fit', 'random', 'reference')", "pair_stream"),
        sa.CheckConstraint("sample_a <> sample_b", "pair_of_two"),
        sa.CheckConstraint("probability > 0 AND probability <= 1", "pair_probability"),
        sa.CheckConstraint("raters_wanted >= 1", "pair_raters"),
    )
    op.create_index("pairs_by_round", "pairs", ["round", "stream"])


def _votes() -> None:
    op.create_table(
        "votes",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        _text("key", unique=True),
        _text("pair_id", sa.ForeignKey("pairs.id")),
        _text("rater_id", sa.ForeignKey("raters.id")),
        _text("choice"),
        _text("shown"),
        _double("latency_s"),
        _double("at"),
        sa.Column("strength", sa.Integer),
        _text("reason"),
        _text("retracts", sa.ForeignKey("votes.key"), unique=True, nullable=True),
        sa.CheckConstraint("choice IN ('a', 'b', 'tie', 'skip', 'retract')", "vote_choice"),
        sa.CheckConstraint("shown IN ('ab', 'ba')", "vote_shown"),
        sa.CheckConstraint("strength BETWEEN 1 AND 3", "vote_strength"),
        sa.CheckConstraint("(choice = 'retract') = (retracts IS NOT NULL)", "vote_retracts"),
    )
    op.create_index("votes_by_pair", "votes", ["pair_id"])
    op.create_index("votes_by_rater", "votes", ["rater_id"])
    counters = op.create_table(
        "counters", _text("name", primary_key=True), sa.Column("value", sa.BigInteger, nullable=False)
    )
    op.bulk_insert(counters, [{"name": "votes", "value": 0}])


def _results() -> None:
    op.create_table(
        "models",
        _place(),
        _text("id", unique=True),
        _text("kind"),
        _integer("round"),
        _text("parent", nullable=True),
        _text("path"),
        sa.CheckConstraint("kind IN ('base', 'policy', 'reward')", "model_kind"),
    )
    op.create_table(
        "metrics",
        _integer("round", primary_key=True, autoincrement=False),
        _text("step", primary_key=True),
        _integer("tick", primary_key=True, autoincrement=False),
        _text("name", primary_key=True),
        sa.Column("value", sa.Double),
        sa.Column("low", sa.Double),
        sa.Column("high", sa.Double),
    )
    op.create_table("notes", _text("key", primary_key=True), _text("value"))


# Votes are append-only. To forget a rater who asks for it will need a deliberate exception: a
# migration that lets these triggers pass while a row in a table of its own names that rater.


def _seal_votes_in_sqlite() -> None:
    refuse = "BEGIN SELECT RAISE(ABORT, 'votes are append-only'); END"
    op.execute(f"CREATE TRIGGER votes_keep_update BEFORE UPDATE ON votes {refuse}")
    op.execute(f"CREATE TRIGGER votes_keep_delete BEFORE DELETE ON votes {refuse}")
    # INSERT OR REPLACE would delete without firing the trigger above.
    taken = "EXISTS (SELECT 1 FROM votes WHERE seq = NEW.seq OR key = NEW.key OR retracts = NEW.retracts)"
    op.execute(f"CREATE TRIGGER votes_keep_replace BEFORE INSERT ON votes WHEN {taken} {refuse}")


def _seal_votes_in_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION votes_keep() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'votes are append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER votes_keep_rows BEFORE UPDATE OR DELETE ON votes FOR EACH ROW EXECUTE FUNCTION votes_keep()"
    )
    op.execute(
        "CREATE TRIGGER votes_keep_all BEFORE TRUNCATE ON votes FOR EACH STATEMENT EXECUTE FUNCTION votes_keep()"
    )
