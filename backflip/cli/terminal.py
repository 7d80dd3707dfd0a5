"""What every command shares: where words go, which folder is meant, how JSON is printed."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from backflip.core.errors import BackflipError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, for programs.")]
RunFolder = Annotated[
    Path | None, typer.Argument(metavar="[DIR]", help="The run's folder; the newest below runs/ when left out.")
]

TaskName = Annotated[str, typer.Option("--task", help='Built-in task: "requests", or "tldr" for summaries of posts.')]


class Stopped(BackflipError):
    """The user pressed Ctrl-C; the message says how to carry on."""

    exit_code = 130


def err(line: str) -> None:
    """One line on standard error, where progress and complaints go."""
    typer.echo(line, file=sys.stderr)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))


def by_name(value: Any) -> Any:
    """A document whose named tuples, as an interval, are objects with names for programs."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {k: by_name(v) for k, v in value._asdict().items()}
    if isinstance(value, dict):
        return {k: by_name(v) for k, v in value.items()}
    return [by_name(v) for v in value] if isinstance(value, list | tuple) else value


def run_folder(wanted: Path | None) -> Path:
    """The run folder that is meant. Raises: ConfigError when there is none."""
    from backflip.cycle.folder import find_run

    return find_run(wanted)
