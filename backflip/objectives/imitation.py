"""Imitation: make the answers that were given more likely."""

from torch import Tensor

from backflip.objectives.masked import check, token_count


def imitation_loss(logp: Tensor, mask: Tensor, *, tokens: int | float | None = None) -> Tensor:
    """Mean of -logp over the answer tokens; at its minimum the policy's law is that of the data.

    Shapes: logp (B, T) float; mask (B, T) bool, True on answer tokens. Returns a scalar with gradient.
    Units: nats per token. `tokens` counts the unmasked tokens of the *whole* batch: the losses of its parts then add
    up to the loss of one big batch. Left out, it is this batch's own count.
    Raises: ValueError when shapes or dtypes differ or there is no token to average over.
    """
    check(mask, logp=logp)
    return -logp.masked_fill(~mask, 0.0).sum() / token_count(mask, tokens)
