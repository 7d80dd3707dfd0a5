"""Online DPO: the policy's own answers, two at a time, compared by the reward, and DPO's loss on them."""

from functools import partial

from backflip.policies.dpo import learn
from backflip.policies.rollout import Preference, Rollout, Settings, Tools, climb_with, figures_of, roll_out
from backflip.policies.state import PolicyState


def update(state: PolicyState, tools: Tools, settings: Settings) -> tuple[Rollout, dict[str, float]]:
    """Gradient steps on the pairs of the step's answers, each with the probability that its first answer wins.

    The reward is read as Bradley-Terry's, so that the policy ends at ref * exp(reward / beta) / Z; a winner taken for
    certain would have no end but the best answer alone. Of an odd number of answers the last is only watched.
    Source: Guo et al. 2024 (arXiv:2402.04792).
    """
    rollout = roll_out(state, tools, settings, answers=settings.config.answers)
    return rollout, learn(state, tools.reader, settings, pairs_of(rollout)) | figures_of(rollout, state.kl_coef)


def pairs_of(rollout: Rollout) -> list[Preference]:
    """Answers 0 and 1 to a prompt, 2 and 3, and so on, with the probability that the reward gives the first."""
    chance = (rollout.paid[:-1] - rollout.paid[1:]).sigmoid().tolist()
    rows = enumerate(zip(rollout.answers, rollout.answers[1:], strict=False))
    return [
        Preference(rollout.prompts[i], a, b, chance[i])
        for i, (a, b) in rows
        if a.prompt_id == b.prompt_id and a.index % 2 == 0
    ]


climb = partial(climb_with, update)
"""Yields one step of online DPO after the other: see `climb_with`."""
