"""Products with laid-out weights are the plain products to the bit, and know when a weight has changed or gone."""

import gc

import pytest
import torch

from backflip.models import linear as module
from backflip.models.linear import linear

SHAPES = [(1, 24, 40), (3, 576, 960), (64, 96, 64), (200, 64, 33)]


def bf16(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that were laid out; the test is void where the machine has no such layouts."""
    if not all(map(module.available, module.SERVED)):
        monkeypatch.setattr(module, "available", lambda _: True)
        monkeypatch.setattr(module, "_product", lambda x, w, b: torch.nn.functional.linear(x, module._layout(w), b))
    seen: list[tuple[int, ...]] = []
    ops = torch.ops.mkldnn if hasattr(torch.ops.mkldnn, "_reorder_linear_weight") else None
    real = ops._reorder_linear_weight if ops else lambda w, rows: w.clone()

    def counting(weight: torch.Tensor, rows: int) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return real(weight, rows)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", counting, raising=False)
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_the_plain_one_to_the_bit(shape, bias):
    rows, fan_in, out = shape
    x, w = bf16(rows, fan_in), bf16(out, fan_in, seed=1)
    b = bf16(out, seed=2) if bias else None

    assert torch.equal(linear(x, w, b), torch.nn.functional.linear(x, w, b))


def test_the_gradient_is_the_plain_one():
    x, w, up = bf16(20, 32).requires_grad_(), bf16(48, 32, seed=1), bf16(20, 48, seed=2)
    [mine] = torch.autograd.grad(linear(x, w), x, up)
    [plain] = torch.autograd.grad(torch.nn.functional.linear(x, w), x, up)

    assert torch.equal(mine, plain)
    assert mine.abs().sum() > 0


def test_a_weight_that_learns_gets_its_gradient():
    x, w = bf16(5, 8), bf16(6, 8, seed=1).requires_grad_()
    [mine] = torch.autograd.grad(linear(x, w).float().sum(), w)

    assert torch.allclose(mine.float(), x.float().sum(0).expand(6, 8), rtol=1e-2, atol=1e-2)


def test_a_weight_is_laid_out_once(asked):
    w = bf16(16, 8)
    for seed in range(3):
        linear(bf16(4, 8, seed=seed), w)

    assert asked == [(16, 8)]


def test_a_weight_changed_in_place_is_laid_out_anew(asked):
    x, w = bf16(4, 8), bf16(16, 8)
    linear(x, w)
    w.mul_(2)

    assert torch.equal(linear(x, w), torch.nn.functional.linear(x, w))
    assert asked == [(16, 8), (16, 8)]


def test_a_layout_goes_with_its_weight(asked):
    before = len(module._LAID_OUT)
    w = bf16(16, 8)
    linear(bf16(4, 8), w)
    held = len(module._LAID_OUT)
    del w
    gc.collect()

    assert (held, len(module._LAID_OUT)) == (before + 1, before)


def test_in_float32_a_row_s_product_does_not_depend_on_how_many_rows_there_are():
    x, w = bf16(64, 96).float(), bf16(33, 96, seed=1).float()
    whole = linear(x, w)

    assert torch.allclose(whole, x @ w.T, rtol=1e-5, atol=1e-5)
    if module.available(torch.float32):
        assert all(torch.equal(linear(x[:rows], w), whole[:rows]) for rows in (1, 3, 7, 16, 33))


def test_other_numbers_take_the_plain_way(asked):
    x, w = torch.ones(4, 8, dtype=torch.float64), torch.ones(16, 8, dtype=torch.float64)

    assert torch.equal(linear(x, w), torch.full((4, 16), 8.0, dtype=torch.float64))
    assert asked == []


def test_a_layout_made_while_sampling_serves_training(asked):
    x, w = bf16(4, 8), bf16(16, 8)
    with torch.inference_mode():
        linear(x, w)
    y = linear(x.requires_grad_(), w)
    y.float().sum().backward()

    assert torch.equal(x.grad, torch.autograd.grad(torch.nn.functional.linear(x, w).float().sum(), x)[0])
    assert asked == [(16, 8)]
