"""Files that a plan names: where they lie now, also once the run's folder was moved."""

from dataclasses import replace
from pathlib import Path

from backflip.cycle.plan import Plan
from backflip.store import Store

HOME = "folder"
"""The store's note of where the run's folder lay when it began: a plan's paths may lead into it."""
CALLED_FROM = "called from"
"""The store's note of the folder the run was begun from: where a plan's relative paths begin."""


def here(root: Path, store: Store, plan: Plan) -> Plan:
    """The plan with the paths it names as they are now; one that leads nowhere stays as it is, to be refused."""
    home, called_from = store.note(HOME), store.note(CALLED_FROM)

    def now(path: str) -> str:
        return lies_at(root, home, called_from, path)

    return replace(
        plan,
        model=replace(plan.model, name=now(plan.model.name)),
        task=replace(plan.task, prompts=now(plan.task.prompts)),
        sft=replace(plan.sft, demonstrations=now(plan.sft.demonstrations)),
    )


def lies_at(root: Path, home: str | None, called_from: str | None, path: str) -> str:
    """`path`, or where it lies when it is not there: seen from where the run was begun, or in its folder `root`.

    `home` is where the folder lay when the run began, `called_from` the folder it was begun from.
    """
    wanted = Path(path).expanduser()
    if not path or wanted.exists():
        return path
    places = [] if wanted.is_absolute() else [root / wanted]
    if called_from is not None and not wanted.is_absolute():
        wanted = Path(called_from, wanted)
        places.insert(0, wanted)
    if home is not None and wanted.is_absolute() and wanted.is_relative_to(home):
        places.append(root / wanted.relative_to(home))
    return next((str(p) for p in places if p.exists()), path)
