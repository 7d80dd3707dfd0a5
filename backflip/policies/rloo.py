"""RLOO: the baseline of an answer is what the other answers to its prompt earned. No critic.

An answer counts as a whole: one reward (its score less the KL of all its tokens), one probability ratio.
"""

from functools import partial

from backflip.objectives.group import leave_one_out
from backflip.objectives.ppo import truncated_importance
from backflip.policies.gradient import Target, paid_tokens, policy_steps
from backflip.policies.rollout import Rollout, Settings, Tools, climb_with, figures_of, roll_out, steer
from backflip.policies.state import PolicyState


def update(state: PolicyState, tools: Tools, settings: Settings) -> tuple[Rollout, dict[str, float]]:
    """Gradient steps on whole answers, each against the mean of the others; then the KL coefficient.

    Source: Ahmadian et al. 2024 (arXiv:2402.14740); the clipped ratio of whole answers as in TRL's RLOO.
    """
    coef = state.kl_coef
    rollout = roll_out(state, tools, settings, answers=settings.config.answers)
    adv = leave_one_out(paid_tokens(rollout, settings, coef).sum(1), rollout.group)[:, None]
    sampled, drawn = (x.sum(1, keepdim=True) for x in (rollout.policy.logp, rollout.logp_sampler))
    target = Target(adv, truncated_importance(sampled, drawn), len, whole=True)
    steps = policy_steps(state, tools.reader, settings, rollout, target)
    steer(state, settings.config, rollout)
    return rollout, steps | figures_of(rollout, coef)


climb = partial(climb_with, update)
"""Yields one step of RLOO after the other: see `climb_with`."""
