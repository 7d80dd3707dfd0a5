"""`backflip export data` and `backflip export policy`: what a run hands out."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from backflip.cli.terminal import AsJson, RunFolder, print_json, run_folder

export = typer.Typer(help="Hand out a run's data or its policy.", no_args_is_help=True)
Out = Annotated[Path | None, typer.Option(help="Where to; a fresh name in the run's folder when left out.")]


@export.command("data")
def export_data(
    dir: RunFolder = None,
    out: Out = None,
    format: Annotated[Literal["jsonl", "parquet"], typer.Option(help="Kind of file.")] = "jsonl",
    as_json: AsJson = False,
) -> None:
    """Write every round's answers and votes as a data set with a card. `backflip import` reads it back."""
    from backflip.cycle.export import export_data

    done = export_data(run_folder(dir), out, format)
    if as_json:
        print_json(asdict(done))
    else:
        written = f", {done.demonstrations} answers that people wrote" if done.demonstrations else ""
        typer.echo(f"{done.preferences} votes{written} and {done.samples} answers written to {done.folder}")


@export.command("policy")
def export_policy(
    dir: RunFolder = None,
    out: Out = None,
    kind: Annotated[
        Literal["hf", "adapter", "gguf"],
        typer.Option("--as", help="A Hugging Face folder, an adapter in peft's format, or one GGUF file."),
    ] = "hf",
    as_json: AsJson = False,
) -> None:
    """Write the newest finished policy of a run, also of one that is not at its end."""
    from backflip.cycle.publish import export_policy

    root = run_folder(dir)
    path, version = export_policy(root, out, kind)
    if as_json:
        print_json({"run": str(root), "policy": version, "as": kind, "path": str(path)})
    else:
        typer.echo(f"{version} written to {path}")
