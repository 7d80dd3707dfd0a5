"""`backflip import`: other people's prompts, demonstrations and preferences."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from backflip.cli.terminal import AsJson, err, print_json, run_folder

if TYPE_CHECKING:
    from backflip.data.table import Table

SHOWN = 5
"""Rows left out that are named one by one."""


def import_(
    source: Annotated[
        str, typer.Argument(help="A JSONL, JSON, CSV or Parquet file, a folder of them, or a data set's Hub id.")
    ],
    dir: Annotated[Path | None, typer.Option("--dir", help="The run that takes preferences; else the newest.")] = None,
    form: Annotated[
        Literal["preferences", "thumbs", "demonstrations", "prompts"] | None,
        typer.Option("--as", help="What the rows are; told by their columns when left out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the rows to this new JSONL file instead of into a run.")
    ] = None,
    split: Annotated[str | None, typer.Option(help='Part of a Hub data set, as in "train[:500]".')] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring preferences or thumbs into a run as votes, or turn any known form of data into a prompt file.

    Prompts and demonstrations go to a file (--out) that a plan names: task.prompts, or sft.demonstrations.
    """
    from backflip.data.table import read_table

    table = read_table(source, form, part=split, skip_bad=skip_bad)
    for warning in table.warnings:
        err(f"{source}: {warning}")
    told = _to_file(table, out) if out else _to_run(table, dir, source, skip_bad=skip_bad)
    left_out = told.pop("left_out", table.left_out)
    if as_json:
        print_json({"source": source, "form": table.form, **told, "left_out": left_out})
        return
    typer.echo(told["said"])
    for line in left_out[:SHOWN]:
        err(f"left out: {line}")
    if len(left_out) > SHOWN:
        err(f"left out: {len(left_out) - SHOWN} more")


def _to_file(table: "Table", out: Path) -> dict[str, Any]:
    from backflip.data.write import write_rows

    count = write_rows(table, out)
    key = "sft.demonstrations" if table.form == "demonstrations" else "task.prompts"
    return {
        "file": str(out),
        "rows": count,
        "said": f"{count} {table.form} written to {out}; name the file in the plan: {key}",
    }


def _to_run(table: "Table", folder: Path | None, source: str, *, skip_bad: bool) -> dict[str, Any]:
    from backflip.cycle.intake import import_table

    root = run_folder(folder)
    done = import_table(root, table, source, skip_bad=skip_bad)
    words = (
        f"{done.preferences} votes on {done.pairs} pairs imported into {root}, {done.held_out} of them held out"
        + (f"; {done.known} were there already" if done.known else "")
        + (f"; {done.unpaired} thumbs found no answer to be compared with" if done.unpaired else "")
    )
    return {"run": str(root), **asdict(done), "said": words}
