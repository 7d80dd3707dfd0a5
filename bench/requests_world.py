"""The demo's world for climbs: SmolLM2-135M, its requests, and their true utility, standardised."""

from collections.abc import Sequence

import numpy as np
import torch
from climbs import World, prefers
from numpy.typing import NDArray

from backflip.core.records import Answer, Feedback, Prompt
from backflip.core.rng import generator
from backflip.models.chat import open_chat
from backflip.models.load import DEMO_MODEL, load_model
from backflip.policies.plan import PPO, Optimise
from backflip.rewards.fit import Fitted, emphasis, fit_votes
from backflip.rewards.model import RewardModel, features_of
from backflip.rewards.plan import Fit
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader
from backflip.tasks.requests import RequestUtility, load_requests

Array = NDArray[np.float64]
TOKENS, ANSWERS = 40, 2
LEARNING_RATE = 5e-4
"""A third of the demo's, so that a climb without a leash takes some steps to its end."""


class Requests:
    """SmolLM2 and two of its answers to each of the demo's requests to learn on."""

    def __init__(self) -> None:
        self.loaded = load_model(DEMO_MODEL, dtype=torch.bfloat16)
        self.chat = open_chat(self.loaded)
        self.reader = Reader(self.loaded.trunk, self.chat, micro=24)
        self.prompts = [p for p in load_requests() if p.split == "train"]
        self.utility = RequestUtility()
        engine = Engine(lambda _: self.loaded.trunk, self.chat)
        engine.load("reference")
        self.answers = [a for b in engine.sample(self.prompts, ANSWERS, seed=1, max_tokens=TOKENS) for a in b]
        self.asked = [p for p in self.prompts for _ in range(ANSWERS)]
        self.features = np.concatenate([self._features(slice(at, at + 48)) for at in range(0, len(self.asked), 48)])
        values, parts = self._judged(self.asked, self.answers)
        self.mean, self.scale = (values.mean(), values.std()), (parts.mean(0), parts.std(0))

    def world(self) -> World:
        """What a climb needs: PPO as the demo takes it, without its leash."""
        config = PPO(kl_coef=1e-9, kl_horizon=10**9, learning_rate=LEARNING_RATE)
        return World(
            self.loaded, self.chat, self.reader, self.prompts, TOKENS, self.judge, self.utility.names, config,
            Optimise(),
        )  # fmt: skip

    def judge(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> tuple[Array, Array]:
        """(gold (B,), standardised attributes (B, A))."""
        values, parts = self._judged(prompts, answers)
        return (values - self.mean[0]) / self.mean[1], (parts - self.scale[0]) / self.scale[1]

    def learned(self, count: int, seed: int) -> RewardModel:
        """The package's reward, fitted to `count` votes on the untouched model's answers."""
        luck = generator(seed, "votes")
        gold = self.judge(self.asked, self.answers)[0]
        firsts = luck.permutation(len(self.prompts))[:count] * ANSWERS
        votes = [
            Feedback(
                a=int(i), b=int(i) + 1, choice="a" if prefers(gold[i] - gold[i + 1], luck) else "b", rater_id="crowd"
            )
            for i in firsts
        ]
        f, owner = self.features, [p.id for p in self.asked]
        fitted: Fitted = fit_votes(
            f, votes, owner, f, Fit(raters="equal", members=1), seed=seed, emphasis=emphasis(f.shape[1])
        )  # fmt: skip
        return RewardModel(fitted.reward, self.reader)

    def _features(self, rows: slice) -> Array:
        prompts, answers = self.asked[rows], self.answers[rows]
        return features_of(self.reader.reference(prompts, answers), self.chat, prompts, answers)

    def _judged(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> tuple[Array, Array]:
        found = [self.utility.judge(p, a.text, a.ended) for p, a in zip(prompts, answers, strict=True)]
        return np.array([j.value for j in found]), np.array([list(j.attributes.values()) for j in found])
