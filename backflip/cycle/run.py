"""A run: rounds until the plan's budget is spent, from wherever it stopped."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from backflip.core.errors import BackflipError
from backflip.core.memory import memory_told
from backflip.core.records import ModelVersion, Prompt
from backflip.cycle.artefacts import remove
from backflip.cycle.baselines import plain
from backflip.cycle.folder import BASE, PLAN, REFERENCE, SFT_FOLDER, RunPath, find_run, only_process, run_store
from backflip.cycle.imitate import imitate_demonstrations
from backflip.cycle.paths import CALLED_FROM, HOME, here
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.plan_changes import adopt_plan, plan_of_round, plan_text, refuse_another_database
from backflip.cycle.publish import publish
from backflip.cycle.round import run_round
from backflip.cycle.tools import (
    Silent,
    Tools,
    Watcher,
    own_prompts,
    untouched_model,
)
from backflip.cycle.trackers import open_tracker
from backflip.cycle.untouched import load_untouched
from backflip.models.chat import Chat, open_chat
from backflip.models.load import why_slow
from backflip.models.trunk import fingerprint
from backflip.raters.personas import SimulatedCrowd
from backflip.store import Store
from backflip.tasks import TASKS


def run_rounds(run: RunPath, watcher: Watcher | None = None) -> None:
    """Carry a run to its end from wherever it stopped; `watcher` is told how it goes. A finished run is left as it is.

    >>> import backflip
    >>> backflip.run_rounds("runs/mine")
    >>> backflip.open_run("runs/mine").overview().finished
    True

    Raises: BusyError when another process runs it; Paused while people have pairs to judge;
    ConfigError or DataError for a plan, prompts or model that do not fit.
    """
    root = find_run(run)
    plan, watcher = read_plan(root / PLAN), Silent() if watcher is None else watcher
    refuse_another_database(root, plan)
    with memory_told("the run worked"), only_process(root), run_store(root, plan) as store:
        for part in sorted(root.rglob("*.part")):
            remove(part)  # left by a process that was killed
        for line in adopt_plan(root, plan, store):
            watcher.say(line)
        if plan.sft.planned and not (root / SFT_FOLDER).exists():
            imitate_demonstrations(open_tools(root, plan, store, watcher, version=BASE))
        with open_tracker(root, plan, store, watcher) as tracker:
            tools = replace(open_tools(root, plan, store, watcher), tracker=tracker)
            for number in range(1, plan.rounds + 1):
                tools = with_plan(tools, plan_of_round(root, plan, number))
                run_round(number, tools)
        publish(plan.rounds, tools)


def open_tools(root: Path, plan: Plan, store: Store, watcher: Watcher, *, version: str = REFERENCE) -> Tools:
    """Load model, task and raters; write prompts, raters and the run's facts into the store once.

    `version` says which model: the run's untouched one, or the `BASE` that stage 0 begins with.
    """
    prompts = own_prompts(here(root, store, plan))
    task = TASKS[plan.task.name]
    utility = task.utility(plan.task.weights or None)
    crowd = SimulatedCrowd(plan.raters, utility.weights, plan.seed) if plan.raters.by == "personas" else None
    watcher.say(f"loading {plan.model.name if version == BASE else untouched_model(root, plan)}")
    loaded = load_untouched(root, plan, store, version=version)
    chat = open_chat(loaded)
    if not chat.templated:
        watcher.say(f"{plan.model.name} has no chat template: prompts are continued as plain text")
    slow = why_slow(loaded.trunk)
    if slow and (version == BASE or not plan.sft.planned):  # stage 0 has said it already
        kind = loaded.trunk.config.model_type
        watcher.say(f"{plan.model.name} ({kind}) takes longer, by Hugging Face's forward: the fast forward {slow}")
    check_prompts(prompts, chat, plan)
    asked = {p.id: p for p in prompts}
    imported = {p.id: p for p in store.prompts() if p.id not in asked}
    tools = Tools(
        root, store, loaded, chat, asked | imported, utility, crowd, watcher, plan, version, frozenset(imported)
    )
    with store.begin() as tx:
        tx.add_prompts(prompts)
        tx.add_raters(list(crowd.raters()) if crowd else [])
        if not plan.sft.planned or version == BASE:
            tx.add_model(ModelVersion(id=version, kind="base", round=0, parent=None, path=plan.model.name))
        else:
            tx.add_model(ModelVersion(id=REFERENCE, kind="sft", round=0, parent=BASE, path=str(SFT_FOLDER)))
        if store.note(version) is None:
            tx.set_note(version, fingerprint(loaded.trunk))
        if store.note(HOME) is None:
            tx.set_note(HOME, str(root.resolve()))
            tx.set_note(CALLED_FROM, str(Path.cwd()))
        for key, value in (_facts(plan, utility.weights) | {"plan": plan_text(root, plan)}).items():
            tx.set_note(key, value)
    return tools


def with_plan(tools: Tools, plan: Plan) -> Tools:
    """The same tools for a round whose plan differs from the one before; see `plan_changes`."""
    if plan == tools.plan:
        return tools
    crowd = None
    if plan.raters.by == "personas" and tools.utility is not None:
        crowd = SimulatedCrowd(plan.raters, tools.utility.weights, plan.seed)
        with tools.store.begin() as tx:
            tx.add_raters(list(crowd.raters()))
    return replace(tools, plan=plan, crowd=crowd)


def check_prompts(prompts: list[Prompt], chat: Chat, plan: Plan) -> None:
    """Refuse prompts that cannot be answered within the model's context, before anything is computed.

    Raises: DataError for a prompt, also as a baseline of the task puts it; BackflipError for too few of them.
    """
    for p in prompts:
        chat.encode(p, plan.sampling.max_tokens)
        for baseline in TASKS[plan.task.name].baselines:
            plain(chat).encode(replace(p, text=baseline.text(p)), plan.sampling.max_tokens)
    for split, least in (("train", 1), ("monitor", 2), ("final", 2)):
        count = sum(p.split == split for p in prompts)
        if count < least:
            raise BackflipError(
                f"There are {count or 'no'} {split} prompts, and a run needs at least {least}.\n"
                "Every run has all three kinds: train, monitor and final; an interval needs two prompts.\n"
                'Add prompts, or set "split" in the prompt file.'
            )


def _facts(plan: Plan, weights: Mapping[str, float]) -> dict[str, str]:
    """What the report says about how the run was made."""
    packages = ("torch", "transformers", "backflip")
    machine = [platform.machine(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        machine.append(torch.cuda.get_device_name())
    return {
        "seed": str(plan.seed),
        "task": plan.task.name,
        "weights": json.dumps(dict(weights)),
        "machine": ", ".join(machine),
        "versions": json.dumps({"python": platform.python_version(), **{p: version(p) for p in packages}}),
    }
