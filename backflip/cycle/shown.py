"""A few answers of every optimiser step, kept to be read behind its point on the panel."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from backflip.core.records import Prompt
from backflip.cycle.artefacts import write_text
from backflip.policies.rollout import Step

KEPT = 4
"""Answers kept of a step: the first to each of its first prompts, which the step drew by lot."""


class Shown(NamedTuple):
    """One answer of a step. Its text is hostile until escaped."""

    prompt_id: str
    text: str
    ended: bool
    length: int
    """Tokens."""
    score: float
    """What the round's reward says of it."""


def save_shown(root: Path, number: int, tick: int, step: Step) -> None:
    """Keep the first answer to each of the step's first prompts. Raises: BackflipError when the disk is full."""
    first: dict[str, Shown] = {}
    for a, score in zip(step.answers, step.scores.tolist(), strict=True):
        if a.prompt_id not in first and len(first) < KEPT:
            first[a.prompt_id] = Shown(a.prompt_id, a.text, a.ended, len(a.tokens), score)
    text = "".join(json.dumps(s._asdict()) + "\n" for s in first.values())
    write_text(_folder(root, number) / f"{tick:05d}.jsonl", text)


def load_shown(root: Path, number: int, tick: int, prompts: Mapping[str, Prompt]) -> list[Shown]:
    """What was kept of a step, to prompts that are known; empty where nothing is, or it is damaged."""
    try:
        lines = (_folder(root, number) / f"{tick:05d}.jsonl").read_text(encoding="utf-8").splitlines()
        found = [Shown(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError):
        return []
    return [s for s in found if s.prompt_id in prompts]


def _folder(root: Path, number: int) -> Path:
    return root / "rounds" / f"r{number}" / "shown"
