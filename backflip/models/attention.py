"""Attention of a few hundred tokens, forward and backward.

On a CPU the fused kernel's backward took a quarter of a second where plain products take a twelfth, so short
sequences are attended by plain products, each head group of a key at once; long ones, and other devices, by the fused
kernel, which never holds the scores.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_SCORES = 1 << 24
"""Attention weights a call may hold."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(B, heads, Tq, D) of queries (B, heads, Tq, D) over keys and values (B, kv, Tk, D), `heads` a multiple of `kv`.

    `mask` (B, 1, Tq, Tk) bool is True where a query sees a key; each query sees one at least. None: a query sees the
    keys up to its own place. The softmax is float32.
    """
    if q.device.type != "cpu" or q.shape[:3].numel() * k.shape[2] > MOST_SCORES:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
    if mask is None:
        mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return _Plain.apply(q, k, v, mask, scale)  # type: ignore[no-untyped-call, no-any-return]


class _Plain(torch.autograd.Function):
    """Softmax(q k') v with what the backward needs kept: the weights, in the type of the inputs."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        count, heads, length, width = q.shape
        acc = torch.promote_types(q.dtype, torch.float32)
        groups = k.shape[1]
        q3 = q.reshape(count * groups, heads // groups * length, width)  # the queries of a key's heads, one below other
        k3, v3 = (x.reshape(count * groups, -1, width) for x in (k, v))
        scores = torch.bmm(q3, k3.transpose(1, 2)).to(acc).mul_(scale)
        scores.view(count, heads, length, -1).masked_fill_(~mask, float("-inf"))
        weights = torch.softmax(scores, -1).to(q.dtype)
        out = torch.bmm(weights, v3)
        ctx.save_for_backward(q3, k3, v3, weights, out)
        ctx.scale, ctx.shapes = scale, (q.shape, k.shape)
        return out.view(q.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, weights, out = ctx.saved_tensors
        acc = torch.promote_types(q.dtype, torch.float32)
        got = grads[0].reshape(out.shape)
        dv = torch.bmm(weights.transpose(1, 2), got)
        slope = torch.bmm(got, v.transpose(1, 2)).to(acc)
        slope.sub_((got.to(acc) * out).sum(-1, keepdim=True)).mul_(weights).mul_(ctx.scale)
        slope = slope.to(q.dtype)
        dq, dk = torch.bmm(slope, k), torch.bmm(slope.transpose(1, 2), q)
        of_q, of_k = ctx.shapes
        return dq.view(of_q), dk.view(of_k), dv.view(of_k), None, None
