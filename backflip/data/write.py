"""Prompts and demonstrations as JSON lines that plans name and `read_table` reads again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backflip.core.new_file import write_new
from backflip.data.records import Demonstration, Messages, Preference, Record, Thumb
from backflip.data.table import Table


def write_rows(table: Table, file: Path) -> int:
    """Write a table's rows to the new file `file`, of requests each one once; return how many.

    Preferences and thumbs are written as the prompts they are about, unless demonstrations were asked for.
    Raises: ConfigError when the file exists or cannot be written.
    """
    rows = list({json.dumps(row, ensure_ascii=False): None for row in _rows(table.records)})
    write_new(file, "".join(row + "\n" for row in rows))
    return len(rows)


def _rows(records: list[Record]) -> Iterator[dict[str, Any]]:
    for record in records:
        row: dict[str, Any] = {"prompt": _written(record.prompt)}
        if isinstance(record, Demonstration):
            row["completion"] = record.answer
        if record.split is not None and not isinstance(record, Preference | Thumb):
            row["split"] = record.split
        yield row


def _written(prompt: Messages) -> str | list[dict[str, str]]:
    if len(prompt) == 1:
        return prompt[0][1]
    return [{"role": role, "content": content} for role, content in prompt]
