"""The optimiser's losses against exact answers: bandits whose objective E[r] - b KL(pi || ref) can be enumerated."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from worlds import ANSWERS, COEF, Sequences, bandit, optimum

from backflip.objectives.gae import gae, whiten
from backflip.objectives.kl import token_rewards
from backflip.objectives.ppo import policy_loss

Rewards = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def negated(score: Tensor, logp: Tensor, logp_ref: Tensor, mask: Tensor, coef: float) -> Tensor:
    """The famous bug: reward and KL penalty both with the wrong sign."""
    return -token_rewards(score, logp, logp_ref, mask, coef)


def reward_negated(score: Tensor, logp: Tensor, logp_ref: Tensor, mask: Tensor, coef: float) -> Tensor:
    return token_rewards(-score, logp, logp_ref, mask, coef)


def kl_negated(score: Tensor, logp: Tensor, logp_ref: Tensor, mask: Tensor, coef: float) -> Tensor:
    return token_rewards(score, logp_ref, logp, mask, coef)


BUGS = [negated, reward_negated, kl_negated]


def climb_by_enumeration(ref: Tensor, reward: Tensor, rewards: Rewards) -> Tensor:
    """PPO where every answer is in the batch, weighted by its probability: two epochs a step, clip 0.2."""
    logits = ref.clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.1)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.995)
    mask = torch.ones(ANSWERS, 1, dtype=torch.bool)
    for _ in range(400):
        old = logits.detach().log_softmax(0).unsqueeze(1)
        token_reward = rewards(reward, old, ref.unsqueeze(1), mask, COEF)
        baseline = (old.exp() * token_reward).sum().expand(ANSWERS, 1)
        adv = gae(token_reward, baseline, mask).adv
        for _ in range(2):
            new = logits.log_softmax(0).unsqueeze(1)
            loss = policy_loss(new, old, adv, mask, weight=old.exp(), tokens=1).loss
            adam.zero_grad()
            loss.backward()
            adam.step()
        decay.step()
    return logits.detach().softmax(0)


def climb_by_sampling(ref: Tensor, reward: Tensor, rewards: Rewards) -> Tensor:
    """PPO as it runs in earnest: sampled answers, whitened advantages, two epochs of two minibatches."""
    logits = ref.clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.1, eps=1e-5)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.985)
    rng = torch.Generator().manual_seed(5)
    mask = torch.ones(2048, 1, dtype=torch.bool)
    for _ in range(400):
        drawn = torch.multinomial(logits.detach().softmax(0), 2048, replacement=True, generator=rng)
        old = logits.detach().log_softmax(0)[drawn].unsqueeze(1)
        token_reward = rewards(reward[drawn], old, ref[drawn].unsqueeze(1), mask, COEF)
        adv = whiten(gae(token_reward, torch.zeros_like(old), mask).adv, mask)
        for half in (slice(0, 1024), slice(1024, None)) * 2:
            new = logits.log_softmax(0)[drawn[half]].unsqueeze(1)
            loss = policy_loss(new, old[half], adv[half], mask[half]).loss
            adam.zero_grad()
            loss.backward()
            adam.step()
        decay.step()
    return logits.detach().softmax(0)


Climb = Callable[[Tensor, Tensor, Rewards], Tensor]


def check_optimum(climb: Climb, rewards: Rewards, tolerance: float) -> None:
    ref, reward = bandit()
    gap = (climb(ref, reward, rewards) - optimum(ref, reward)).abs().max().item()
    assert gap <= tolerance, f"the policy is {gap:.3g} off ref * exp(r/b) / Z"


def test_ppo_by_enumeration_reaches_the_tilted_reference():
    check_optimum(climb_by_enumeration, token_rewards, 1e-5)


def test_ppo_by_sampling_reaches_the_tilted_reference():
    check_optimum(climb_by_sampling, token_rewards, 1e-3)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_sign_flip_misses_the_optimum(bug: Rewards):
    # the untouched reference is 0.12 off; every bug ends further away than that
    with pytest.raises(AssertionError, match="off ref"):
        check_optimum(climb_by_enumeration, bug, 0.12)


def test_the_optimum_beats_its_neighbours_on_the_exact_objective():
    ref, reward = bandit()
    best = optimum(ref, reward)

    def objective(p: Tensor) -> float:
        return (p * (reward - COEF * (p.log() - ref))).sum().item()

    # the maximum is b ln sum(ref exp(r/b))
    assert objective(best) == pytest.approx(COEF * torch.logsumexp(ref + reward / COEF, 0).item(), abs=1e-12)
    rng = torch.Generator().manual_seed(2)
    for _ in range(20):
        near = (best.log() + 0.01 * torch.randn(ANSWERS, generator=rng, dtype=torch.float64)).softmax(0)
        assert objective(near) < objective(best)


def check_gradient(world: Sequences, rewards: Rewards) -> None:
    logp = world.logp(world.logits)
    old = logp.detach()
    token_reward = rewards(world.score, old, world.logp(world.logits_ref), world.mask, COEF)
    adv = gae(token_reward, torch.zeros_like(old), world.mask, gamma=1.0, lam=1.0).adv
    p = old.masked_fill(~world.mask, 0.0).sum(1, keepdim=True).exp().expand_as(old)
    out = policy_loss(logp, old, adv, world.mask, weight=p, tokens=1)
    (got,) = torch.autograd.grad(-out.loss, world.logits)
    (exact,) = torch.autograd.grad(world.objective(), world.logits)
    off = (got - exact).abs().max().item()
    assert off <= 1e-12, f"the gradient is {off:.3g} off the exact one"
    assert exact.abs().max() > 0.01
    assert out.approx_kl == 0


WORLDS = {"bandit of 40": (1, 40), "two tokens of 4": (2, 4), "three tokens of 3": (3, 3)}


@pytest.mark.parametrize("size", WORLDS.values(), ids=list(WORLDS))
def test_the_gradient_at_ratio_one_is_that_of_the_exact_objective(size: tuple[int, int]):
    check_gradient(Sequences(*size, seed=3), token_rewards)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_sign_flip_has_the_wrong_gradient(bug: Rewards):
    with pytest.raises(AssertionError, match="off the exact one"):
        check_gradient(Sequences(2, 4, seed=3), bug)


def test_the_two_token_world_is_ragged_and_its_probabilities_sum_to_one():
    world = Sequences(2, 4, seed=3)
    # 1 answer that ends at once, 3 first tokens times 4 second tokens
    assert sorted(world.mask.sum(1).tolist()) == [1] + 12 * [2]
    p = world.logp(world.logits).masked_fill(~world.mask, 0.0).sum(1).exp()
    assert math.isclose(p.sum().item(), 1.0, abs_tol=1e-12)
