"""The reward model: a fitted linear head on the untouched model's hidden states. A `Scorer`.

Features of an answer: the final hidden state at its last real token (whether and how it ended), the mean
over its tokens of a middle layer (what it says), and five figures of its tokens (how long, how near the
request, how repetitive). The trunk never changes, so features are computed once per answer and serve every
later refit.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from backflip.core.records import Answer, Prompt
from backflip.models.chat import Chat
from backflip.rewards.classifier import token_features
from backflip.rewards.ensemble import Ensemble
from backflip.rewards.fit import Reward
from backflip.sampling.score import Reader, Reading
from backflip.stats.calibration import expected

Array = NDArray[np.float64]


def features_of(reading: Reading, chat: Chat, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Array:
    """(B, 2H + 5) features of B answers and their reading by the untouched model, with its one kept layer."""
    asked = {p.id: chat.encode(p) for p in prompts}
    tokens = [token_features(asked[p.id], a.tokens.tolist(), chat.frame) for p, a in zip(prompts, answers, strict=True)]
    (pooled,) = reading.pooled.values()
    return np.concatenate([reading.last.double().cpu().numpy(), pooled.double().cpu().numpy(), np.array(tokens)], 1)


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward with the reader of the trunk its features come from."""

    reward: Reward
    reader: Reader
    ensemble: Ensemble | None = None
    """Rewards fitted besides on resampled prompts, whose mean is `reward`; None for a reward that has none."""
    check: Reward | None = None
    """A second reward, on votes that this one has not seen, to watch a climb by; None where none were kept apart."""

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Array:
        """(B,) rewards; 0 is the untouched model's mean, 1 its standard deviation."""
        return self.reward.score(self._features(prompts, answers))

    def members(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Array:
        """(K, B) rewards by every member; (1, B) the reward itself where there are none."""
        features = self._features(prompts, answers)
        return self.reward.score(features)[None] if self.ensemble is None else self.ensemble.score(features)

    def spread(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Array:
        """(B,) how unsure the reward is of each answer: the members' standard deviation, 0 where there are none."""
        if self.ensemble is None:
            return np.zeros(len(answers))
        return self.ensemble.spread(self._features(prompts, answers))

    def foretold(self, gap: Array) -> Array:
        """(B,) chances, a tie half, that an answer is judged better than one whose reward is lower by `gap` (B,)."""
        return expected(gap * self.reward.slope, self.reward.tie)

    def watched(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> tuple[float, float]:
        """Means over answers: of their spread, and of the check's reward; NaN for what there is none of."""
        members = 1 if self.ensemble is None else len(self.ensemble.bias)
        if members < 2 and self.check is None:
            return math.nan, math.nan
        features = self._features(prompts, answers)
        spread = math.nan if self.ensemble is None or members < 2 else float(self.ensemble.spread(features).mean())
        return spread, math.nan if self.check is None else float(self.check.score(features).mean())

    def _features(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Array:
        reading = self.reader.reference(prompts, answers)
        return features_of(reading, self.reader.chat, prompts, answers)


def save_reward(reward: Reward, folder: Path) -> None:
    """Write the head into `folder` (`head.safetensors`, `head.json`)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"mean": reward.mean, "scale": reward.scale, "weight": reward.weight}, folder / "head.safetensors")
    facts = {"bias": reward.bias, "tie": reward.tie, "slope": reward.slope, "prior": reward.prior}
    (folder / "head.json").write_text(json.dumps(facts))


def load_reward(folder: Path) -> Reward:
    """The head `save_reward` wrote."""
    facts = json.loads((folder / "head.json").read_text())
    arrays = load_file(folder / "head.safetensors")
    return Reward(arrays["mean"], arrays["scale"], arrays["weight"], **facts)
