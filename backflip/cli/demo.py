"""`backflip demo`: the whole loop, with nothing to set."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backflip.cli.progress import watching
from backflip.cli.run import Folder, Rounds, Seed, carry_to_end
from backflip.cli.terminal import AsJson, TaskName

if TYPE_CHECKING:
    from backflip.cycle.plan import Plan


VOTES = 30
"""Votes that a round of the demo waits for where people rate."""
People = Annotated[
    bool, typer.Option("--people", help=f"You are the crowd: serve the run's pages; a round waits for {VOTES} votes.")
]


def demo(
    task: TaskName = "requests",
    dir: Folder = None,
    seed: Seed = None,
    rounds: Rounds = None,
    people: People = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop on a small chat model and write the report; an unfinished demo is carried on."""
    with watching() as watcher:
        plan = demo_plan(task, seed, rounds, people=people)
        root = _start(dir, plan, changed=task != "requests" or seed is not None or rounds is not None or people)
        carry_to_end(root, watcher, people=people, as_json=as_json)


def demo_plan(task: str, seed: int | None, rounds: int | None, *, people: bool = False) -> "Plan":
    """The task's default plan, but for what the options say. Raises: ConfigError for an unknown task."""
    from backflip.cycle.plan import plan_for

    plan = plan_for(task)
    if people:
        by_people = replace(plan.raters, by="people")
        plan = replace(plan, raters=by_people, rate=replace(plan.rate, votes=VOTES))
    return replace(plan, seed=plan.seed if seed is None else seed, rounds=plan.rounds if rounds is None else rounds)


def _start(folder: Path | None, plan: "Plan", *, changed: bool) -> Path:
    """The folder of a new demo, or of the one to carry on: the one named, else the newest unfinished one."""
    from backflip.cycle.folder import PLAN, new_folder, start_run
    from backflip.cycle.overview import unfinished_run

    root = folder or unfinished_run(plan) or new_folder("demo")
    if changed or not (root / PLAN).is_file():
        start_run(root, plan)
    return root
