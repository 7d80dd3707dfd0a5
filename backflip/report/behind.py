"""The answers behind the points of the panel: some of every step, some of every round."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from backflip.core.records import Prompt, Sample
from backflip.cycle.shown import KEPT, load_shown
from backflip.report.data import Behind, Read
from backflip.report.words import number

MOST = 48
"""Steps whose answers the page holds; of a longer climb evenly spaced ones."""


def answers_behind(
    root: Path, steps: Sequence[tuple[int, int]], samples: Sequence[Sample], prompts: Mapping[str, Prompt]
) -> tuple[Behind, ...]:
    """What can be read behind the points, steps (round, tick) and rounds, in the order of the run."""
    every = max(1, -(-len(steps) // MOST))
    wanted = set(steps[::-1][::every])
    ticks: dict[int, list[int]] = defaultdict(list)
    for of_round, tick in sorted(wanted):
        ticks[of_round].append(tick)
    rounds = {int(s.policy.removeprefix("policy-r")) for s in samples if s.policy.startswith("policy-r")}
    out = [b for b in [of_policy(0, samples, prompts)] if b.answers]
    for number_ in sorted({*ticks, *rounds}):
        out += [of_step(root, number_, tick, prompts) for tick in ticks[number_]]
        out.append(of_policy(number_, samples, prompts))
    return tuple(b for b in out if b.answers)


def of_step(root: Path, number_: int, tick: int, prompts: Mapping[str, Prompt]) -> Behind:
    """The answers that were kept of a step of the climb."""
    found = load_shown(root, number_, tick, prompts)
    read = (Read(prompt=prompts[s.prompt_id].text, text=s.text, note=_note(s.length, s.ended, s.score)) for s in found)
    return Behind(key=f"r{number_}-s{tick}", title=f"Round {number_}, step {tick}", answers=tuple(read))


def of_policy(number_: int, samples: Sequence[Sample], prompts: Mapping[str, Prompt]) -> Behind:
    """The first answers of a round's policy (0: the untouched model) to the first monitor prompts."""
    policy = f"policy-r{number_}" if number_ else "reference"
    first: dict[str, Sample] = {}
    for s in samples:
        if s.policy == policy and s.purpose == "monitor" and s.prompt_id in prompts and len(first) < KEPT:
            first.setdefault(s.prompt_id, s)
    read = (Read(prompt=prompts[s.prompt_id].text, text=s.text, note=_note(s.length, s.ended)) for s in first.values())
    title = f"After round {number_}" if number_ else "The untouched model"
    return Behind(key=f"r{number_}", title=title, answers=tuple(read))


def _note(length: int, ended: bool, score: float | None = None) -> str:
    told = f"{length} tokens{'' if ended else ', cut off'}"
    return told if score is None else f"{told}, score {number(score, signed=True)}"
