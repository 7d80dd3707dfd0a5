"""`backflip forget`: delete a rater's votes and personal data from a run."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backflip.cli.terminal import AsJson, RunFolder, print_json, run_folder
from backflip.core.errors import ConfigError

if TYPE_CHECKING:
    from backflip.cycle.forget import Forgotten

Rater = Annotated[str, typer.Argument(metavar="RATER", help="The rater's id, as the report shows it.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask. Without a terminal, this is needed.")]


def forget(rater: Rater, dir: RunFolder = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a rater's votes and name for good, and say what was made with those votes."""
    from backflip.cycle.forget import forget as forget_in
    from backflip.report import PAGE, report_run

    root = run_folder(dir)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"Nothing was removed: forgetting {rater} cannot be undone, and nobody was there to be asked.\n"
                f"To do it from a script: backflip forget {rater} {root} --yes"
            )
        typer.confirm(f"Delete every vote of {rater} in {root}? This cannot be undone.", abort=True, err=True)
    gone = forget_in(root, rater)
    if root / PAGE in gone.files:
        report_run(root)
    if as_json:
        files = [str(f) for f in gone.files if f != root / PAGE]
        print_json(
            {
                "run": str(root),
                "rater": gone.rater,
                "votes": gone.votes,
                "demonstrations": gone.demonstrations,
                "imitated": gone.imitated,
                "refit": list(gone.refit),
                "measured": list(gone.measured),
                "files": files,
            }
        )
        return
    typer.echo("\n".join(_lines(gone, root, rewritten=root / PAGE)))


def _lines(gone: "Forgotten", root: Path, *, rewritten: Path) -> list[str]:
    written = f" and {gone.demonstrations} written answer{'s' * (gone.demonstrations != 1)}" * bool(gone.demonstrations)
    out = [f"forgotten: {gone.rater}, with {gone.votes} vote{'s' * (gone.votes != 1)}{written}"]
    if gone.imitated:
        out.append("still made with these answers: the model of stage 0 (models/sft), and all that was trained from it")
    if gone.refit:
        rounds = _rounds(gone.refit)
        out += [
            f"still made with these votes: the reward of {rounds}, and every policy trained on it",
            "to be rid of their influence, take the votes that are left into a new run and fit again:",
            *(f"  {line}" for line in _anew(root)),
        ]
    if gone.measured:
        out.append(f"still counting these votes: the win rate among people and accuracy in {_rounds(gone.measured)}")
    for file in gone.files:
        again = "written anew without them" if file == rewritten else "still names them: delete it or export again"
        out.append(f"{file}: {again}")
    return out


def _anew(root: Path) -> list[str]:
    """Commands that fit again, in a new run beside `root`, on the votes that are left."""
    named = root if root.name.strip(".") else root.resolve()  # "." has no name
    run, new = (shlex.quote(str(p)) for p in (root, named.with_name(f"{named.name}-anew")))
    return [
        f"backflip export data {run}",
        f"mkdir {new} && cp {run}/plan.toml {new}/",
        f"backflip import {run}/exports/data --dir {new}",
        f"backflip run --dir {new}",
    ]


def _rounds(numbers: Sequence[int]) -> str:
    return f"round{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers))}"
