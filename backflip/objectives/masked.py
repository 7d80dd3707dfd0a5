"""Checks and averages over the answer tokens of a padded batch. Masks are explicit, never derived from pad ids."""

import torch
from torch import Tensor


def check(mask: Tensor, **others: Tensor) -> None:
    """Refuse tensors that do not fit the mask.

    Shapes: mask is (B, T) bool; each of `others` is (B, T) float32 or float64.
    Raises: ValueError naming the tensor.
    """
    if mask.dtype != torch.bool or mask.ndim != 2 or mask.numel() == 0:
        raise ValueError(f"mask must be (B, T) bool, not {tuple(mask.shape)} {mask.dtype}")
    for name, x in others.items():
        if x.shape != mask.shape:
            raise ValueError(f"{name} is {tuple(x.shape)}, the mask is {tuple(mask.shape)}")
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {x.dtype}: compute it in float32, half precision loses the ratio")


def token_count(mask: Tensor, tokens: int | float | None) -> float:
    """What a token mean divides by: `tokens` where given, else the unmasked tokens of this batch.

    Raises: ValueError when that is not above 0.
    """
    count = float(mask.sum()) if tokens is None else float(tokens)
    if not count > 0:
        raise ValueError("a mean over tokens needs at least one: no token is unmasked, or `tokens` is not above 0")
    return count


def last_token(mask: Tensor) -> Tensor:
    """(B,) int64 position of each row's last unmasked token.

    Raises: ValueError when a row has no unmasked token, or a hole between two of them.
    """
    one_run(mask)
    if not mask.any(dim=1).all():
        raise ValueError("an answer has no token: every row needs at least one unmasked token")
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)


def one_run(mask: Tensor) -> None:
    """Refuse a mask with a hole. Raises: ValueError."""
    starts = mask[:, :1].sum(dim=1) + (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1)
    if (starts > 1).any():
        raise ValueError("the mask has a hole: the tokens of an answer must lie side by side")
