import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from backflip.objectives.gae import gae, whiten


def f(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_advantages_worked_by_hand():
    # gamma 0.9, lam 0.5: delta = 1 + 0.9*2 - 1 = 1.8; 2 + 0.9*4 - 2 = 3.6; 3 + 0 - 4 = -1
    # adv = -1; 3.6 - 0.45 = 3.15; 1.8 + 0.45*3.15 = 3.2175
    out = gae(f([1, 2, 3]), f([1, 2, 4]), torch.ones(1, 3, dtype=torch.bool), gamma=0.9, lam=0.5)
    assert_close(out.adv, f([3.2175, 3.15, -1]))
    assert_close(out.returns, f([4.2175, 5.15, 3]))


def test_defaults_are_gamma_one_and_lambda_095():
    out = gae(f([0, 1]), f([0, 0]), torch.ones(1, 2, dtype=torch.bool))
    assert_close(out.adv, f([0.95, 1]))


def test_with_lambda_one_returns_are_the_rewards_to_go_whatever_the_critic_says():
    out = gae(f([1, 2, 3]), f([7, -5, 11]), torch.ones(1, 3, dtype=torch.bool), lam=1.0)
    assert_close(out.returns, f([6, 5, 3]))
    assert_close(out.adv, f([6 - 7, 5 + 5, 3 - 11]))


def test_with_lambda_zero_an_advantage_is_one_step():
    out = gae(f([1, 2]), f([3, 5]), torch.ones(1, 2, dtype=torch.bool), lam=0.0)
    assert_close(out.adv, f([1 + 5 - 3, 2 - 5]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), lam=st.floats(0, 1), garbage=st.sampled_from([math.nan, math.inf, 1e6]))
def test_nothing_leaks_over_the_mask(seed: int, lam: float, garbage: float):
    rng = torch.Generator().manual_seed(seed)
    reward, value = (torch.randn(4, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    length = torch.randint(1, 7, (4, 1), generator=rng)
    mask = torch.arange(6) < length
    out = gae(reward.masked_fill(~mask, garbage), value.masked_fill(~mask, garbage), mask, lam=lam)
    for i, n in enumerate(length.flatten().tolist()):
        alone = gae(reward[i : i + 1, :n], value[i : i + 1, :n], torch.ones(1, n, dtype=torch.bool), lam=lam)
        assert_close(out.adv[i : i + 1, :n], alone.adv)
        assert_close(out.returns[i : i + 1, :n], alone.returns)
    assert (out.adv[~mask] == 0).all()
    assert (out.returns[~mask] == 0).all()


def test_a_prompt_masked_on_the_left_changes_nothing():
    shifted = gae(f([9, 1, 2]), f([9, 3, 5]), torch.tensor([[False, True, True]]))
    plain = gae(f([1, 2]), f([3, 5]), torch.ones(1, 2, dtype=torch.bool))
    assert_close(shifted.adv[:, 1:], plain.adv)
    assert shifted.adv[0, 0] == 0


def test_advantages_carry_no_gradient():
    value = f([1, 2]).requires_grad_()
    out = gae(f([1, 2]), value, torch.ones(1, 2, dtype=torch.bool))
    assert not out.adv.requires_grad
    assert not out.returns.requires_grad


def test_whitening_looks_at_valid_tokens_only():
    # over 1, 3 and 5: mean 3, variance 8/3; the padding's 1000 is not looked at
    x = f([1, 3, 1000], [5, 1000, 1000])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    sd = math.sqrt(8 / 3)
    assert_close(whiten(x, mask), f([-2 / sd, 0, 0], [2 / sd, 0, 0]))
    assert_close(whiten(x, mask, shift_mean=False), f([3 - 2 / sd, 3, 0], [3 + 2 / sd, 0, 0]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_whitened_tokens_have_mean_zero_and_variance_one(seed: int, scale: float, shift: float):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 7, generator=rng, dtype=torch.float64) * scale + shift
    mask = torch.arange(7) < torch.randint(2, 8, (5, 1), generator=rng)
    out = whiten(x.masked_fill(~mask, math.nan), mask)
    assert (out[~mask] == 0).all()
    assert_close(out[mask].mean().item(), 0.0, atol=1e-6, rtol=0)
    assert_close(out[mask].var(correction=0).item(), 1.0, atol=1e-3, rtol=0)


def test_a_constant_batch_whitens_to_zeros():
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert_close(whiten(f([2, 2, 2]), mask), f([0, 0, 0]))
    assert_close(whiten(f([2, 2, 2]), mask, shift_mean=False), f([2, 2, 2]))


def test_gae_and_whiten_refuse_what_does_not_fit():
    one = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="hole"):
        gae(f([1, 2, 3]), f([1, 2, 3]), torch.tensor([[True, False, True]]))
    with pytest.raises(ValueError, match="value"):
        gae(f([1, 2, 3]), f([1, 2]), one)
    with pytest.raises(ValueError, match="lam"):
        gae(f([1, 2, 3]), f([1, 2, 3]), one, lam=1.5)
    with pytest.raises(ValueError, match="gamma"):
        gae(f([1, 2, 3]), f([1, 2, 3]), one, gamma=-0.1)
    with pytest.raises(ValueError, match="at least one"):
        whiten(f([1, 2, 3]), ~one)
    with pytest.raises(ValueError, match="bool"):
        whiten(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool))
