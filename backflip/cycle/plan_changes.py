"""A plan that is edited while its run goes on: what may change, from which round on, and what was changed.

`plans/from-r1.toml` in a run's folder is the plan its first round began with, `plans/from-r3.toml` the one that
replaced it for round 3 and later, headed by what differs. A round that has begun keeps the plan it began with.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from backflip.core.disk import disk_told
from backflip.core.errors import ConfigError
from backflip.cycle.artefacts import write_text
from backflip.cycle.folder import BASE, PLAN, PUBLISHED, REFERENCE
from backflip.cycle.plan import Plan, plan_toml, read_plan, toml_value
from backflip.store import Store

FOLDER = "plans"
NOTHING = "(nothing)"
AT_ONCE = ("model.device", "model.threads", "ppo.micro", "optimise.when_not_finite", "trackers", "rounds")
"""Keys that say how a run is carried, not what a round does: they hold from the next start on."""
_ANSWERED = "The untouched model has answered with it, and every later answer is compared with those."
_ADAPTER = "The adapter in training was made with it."
_TASK = "The answers so far were given and judged under it."
FIXED = {
    "seed": "Everything random so far was drawn from it.",
    "database": "The votes so far lie there.",
    "model.name": "Every figure is measured against the untouched model that the run began with.",
    "model.dtype": "Every figure is measured against the untouched model in the number format it began with.",
    "task.name": _TASK,
    "task.prompts": _TASK,
    "task.weights": "The true utility would mean another thing from one round to the next.",
    "sft": "The untouched model was made with it.",
    "sampling.max_tokens": _ANSWERED,
    "sampling.temperature": _ANSWERED,
    "measure.monitor_prompts": _ANSWERED,
    "measure.monitor_answers": _ANSWERED,
    "ppo.rank": _ADAPTER,
    "ppo.adapted": _ADAPTER,
    "ppo.alpha": _ADAPTER,
    "ppo.critic": "The critic so far is of that kind, and a run trains one.",
    "ppo.kl_coef": "It is only where the coefficient starts, and that has adapted since: steer with ppo.kl_target.",
}
"""Keys that a run keeps once it has begun, and why. A table's name stands for all its keys."""

Changes = dict[str, tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class PlanChange:
    """What a plan changed when it was taken up."""

    round: int
    """The first round that runs with it."""
    changes: Changes


def differences(old: Plan, new: Plan) -> Changes:
    """(old value, new value) as they stand in a plan file, by dotted key, for every key whose values differ."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [*before, *(k for k in after if k not in before)]
    pairs = {key: (before.get(key, NOTHING), after.get(key, NOTHING)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def adopt_plan(root: Path, plan: Plan, store: Store) -> list[str]:
    """Take `plan`, as read from the run's folder, for the rounds that have not begun; what a user should know of it.

    Keeps each former plan (see the module). Raises: ConfigError naming each key that a run under way cannot change.
    """
    begun = max(store.rounds(), default=0)
    first, noted = _file(root, 1), store.note("plan")
    fresh = noted is None or (not begun and store.note(REFERENCE) is None and store.note(BASE) is None)
    if not first.exists() and not fresh and noted:  # a run that an earlier Backflip began
        write_text(first, noted)
    if fresh:
        _keep(first, plan)
        return []
    before, pending = _in_force(root, max(begun, 1)), _in_force(root, begun + 1)
    changes = differences(before, plan)
    _refuse(root, plan, changes, store, begun)
    if plan.rounds > before.rounds:
        _set_aside(root, before.rounds)
    file = _file(root, begun + 1)
    if not changes and begun:
        file.unlink(missing_ok=True)
    elif plan != pending:
        _keep(file, plan, begun, changes)
    return [] if plan == pending else _told(changes, begun, store, plan)


def plan_of_round(root: Path, plan: Plan, number: int) -> Plan:
    """The plan that round `number` keeps, carried as `plan`, the newest one, says (see `AT_ONCE`; not its `rounds`)."""
    kept = _in_force(root, number)
    return replace(
        kept,
        trackers=plan.trackers,
        model=replace(kept.model, device=plan.model.device, threads=plan.model.threads),
        optimise=replace(kept.optimise, when_not_finite=plan.optimise.when_not_finite),
        ppo=replace(kept.ppo, micro=plan.ppo.micro),
    )


def plan_in_use(root: Path) -> Plan:
    """The newest plan that the run in `root` has taken up; the one in its folder when it has taken up none."""
    return _in_force(root, max(_kept(root))) if _kept(root) else read_plan(root / PLAN)


def plan_history(root: Path) -> list[PlanChange]:
    """What each plan of the run in `root` changed, in order; empty for a run whose plan was never edited."""
    kept = [(number, read_plan(_file(root, number))) for number in _kept(root)]
    return [
        PlanChange(round=number, changes=differences(before, plan)) for (_, before), (number, plan) in pairwise(kept)
    ]


def plan_text(root: Path, plan: Plan) -> str:
    """The newest plan as TOML, headed by what was changed on the way to it."""
    lines = [
        f"# From round {c.round} on: {k} {a} -> {b}\n" for c in plan_history(root) for k, (a, b) in c.changes.items()
    ]
    return "".join([*lines, "\n" if lines else "", plan_toml(plan)])


def refuse_another_database(root: Path, plan: Plan) -> None:
    """Refuse a plan that names another database than the one the run began with; to be called before one is opened.

    Raises: ConfigError.
    """
    if (root / "rounds").exists() and _file(root, 1).exists():
        changed = differences(_in_force(root, 1), plan).get("database")
        if changed:
            raise ConfigError(_refusal(root, {"database": changed}, FIXED))


def _set_aside(root: Path, last: int) -> None:
    """Move what round `last` published, as the last one, out of the way of what the new last round will publish."""
    for name in PUBLISHED:
        if (folder := root / "models" / name).exists():
            there = root / "models" / f"r{last}" / name
            with disk_told(there):
                there.parent.mkdir(exist_ok=True)
                folder.rename(there)


def _flat(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as in a plan file) of a plan, tables and lists of tables opened."""
    for f in fields(config):
        value, name = getattr(config, f.name), path + f.name
        if is_dataclass(value):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for i, item in enumerate(value):
                yield from _flat(item, f"{name}[{i}].")
        else:
            yield name, toml_value(value)


def _refuse(root: Path, plan: Plan, changes: Changes, store: Store, begun: int) -> None:
    """Raises: ConfigError when something changed that a run which has begun must keep."""
    reasons = dict(FIXED)
    if store.samples(purpose="final"):
        reasons |= dict.fromkeys(("measure.final_prompts", "measure.final_answers"), _ANSWERED)
    if "rounds" in changes and plan.rounds <= begun and plan.rounds < int(changes["rounds"][0]):
        reasons["rounds"] = f"Round {begun} has begun as one of {changes['rounds'][0]}, with others to follow."
    bad = {key: pair for key, pair in changes.items() if _reason(key, reasons)}
    if bad:
        raise ConfigError(_refusal(root, bad, reasons))


def _refusal(root: Path, bad: Changes, reasons: Mapping[str, str]) -> str:
    facts = [
        f"{key} was {old} and is now {new}, and the run has begun.\n{_reason(key, reasons)}"
        for key, (old, new) in bad.items()
    ]
    back = "the former value" if len(bad) == 1 else "the former values"
    cure = f"Put {back} back, or start another run with --dir."
    return f"{root / PLAN}: " + "\n".join([*facts, cure])


def _reason(key: str, reasons: Mapping[str, str]) -> str | None:
    """Why a key cannot change; None when it can."""
    parts = key.split(".")
    return next((why for i in range(len(parts), 0, -1) if (why := reasons.get(".".join(parts[:i])))), None)


def _told(changes: Changes, begun: int, store: Store, plan: Plan) -> list[str]:
    """What a user should know of a changed plan."""
    lines = [f"plan: {key} {old} -> {new}, from now on" for key, (old, new) in changes.items() if key in AT_ONCE]
    later = {key: pair for key, pair in changes.items() if key not in AT_ONCE}
    lines += [f"plan: {key} {old} -> {new}, from round {begun + 1} on" for key, (old, new) in later.items()]
    if later and begun and "measure" not in store.steps_done(begun):
        lines.append(f"round {begun} has begun and keeps the plan it began with")
    if later and begun >= plan.rounds:
        lines.append(f"round {begun} is the last, so that nothing will use this: for another round, raise `rounds`")
    return lines


def _file(root: Path, number: int) -> Path:
    return root / FOLDER / f"from-r{number}.toml"


def _kept(root: Path) -> list[int]:
    """The rounds from which a plan was kept."""
    names = (re.fullmatch(r"from-r(\d+)", p.stem) for p in (root / FOLDER).glob("from-r*.toml"))
    return sorted(int(m[1]) for m in names if m)


def _in_force(root: Path, number: int) -> Plan:
    """The plan for round `number`: the newest kept one that is not for later rounds."""
    kept = [n for n in _kept(root) if n <= number]
    return read_plan(_file(root, max(kept)) if kept else root / PLAN)


def _keep(file: Path, plan: Plan, begun: int = 0, changes: Mapping[str, tuple[str, str]] | None = None) -> None:
    """Write a plan under a heading that says from when on it holds and what it changed."""
    if file.exists() and read_plan(file) == plan:
        return
    head = [f"The plan of this run from round {begun + 1} on."]
    if changes:
        head += ["What differs from the round before:", *(f"  {k}: {a} -> {b}" for k, (a, b) in changes.items())]
    write_text(file, "".join(f"# {line}\n" for line in head) + "\n" + plan_toml(plan))
