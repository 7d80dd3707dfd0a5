"""The tables as the code sees them today. `migrations/` holds how they came to be; a test keeps the two equal.

A column bears the name of the record's field, so that a row is a record spelt differently.
What is known about a rater as a person gets a table of its own one day, keyed by `raters.id`.
"""

import json
import math
import re
from typing import Any, final

import sqlalchemy as sa

_UNSTORABLE = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")


@final
class AnyText(sa.types.TypeDecorator[str]):
    """Any Python string. NUL (PostgreSQL) and lone surrogates (UTF-8) cannot be stored: they are
    written as U+001A and four hex digits, and read back as they were.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Escape what cannot be stored."""
        if value is None:
            return None
        return _UNSTORABLE.sub(lambda m: f"\x1a{ord(m[0]):04x}", value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Undo the escape."""
        if value is None or "\x1a" not in value:
            return value
        return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), value)


@final
class Measured(sa.types.TypeDecorator[float]):
    """A float64 that may be NaN; stored as NULL, since SQLite knows no NaN."""

    impl = sa.Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: sa.Dialect) -> float | None:
        """NaN becomes NULL."""
        return None if value is None or math.isnan(value) else float(value)

    def process_result_value(self, value: float | None, dialect: sa.Dialect) -> float | None:
        """NULL becomes NaN."""
        return math.nan if value is None else value


@final
class Turns(sa.types.TypeDecorator[tuple[tuple[str, str], ...]]):
    """A conversation as JSON."""

    impl = AnyText
    cache_ok = True

    def process_bind_param(self, value: tuple[tuple[str, str], ...] | None, dialect: sa.Dialect) -> str:
        """A list of [role, content]."""
        return json.dumps(value or (), ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> tuple[tuple[str, str], ...]:
        """The same as tuples."""
        return tuple((role, content) for role, content in json.loads(value or "[]"))


_TEXT = AnyText().with_variant(AnyText(collation="C"), "postgresql")
"""Sorted by code point on both dialects, whatever the server's language."""

metadata = sa.MetaData()


def _text(name: str, *more: Any, **options: Any) -> sa.Column[str]:
    return sa.Column(name, _TEXT, *more, **{"nullable": False, **options})


def _integer(name: str, **options: Any) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, **{"nullable": False, **options})


def _place() -> sa.Column[int]:
    """Order of arrival, for tables whose order means something to people."""
    return sa.Column("place", sa.Integer, primary_key=True, autoincrement=True)


prompts = sa.Table(
    "prompts",
    metadata,
    _place(),
    _text("id", unique=True),
    _text("split"),
    _text("text"),
    _text("topic"),
    _text("form"),
    sa.Column("history", Turns().with_variant(Turns(collation="C"), "postgresql"), nullable=False),
)

raters = sa.Table(
    "raters",
    metadata,
    _place(),
    _text("id", unique=True),
    _text("kind"),
    _text("name"),
)

rounds = sa.Table(
    "rounds",
    metadata,
    _integer("number", primary_key=True, autoincrement=False),
    _text("policy"),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("watermark", sa.BigInteger),
)

steps = sa.Table(
    "steps",
    metadata,
    sa.Column("round", sa.ForeignKey("rounds.number"), primary_key=True),
    _text("step", primary_key=True),
    sa.Column("seconds", sa.Double, nullable=False),
)

samples = sa.Table(
    "samples",
    metadata,
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
    sa.Index("samples_by_round", "round", "purpose"),
)

pairs = sa.Table(
    "pairs",
    metadata,
    _text("id", primary_key=True),
    _integer("round"),
    _text("stream"),
    _text("prompt_id", sa.ForeignKey("prompts.id")),
    _text("sample_a", sa.ForeignKey("samples.id")),
    _text("sample_b", sa.ForeignKey("samples.id")),
    _text("policy"),
    sa.Column("probability", sa.Double, nullable=False),
    _integer("raters_wanted"),
    _text("ranking"),
    sa.Index("pairs_by_round", "round", "stream"),
)

votes = sa.Table(
    "votes",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("key", unique=True),
    _text("pair_id", sa.ForeignKey("pairs.id")),
    _text("rater_id", sa.ForeignKey("raters.id")),
    _text("choice"),
    _text("shown"),
    sa.Column("latency_s", sa.Double, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("strength", sa.Integer),
    _text("reason"),
    _text("retracts", sa.ForeignKey("votes.key"), unique=True, nullable=True),
    _integer("repeat"),
    _integer("guidelines"),
    sa.Index("votes_by_pair", "pair_id"),
    sa.Index("votes_by_rater", "rater_id"),
)
"""Append-only: triggers refuse UPDATE and DELETE."""

thumbs = sa.Table(
    "thumbs",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    _text("key", unique=True),
    _text("sample_id", sa.ForeignKey("samples.id")),
    _text("rater_id", sa.ForeignKey("raters.id")),
    sa.Column("up", sa.Boolean, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    _text("retracts", sa.ForeignKey("thumbs.key"), unique=True, nullable=True),
    sa.Index("thumbs_by_sample", "sample_id"),
)
"""Append-only: triggers refuse UPDATE and DELETE."""

flags = sa.Table(
    "flags",
    metadata,
    _place(),
    _text("key", unique=True),
    _text("sample_id", sa.ForeignKey("samples.id")),
    _text("rater_id", sa.ForeignKey("raters.id")),
    _text("reason"),
    sa.Column("at", sa.Double, nullable=False),
)

demonstrations = sa.Table(
    "demonstrations",
    metadata,
    _place(),
    _text("key", unique=True),
    _text("prompt_id", sa.ForeignKey("prompts.id")),
    _text("rater_id", sa.ForeignKey("raters.id")),
    _text("text"),
    sa.Column("at", sa.Double, nullable=False),
)

guidelines = sa.Table(
    "guidelines",
    metadata,
    _integer("version", primary_key=True, autoincrement=False),
    _text("text"),
    sa.Column("at", sa.Double, nullable=False),
)

invites = sa.Table(
    "invites",
    metadata,
    _place(),
    _text("token_hash", unique=True),
    _text("role"),
    _text("name"),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("used_at", sa.Double),
    _text("rater_id", sa.ForeignKey("raters.id"), nullable=True),
    sa.Column("revoked_at", sa.Double),
)

logins = sa.Table(
    "logins",
    metadata,
    _text("token_hash", primary_key=True),
    _text("rater_id", sa.ForeignKey("raters.id")),
    _text("role"),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
    sa.Index("logins_by_rater", "rater_id"),
)

counters = sa.Table(
    "counters",
    metadata,
    _text("name", primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
"""Row "votes" holds the `seq` of the newest vote or thumb. Who locks it is alone in casting until the commit."""

models = sa.Table(
    "models",
    metadata,
    _place(),
    _text("id", unique=True),
    _text("kind"),
    _integer("round"),
    _text("parent", nullable=True),
    _text("path"),
)

metrics = sa.Table(
    "metrics",
    metadata,
    _integer("round", primary_key=True, autoincrement=False),
    _text("step", primary_key=True),
    _integer("tick", primary_key=True, autoincrement=False),
    _text("name", primary_key=True),
    sa.Column("value", Measured),
    sa.Column("low", sa.Double),
    sa.Column("high", sa.Double),
)

notes = sa.Table(
    "notes",
    metadata,
    _text("key", primary_key=True),
    _text("value"),
)
