"""Prompts with a history; models of kind "sft"; pairs that were judged as part of a ranking."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_KINDS = "kind IN ('base', 'sft', 'policy', 'reward')"


def upgrade() -> None:
    op.add_column("prompts", sa.Column("history", _TEXT, nullable=False, server_default="[]"))
    op.add_column("pairs", sa.Column("ranking", _TEXT, nullable=False, server_default=""))
    if op.get_context().dialect.name == "postgresql":
        op.drop_constraint("model_kind", "models", type_="check")
        op.create_check_constraint("model_kind", "models", _KINDS)
    else:
        _copy_models()


def _copy_models() -> None:
    """SQLite cannot change a check: the table is made anew."""
    op.create_table(
        "models_with_sft",
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", _TEXT, nullable=False, unique=True),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("parent", _TEXT),
        sa.Column("path", _TEXT, nullable=False),
        sa.CheckConstraint(_KINDS, "model_kind"),
    )
    op.execute("INSERT INTO models_with_sft SELECT place, id, kind, round, parent, path FROM models")
    op.drop_table("models")
    op.rename_table("models_with_sft", "models")
