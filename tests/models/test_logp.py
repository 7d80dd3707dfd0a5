"""Log-probabilities of given tokens, and the gradient that is formed without keeping logits."""

import pytest
import torch
from torch.testing import assert_close

from backflip.models import logp as module
from backflip.models.logp import token_logp


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states (7, 5), weight (11, 5), bias (11,), targets (7,), in float64."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((7, 5), (11, 5), (11,)))
    return hidden, weight, bias, torch.randint(11, (7,), generator=draw)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("chunk", [3, 256])
def test_gradient_equals_autograd_through_full_logits(
    case: tuple[torch.Tensor, ...], biased: bool, chunk: int, monkeypatch
):
    monkeypatch.setattr(module, "CHUNK", chunk)
    hidden, weight, bias, targets = case
    plain, ours = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    scores = torch.nn.functional.linear(plain, weight, bias if biased else None) / 0.7
    want = torch.log_softmax(scores, 1).gather(1, targets[:, None])[:, 0]
    got = token_logp(ours, (weight, bias if biased else None), targets, 0.7)
    upstream = torch.linspace(-1, 2, 7)
    (want * upstream).sum().backward()
    (got.logp * upstream).sum().backward()

    assert_close(got.logp.double(), want, atol=1e-6, rtol=0)
    assert ours.grad is not None
    assert plain.grad is not None
    # the slope is made of float32 probabilities: 1e-6 is their rounding
    assert_close(ours.grad, plain.grad, atol=1e-6, rtol=1e-5)


def test_a_token_of_two_equally_likely_costs_ln_2():
    # logits (0, 0): log-probability -0.6931, entropy 0.6931; at T = 2 nothing changes
    out = token_logp(torch.zeros(1, 3), (torch.ones(2, 3), None), torch.tensor([1]), 2.0)

    assert_close(out.logp, torch.tensor([-0.693147]))
    assert_close(out.entropy, torch.tensor([0.693147]))


def test_temperature_divides_the_logits():
    # logits (ln 9, 0): 0.9 at T = 1; at T = 2 the odds are 3 to 1, so 0.75
    head = (torch.tensor([[2.1972246], [0.0]]), None)
    hidden, target = torch.ones(1, 1), torch.tensor([0])

    assert token_logp(hidden, head, target).logp.exp().item() == pytest.approx(0.9, abs=1e-6)
    assert token_logp(hidden, head, target, 2.0).logp.exp().item() == pytest.approx(0.75, abs=1e-6)


def test_log_probabilities_are_float32_whatever_the_model():
    out = token_logp(torch.randn(2, 4).bfloat16(), (torch.randn(6, 4).bfloat16(), None), torch.tensor([1, 5]))

    assert out.logp.dtype == torch.float32
    assert out.entropy.dtype == torch.float32
    assert not out.entropy.requires_grad


def test_a_bfloat16_gradient_has_the_type_of_the_hidden_states():
    hidden = torch.randn(2, 4).bfloat16().requires_grad_()
    token_logp(hidden, (torch.randn(6, 4).bfloat16(), None), torch.tensor([1, 5])).logp.sum().backward()

    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("target", [-1, 2])
def test_a_target_outside_the_vocabulary_is_refused(target: int):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        token_logp(torch.zeros(1, 3), (torch.ones(2, 3), None), torch.tensor([target]))


def test_no_targets_give_no_log_probabilities():
    out = token_logp(torch.zeros(0, 3), (torch.ones(2, 3), None), torch.zeros(0, dtype=torch.long))

    assert out.logp.shape == (0,)
