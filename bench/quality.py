"""How long until as many answers win? Backflip's PPO and TRL's on the demo's prompts, VADER's valence as the reward.

A win is an answer to a held-out prompt that is warmer than the untouched model's. TRL trains every weight in float32,
at the better of 1 and 4 passes and the best of three learning rates, chosen on runs of 15 minutes that do not count.
The target is TRL's plateau or 65% wins, whichever is lower, and never below 58%; a run has reached it when two
measurements in a row have. Clocks run from before the model is loaded and stand still while wins are measured. TRL's
runs end at 90 minutes: where one has not reached the target, its time, and with it the ratio, is a lower bound.

`bench/engine.py --quality` makes the parts that are missing, each a run of its own. Knows nothing of the other rows.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from peers import WITH_PPO, environment, one_turn
from table import Missing, Row, part, ratio_row, raw_file, relative

from backflip.models.load import DEMO_MODEL, locate

LEARNING_RATES = (3e-6, 1e-5, 3e-5)
EPOCHS = (1, 4)
SEEDS = (0, 1, 2)
TRIAL, FINAL = 15, 90
"""Minutes of training."""
HIGHEST, LOWEST = 0.65, 0.58
"""Bounds of the target, shares of wins."""
Curve = Sequence[Sequence[float]]
"""[seconds of training, episodes, share of wins] of each measurement."""


class Runs:
    """The runs, each kept as a part; TRL's do not depend on Backflip's code. `every_s` is between measurements."""

    def __init__(self, name: str, threads: int, make: bool, *, tiny: bool = False) -> None:
        self.name, self.threads, self.make = name, threads, make
        self.room = (0.5, 0.5) if tiny else (TRIAL, FINAL)
        self.prompts, self.new, self.episodes = (8, 8, 8) if tiny else (None, 40, 32)
        self.every_s = {"own": 1.0, "trl": 1.0} if tiny else {"own": 10.0, "trl": 180.0}  # about as many on both sides

    def kept(self, key: str, settings: Mapping[str, Any], make: Callable[[], Any], *, own: bool) -> Any:
        """The part as it lies on the disk, or as it is made now. Raises: Missing."""

        def made() -> Any:
            if not self.make:
                raise Missing
            print(f"{key}: until it is there, the race is on", flush=True)
            return make()

        return part(self.name, f"quality-{key}", False, settings, made, own=own)

    def untouched(self) -> Any:
        """The prompts' tokens, and how warm the untouched model's answers are."""
        settings = {"work": "untouched", "threads": self.threads, "new": self.new, "prompts": self.prompts}
        return self.kept(
            "untouched", settings, lambda: one_turn("own-quality", Path(sys.executable), settings), own=False
        )

    def trl(self, key: str, minutes: float, target: float, **how: Any) -> Any:
        """A run of TRL's PPO."""
        told = {
            **how, "threads": self.threads, "new": self.new, "minutes": minutes, "target": target,
            "every_s": self.every_s["trl"], "episodes": self.episodes, "micro": 8, "precision": "fp32", "stop": "eos",
        }  # fmt: skip

        def make() -> Any:
            return one_turn("trl-quality", environment(WITH_PPO), self._with_prompts(told))

        return self.kept(f"trl-{key}", told | {"trl": WITH_PPO}, make, own=False)

    def own(self, seed: int) -> Any:
        """A run of Backflip's PPO."""
        told = {
            "work": "climb", "threads": self.threads, "new": self.new, "minutes": self.room[1], "target": HIGHEST,
            "every_s": self.every_s["own"], "seed": seed, "prompts": self.prompts,
        }  # fmt: skip

        def make() -> Any:
            return one_turn("own-quality", Path(sys.executable), self._judged(told))

        return self.kept(f"own-{seed}", told, make, own=True)

    def _judged(self, told: Mapping[str, Any]) -> dict[str, Any]:
        return {**told, **{k: self.untouched()[k] for k in ("untouched", "mean", "std")}}

    def _with_prompts(self, told: Mapping[str, Any]) -> dict[str, Any]:
        found = self.untouched()
        return self._judged(told) | {
            "model": locate(DEMO_MODEL), "prompts": found["train_ids"], "held_out": found["held_out_ids"],
        }  # fmt: skip


def plateau(curve: Curve) -> float:
    """The highest mean of two measurements in a row."""
    wins = [c[2] for c in curve]
    return max((a + b) / 2 for a, b in pairwise(wins)) if len(wins) > 1 else wins[0]


def reached(curve: Curve, target: float) -> float | None:
    """Seconds until the second of two measurements in a row at `target` or above; None when there are none."""
    for before, now in pairwise(curve):
        if min(before[2], now[2]) >= target:
            return now[0]
    return None


def rows(runs: Runs, command: str) -> list[Row]:
    """The rows of the race. Raises: Missing when a part is not there and was not to be made."""
    trials = {
        (epochs, rate): runs.trl(
            f"trial-{epochs}-{rate:g}", runs.room[0], 1.1, epochs=epochs, learning_rate=rate, seed=0
        )["curve"]
        for epochs in EPOCHS
        for rate in LEARNING_RATES
    }  # no share reaches 1.1: a trial uses all of its time
    epochs, rate = max(trials, key=lambda k: float(np.mean([c[2] for c in trials[k][-2:]])))
    theirs = [
        runs.trl(f"final-{seed}", runs.room[1], HIGHEST, epochs=epochs, learning_rate=rate, seed=seed)["curve"]
        for seed in SEEDS
    ]
    ours = [runs.own(seed)["curve"] for seed in SEEDS]
    level = float(np.median([plateau(c) for c in theirs]))
    target = max(LOWEST, min(HIGHEST, level))
    late = [c for c in theirs if reached(c, target) is None]
    never = [c for c in ours if reached(c, target) is None]
    if never:
        raise SystemExit(f"{len(never)} of Backflip's runs never reached {target:.3f} wins: no time to compare")
    took = [reached(c, target) or c[-1][0] for c in theirs]
    own = [reached(c, target) or c[-1][0] for c in ours]
    raw = relative(raw_file(runs.name, "quality-own-0", False)).replace("own-0", "*")
    more = {"command": command, "raw": raw}
    return [
        ratio_row("time to same quality vs TRL ppo", took, own, unit="ratio", bar=">= 6", **more),
        Row(claim="share of wins to reach", value=target, unit="share", **more),
        Row(claim="TRL's plateau", value=level, unit="share", **more),
        Row(claim="minutes to it, Backflip", value=float(np.median(own)) / 60, unit="minutes", **more),
        Row(claim="minutes to it, TRL", value=float(np.median(took)) / 60, unit="minutes", **more),
        Row(claim="TRL's runs that had not reached it when they ended", value=len(late), unit="of 3 runs", **more),
        Row(claim="TRL's best passes", value=epochs, unit="epochs", **more),
        Row(claim="TRL's best learning rate", value=rate, unit="", **more),
    ]
