"""Files that a plan names: where they lie now, also once the run's folder was moved."""

from dataclasses import replace
from pathlib import Path

from backflip.cycle.plan import Plan
from backflip.store import Store

HOME = "folder"
"""The store's note of where the run's folder lay when it began: a plan's paths may lead into it."""


def here(root: Path, store: Store, plan: Plan) -> Plan:
    """The plan with the paths it names as they are now; one that leads nowhere stays as it is, to be refused."""
    home = store.note(HOME)
    return replace(
        plan,
        model=replace(plan.model, name=lies_at(root, home, plan.model.name)),
        task=replace(plan.task, prompts=lies_at(root, home, plan.task.prompts)),
        sft=replace(plan.sft, demonstrations=lies_at(root, home, plan.sft.demonstrations)),
    )


def lies_at(root: Path, home: str | None, path: str) -> str:
    """`path`, or where it lies in the run's folder `root` when it is not there: by the folder's former place `home`."""
    wanted = Path(path).expanduser()
    if not path or wanted.exists():
        return path
    moved = [root / wanted] if not wanted.is_absolute() else []
    if home is not None and wanted.is_absolute() and wanted.is_relative_to(home):
        moved.append(root / wanted.relative_to(home))
    return next((str(p) for p in moved if p.exists()), path)
