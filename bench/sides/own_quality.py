"""Backflip's PPO in the race to a share of wins, with the demo's settings; and the untouched model's answers."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from race import Race, valence
from serve import Phases, Turn, serve

from backflip.core.records import Answer, Prompt
from backflip.models.chat import open_chat
from backflip.models.load import DEMO_MODEL, load_model
from backflip.policies import ppo
from backflip.policies.plan import PPO
from backflip.policies.rollout import Scores, Tools
from backflip.policies.state import fresh_state
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader
from backflip.tasks.requests import load_requests


class Warmth:
    """A `Scorer`: what the race rewards."""

    def __init__(self, race: Race) -> None:
        self.race = race

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Scores:
        """(B,) rewards."""
        return np.array(self.race.reward([a.text for a in answers]))


def split() -> tuple[list[Prompt], list[Prompt]]:
    """The demo's prompts: those to learn on, and those held out."""
    every = load_requests()
    return [p for p in every if p.split == "train"], [p for p in every if p.split != "train"]


def untouched(settings: dict[str, Any]) -> Turn:
    """Valences of the untouched model's answers to both kinds of prompts, and the prompts' tokens."""
    loaded = load_model(DEMO_MODEL)
    chat = open_chat(loaded)
    engine = Engine(lambda _: loaded.trunk, chat)
    engine.load("reference")
    asked = [p[: settings["prompts"]] for p in split()]

    def found(prompts: list[Prompt], n: int) -> list[list[float]]:
        said = [a for b in engine.sample(prompts, n, seed=1, max_tokens=settings["new"]) for a in b]
        return [[valence(a.text) for a in said[i : i + n]] for i in range(0, len(said), n)]

    def turn() -> dict[str, Any]:
        train, held_out = (found(p, n) for p, n in zip(asked, (1, 2), strict=True))
        train_ids, held_out_ids = ([chat.encode(p) for p in prompts] for prompts in asked)
        return {
            "tokens": 0, "mean": float(np.mean(train)), "std": float(np.std(train)), "untouched": held_out,
            "train_ids": train_ids, "held_out_ids": held_out_ids,
        }  # fmt: skip

    return turn


def climb(settings: dict[str, Any]) -> Turn:
    """PPO on the valence of its answers; one turn is the whole race."""
    race = Race(settings)
    loaded = load_model(DEMO_MODEL)
    chat, config, seed = open_chat(loaded), PPO(missing_end_penalty=0.0), settings["seed"]
    train, held_out = (p[: settings["prompts"]] for p in split())
    state = fresh_state(loaded.trunk, config, seed)
    engine = Engine(lambda _: loaded.trunk.merged(state.adapter), chat)
    tools = Tools(engine, Reader(loaded.trunk, chat, micro=config.micro), Warmth(race), train)

    def answers() -> list[str]:
        engine.load("held-out")
        said = engine.sample(held_out, 1, seed=1_000 + state.step, max_tokens=settings["new"])
        return [a.text for batch in said for a in batch]

    def turn() -> dict[str, Any]:
        episodes = 0
        for step in ppo.climb(state, tools, config, seed=seed, max_tokens=settings["new"], until=100_000):
            episodes += len(step.answers)
            if race.over(episodes, answers):
                break
        return {"tokens": 0, "curve": race.curve}

    return turn


def prepare(settings: dict[str, Any], _: Phases) -> Turn:
    """What `settings` ask for, ready for its one turn."""
    torch.set_num_threads(settings["threads"])
    return untouched(settings) if settings["work"] == "untouched" else climb(settings)


if __name__ == "__main__":
    serve(prepare)
