"""The task's baselines: other ways to get answers out of the untouched model, and how often they are beaten."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backflip.core.protocols import Utility
from backflip.core.records import Prompt, Purpose
from backflip.core.rng import seed_of
from backflip.cycle.artefacts import kept, write_text
from backflip.cycle.folder import REFERENCE
from backflip.cycle.tools import Tools
from backflip.measure.compare import Side
from backflip.models.chat import Chat
from backflip.sampling.engine import Engine
from backflip.stats.bootstrap import Interval, bootstrap_mean, win_rate
from backflip.tasks import TASKS
from backflip.tasks.task import Baseline

Array = NDArray[np.float64]


def against_baselines(
    tools: Tools, split: Purpose, prompts: Sequence[Prompt], policy: Side, reference: Side
) -> dict[str, Interval]:
    """What policy and untouched model win against each baseline of the task on `prompts`, the sides' rows.

    By name, after "SPLIT/against/BASELINE/": `win_rate`, `win_rate_reference` (the untouched model's own answers),
    `utility` (the baseline's). Empty when nobody knows the true utility: people are not shown a baseline.
    """
    if tools.utility is None or policy.utility is None or reference.utility is None:
        return {}
    out: dict[str, Interval] = {}
    seed, count = tools.plan.seed, reference.utility.shape[1]
    for baseline in TASKS[tools.plan.task.name].baselines:
        path = answers_path(tools.root, split, baseline)
        theirs = kept(path, partial(baseline_utility, path, tools.utility, prompts), len(prompts))
        if theirs is None:
            _answer(tools, path, baseline, prompts, count)
            theirs = baseline_utility(path, tools.utility, prompts)
        start = f"{split}/against/{baseline.name}"
        out[f"{start}/win_rate"] = win_rate(policy.utility, theirs, seed)
        out[f"{start}/win_rate_reference"] = win_rate(reference.utility, theirs, seed)
        out[f"{start}/utility"] = bootstrap_mean(theirs.mean(1), seed)
    return out


def answers_path(root: Path, split: Purpose, baseline: Baseline) -> Path:
    """Where a baseline's answers to a split lie in the run's folder: JSONL of prompt (its id), text and ended."""
    return root / "baselines" / f"{split}-{baseline.name}.jsonl"


def baseline_utility(path: Path, utility: Utility, prompts: Sequence[Prompt]) -> Array:
    """(P, H) true utilities of the answers in `path` to `prompts`, in their order."""
    by_id: dict[str, list[tuple[str, bool]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_id.setdefault(row["prompt"], []).append((row["text"], row["ended"]))
    return np.array([[utility.judge(p, text, ended).value for text, ended in by_id[p.id]] for p in prompts])


def plain(chat: Chat) -> Chat:
    """The same tokenizer, continuing its text without a chat template."""
    return replace(chat, templated=False)


def _answer(tools: Tools, path: Path, baseline: Baseline, prompts: Sequence[Prompt], count: int) -> None:
    """Let the untouched model go on with each prompt's text `count` times, and keep what the baseline makes of it."""
    sampling = tools.plan.sampling
    engine = Engine(tools.trunk_of, plain(tools.chat), batch=tools.engine.portion, temperature=sampling.temperature)
    engine.load(REFERENCE)
    framed = [replace(p, text=baseline.text(p)) for p in prompts]
    tools.watcher.begin(f"baseline {baseline.name}: {prompts[0].split} prompts", len(prompts))
    rows = []
    seed = seed_of(tools.plan.seed, prompts[0].split, "baseline", baseline.name)
    for batch in engine.sample(framed, count, seed=seed, max_tokens=sampling.max_tokens):
        for a in batch:
            text, ended = baseline.finish(a.text, a.ended)
            rows.append(json.dumps({"prompt": a.prompt_id, "text": text, "ended": ended}, ensure_ascii=False))
        tools.watcher.advance(len(batch) // count)
    write_text(path, "".join(row + "\n" for row in rows))
