"""Fit a linear reward on fixed features to votes: Bradley-Terry with ties, exact and in seconds.

The features are standardised on the untouched model's answers, the weights carry a normal prior whose
strength is chosen by cross-validation over prompts, and the finished reward has mean 0 and standard
deviation 1 on the untouched model's answers, after every refit, so that a KL coefficient and a critic
mean the same from round to round.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from backflip.core.errors import DataError
from backflip.core.records import Feedback
from backflip.core.rng import generator
from backflip.objectives.preference import bradley_terry_loss, encode
from backflip.rewards.plan import Fit

__all__ = ["Fit", "Reward", "fit_reward", "require_preference"]

Array = NDArray[np.float64]
TIE_START = 0.1
"""Logits; where the search for the tie threshold begins."""
TINY = 1e-6
"""Features that vary less than this among the untouched model's answers keep their own scale."""


class Reward(NamedTuple):
    """A fitted linear reward: (features - mean) / scale @ weight + bias.

    Shapes: mean, scale, weight (F,). `tie` is the threshold of a tie in units of reward times `slope`;
    `slope` turns a reward gap into logits, so that P(a beats b) can be read off the normalised reward.
    """

    mean: Array
    scale: Array
    weight: Array
    bias: float
    tie: float
    slope: float
    prior: float

    def score(self, features: Array) -> Array:
        """(B,) rewards of features (B, F)."""
        return np.asarray((features - self.mean) / self.scale @ self.weight + self.bias)


def fit_reward(
    features: Array,
    feedback: Sequence[Feedback],
    prompt: Sequence[str],
    reference: Array,
    config: Fit,
    *,
    seed: int,
    emphasis: Array | None = None,
) -> Reward:
    """Fit a reward to votes on answers with these features.

    Shapes: features (B, F), the answers' features that `feedback` indexes; prompt (B,), the prompt of each
    answer; reference (R, F), features of the untouched model's answers, which fix mean 0 and std 1;
    emphasis (F,), how strongly each standardised feature counts (None: all alike).
    Raises: DataError when there is no vote to learn from, or every one of them is a tie.
    Source: Bradley & Terry 1952; ties after Rao & Kupper 1967; normalisation Ziegler et al. 2019
    (arXiv:1909.08593).
    """
    feedback = [f for f in feedback if f.weight > 0]
    require_preference([f.choice for f in feedback])
    mean, std = reference.mean(0), reference.std(0)
    scale = np.where(std > TINY, std, 1.0)  # what never varies there cannot be standardised
    if emphasis is not None:
        scale = scale / emphasis
    z = (features - mean) / scale
    gaps = np.stack([z[f.a] - z[f.b] for f in feedback])
    choice, weight = [f.choice for f in feedback], np.array([f.weight for f in feedback])
    folds = _folds([prompt[f.a] for f in feedback], config.folds, seed)
    losses = {p: _held_out_loss(gaps, choice, weight, folds, p) for p in config.prior}
    best = min(losses, key=lambda p: losses[p])
    w, tie = _maximise(gaps, choice, weight, best)
    raw = (reference - mean) / scale @ w
    slope = float(raw.std()) or 1.0
    return Reward(mean, scale, w / slope, -float(raw.mean()) / slope, tie, slope, best)


def require_preference(choices: Sequence[str]) -> None:
    """Refuse votes that no reward can be fitted on. Raises: DataError when there is no vote, or only ties."""
    decided = [c for c in choices if c in ("a", "b", "tie")]
    if not decided:
        raise DataError(
            "There are no votes to fit a reward on.\n"
            "Nobody has judged a pair yet, or every vote was a skip or was taken back.\n"
            "Rate some pairs, then start again with the same command."
        )
    if all(c == "tie" for c in decided):
        raise DataError(
            f"All {len(decided)} votes are ties: there is no preference to learn from.\n"
            "The answers may be too alike, or the raters' tie width too large.\n"
            "Sample at a higher temperature, or rate more pairs."
        )


def _maximise(gaps: Array, choice: Sequence[str], weight: Array, prior: float) -> tuple[Array, float]:
    """Weights (F,) and tie threshold of highest posterior, by L-BFGS with a line search.

    With fewer votes than features the search runs in the span of the gaps, where the optimum lies.
    """
    basis = np.linalg.qr(gaps.T)[0] if gaps.shape[0] < gaps.shape[1] else np.eye(gaps.shape[1])
    x = torch.from_numpy(gaps @ basis)
    codes, trust = encode(choice), torch.from_numpy(weight)
    tied = "tie" in choice
    total = float(weight.sum())

    def loss(theta: Array) -> tuple[float, Array]:
        v = torch.tensor(theta, requires_grad=True)
        tie = v[-1].exp() if tied else 0.0
        value = total * bradley_terry_loss(x @ v[:-1], codes, tie, trust).loss + 0.5 * prior * v[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        gradient = v.grad if v.grad is not None else torch.zeros_like(v)
        return float(value.detach()), gradient.numpy()

    start = np.concatenate([np.zeros(x.shape[1]), [np.log(TIE_START)]])
    bounds = [(None, None)] * x.shape[1] + [(-8.0, 3.0)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    return basis @ found.x[:-1], float(np.exp(found.x[-1])) if tied else 0.0


def _folds(prompts: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """(P,) fold of each vote; the votes on one prompt share a fold."""
    names = sorted(set(prompts))
    order = generator(seed, "folds").permutation(len(names))
    fold = {name: int(order[i]) % min(count, max(2, len(names))) for i, name in enumerate(names)}
    return np.array([fold[p] for p in prompts])


def _held_out_loss(gaps: Array, choice: Sequence[str], weight: Array, folds: NDArray[np.int64], prior: float) -> float:
    """Mean negative log-likelihood of left-out folds, nats per vote. Ties there count with the fitted threshold."""
    total, count = 0.0, 0.0
    for k in np.unique(folds):
        out = folds == k
        kept = [c for c, o in zip(choice, out, strict=True) if not o]
        if out.all() or all(c == "tie" for c in kept):
            continue
        w, tie = _maximise(gaps[~out], kept, weight[~out], prior)
        left = [c for c, o in zip(choice, out, strict=True) if o]
        loss = bradley_terry_loss(
            torch.from_numpy(gaps[out] @ w), encode(left), max(tie, 1e-3), torch.from_numpy(weight[out])
        ).loss
        total, count = total + float(loss) * float(weight[out].sum()), count + float(weight[out].sum())
    return total / count if count else 0.0
