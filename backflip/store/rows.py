"""From rows to records and back, for whoever asks the store or writes to it."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R")


def having(table: sa.Table, **wanted: Any) -> sa.Select[Any]:
    """The rows of `table` that have these values; None matches all."""
    query = sa.select(table)
    for name, value in wanted.items():
        if value is not None:
            query = query.where(table.c[name] == value)
    return query


def as_row(record: "DataclassInstance") -> dict[str, Any]:
    """A record as a row: columns bear the fields' names."""
    return {f.name: getattr(record, f.name) for f in fields(record)}


def as_record(kind: type[R], row: sa.Row[Any]) -> R:
    """A row as the record it is."""
    values = row._mapping
    return kind(**{f.name: values[f.name] for f in fields(kind)})  # type: ignore[arg-type]
