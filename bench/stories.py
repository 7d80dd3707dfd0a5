"""A world small enough to over-optimise in a minute: a story model, a true utility nobody tells it, and raters who err.

The model is a real one of 264 thousand weights that goes on with the beginning of a story. What an answer is worth is a
sum of four attributes, each standardised on the untouched model's answers: warm words, no phrase twice, three
sentences, and that the untouched model finds it likely. Raters prefer the better of two with logistic noise, and a
quarter of their votes is flipped. Everything that learns is the package's own: reward, RLOO, alarm.
"""

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from climbs import World, prefers
from numpy.typing import NDArray
from table import ROOT, code
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from backflip.core.records import Answer, Feedback, Prompt
from backflip.core.rng import generator
from backflip.models.chat import open_chat
from backflip.models.load import load_model
from backflip.policies.plan import PPO, Optimise
from backflip.rewards.ensemble import Ensemble
from backflip.rewards.fit import Fitted, emphasis, fit_votes
from backflip.rewards.model import RewardModel, features_of
from backflip.rewards.plan import Fit
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader

Array = NDArray[np.float64]
TOKENS = 48
KEPT = ROOT / "bench" / "out"
LEARNING_RATE = 2e-4
FARTHEST = 3.0
"""Standard deviations beyond which no attribute counts: or a few answers, 20 below, would be all that gold is about."""
HEROES = [
    ("girl", "Lily"), ("boy", "Tim"), ("dog", "Max"), ("cat", "Mia"), ("bird", "Sue"), ("bear", "Ben"),
    ("rabbit", "Anna"), ("boy", "Tom"),
]  # fmt: skip
OPENINGS = [
    "Once upon a time, there was a little {0} named {1}.",
    "One day, a {0} named {1} went to the park.",
    "{1} was a {0}. One day, {1} was very sad because",
    "{1} and mom went to the store. They saw",
    "It was raining and {1} the {0} could not play.",
    "{1} found a big box in the garden. Inside the box",
    '"Look at that!" said {1} to the {0}. They',
    "One night, {1} heard a loud noise.",
]
PROMPTS = [
    Prompt(id=f"{n}-{m}", split="train", text=o.format(*h))
    for n, o in enumerate(OPENINGS)
    for m, h in enumerate(HEROES)
]
ATTRIBUTES = ("warmth", "variety", "sentences", "likelihood")
_LEXICON: dict[str, float] = SentimentIntensityAnalyzer().lexicon
_WORD, _END = re.compile(r"[a-z']+"), re.compile(r"[.!?]")


def attributes(text: str, tokens: Sequence[int], logp: float) -> tuple[float, ...]:
    """The four attributes of an answer, `logp` being the untouched model's, a token."""
    words = _WORD.findall(text.lower())
    pairs = list(pairwise(tokens))
    warmth = sum(_LEXICON.get(w, 0.0) for w in words) / max(len(words), 1)
    return warmth, len(set(pairs)) / max(len(pairs), 1), -abs(len(_END.findall(text)) - 3.0), logp


class Bank(NamedTuple):
    """Answers of the untouched model, one prompt's together: texts, features (N, F) and attributes (N, 4)."""

    texts: list[str]
    features: Array
    attributes: Array


class Stories:
    """The story model, its answers, and what they are worth."""

    def __init__(self, folder: Path, answers: int = 160) -> None:
        """`answers` to each prompt fix the scales, and are what raters are shown."""
        self.loaded = load_model(str(folder), dtype=torch.float32)
        self.chat = open_chat(self.loaded)
        self.reader = Reader(self.loaded.trunk, self.chat, micro=256)
        self.engine = Engine(lambda _: self.loaded.trunk, self.chat, batch=256)
        self.engine.load("reference")
        self.rated = self.bank(answers, seed=1)
        self.mean, self.scale = self.rated.attributes.mean(0), self.rated.attributes.std(0)
        raw = self.standard(self.rated.attributes).sum(1)
        self.zero, self.unit = float(raw.mean()), float(raw.std())

    def world(self, kl_coef: float = 0.0) -> World:
        """What a climb needs: RLOO on every weight of the layers, 64 answers a step, a fixed KL coefficient."""
        config = PPO(
            prompts=8, answers=8, minibatches=1, rank=0, adapted=1.0, learning_rate=LEARNING_RATE,
            missing_end_penalty=0.0, kl_coef=max(kl_coef, 1e-9), kl_horizon=10**9, micro=64,
        )  # fmt: skip
        how = Optimise(by="rloo")
        return World(self.loaded, self.chat, self.reader, PROMPTS, TOKENS, self.judge, ATTRIBUTES, config, how)

    def bank(self, n: int, seed: int) -> Bank:
        """`n` answers to each prompt; kept on the disk, for every part of a benchmark asks for the same."""
        file = KEPT / f"stories-{code()}-{n}-{seed}.npz"
        if not file.exists():
            KEPT.mkdir(parents=True, exist_ok=True)
            drawn = self._draw(n, seed)
            part = file.with_suffix(f".{os.getpid()}.npz")
            np.savez(part, texts=np.array(drawn.texts), features=drawn.features, attributes=drawn.attributes)
            part.replace(file)
        with np.load(file) as kept:
            return Bank(kept["texts"].tolist(), kept["features"], kept["attributes"])

    def _draw(self, n: int, seed: int) -> Bank:
        by_id = {p.id: p for p in PROMPTS}
        said = [a for b in self.engine.sample(PROMPTS, n, seed=seed, max_tokens=TOKENS) for a in b]
        asked = [by_id[a.prompt_id] for a in said]
        parts = [self._read(asked[at : at + 1024], said[at : at + 1024]) for at in range(0, len(said), 1024)]
        return Bank([a.text for a in said], *(np.concatenate(x) for x in zip(*parts, strict=True)))

    def _read(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> tuple[Array, Array]:
        """(features (B, F), attributes (B, 4))."""
        reading = self.reader.reference(prompts, answers)
        logp = (reading.logp.sum(1) / reading.mask.sum(1)).tolist()
        found = [attributes(a.text, a.tokens.tolist(), x) for a, x in zip(answers, logp, strict=True)]
        return features_of(reading, self.chat, prompts, answers), np.array(found)

    def standard(self, attributes: Array) -> Array:
        """(N, 4) attributes in standard deviations of the untouched model's answers from their mean, at most 3."""
        return np.asarray(np.clip((attributes - self.mean) / self.scale, -FARTHEST, FARTHEST))

    def gold(self, attributes: Array) -> Array:
        """(N,) true utility, mean 0 and standard deviation 1 among the untouched model's answers."""
        return np.asarray((self.standard(attributes).sum(1) - self.zero) / self.unit)

    def judge(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> tuple[Array, Array]:
        """(gold (B,), standardised attributes (B, 4))."""
        found = self._read(prompts, answers)[1]
        return self.gold(found), self.standard(found)

    def votes(self, count: int, seed: int, gold: Array | None = None) -> list[Feedback]:
        """`count` judgements on pairs of answers to the same prompt; by `gold` (N,) of the rated answers."""
        luck = generator(seed, "votes")
        worth = self.gold(self.rated.attributes) if gold is None else gold
        each = len(worth) // len(PROMPTS)
        place = np.concatenate([p * each + luck.permutation(each) for p in range(len(PROMPTS))]).reshape(-1, 2)
        if count > len(place):
            raise ValueError(f"{count} votes need as many pairs, and there are {len(place)}")
        return [
            Feedback(a=int(a), b=int(b), choice="a" if prefers(worth[a] - worth[b], luck) else "b", rater_id="crowd")
            for a, b in place[luck.permutation(len(place))[:count]]
        ]

    def owners(self) -> list[str]:
        """(N,) the prompt of each rated answer."""
        return [p.id for p in PROMPTS for _ in range(len(self.rated.texts) // len(PROMPTS))]

    def fit(self, votes: list[Feedback], seed: int, **plan: Any) -> Fitted:
        """The package's reward, fitted to votes on the rated answers."""
        f, owner = self.rated.features, self.owners()
        settings = {"raters": "equal", "prior": (10.0, 30.0, 100.0, 300.0, 1000.0), "members": 1} | plan
        return fit_votes(f, votes, owner, f, Fit(**settings), seed=seed, emphasis=emphasis(f.shape[1]))

    def scorer(self, fitted: Fitted, members: Ensemble | None = None) -> RewardModel:
        """A fitted reward as a climb takes it."""
        return RewardModel(fitted.reward, self.reader, members)
