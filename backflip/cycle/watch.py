"""What is watched of a climb without gold: the figures of each step, and the warnings that a run's figures give.

Loads no model: `status` tells of warnings too.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backflip.core.records import Metric, Prompt
from backflip.measure import warnings
from backflip.measure.alarm import JUDGED, WINS
from backflip.measure.warnings import (
    CHECK,
    FORETOLD,
    KL,
    LENGTH,
    PROXY,
    REPETITION,
    SPREAD,
    Duels,
    Watched,
    miscalibrated,
    repetition_of,
    warn,
)

if TYPE_CHECKING:  # importing them would import torch
    from backflip.policies.rollout import Step
    from backflip.rewards.model import RewardModel


@dataclass(frozen=True, kw_only=True)
class Warned:
    """A warning of a run."""

    round: int
    tick: int
    """The step of the round after which it was first seen."""
    name: str
    told: str


def watched(step: "Step", model: "RewardModel", prompts: Mapping[str, Prompt]) -> dict[str, float]:
    """A step's figures of `Watched` by name, from the answers it was made of; what there is none of is left out."""
    spread, check = model.watched([prompts[a.prompt_id] for a in step.answers], step.answers)
    figures = {
        KL: step.metrics["objective/kl"],
        PROXY: float(np.mean(step.scores)),
        CHECK: check,
        SPREAD: spread,
        LENGTH: step.metrics["length/mean"],
        REPETITION: repetition_of([a.text for a in step.answers]),
    }
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def warnings_of(metrics: Iterable[Metric]) -> dict[int, list[warnings.Warning]]:
    """By round, what the stored figures of its climb warn of, earliest first; `tick` is the step of the round.

    A round in which nothing was watched, one of an earlier Backflip say, is left out.
    """
    steps: dict[int, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for m in metrics:
        if m.step == "optimise" and m.name in _NAMES:
            steps[m.round][m.tick][m.name] = m.value
    return {number: _of_round(found) for number, found in sorted(steps.items()) if any(KL in f for f in found.values())}


def warned(metrics: Iterable[Metric]) -> tuple[Warned, ...]:
    """The warnings of all rounds, in order."""
    return tuple(Warned(round=r, **w._asdict()) for r, found in warnings_of(metrics).items() for w in found)


_FIELDS = {KL: "kl", PROXY: "proxy", CHECK: "check", SPREAD: "spread", LENGTH: "length", REPETITION: "repetition"}
_NAMES = {*_FIELDS, FORETOLD, WINS, JUDGED}


def path_of(steps: Mapping[int, Mapping[str, float]]) -> tuple[list[int], list[Watched]]:
    """The steps at which a climb was watched, and what was seen, from the figures by step and name."""
    ticks = [t for t in sorted(steps) if KL in steps[t] and PROXY in steps[t]]
    return ticks, [Watched(**{f: steps[t][n] for n, f in _FIELDS.items() if n in steps[t]}) for t in ticks]


def _of_round(steps: Mapping[int, Mapping[str, float]]) -> list[warnings.Warning]:
    ticks, path = path_of(steps)
    found = [w._replace(tick=ticks[w.tick]) for w in warn(path)]
    duels = [
        Duels(t, steps[t][FORETOLD], steps[t][WINS], int(steps[t][JUDGED]))
        for t in sorted(steps)
        if {FORETOLD, WINS, JUDGED} <= steps[t].keys()
    ]
    wrong = miscalibrated(duels)
    return sorted([*found, *([wrong] if wrong else [])], key=lambda w: w.tick)
