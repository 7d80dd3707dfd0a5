"""`backflip run`: carry a run to its end, from wherever it stopped."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backflip.cli.pages import served_beside
from backflip.cli.progress import watching
from backflip.cli.report import report_end
from backflip.cli.start import CARRIES_ON
from backflip.cli.terminal import AsJson, Stopped, run_folder
from backflip.core.config import Unfit
from backflip.core.errors import ConfigError

if TYPE_CHECKING:
    from backflip.cycle.plan import Plan

Folder = Annotated[Path | None, typer.Option("--dir", help="The run's folder. A run that is there is carried on.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A folder in Hugging Face format, a Hub id, or a .gguf file.")
]
PromptFile = Annotated[
    Path | None, typer.Option("--prompts", help='Your own prompts: a JSONL file of {"prompt": ...} lines.')
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]
People = Annotated[
    bool, typer.Option("--people", help="People rate: serve the run's pages too, until Ctrl-C; see `backflip rate`.")
]
Rounds = Annotated[int | None, typer.Option(min=1, help="Rounds of sample, rate, fit, optimise, measure.")]


def run(
    plan: Annotated[Path | None, typer.Argument(help="A plan file; `backflip init` writes one.")] = None,
    model: ModelName = None,
    prompts: PromptFile = None,
    dir: Folder = None,
    seed: Seed = None,
    rounds: Rounds = None,
    people: People = False,
    as_json: AsJson = False,
) -> None:
    """Carry a plan to its end, from wherever it stopped, and write the report.

    Options win over the plan. With neither plan nor options, the run in --dir is carried on, or else the newest.
    """
    changes = {"model": model, "prompts": prompts, "seed": seed, "rounds": rounds, "people": people or None}
    with watching() as watcher:
        root = _start(plan, dir, {key: value for key, value in changes.items() if value is not None})
        carry_to_end(root, watcher, people=people, as_json=as_json)


def carry_to_end(root: Path, watcher: Any, *, people: bool, as_json: bool) -> None:
    """Carry the started run in `root` to its end and write the report; with `people`, serve its pages beside it."""
    with served_beside(root, watcher) if people else nullcontext() as pages:
        carry_on(root, watcher)
        report_end(root, as_json=as_json)
        if pages:
            pages.stay()


def carry_on(root: Path, watcher: Any) -> None:
    """Carry the started run in `root` to its end. Raises: Stopped on Ctrl-C, saying how to go on."""
    from backflip.cycle.run import run_rounds

    watcher.say(f"run folder: {root}")
    try:
        run_rounds(root, watcher)
    except KeyboardInterrupt:
        raise Stopped(CARRIES_ON) from None


def _start(file: Path | None, folder: Path | None, changes: dict[str, Any]) -> Path:
    """The folder of the run that is meant, made if it is new."""
    from backflip.cycle.folder import PLAN, new_folder, start_run
    from backflip.cycle.overview import unfinished_run
    from backflip.cycle.plan import Plan, read_plan

    if file is None and not changes:
        return run_folder(folder)
    there = folder is not None and (folder / PLAN).is_file()
    plan = read_plan(file) if file else read_plan(folder / PLAN) if folder and there else Plan()
    plan = changed_plan(plan, changes)
    name = file.stem if file else "run"
    root = folder or unfinished_run(plan) or new_folder(name)
    start_run(root, plan)
    return root


def changed_plan(plan: "Plan", changes: dict[str, Any]) -> "Plan":
    """The plan with what the options say. Raises: ConfigError for a value that does not fit."""
    try:
        if name := changes.get("model"):
            plan = replace(plan, model=replace(plan.model, name=_kept(name)))
        if prompts := changes.get("prompts"):
            plan = replace(plan, task=replace(plan.task, prompts=_kept(prompts)))
        if "people" in changes:
            plan = replace(plan, raters=replace(plan.raters, by="people"))
        return replace(plan, **{key: changes[key] for key in ("seed", "rounds") if key in changes})
    except Unfit as e:
        raise ConfigError(f"--{e.key} does not fit.\nIt must be {e.fits}.") from None


def _kept(path: str | Path) -> str:
    """A path that exists, made absolute, so that the run finds it from every folder; anything else as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else str(path)
