"""`backflip doctor`: is a plan sound, and what will it cost? Asked before computing is spent."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backflip.cli.progress import clock, watching
from backflip.cli.run import ModelName, PromptFile, changed_plan
from backflip.cli.terminal import AsJson, print_json

if TYPE_CHECKING:
    from backflip.cycle.doctor import Examination
    from backflip.measure.soundness import Finding

MARKS = {"ok": "ok", "warning": "WARNING", "fault": "FAULT"}


def doctor(
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="A plan file or a run's folder; the demo when left out.")
    ] = None,
    model: ModelName = None,
    prompts: PromptFile = None,
    as_json: AsJson = False,
) -> None:
    """Check model, prompts and sizes of a plan, and estimate the time and memory of its run.

    Takes about a minute on the demo's model and changes nothing. Exit code 1 when a fault is found.
    """
    from backflip.cycle.doctor import examine
    from backflip.cycle.folder import PLAN, find_run
    from backflip.cycle.plan import Plan, read_plan

    root = find_run(plan) if plan is not None and plan.is_dir() else None
    settings = Plan() if plan is None else read_plan(root / PLAN if root else plan)
    options = {"model": model, "prompts": prompts}
    settings = changed_plan(settings, {key: value for key, value in options.items() if value is not None})
    with watching() as watcher:
        seen = examine(settings, root=root, watcher=watcher)
    if as_json:
        print_json(_finite(asdict(seen)) | {"sound": seen.sound})
    else:
        typer.echo("\n".join(_lines(seen)))
    if not seen.sound:
        raise typer.Exit(1)


def _finite(value: Any) -> Any:
    """The same, with nothing where a figure is no number: JSON knows no NaN."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(seen: "Examination") -> list[str]:
    lines = [line for finding in seen.findings for line in _told(finding)]
    lines.append(f"memory: about {seen.memory_gb:.1f} GB at most, with {seen.available_gb:.1f} GB free now")
    if seen.seconds:
        parts = ", ".join(f"{name} {clock(s)}" for name, s in seen.seconds.items())
        lines.append(f"time: about {clock(sum(seen.seconds.values()))} on this machine for the whole plan ({parts})")
    faults = sum(f.level == "fault" for f in seen.findings)
    lines.append("sound: nothing stands in the way" if seen.sound else f"{faults} fault{'s' * (faults != 1)} found")
    return lines


def _told(finding: "Finding") -> list[str]:
    head = f"{MARKS[finding.level]:<9}{finding.name:<22}{finding.fact}"
    return [head, *(" " * 31 + line for line in (finding.cause, finding.cure) if line)]
