"""Runs without a model: answers whose features are drawn, and raters who vote by a known rule, in a run's folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backflip.core.records import Pair, Prompt, Rater, Sample, Vote
from backflip.cycle.artefacts import save_array
from backflip.cycle.folder import start_run
from backflip.cycle.plan import Plan
from backflip.cycle.votes import ROUND_FEATURES
from backflip.store import Store, open_store

TRUTH = np.array([1.5, -1.5, 0.0, 0.0, 0.0, 0.0])
"""What the features are truly worth, in logits."""
Errs = Callable[[float, np.random.Generator], float]
"""From the true gap to the gap that a rater votes by."""


@dataclass
class World:
    """A run whose round 1 has been rated."""

    root: Path
    raters: dict[str, Errs]
    fit: int = 60
    """Votes that serve the fit, on two answers to as many prompts."""
    held_out: int = 30
    seed: int = 0
    plan: Plan = field(default_factory=Plan)
    doubles: int = 0
    """Of the fit's pairs, how many a second rater judges."""

    def __post_init__(self) -> None:
        """Write the folder and the store."""
        self.luck = np.random.default_rng(self.seed)
        start_run(self.root, self.plan)
        prompts = [
            Prompt(id=f"{split}-{n:03d}", split=split, text=f"{split} {n}")  # type: ignore[arg-type]
            for split, count in (("monitor", self.held_out), ("train", self.fit))
            for n in range(count)
        ]
        samples = [self._sample(p.id, k) for p in prompts for k in range(2)]
        self.features = self.luck.normal(size=(len(samples), len(TRUTH)))
        self.worth = dict(zip([s.id for s in samples], self.features @ TRUTH, strict=True))
        save_array(self.root / "rounds" / "r1" / ROUND_FEATURES, "features", self.features)
        pairs = [self._pair(p) for p in prompts]
        names = list(self.raters)
        votes = [self.vote(p, names[i % len(names)]) for i, p in enumerate(pairs)]
        train = [p for p in pairs if p.stream == "fit"]
        votes += [
            self.vote(p, names[(self.held_out + i + 1) % len(names)]) for i, p in enumerate(train[: self.doubles])
        ]
        with self.open() as store, store.begin() as tx:
            tx.add_prompts(prompts)
            tx.add_raters([Rater(id=name, kind="person", name=name.title()) for name in names])
            tx.start_round(1, "reference", 0.0)
            tx.add_samples(samples)
            tx.add_pairs(pairs)
            tx.cast(votes)

    def open(self) -> Store:
        """The store."""
        return open_store(self.root / "run.db")

    def vote(self, pair: Pair, rater: str, **more: Any) -> Vote:
        """What `rater` says of a pair."""
        gap = self.raters[rater](self.worth[pair.sample_a] - self.worth[pair.sample_b], self.luck)
        choice = "tie" if gap == 0 else "a" if self.luck.random() < 1 / (1 + np.exp(-gap)) else "b"
        facts: dict[str, Any] = {"shown": "ab" if self.luck.random() < 0.5 else "ba", "latency_s": 1.0, "at": 0.0}
        facts |= {"key": f"{pair.id}/{rater}", "pair_id": pair.id, "rater_id": rater, "choice": choice}
        return Vote(**(facts | more))

    def _sample(self, prompt: str, index: int) -> Sample:
        return Sample(
            id=f"{prompt}/{index}", round=1, purpose="rate", prompt_id=prompt, policy="reference", index=index,
            text=f"{prompt} {index}", ended=True, length=3, artefact="rounds/r1/none.safetensors", row=0,
        )  # fmt: skip

    def _pair(self, prompt: Prompt) -> Pair:
        return Pair(
            id=f"r1/{prompt.id}", round=1, stream="fit" if prompt.split == "train" else "random", prompt_id=prompt.id,
            sample_a=f"{prompt.id}/0", sample_b=f"{prompt.id}/1", policy="reference",
        )  # fmt: skip


def honest(gap: float, _: np.random.Generator) -> float:
    """Votes by the gap."""
    return gap


def against(gap: float, _: np.random.Generator) -> float:
    """Votes for the worse answer."""
    return -gap


def blind(_: float, luck: np.random.Generator) -> float:
    """Votes by lot."""
    return float(luck.choice([-1e-9, 1e-9]))
