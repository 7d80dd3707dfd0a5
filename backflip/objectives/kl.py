"""Kullback-Leibler divergence from policy to reference: estimates per token, the penalised reward, the controller.

With samples from the policy and d = logp - logp_ref, the mean of k1 and of k3 is KL(policy || reference).
As *losses* on such samples they differ, with s = grad logp:

- k1: the mean gradient E[s] is 0. It belongs into the reward (`token_rewards`), where it is exact.
- k2: E[d s] is the gradient of the KL, of one token. Summed over the tokens of an answer it leaves out that a token
  changes where the later ones begin: it is exact where an answer is one token, or is counted as a whole.
- k3: E[(1 - exp(-d)) s] is the gradient of KL(reference || policy), the other direction. Under rewards r and
  coefficient b it ends at ref * b / (c - r), c making it sum to 1, not at ref * exp(r / b) / Z. (Times the
  probability ratio, with its gradient, k3 would have that of k2: DeepSeek-V3.2, arXiv:2512.02556.)

Source: Schulman, "Approximating KL divergence", 2020 (joschu.net/blog/kl-approx.html); Vojnovic & Yun 2025
(arXiv:2502.18548) for where k3 ends.
"""

import math

import torch
from torch import Tensor

from backflip.objectives.masked import check, last_token


def k1(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """d, in nats. Unbiased; negative wherever the policy likes a token less than the reference. Any shape."""
    return logp - logp_ref


def k2(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """d^2 / 2, in nats. Biased as an estimate; as a loss its mean gradient is that of the KL. Any shape."""
    return 0.5 * (logp - logp_ref).square()


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """exp(-d) - 1 + d, in nats. Unbiased and never negative; overflows where d is below about -88. Any shape."""
    d = logp - logp_ref
    return torch.expm1(-d) + d


@torch.no_grad()
def token_rewards(score: Tensor, logp: Tensor, logp_ref: Tensor, mask: Tensor, coef: float) -> Tensor:
    """Reward of every token: -coef * k1, plus the answer's score on its last unmasked token.

    k1 is neither clamped at 0 nor differentiated: a token the policy likes less than the reference earns a bonus,
    and only so does the sum over an answer estimate its KL without bias.

    Shapes: score (B,) float; logp (of the policy that sampled), logp_ref (B, T) float; mask (B, T) bool,
    True on answer tokens, the stop token included. Returns (B, T), 0 where masked, no gradient.
    Units: score in units of reward, coef in reward per nat.
    Raises: ValueError when shapes or dtypes differ, a row has no token or a hole, or coef is negative or not finite.
    Source: Ziegler et al. 2019 (arXiv:1909.08593); Stiennon et al. 2020 (arXiv:2009.01325).
    """
    check(mask, logp=logp, logp_ref=logp_ref)
    if score.shape != mask.shape[:1]:
        raise ValueError(f"score is {tuple(score.shape)}, the mask has {mask.shape[0]} rows")
    if not 0 <= coef < math.inf:
        raise ValueError(f"coef must be a finite number, 0 or more, not {coef}")
    last = last_token(mask).unsqueeze(1)
    reward = (-coef * k1(logp, logp_ref)).masked_fill(~mask, 0.0)
    return reward.scatter_add(1, last, score.to(reward.dtype).unsqueeze(1))


def next_coefficient(coef: float, kl: float, target: float, n: int, horizon: int) -> float:
    """The KL coefficient after `n` more answers whose mean KL was `kl`; `kl` and `target` in nats per answer.

    coef * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon).

    Raises: ValueError when kl is not finite, coef, target or horizon is not above 0, or `n` lies outside
    [0, 5 * horizon) (the coefficient would reach 0).
    Source: Ziegler et al. 2019 (arXiv:1909.08593); there horizon is 10,000 answers.
    """
    if not (coef > 0 and target > 0 and horizon > 0):
        raise ValueError(f"coef, target and horizon must be above 0, not {coef}, {target}, {horizon}")
    if not math.isfinite(kl):
        raise ValueError(f"kl must be finite, not {kl}")
    if not 0 <= n < 5 * horizon:
        raise ValueError(f"n must lie in [0, {5 * horizon}), not {n}")
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * n / horizon)
