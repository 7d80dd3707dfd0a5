"""Attention by plain products: what the fused kernel computes, and its gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from backflip.models import attention


def inputs(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Queries (2, 6, 5, 8), keys and values (2, 3, 9, 8) with gradient; a mask under which each query sees a key."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 5, 8), (2, 3, 9, 8), (2, 3, 9, 8))
    tensors = [torch.randn(s, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    mask = torch.rand(2, 1, 5, 9, generator=draw) < 0.5
    mask[..., 0] = True
    return tensors, mask


def test_it_is_the_fused_kernels_attention_with_its_gradients() -> None:
    (q, k, v), mask = inputs()
    weight = torch.randn(2, 6, 5, 8, generator=torch.Generator().manual_seed(1))
    ours = attention.attend(q, k, v, mask, 0.3)
    got = torch.autograd.grad((ours * weight).sum(), (q, k, v))
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    want = torch.autograd.grad((theirs * weight).sum(), (q, k, v))
    assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    for mine, other in zip(got, want, strict=True):
        assert_close(mine, other, atol=1e-6, rtol=1e-5)


def test_its_gradients_are_those_of_finite_differences() -> None:
    (q, k, v), mask = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attention.attend(*x, mask, 0.3), (q, k, v))


def test_half_precision_rounds_no_more_than_the_fused_kernel() -> None:
    (q, k, v), mask = inputs(torch.bfloat16)
    q, k, v = (x.detach() for x in (q, k, v))
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask, scale=0.3, enable_gqa=True)
    fused = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    ours = attention.attend(q, k, v, mask, 0.3)
    assert ours.dtype == torch.bfloat16
    assert float((ours - exact).abs().mean()) <= 1.5 * float((fused - exact).abs().mean())


def test_many_scores_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    (q, k, v), mask = inputs()
    short = attention.attend(q, k, v, mask, 0.3)
    monkeypatch.setattr(attention, "MOST_SCORES", 1)
    long = attention.attend(q, k, v, mask, 0.3)
    assert long.grad_fn is not None
    assert "_Plain" not in type(long.grad_fn).__name__
    assert_close(long, short, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("most", [1, 1 << 24])
def test_without_a_mask_a_token_sees_what_came_before(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    (q, _, _), _ = inputs()
    monkeypatch.setattr(attention, "MOST_SCORES", most)
    theirs = scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3)
    assert_close(attention.attend(q, q, q, None, 0.3), theirs, atol=1e-6, rtol=1e-5)
