"""Log-probabilities of given tokens, in float32, without ever holding the logits of a whole batch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from backflip.models.linear import linear

CHUNK = 256
"""Rows of logits alive at a time."""


class TokenLogp(NamedTuple):
    """`logp` (N,) of the targets and `entropy` (N,), both in nats, float32. Gradient flows through `logp` only."""

    logp: Tensor
    entropy: Tensor


class _RowLogp(torch.autograd.Function):
    """d logp / d hidden = (W[target] - E_p[W]) / T, formed in the forward, so that no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
    ) -> Any:
        n = hidden.shape[0]
        logp = torch.empty(n, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logp)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for at in range(0, n, CHUNK):
            rows = slice(at, at + CHUNK)
            scores = linear(hidden[rows], weight, bias).float()
            if temperature != 1:
                scores.div_(temperature)
            scores.sub_(scores.amax(1, keepdim=True))  # few passes: a chunk's scores do not fit into the cache
            p = torch.exp(scores)
            total = p.sum(1)
            logp[rows] = scores.gather(1, targets[rows, None])[:, 0] - total.log()
            # the likeliest token has score 0: what weighs in the sum is near it, so that it keeps its digits
            entropy[rows] = total.log() - torch.bmm(p[:, None], scores[:, :, None])[:, 0, 0] / total
            if slope is not None:
                share = p.div_(total[:, None]).to(weight.dtype)
                slope[rows] = (weight[targets[rows]] - share @ weight) / temperature
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (slope,) = ctx.saved_tensors
        return (grads[0][:, None] * slope).to(slope.dtype), None, None, None, None


def token_logp(
    hidden: Tensor, head: tuple[Tensor, Tensor | None], targets: Tensor, temperature: float = 1.0
) -> TokenLogp:
    """Log-probability of each target under softmax(hidden W' / temperature).

    Shapes: hidden (N, H), targets (N,) int64. The head's weight is taken as constant: no gradient reaches it.
    Raises: ValueError when a target lies outside the vocabulary.
    """
    weight, bias = head
    if targets.numel() and (int(targets.min()) < 0 or int(targets.max()) >= weight.shape[0]):
        raise ValueError(f"targets must lie in 0..{weight.shape[0] - 1}")
    logp, entropy = _RowLogp.apply(hidden, weight, bias, targets, temperature)  # type: ignore[no-untyped-call]
    return TokenLogp(logp, entropy)
