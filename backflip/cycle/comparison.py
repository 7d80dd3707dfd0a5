"""Two runs side by side: how their plans differ, how each went, and whose policy wins on the prompts they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backflip.core.errors import BackflipError
from backflip.core.records import Metric, Purpose, Sample
from backflip.cycle.folder import PLAN, RunPath, find_run, has_begun, run_store
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.plan_changes import Changes, differences
from backflip.stats.bootstrap import Interval, win_rate
from backflip.store import Store
from backflip.tasks import TASKS

BY_ROUND = ("monitor/kl", "monitor/win_rate", "monitor/utility", "monitor/length", "reward/heldout_accuracy")
BY_STEP = ("objective/kl", "objective/scores", "gold/utility")
LEAST = 2
"""Prompts without which there is no interval."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """How one run went."""

    run: str
    model: str
    rounds: int
    """Rounds that are measured."""
    votes: int
    by_round: Mapping[str, Mapping[int, Metric]]
    """Figures on monitor prompts after each round, by name and round."""
    by_step: Mapping[str, Sequence[float]]
    """Figures of every optimiser step, by name, all rounds in a row."""


@dataclass(frozen=True, kw_only=True)
class Duel:
    """A's newest policy against B's, by the true utility of A's task."""

    split: Purpose
    prompts: int
    policies: tuple[str, str]
    win_rate: Interval
    """Share of answer pairs that A wins, a tie counted half; 95% by bootstrap over prompts."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side."""

    a: Side
    b: Side
    plan: Changes
    """(A's value, B's value) of every plan key that differs."""
    duel: Duel | None
    why_no_duel: str = ""


def compare_runs(a: RunPath, b: RunPath) -> Comparison:
    """Compare two runs, finished or not.

    >>> import backflip
    >>> seen = backflip.compare_runs("runs/mine", "runs/other")
    >>> seen.plan["seed"]
    ('3', '4')
    >>> seen.duel.split
    'final'

    Raises: BackflipError when one has not begun; ConfigError when a plan cannot be read.
    """
    roots = (find_run(a), find_run(b))
    plans = [read_plan(root / PLAN) for root in roots]
    for root, plan in zip(roots, plans, strict=True):
        if not has_begun(root, plan):
            raise BackflipError(
                f"{root} has not begun, so there is nothing to compare.\n"
                f"A comparison reads what two runs have measured.\nStart it with: backflip run --dir {root}"
            )
    with run_store(roots[0], plans[0]) as first, run_store(roots[1], plans[1]) as second:
        sides = [_side(*run) for run in zip(roots, plans, (first, second), strict=True)]
        duel = _duel(plans[0], plans[1], first, second)
    found = duel if isinstance(duel, Duel) else None
    why = "" if isinstance(duel, Duel) else duel
    return Comparison(a=sides[0], b=sides[1], plan=differences(*plans), duel=found, why_no_duel=why)


def _side(root: Path, plan: Plan, store: Store) -> Side:
    metrics = [m for m in store.metrics() if m.name in BY_ROUND + BY_STEP]
    steps = sorted((m for m in metrics if m.step == "optimise"), key=lambda m: (m.round, m.tick))
    return Side(
        run=str(root),
        model=plan.model.name,
        rounds=sum("measure" in store.steps_done(number) for number in store.rounds()),
        votes=len(store.votes()),
        by_round={
            n: {m.round: m for m in metrics if m.name == n and m.step != "optimise" and not m.tick} for n in BY_ROUND
        },
        by_step={n: [m.value for m in steps if m.name == n] for n in BY_STEP},
    )


def _duel(plan_a: Plan, plan_b: Plan, a: Store, b: Store) -> Duel | str:
    """The duel, or why there is none."""
    if plan_a.task.name != plan_b.task.name:
        return f"their tasks differ: {plan_a.task.name} and {plan_b.task.name}"
    if plan_a.task.weights != plan_b.task.weights:
        return "their true utilities weigh the attributes differently (task.weights)"
    utility = TASKS[plan_a.task.name].utility(plan_a.task.weights or None)
    why = "one of them has no measured policy yet"
    splits: tuple[Purpose, ...] = ("final", "monitor")
    for split in splits:
        answers = [_newest(store, split) for store in (a, b)]
        if not all(answers):
            continue
        asked = [
            {(p.text, p.history): p for p in store.prompts() if p.id in answers[i]} for i, store in enumerate((a, b))
        ]
        shared = [said for said in asked[0] if said in asked[1]]
        if len(shared) < LEAST:
            why = f"they share {len(shared) or 'no'} {split} prompt{'s' * (len(shared) != 1)}"
            continue
        rows = [[answers[i][asked[i][said].id] for said in shared] for i in (0, 1)]
        count = min(len(group) for groups in rows for group in groups)
        tables: list[NDArray[np.float64]] = [
            np.array(
                [
                    [utility.judge(asked[0][said], s.text, s.ended).value for s in group[:count]]
                    for said, group in zip(shared, groups, strict=True)
                ]
            )
            for groups in rows
        ]
        policies = (rows[0][0][0].policy, rows[1][0][0].policy)
        return Duel(
            split=split, prompts=len(shared), policies=policies, win_rate=win_rate(tables[0], tables[1], plan_a.seed)
        )
    return why


def _newest(store: Store, split: Purpose) -> dict[str, list[Sample]]:
    """The newest policy's answers to a split, by prompt; empty when it has none."""
    for model in reversed(store.models(kind="policy")):
        rows = store.samples(purpose=split, policy=model.id)
        if rows:
            out: dict[str, list[Sample]] = {}
            for s in rows:
                out.setdefault(s.prompt_id, []).append(s)
            return out
    return {}
