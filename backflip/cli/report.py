"""`backflip report`: the report of a run as one HTML file, and its figures in a few lines."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from backflip.cli.terminal import AsJson, RunFolder, print_json, run_folder

if TYPE_CHECKING:
    from backflip.report import ReportData


def report(dir: RunFolder = None, as_json: AsJson = False) -> None:
    """Write a run's report and print its path. A run that is under way is reported as far as it is."""
    from backflip.report import PAGE, report_run

    root = run_folder(dir)
    data = report_run(root)
    if as_json:
        print_json(_document(root, data))
    else:
        typer.echo(str(root / PAGE))


def report_end(root: Path, *, as_json: bool) -> None:
    """What a finished run leaves and says: its report, its figures, the report's path and what to do next."""
    from backflip.report import PAGE, report_run, words

    data = report_run(root)
    if as_json:
        print_json(_document(root, data))
        return
    lines = [words.headline(data), words.circumstances(data), ""]
    lines += [f"  {f.label:<24}{f.value:<14}{f.note}".rstrip() for f in words.key_figures(data)]
    lines += ["", words.believe(data), f"report: {root / PAGE}", f"talk to it: backflip chat {root}"]
    typer.echo("\n".join(line for i, line in enumerate(lines) if line or (i and lines[i - 1])))


def _document(root: Path, data: "ReportData") -> dict[str, object]:
    """The figures for another program, with the folder and the page they belong to."""
    from backflip.report import PAGE, as_dict

    return {"run": str(root), "report": str(root / PAGE), **as_dict(data)}
