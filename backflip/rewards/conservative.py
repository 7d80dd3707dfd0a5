"""What a climb is paid by where the plan is wary of its reward: members' agreement, and nothing for length alone.

Source: Coste et al. 2023, "Reward model ensembles help mitigate overoptimization" (arXiv:2310.02743), section 4: the
worst case (WCO) is the lowest member, uncertainty weighting (UWO) the mean less a coefficient times the variance.
That length alone is what a reward learns first: Singhal et al. 2023 (arXiv:2310.03716).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.records import Answer, Prompt
from backflip.rewards.model import RewardModel
from backflip.rewards.plan import Fit

Array = NDArray[np.float64]


def combined(members: Array, config: Fit) -> Array:
    """(B,) one reward from members' (K, B), as `fit.conservative` says; units of the reward, of its square for UWO."""
    if config.conservative == "worst":
        return np.asarray(members.min(0))
    if config.conservative == "uncertainty":
        return np.asarray(members.mean(0) - config.uncertainty * members.var(0))
    return np.asarray(members.mean(0))


def per_token(score: Array, length: Array) -> float:
    """Slope of scores (B,) on lengths (B,) in tokens, by least squares; 0 where all are equally long."""
    apart = length - length.mean()
    return float(apart @ score / (apart @ apart)) if np.ptp(length) > 0 else 0.0


class Caution(NamedTuple):
    """How members' rewards and lengths become what is paid."""

    config: Fit
    per_token: float
    """Reward that a token more brings on the sampled answers, and that is not paid."""
    offset: float
    """Taken off, so that the untouched model's mean is 0 again."""

    def pay(self, members: Array, length: Array) -> Array:
        """(B,) from members' rewards (K, B) and lengths (B,) in tokens."""
        return np.asarray(combined(members, self.config) - self.per_token * length - self.offset)


class Scored(NamedTuple):
    """Answers as the members score them: members (K, B), length (B,) in tokens."""

    members: Array
    length: Array


def caution(config: Fit, sampled: Scored, reference: Scored) -> Caution:
    """The caution that `config` asks for; length's effect is measured on the round's `sampled` answers.

    `reference` are the untouched model's.
    """
    slope = per_token(combined(sampled.members, config), sampled.length) if config.length_free else 0.0
    start = Caution(config, slope, 0.0)
    return start._replace(offset=float(start.pay(*reference).mean()))


@dataclass(frozen=True, eq=False)
class Paid:
    """A reward model read with caution. A `Scorer`."""

    model: RewardModel
    caution: Caution

    def score(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Array:
        """(B,) what is paid; 0 is the untouched model's mean, 1 about its standard deviation."""
        length = np.array([float(len(a.tokens)) for a in answers])
        return self.caution.pay(self.model.members(prompts, answers), length)
