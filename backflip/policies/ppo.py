"""PPO on a KL leash: a critic says what each token's future was worth, so that long answers learn token by token."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from backflip.core.records import Answer, Prompt
from backflip.objectives.gae import gae, whiten
from backflip.policies.critic import Seen, Wanted
from backflip.policies.gradient import Target, paid_tokens, policy_steps, token_weight
from backflip.policies.not_finite import Lines, NotFinite, lines_of
from backflip.policies.plan import PPO
from backflip.policies.rollout import (
    Rollout,
    Settings,
    Step,
    Tools,
    climb_with,
    figures_of,
    paid_scores,
    roll_out,
    rollout_lines,
    steer,
)
from backflip.policies.state import PolicyState, fresh_state

__all__ = ["PPO", "Rollout", "Step", "Tools", "climb", "fresh_state", "update", "warm_up"]


def update(state: PolicyState, tools: Tools, settings: Settings) -> tuple[Rollout, dict[str, float]]:
    """Advantages, the gradient steps of policy and critic, the KL coefficient.

    Source: Schulman et al. 2017 (arXiv:1707.06347); Ziegler et al. 2019 (arXiv:1909.08593).
    """
    config, coef = settings.config, state.kl_coef
    rollout = roll_out(state, tools, settings, answers=config.answers)
    mask = rollout.policy.mask
    seen = Seen(tools.reader, rollout.prompts, rollout.answers, rollout.states)
    value_old = state.critic.predict(seen) * mask
    adv, returns = gae(paid_tokens(rollout, settings, coef), value_old, mask, 1.0, config.lam)
    target = Target(whiten(adv, mask), token_weight(rollout), lambda rows: float(mask[rows].sum()))
    steps = policy_steps(state, tools.reader, settings, rollout, target)
    critic_loss = state.critic.learn(
        state.critic_optimiser, seen, Wanted(value_old, returns, mask), epochs=config.critic_epochs,
        clip=config.value_clip,
    )  # fmt: skip
    if math.isnan(critic_loss):
        raise _critic_failed(state, rollout_lines(rollout, np.arange(len(rollout.answers))))
    steer(state, config, rollout)
    return rollout, steps | figures_of(rollout, coef) | {"loss/value_avg": critic_loss}


climb = partial(climb_with, update)
"""Yields one step of PPO after the other: see `climb_with`."""


def warm_up(
    state: PolicyState, tools: Tools, config: PPO, prompts: Sequence[Prompt], answers: Sequence[Answer]
) -> float:
    """Let the critic learn a refitted reward's scale from answers already sampled; returns its loss before.

    The value clip is left open: there is no earlier prediction worth staying near.
    Raises: NotFinite when the critic's loss or gradient is not finite.
    """
    reading = tools.reader.reference(prompts, answers)
    if reading.states is None:
        raise RuntimeError("the reference's states were asked for")
    paid = paid_scores(np.asarray(tools.scorer.score(prompts, answers)), answers, config.missing_end_penalty)
    score = torch.as_tensor(paid, dtype=torch.float32, device=reading.mask.device)
    seen, critic = Seen(tools.reader, prompts, answers, reading.states), state.critic
    wanted = Wanted(critic.predict(seen), score[:, None].expand_as(reading.mask) * reading.mask, reading.mask)
    loss = critic.learn(state.critic_optimiser, seen, wanted, epochs=critic.warm_up * config.critic_epochs, clip=1e6)
    if math.isnan(loss):
        raise _critic_failed(state, lines_of(prompts, answers, {"paid": paid, "logp_reference": reading.logp}))
    return loss


def _critic_failed(state: PolicyState, lines: Lines) -> NotFinite:
    return NotFinite(f"The critic's loss in step {state.step}", lines, cure="a lower ppo.critic_learning_rate")
