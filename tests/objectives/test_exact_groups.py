"""RLOO and GRPO against exact answers: every group of answers is enumerated, weighted by its probability, float64."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from worlds import COEF, Sequences, bandit, optimum

from backflip.objectives.group import above_mean, leave_one_out, normalised
from backflip.objectives.kl import k2, k3, token_rewards
from backflip.objectives.ppo import policy_loss

Advantage = Callable[[Tensor, Tensor], Tensor]


class Groups(NamedTuple):
    """Every way to draw `size` of A answers: (N * size,) answers and group ids."""

    size: int
    answer: Tensor
    group: Tensor

    def chance(self, p: Tensor) -> Tensor:
        """(N * size, 1) probability of each row's group."""
        return p[self.answer].view(-1, self.size).prod(1).repeat_interleave(self.size).unsqueeze(1)


def groups(answers: int, size: int) -> Groups:
    drawn = torch.tensor(list(product(range(answers), repeat=size)))
    return Groups(size, drawn.flatten(), torch.arange(len(drawn)).repeat_interleave(size))


def expected_gradient(world: Sequences, size: int, advantage: Advantage, *, whole: bool, by_length: bool) -> Tensor:
    """Gradient of the mean loss at ratio 1: whole answers (RLOO) or token by token (GRPO), KL in the reward."""
    drawn = groups(len(world.score), size)
    mask = world.mask[drawn.answer]
    logp = world.logp(world.logits).masked_fill(~world.mask, 0.0)
    logp_ref = world.logp(world.logits_ref)[drawn.answer]
    chance = drawn.chance(logp.detach().sum(1).exp())
    logp = logp[drawn.answer]
    paid = token_rewards(world.score[drawn.answer], logp.detach(), logp_ref, mask, COEF).sum(1)
    adv = advantage(paid, drawn.group).unsqueeze(1)
    if whole:
        logp, mask = logp.sum(1, keepdim=True), mask.any(1, keepdim=True)
    weight = chance / mask.sum(1, keepdim=True) if by_length else chance
    shape = logp.shape
    loss = policy_loss(logp, logp.detach(), adv.expand(shape), mask, weight=weight.expand(shape), tokens=size).loss
    (found,) = torch.autograd.grad(-loss, world.logits)
    return found


def gap(world: Sequences, found: Tensor, share: float = 1.0) -> float:
    (exact,) = torch.autograd.grad(world.objective(), world.logits)
    assert exact.abs().max() > 0.01
    return float((found - share * exact).abs().max())


WORLDS = {"bandit of 6": (1, 6), "two tokens of 3": (2, 3)}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shape", WORLDS.values(), ids=list(WORLDS))
def test_the_gradient_of_rloo_is_that_of_the_exact_objective(shape: tuple[int, int], size: int):
    world = Sequences(*shape, seed=3)

    assert gap(world, expected_gradient(world, size, leave_one_out, whole=True, by_length=False)) < 1e-12


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shape", WORLDS.values(), ids=list(WORLDS))
def test_the_gradient_of_unbiased_grpo_is_the_exact_one_times_n_minus_1_over_n(shape: tuple[int, int], size: int):
    # an answer stands in its own baseline: with 2 answers half of the gradient is left, with 3 two thirds
    world = Sequences(*shape, seed=3)
    found = expected_gradient(world, size, above_mean, whole=False, by_length=False)

    assert gap(world, found, share=(size - 1) / size) < 1e-12
    assert gap(world, found) > 1e-3  # who leaves the factor out is told


def test_dividing_by_length_or_by_the_deviation_bends_the_gradient():
    world = Sequences(2, 3, seed=3)  # answers of one and of two tokens
    (exact,) = torch.autograd.grad(world.objective(), world.logits)

    def angle(advantage: Advantage, by_length: bool) -> float:
        found = expected_gradient(world, 3, advantage, whole=False, by_length=by_length)
        return float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0))

    assert angle(above_mean, False) == pytest.approx(1.0, abs=1e-12)
    assert angle(above_mean, True) < 0.999
    assert angle(normalised, False) < 0.999


def test_a_sign_flip_of_the_advantage_is_told():
    world = Sequences(2, 3, seed=3)

    def flipped(reward: Tensor, group: Tensor) -> Tensor:
        return -leave_one_out(reward, group)

    assert gap(world, expected_gradient(world, 2, flipped, whole=True, by_length=False)) > 0.01


Penalty = Callable[[Tensor, Tensor], Tensor]


def where_it_ends(advantage: Advantage, penalty: Penalty | None, size: int = 2, steps: int = 1500) -> Tensor:
    """The policy on a bandit of 6 after on-policy steps on the mean loss; KL in the reward without a `penalty`."""
    ref, reward = bandit(6)
    drawn = groups(6, size)
    logits = ref.clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.1)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.99)
    mask = torch.ones(len(drawn.answer), 1, dtype=torch.bool)
    logp_ref = ref[drawn.answer].unsqueeze(1)
    for _ in range(steps):
        logp = logits.log_softmax(0)[drawn.answer].unsqueeze(1)
        old = logp.detach()
        coef = COEF if penalty is None else 0.0
        paid = token_rewards(reward[drawn.answer], old, logp_ref, mask, coef).sum(1)
        adv = advantage(paid, drawn.group).unsqueeze(1)
        weight = drawn.chance(logits.detach().softmax(0))
        loss = policy_loss(logp, old, adv, mask, weight=weight, tokens=size).loss
        if penalty is not None:
            loss = loss + COEF * (weight * penalty(logp, logp_ref)).sum() / size
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    return logits.detach().softmax(0)


def off(policy: Tensor, law: Tensor) -> float:
    return float((policy - law).abs().max())


@pytest.mark.parametrize("advantage", [leave_one_out, above_mean], ids=["RLOO", "unbiased GRPO"])
def test_it_ends_at_the_tilted_reference(advantage: Advantage):
    assert off(where_it_ends(advantage, None), optimum(*bandit(6))) < 1e-6


def test_k2_in_the_loss_ends_there_too_where_an_answer_is_one_token():
    assert off(where_it_ends(leave_one_out, k2), optimum(*bandit(6))) < 1e-6


def test_k3_in_the_loss_ends_at_ref_times_b_over_c_minus_r():
    ref, reward = bandit(6)
    top = float(reward.max())
    c = brentq(lambda c: float((ref.exp() * COEF / (c - reward)).sum()) - 1.0, top + 1e-9, top + 100)
    law = ref.exp() * COEF / (c - reward)

    assert off(where_it_ends(leave_one_out, k3), law) < 1e-6
    assert off(law, optimum(ref, reward)) > 0.05


def test_unbiased_grpo_with_kl_in_the_loss_ends_where_a_leash_tighter_by_n_over_n_minus_1_would():
    # of 2 answers half the reward is left and the whole KL: as if b were 2 b
    ref, reward = bandit(6)

    assert off(where_it_ends(above_mean, k2), (ref + reward / (2 * COEF)).softmax(0)) < 1e-6


def test_grpo_as_published_ends_at_its_own_place_and_not_at_the_objectives_optimum():
    # at rest, what each answer expects (its mean advantage less b times the gradient of k3) is the same for all
    policy = where_it_ends(normalised, k3, size=3)
    ref, reward = bandit(6)
    drawn = groups(6, 3)
    adv = normalised(reward[drawn.answer], drawn.group)
    chance = drawn.chance(policy)[:, 0] / policy[drawn.answer]
    mean = torch.zeros(6, dtype=torch.float64).index_add(0, drawn.answer, adv * chance) / 3
    pull = mean - COEF * (1 - ref.exp() / policy)

    assert float(pull.max() - pull.min()) < 1e-6
    assert off(policy, optimum(ref, reward)) > 0.05


@pytest.mark.parametrize("fault", ["sign", "kl sign"])
def test_a_planted_fault_ends_elsewhere(fault: str):
    faults: dict[str, tuple[Advantage, Penalty | None]] = {
        "sign": (lambda reward, group: -leave_one_out(reward, group), None),
        "kl sign": (leave_one_out, lambda logp, ref: -k2(logp, ref)),
    }
    assert off(where_it_ends(*faults[fault], steps=300), optimum(*bandit(6))) > 0.05
