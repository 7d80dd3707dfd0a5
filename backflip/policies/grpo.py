"""GRPO: every token of an answer shares the answer's advantage over its group. No critic.

Two of them. As published, a group's advantages are divided by their standard deviation and an answer's tokens by its
length: prompts whose answers hardly differ, and tokens of short answers, then pull harder than the objective says.
`unbiased` leaves both divisions out ("Dr. GRPO"): its gradient is the objective's times (n - 1) / n. With the KL as a
term of the loss (`optimise.kl`) that factor falls on the reward alone, as if the leash were n / (n - 1) times tighter.
"""

from collections.abc import Callable
from functools import partial

from backflip.objectives.group import above_mean, normalised
from backflip.policies.gradient import Target, paid_tokens, policy_steps, token_weight
from backflip.policies.rollout import Rollout, Settings, Tools, climb_with, figures_of, roll_out, steer
from backflip.policies.state import PolicyState

Aim = Callable[[Rollout, Settings, float], Target]
"""(the step's answers, settings, KL coefficient) -> what the gradient steps aim at."""


def update(state: PolicyState, tools: Tools, settings: Settings) -> tuple[Rollout, dict[str, float]]:
    """Gradient steps as published: standardised within the group, the mean over an answer's tokens.

    Source: Shao et al. 2024 (arXiv:2402.03300), eq. 3; there the leash is `optimise.kl = "k3"`.
    """
    return _step(state, tools, settings, as_published)


def unbiased_update(state: PolicyState, tools: Tools, settings: Settings) -> tuple[Rollout, dict[str, float]]:
    """Gradient steps without the two divisions. Source: Liu et al. 2025 (arXiv:2503.20783)."""
    return _step(state, tools, settings, unbiased)


def _step(state: PolicyState, tools: Tools, settings: Settings, aim: Aim) -> tuple[Rollout, dict[str, float]]:
    coef = state.kl_coef
    rollout = roll_out(state, tools, settings, answers=settings.config.answers)
    steps = policy_steps(state, tools.reader, settings, rollout, aim(rollout, settings, coef))
    steer(state, settings.config, rollout)
    return rollout, steps | figures_of(rollout, coef)


def as_published(rollout: Rollout, settings: Settings, coef: float) -> Target:
    """Advantages in standard deviations of their group; each answer's tokens weigh 1 together."""
    adv = normalised(paid_tokens(rollout, settings, coef).sum(1), rollout.group)
    mask = rollout.policy.mask
    return Target(adv[:, None].expand(mask.shape), token_weight(rollout) / mask.sum(1, keepdim=True), len)


def unbiased(rollout: Rollout, settings: Settings, coef: float) -> Target:
    """Advantages as they are; every token of the batch weighs the same, whatever the answer's length."""
    adv = above_mean(paid_tokens(rollout, settings, coef).sum(1), rollout.group)
    room = settings.max_tokens
    return Target(adv[:, None].expand(rollout.policy.mask.shape), token_weight(rollout), lambda rows: len(rows) * room)


climb = partial(climb_with, update)
"""Yields one step of GRPO after the other: see `climb_with`."""
unbiased_climb = partial(climb_with, unbiased_update)
"""Yields one step of unbiased GRPO after the other: see `climb_with`."""
