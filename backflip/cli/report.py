"""`backflip report`: the report of a run as one HTML file, and its figures in a few lines."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from backflip.cli.terminal import AsJson, RunFolder, print_json, run_folder
from backflip.core.errors import BackflipError

if TYPE_CHECKING:
    from backflip.report import ReportData

PAGE = "report.html"


def report(dir: RunFolder = None, as_json: AsJson = False) -> None:
    """Write a run's report and print its path. A run that is under way is reported as far as it is."""
    root = run_folder(dir)
    data = write_run_report(root)
    if as_json:
        print_json(_document(root, data))
    else:
        typer.echo(str(root / PAGE))


def write_run_report(root: Path) -> "ReportData":
    """Write the report of the run in `root` and return its figures. Raises: BackflipError when it has not begun."""
    from backflip.core.records import Judged, Prompt, Sample
    from backflip.cycle.artefacts import disk_error
    from backflip.cycle.folder import PLAN, has_begun, run_store
    from backflip.cycle.plan import read_plan
    from backflip.report import gather, write_report
    from backflip.tasks import TASKS

    plan = read_plan(root / PLAN)
    if not has_begun(root, plan):
        raise BackflipError(
            f"{root} has not begun, so there is nothing to report.\nStart it with: backflip run --dir {root}"
        )
    utility = TASKS[plan.task.name].utility(plan.task.weights or None) if plan.task.name in TASKS else None

    def judge(prompt: Prompt, sample: Sample) -> Judged | None:
        return utility.judge(prompt, sample.text, sample.ended) if utility else None

    with run_store(root, plan) as store:
        data = gather(store, judge=judge, kl_target=plan.ppo.kl_target)
    try:
        write_report(root / PAGE, data)
    except OSError as e:
        raise disk_error(root / PAGE, e) from e
    return data


def print_report(root: Path, data: "ReportData", *, as_json: bool) -> None:
    """What a finished run says: its figures, the report's path and what to do next."""
    from backflip.report import words

    if as_json:
        print_json(_document(root, data))
        return
    lines = [words.headline(data), words.circumstances(data), ""]
    lines += [f"  {f.label:<24}{f.value:<14}{f.note}".rstrip() for f in words.key_figures(data)]
    lines += ["", words.believe(data), f"report: {root / PAGE}", f"talk to it: backflip chat {root}"]
    typer.echo("\n".join(line for i, line in enumerate(lines) if line or (i and lines[i - 1])))


def _document(root: Path, data: "ReportData") -> dict[str, object]:
    """The figures for another program, with the folder and the page they belong to."""
    from backflip.report import as_dict

    return {"run": str(root), "report": str(root / PAGE), **as_dict(data)}
