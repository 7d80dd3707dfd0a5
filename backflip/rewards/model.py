"""The reward model: a fitted linear head on the untouched model's hidden states. A `Scorer`.

Features of an answer: the final hidden state at its last real token (whether and how it ended), and the
mean over its tokens of a middle layer (what it says). The trunk never changes, so features are computed
once per answer and serve every later refit.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from backflip.core.records import Answer, Prompt
from backflip.rewards.fit import Reward
from backflip.sampling.score import Reader, Reading, middle_layer

Array = NDArray[np.float64]


def features_of(reading: Reading, layer: int) -> Array:
    """(B, 2H) features of a reading by the untouched model that kept `layer`."""
    return np.concatenate([reading.last.double().cpu().numpy(), reading.pooled[layer].double().cpu().numpy()], 1)


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward with the reader of the trunk its features come from."""

    reward: Reward
    reader: Reader

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Array:
        """(B,) rewards; 0 is the untouched model's mean, 1 its standard deviation."""
        layer = middle_layer(self.reader.trunk.layers)
        return self.reward.score(features_of(self.reader.reference(prompts, answers), layer))


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
