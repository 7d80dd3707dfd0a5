"""Where a run stands, told from its folder and store alone: no model is loaded and nothing is changed."""

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from backflip.core.errors import BackflipError
from backflip.core.records import Metric
from backflip.cycle.folder import LOCK, OWNER, PLAN, WEB_LOCK, WEB_OWNER, has_begun, last_worked_on, run_store
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.plan_changes import Changes, PlanChange, differences, plan_history, plan_in_use, plan_of_round
from backflip.cycle.watch import Warned, warned
from backflip.cycle.wins import metrics_now
from backflip.store import Store

STEPS = ("sample", "rate", "fit", "optimise", "measure")
"""The steps of a round, as `round.STEPS` names them; importing that would import torch."""
REFUSED = "step/refused"
"""The figure of an optimiser step that was left out, because a number in it was not finite; see `optimise`."""
TOLD = (
    "reward/heldout_accuracy",
    "people/win_rate",
    *(f"{split}/{name}" for split in ("monitor", "final") for name in ("win_rate", "utility", "kl")),
    "best_of/proxy_gain",
    "best_of/gold_gain",
    "best_of/peak",
)
"""The figures an overview tells, newest round first."""


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """One round that has started."""

    number: int
    done: Mapping[str, float]
    """Finished steps and the seconds each took, in their order."""
    next: str | None
    """The step that is under way or comes next; None when the round is finished."""
    pairs: int
    votes: int
    climbed: int
    """Optimiser steps taken, those that were refused among them."""
    refused: int
    """Optimiser steps that were left out, because a number in them was not finite."""
    climbs: int
    """Optimiser steps planned."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A run, finished or not."""

    run: str
    model: str
    task: str
    process: int | None
    """The process that carries the run now; None when none does, 0 when it cannot be named."""
    rounds_planned: int
    plan_changes: Sequence[PlanChange] = ()
    """What was changed of the plan between rounds."""
    edited: Changes = field(default_factory=dict)
    """What has been edited in the plan file since the run was last started."""
    finished: bool = False
    rounds: Sequence[RoundState] = ()
    votes: int = 0
    waiting: int = 0
    """Pairs that still want a vote."""
    warnings: Sequence[Warned] = ()
    """Signs that the score may have ceased to mean what is wanted; see `backflip.measure.warnings`."""
    figures: Mapping[str, Metric] = field(default_factory=dict)
    """The newest value of each figure in `TOLD` that has been measured."""


def overview(root: Path) -> Overview:
    """Where the run in `root` stands. Raises: ConfigError when its plan cannot be read; BusyError."""
    plan = read_plan(root / PLAN)
    begun = Overview(
        run=str(root), model=plan.model.name, task=plan.task.name, process=running(root),
        rounds_planned=plan.rounds, plan_changes=plan_history(root), edited=differences(plan_in_use(root), plan),
    )  # fmt: skip
    if not has_begun(root, plan):
        return begun
    with run_store(root, plan) as store:
        metrics = metrics_now(store)
        newest = {m.name: m for m in metrics if m.name in TOLD and m.tick == 0}
        return replace(
            begun,
            finished=_finished(store, plan),
            rounds=tuple(_round(store, number, plan_of_round(root, plan, number)) for number in store.rounds()),
            votes=len(store.votes()),
            waiting=len(store.wanting()),
            warnings=warned(metrics),
            figures={name: newest[name] for name in TOLD if name in newest},
        )


def running(root: Path) -> int | None:
    """The process that holds the run's lock: its number, 0 when it cannot be named, None when there is none."""
    return _holder(root / LOCK, root / OWNER)


def serving(root: Path) -> int | None:
    """The process that serves the run's pages, told as `running` tells it."""
    return _holder(root / WEB_LOCK, root / WEB_OWNER)


def _holder(lock: Path, owner: Path) -> int | None:
    try:
        handle = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return int(owner.read_text())
        except (OSError, ValueError):
            return 0
    finally:
        os.close(handle)
    return None


def unfinished_run(plan: Plan, root: Path = Path("runs")) -> Path | None:
    """The newest run below `root` that has this very plan and is not finished."""
    for folder in sorted((p.parent for p in root.glob(f"*/{PLAN}")), key=last_worked_on, reverse=True):
        try:
            if read_plan(folder / PLAN) == plan and not is_finished(folder, plan):
                return folder
        except BackflipError:  # a damaged run is no reason not to start another
            continue
    return None


def is_finished(root: Path, plan: Plan) -> bool:
    """Whether the last step of the last round is done."""
    if not has_begun(root, plan):
        return False
    with run_store(root, plan) as store:
        return _finished(store, plan)


def _finished(store: Store, plan: Plan) -> bool:
    return set(STEPS) <= set(store.steps_done(plan.rounds))


def _round(store: Store, number: int, plan: Plan) -> RoundState:
    seconds = store.seconds(number)
    steps = store.metrics(round=number, step="optimise")
    return RoundState(
        number=number,
        done={name: seconds[name] for name in STEPS if name in seconds},
        next=next((name for name in STEPS if name not in seconds), None),
        pairs=len(store.pairs(round=number)),
        votes=len(store.votes(round=number)),
        climbed=len({m.tick for m in steps}),
        refused=sum(m.name == REFUSED for m in steps),
        climbs=plan.ppo.steps,
    )
