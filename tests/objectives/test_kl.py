import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from backflip.objectives.kl import k1, k2, k3, next_coefficient, token_rewards


def f(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def two_policies() -> tuple[Tensor, Tensor]:
    """Logits of a policy and reference log-probabilities over 6 tokens."""
    rng = torch.Generator().manual_seed(0)
    logits, ref = (torch.randn(6, generator=rng, dtype=torch.float64) for _ in range(2))
    return logits.requires_grad_(), ref.log_softmax(0)


def test_estimates_worked_by_hand():
    # the policy likes the token twice as much: d = ln 2
    d = math.log(2)
    assert_close(k1(f([d]), f([0.0])), f([d]))
    assert_close(k2(f([d]), f([0.0])), f([d * d / 2]))
    assert_close(k3(f([d]), f([0.0])), f([0.5 - 1 + d]))


def test_k1_may_be_negative_and_k3_never_is():
    assert k1(f([-1.0]), f([0.0])).item() == -1
    assert k3(f([-1.0]), f([0.0])).item() == pytest.approx(math.e - 2)


def test_k1_and_k3_average_to_the_exact_kl():
    logits, ref = two_policies()
    logp = logits.detach().log_softmax(0)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=logp), torch.distributions.Categorical(logits=ref)
    )
    assert_close((logp.exp() * k1(logp, ref)).sum(), exact)
    assert_close((logp.exp() * k3(logp, ref)).sum(), exact)


def test_as_a_loss_only_k2_has_the_gradient_of_the_kl():
    logits, ref = two_policies()
    p = logits.detach().softmax(0)

    def gradient(objective: Tensor) -> Tensor:
        return torch.autograd.grad(objective, logits, retain_graph=True)[0]

    logp = logits.log_softmax(0)
    exact = gradient((logp.exp() * (logp - ref)).sum())
    assert_close(gradient((p * k2(logp, ref)).sum()), exact)
    assert_close(gradient((p * k1(logp, ref)).sum()), torch.zeros_like(exact))
    assert (gradient((p * k3(logp, ref)).sum()) - exact).abs().max() > 0.05


def test_the_score_sits_on_the_last_token_and_everything_after_is_masked():
    # coef 0.1; k1 is 1, -2, 0.5 | 3; scores 10 and 20
    logp, ref = f([1, -2, 0.5, 99], [3, 99, 99, 99]), f([0, 0, 0, 7], [0, 7, 7, 7])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    got = token_rewards(torch.tensor([10.0, 20.0], dtype=torch.float64), logp, ref, mask, 0.1)
    assert_close(got, f([-0.1, 0.2, 9.95, 0], [19.7, 0, 0, 0]))


def test_the_score_sits_on_the_last_column_when_nothing_is_padded():
    got = token_rewards(torch.tensor([5.0]), torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3).bool(), 0.1)
    assert got.tolist() == [[0, 0, 5]]


def test_a_token_the_policy_likes_less_earns_a_bonus():
    # k1 = -2 is not clamped at 0
    got = token_rewards(torch.zeros(1), torch.tensor([[-3.0]]), torch.tensor([[-1.0]]), torch.tensor([[True]]), 0.5)
    assert got.item() == pytest.approx(1.0)


def test_rewards_sum_to_the_score_minus_the_penalty_of_the_whole_answer():
    rng = torch.Generator().manual_seed(1)
    logp, ref = (torch.randn(5, 7, generator=rng, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(7) < torch.tensor([[1], [3], [7], [6], [2]])
    score = torch.randn(5, generator=rng, dtype=torch.float64)
    got = token_rewards(score, logp, ref, mask, 0.3)
    assert_close(got.sum(1), score - 0.3 * ((logp - ref) * mask).sum(1))


def test_rewards_are_detached_and_padding_may_hold_anything():
    logp = f([1, math.nan]).requires_grad_()
    got = token_rewards(f([1])[0], logp, f([0, math.inf]), torch.tensor([[True, False]]), 0.5)
    assert not got.requires_grad
    assert got.tolist() == [[0.5, 0]]


def test_rewards_refuse_what_does_not_fit():
    score, x, mask = torch.zeros(2), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="score"):
        token_rewards(torch.zeros(3), x, x, mask, 0.1)
    with pytest.raises(ValueError, match="coef"):
        token_rewards(score, x, x, mask, -0.1)
    with pytest.raises(ValueError, match="logp_ref"):
        token_rewards(score, x, torch.zeros(2, 2), mask, 0.1)
    with pytest.raises(ValueError, match="has no token"):
        token_rewards(score, x, x, mask & torch.tensor([[True], [False]]), 0.1)
    with pytest.raises(ValueError, match="hole"):
        token_rewards(score, x, x, torch.tensor([[True, False, True]] * 2), 0.1)


def test_the_controller_moves_by_a_fifth_of_n_over_horizon_at_most():
    # 0.15 * (1 + 0.2 * 64/10000) when far above the target, 0.15 * (1 - 0.2 * 64/10000) when far below
    assert next_coefficient(0.15, 60.0, 6.0, 64, 10_000) == pytest.approx(0.15 * 1.00128)
    assert next_coefficient(0.15, -60.0, 6.0, 64, 10_000) == pytest.approx(0.15 * 0.99872)


def test_the_controller_is_proportional_near_the_target():
    # 10% above the target, n = horizon / 2: up by 5%
    assert next_coefficient(0.2, 6.6, 6.0, 500, 1000) == pytest.approx(0.2 * 1.05)
    assert next_coefficient(0.2, 6.0, 6.0, 500, 1000) == 0.2


@given(st.floats(1e-6, 10), st.floats(-1e6, 1e6), st.floats(0.01, 100), st.integers(0, 4999))
def test_the_coefficient_stays_positive_and_moves_towards_the_target(coef: float, kl: float, target: float, n: int):
    new = next_coefficient(coef, kl, target, n, 1000)
    assert new > 0
    assert (new - coef) * (kl - target) >= 0


def test_the_controller_refuses_what_does_not_fit():
    for bad in ((0.0, 1.0, 1.0, 1, 10), (1.0, 1.0, 0.0, 1, 10), (1.0, 1.0, 1.0, 1, 0)):
        with pytest.raises(ValueError, match="above 0"):
            next_coefficient(*bad)
    with pytest.raises(ValueError, match="finite"):
        next_coefficient(1.0, math.nan, 1.0, 1, 10)
    with pytest.raises(ValueError, match="n must"):
        next_coefficient(1.0, 1.0, 1.0, 50, 10)
