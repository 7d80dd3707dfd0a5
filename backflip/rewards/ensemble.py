"""Several rewards from the same votes, fitted on resampled prompts: how far they part is how little the votes say.

The members are centred on the fit of all votes: their mean is that reward, and what PPO climbs.
Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 6; for rewards Christiano et al. 2017
(arXiv:1706.03741), section 2.2.4, and Coste et al. 2024 (arXiv:2310.02743).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from backflip.core.rng import generator
from backflip.rewards.fit import Fitted, learned_again, teaches
from backflip.rewards.plan import Fit
from backflip.stats.evidence import Evidence

Array = NDArray[np.float64]
FILE = "members.safetensors"
REDRAWS = 100
"""Resamples that are tried until one holds a preference; a fit on two prompts may need some."""


class Ensemble(NamedTuple):
    """K linear rewards on the same features: reward k is (features - mean) / scale @ weight[k] + bias[k].

    Shapes: mean, scale (F,), weight (K, F), bias (K,). Each has mean 0 on the untouched model's answers; their mean has
    standard deviation 1 there.
    """

    mean: Array
    scale: Array
    weight: Array
    bias: Array

    def score(self, features: Array) -> Array:
        """(K, B) rewards of features (B, F) by every member."""
        return np.asarray(self.weight @ ((features - self.mean) / self.scale).T + self.bias[:, None])

    def spread(self, features: Array) -> Array:
        """(B,) standard deviation over the members, 0 where there is only one."""
        score = self.score(features)
        return np.asarray(score.std(0, ddof=1) if len(score) > 1 else np.zeros(score.shape[1]))


def fit_ensemble(fitted: Fitted, reference: Array, config: Fit, *, seed: int) -> Ensemble:
    """`config.members` rewards around a fit, each on a resample of its prompts and, if asked for, of its features.

    Shapes: reference (R, F), features of the untouched model's answers. How far raters differ is taken from the fit;
    what each is like is learned anew. Member k depends on (seed, k) alone.
    """
    reward = fitted.reward
    z = (reference - reward.mean) / reward.scale
    if config.members == 1:
        weight = reward.weight[None]
    else:
        each = [_member(fitted, config, seed, k) for k in range(config.members)]
        own = np.array([w / (float((z @ w).std()) or 1.0) for w in each])
        weight = reward.weight + own - own.mean(0)
    return Ensemble(reward.mean, reward.scale, weight, -(z @ weight.T).mean(0))


def _member(fitted: Fitted, config: Fit, seed: int, k: int) -> Array:
    """(F,) weights of one member."""
    luck = generator(seed, "member", k)
    evidence = resampled(fitted, luck)
    basis, rows = fitted.basis, fitted.rows
    if config.member_features < 1:
        size = len(basis)
        seen = np.zeros(size)
        seen[luck.permutation(size)[: max(1, round(config.member_features * size))]] = 1.0
        wide = rows @ basis.T * seen  # gaps are kept exactly, and rewards up to a constant
        basis = np.linalg.qr(wide.T)[0] if len(wide) < size else np.eye(size)
        rows = wide @ basis
    start = fitted.crowd if config.member_features == 1 else None
    return np.asarray(basis @ learned_again(fitted, rows, evidence, start).weight)


def resampled(fitted: Fitted, luck: np.random.Generator) -> Evidence:
    """The evidence with each prompt's judgements counted as often as the prompt is drawn; some preference is left."""
    names = {p: i for i, p in enumerate(dict.fromkeys(fitted.prompt))}
    owner = np.array([names[p] for p in fitted.prompt])
    pairs, thumbs = fitted.evidence.pairs, fitted.evidence.thumbs
    assert pairs is not None
    assert pairs.weight is not None
    for _ in range(REDRAWS):
        times = np.bincount(luck.integers(len(names), size=len(names)), minlength=len(names)).astype(np.float64)
        drawn = fitted.evidence._replace(pairs=pairs._replace(weight=pairs.weight * times[owner[pairs.a]]))
        if thumbs is not None:
            drawn = drawn._replace(thumbs=thumbs._replace(weight=times[owner[thumbs.item]]))
        if teaches(drawn):
            return drawn
    return fitted.evidence


def save_ensemble(ensemble: Ensemble, folder: Path) -> None:
    """Write the members beside the reward's head in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(a) for name, a in ensemble._asdict().items()}, folder / FILE)


def load_ensemble(folder: Path) -> Ensemble | None:
    """The members `save_ensemble` wrote; None beside a reward that was fitted before there were any."""
    return Ensemble(**load_file(folder / FILE)) if (folder / FILE).exists() else None
