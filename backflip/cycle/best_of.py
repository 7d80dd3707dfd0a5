"""Best of n beside the climb: N answers of the untouched model to each monitor prompt, scored anew by every reward."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backflip.core.errors import DataError
from backflip.core.records import Metric, Prompt, Sample
from backflip.core.rng import seed_of
from backflip.cycle.artefacts import UNREADABLE, load_answers, save_answers, write_text
from backflip.cycle.folder import REFERENCE
from backflip.cycle.tools import Tools
from backflip.measure.alarm import gold_function, valued
from backflip.measure.overopt import Law, best_of_n_points, better_law, laws
from backflip.stats.bootstrap import Interval

Array = NDArray[np.float64]
PROXY, GOLD = "best_of/proxy", "best_of/gold"
"""Gains of best of n over one answer, at tick n."""
ANSWERS = Path("best_of") / "answers.safetensors"
"""Where the answers lie in a run's folder; their texts lie beside it as JSONL."""
PROMPTS = 24
"""Monitor prompts that are asked at most: the answers should take no longer than a round."""


def drawn_for_best_of(tools: Tools) -> list[Sample]:
    """N answers of the untouched model a prompt, a prompt's side by side; drawn now if they are not there."""
    config = tools.plan.measure
    prompts = tools.split("monitor")[: min(config.monitor_prompts or PROMPTS, PROMPTS)]
    if found := _kept(tools, prompts):
        return found
    tools.engine.load(REFERENCE)
    tools.watcher.begin(f"best of {config.best_of}: the untouched model answers the monitor prompts", len(prompts))
    answers = []
    seed = seed_of(tools.plan.seed, "best of", REFERENCE)
    room = tools.plan.sampling.max_tokens
    for batch in tools.engine.sample(prompts, config.best_of, seed=seed, max_tokens=room):
        answers += batch
        tools.watcher.advance(len(batch) // config.best_of)
    place = {p.id: i for i, p in enumerate(prompts)}
    answers.sort(key=lambda a: (place[a.prompt_id], a.index))
    save_answers(tools.root / ANSWERS, answers)
    rows = ({"prompt": a.prompt_id, "text": a.text, "ended": a.ended, "tokens": len(a.tokens)} for a in answers)
    write_text(_texts(tools.root), "".join(json.dumps(row) + "\n" for row in rows))
    return load_best_of(tools.root, prompts)


def load_best_of(root: Path, prompts: Sequence[Prompt]) -> list[Sample]:
    """The answers as they were kept, to prompts that are known. Raises: one of UNREADABLE when they are not there."""
    known, out = {p.id for p in prompts}, []
    index: dict[str, int] = {}
    for row, line in enumerate(_texts(root).read_text(encoding="utf-8").splitlines()):
        said = json.loads(line)
        at = index[said["prompt"]] = index.get(said["prompt"], -1) + 1
        out.append(
            Sample(
                id=f"best_of/{said['prompt']}/{at}", round=0, purpose="monitor", prompt_id=said["prompt"],
                policy=REFERENCE, index=at, text=said["text"], ended=said["ended"], length=said["tokens"],
                artefact=str(ANSWERS), row=row,
            )
        )  # fmt: skip
    return [s for s in out if s.prompt_id in known]


def _kept(tools: Tools, prompts: Sequence[Prompt]) -> list[Sample]:
    """What was drawn before; empty when it is not whole, or the plan now wants another number."""
    try:
        found = load_best_of(tools.root, prompts)
        load_answers(tools.root, found)
    except (*UNREADABLE, DataError):
        return []
    wanted = [p.id for p in prompts for _ in range(tools.plan.measure.best_of)]
    return found if [s.prompt_id for s in found] == wanted else []


def _texts(root: Path) -> Path:
    return (root / ANSWERS).with_suffix(".jsonl")


def best_of_n(number: int, tools: Tools, samples: Sequence[Sample], proxy: Array) -> list[Metric]:
    """The curve at ticks n = 2 ... N and what was fitted to it at tick 0. Nothing with fewer than 2 answers a prompt.

    `proxy` (P, N) is what the round's reward says of `samples`, a prompt's answers side by side. The curve's intervals
    are over prompts, as are the laws'; "best_of/gold_sd" is gold's standard deviation over single answers.
    Raises: DataError when the plan's gold function raises, or gives no finite number.
    """
    if proxy.shape[1] < 2 or len(proxy) < 2:
        return []
    seed, gold = tools.plan.seed, _gold(tools, samples, proxy.shape)
    out, points = [], best_of_n_points(proxy, gold, seed)
    for point in points:
        found = {PROXY: point.proxy} | ({GOLD: point.gold} if point.gold else {})
        out += [_metric(number, n, i, tick=point.n) for n, i in found.items()]
    last = points[-1]
    out.append(_metric(number, "best_of/proxy_gain", last.proxy))
    if gold is not None and last.gold is not None:
        fitted = laws(proxy, gold, seed)
        out.append(_metric(number, "best_of/gold_gain", last.gold))
        out.append(Metric(round=number, step="measure", tick=0, name="best_of/gold_sd", value=float(gold.std(ddof=1))))
        out += [m for law in fitted for m in _law(number, law)]
        best = better_law(fitted)
        if best is not None and best.peak is not None:
            out.append(_metric(number, "best_of/peak", best.peak))
    return out


def _gold(tools: Tools, samples: Sequence[Sample], shape: tuple[int, ...]) -> Array | None:
    """(P, N) what gold says: the plan's function, else the task's true utility; None where nobody knows it."""
    name = tools.plan.alarm.gold
    prompts = [tools.prompts[s.prompt_id] for s in samples]
    if ":" in name:
        judge = gold_function(name)
        values = [valued(name, judge, p.text, s.text) for p, s in zip(prompts, samples, strict=True)]
    elif tools.utility is not None:
        values = [tools.utility.judge(p, s.text, s.ended).value for p, s in zip(prompts, samples, strict=True)]
    else:
        return None
    return np.array(values).reshape(shape)


def _law(number: int, law: Law) -> list[Metric]:
    """The figures of one law, by "best_of/FORM/NAME": alpha, beta, peak (nats), and what it foretold."""
    found = {"alpha": law.alpha, "beta": law.beta, "peak": law.peak, "foretold_gain": law.gain}
    alone = {"foretold_error": law.error, "foretold_flat_error": law.flat_error}
    return [_metric(number, f"best_of/{law.form}/{n}", i) for n, i in found.items() if i is not None] + [
        Metric(round=number, step="measure", tick=0, name=f"best_of/{law.form}/{n}", value=v)
        for n, v in alone.items()
        if v is not None
    ]


def _metric(number: int, name: str, found: Interval, tick: int = 0) -> Metric:
    return Metric(round=number, step="measure", tick=tick, name=name, value=found.value, low=found.low, high=found.high)
