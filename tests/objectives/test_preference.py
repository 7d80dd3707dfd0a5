import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from backflip.objectives.preference import bradley_terry_loss, encode, probabilities


def f(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_without_ties_it_is_exactly_minus_logsigmoid():
    rng = torch.Generator().manual_seed(0)
    gap = torch.randn(50, generator=rng) * 5
    out = bradley_terry_loss(gap, encode(["a"] * 50))
    assert torch.equal(out.logp, logsigmoid(gap))
    assert torch.equal(out.loss, -logsigmoid(gap).mean())
    assert torch.equal(bradley_terry_loss(gap, encode(["b"] * 50)).logp, logsigmoid(-gap))


def test_likelihoods_worked_by_hand():
    # reward ratio 2, theta 3: P(a) = 2/(2+3), P(b) = 1/(1+6), the rest 1 - 2/5 - 1/7 = 16/35 is a tie
    gap, tie = f(math.log(2)).expand(3), math.log(3)
    out = bradley_terry_loss(gap, encode(["a", "b", "tie"]), tie)
    assert_close(out.logp.exp(), f(2 / 5, 1 / 7, 16 / 35))
    p = probabilities(gap[:1], tie)
    assert_close(torch.cat(p), f(2 / 5, 1 / 7, 16 / 35))


def test_the_loss_is_the_weighted_mean():
    # -logp is ln 2 for a gap of 0 and ln(1 + 1/3) for a gap of ln 3
    out = bradley_terry_loss(f(0.0, math.log(3)), encode(["a", "a"]), weight=f(1.0, 3.0))
    assert out.loss.item() == pytest.approx((math.log(2) + 3 * math.log(4 / 3)) / 4)


@given(st.floats(-300, 300), st.floats(0, 50))
def test_probabilities_sum_to_one_and_swap_with_the_sides(gap: float, tie: float):
    p, swapped = probabilities(f(gap), tie), probabilities(f(-gap), tie)
    assert_close(p.a + p.b + p.tie, f(1.0))
    assert_close(p.a, swapped.b)
    assert_close(p.tie, swapped.tie)
    assert (torch.cat(p) >= 0).all()


@given(st.floats(-30, 30), st.floats(0.01, 10), st.sampled_from(["a", "b", "tie"]))
def test_the_loss_is_the_log_of_the_probability(gap: float, tie: float, choice: str):
    got = bradley_terry_loss(f(gap), encode([choice]), tie).logp
    assert_close(got, getattr(probabilities(f(gap), tie), choice).log(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gap", [-1e4, -200.0, 200.0, 1e4])
def test_large_gaps_stay_finite_in_float32(gap: float):
    x = torch.full((3,), gap, requires_grad=True)
    tie = torch.tensor(0.5, requires_grad=True)
    out = bradley_terry_loss(x, encode(["a", "b", "tie"]), tie)
    out.loss.backward()
    assert out.logp.isfinite().all()
    assert x.grad is not None
    assert tie.grad is not None
    assert x.grad.isfinite().all()
    assert tie.grad.isfinite()
    # the lost vote costs |gap| + tie, the tie |gap| + tie - ln(e - 1)
    lost = out.logp[1 if gap > 0 else 0].item()
    assert lost == pytest.approx(-abs(gap) - 0.5)
    assert out.logp[2].item() == pytest.approx(-abs(gap) - 0.5 + math.log(math.e - 1), abs=2e-3)


def test_a_large_threshold_stays_finite_in_float32():
    # every vote is a tie: P = 1 - 2 s(-60), though exp(2 * 60) overflows
    assert bradley_terry_loss(torch.zeros(1), encode(["tie"]), 60.0).logp.item() == pytest.approx(0.0, abs=1e-5)
    assert probabilities(torch.zeros(1), 60.0).tie.item() == pytest.approx(1.0)


def test_a_tie_pulls_the_gap_to_zero():
    gap = f(2.0).requires_grad_()
    bradley_terry_loss(gap, encode(["tie"]), 1.0).loss.backward()
    assert gap.grad is not None
    # derivative of -ln P(tie): s(gap - tie) - s(-gap - tie)
    assert_close(gap.grad, torch.sigmoid(f(1.0)) - torch.sigmoid(f(-3.0)))


def test_the_threshold_is_fitted_to_the_share_of_ties():
    # equal answers, 60% ties: P(tie) = tanh(tie / 2) = 0.6 at tie = ln 4
    tie = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    votes = encode(["a", "b", "tie", "tie", "tie"])
    best = torch.optim.LBFGS([tie], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        best.zero_grad()
        loss = bradley_terry_loss(torch.zeros(5, dtype=torch.float64), votes, tie).loss
        loss.backward()
        return loss

    best.step(closure)
    assert tie.item() == pytest.approx(math.log(4), abs=1e-5)


def test_it_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="threshold is 0"):
        bradley_terry_loss(f(1.0), encode(["tie"]))
    with pytest.raises(ValueError, match="no vote"):
        bradley_terry_loss(f(), encode([]))
    with pytest.raises(ValueError, match="one length"):
        bradley_terry_loss(f(1.0, 2.0), encode(["a"]))
    with pytest.raises(ValueError, match="tie must"):
        bradley_terry_loss(f(1.0), encode(["a"]), -0.1)
    with pytest.raises(ValueError, match="code"):
        bradley_terry_loss(f(1.0), torch.tensor([3]))
    with pytest.raises(ValueError, match="weights"):
        bradley_terry_loss(f(1.0), encode(["a"]), weight=f(0.0))
    with pytest.raises(KeyError):
        encode(["skip"])
