"""Every optimiser by the name a plan gives it: the one place where that name is read."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from backflip.policies import best_of_n, dpo, grpo, online_dpo, ppo, rloo
from backflip.policies.plan import Optimiser
from backflip.policies.rollout import Step


class Method(NamedTuple):
    """An optimiser, and what it needs before its first step."""

    climb: Callable[..., Iterator[Step]]
    """See `rollout.climb_with`."""
    critic: bool = False
    """It has a critic, which wants to know a refitted reward's scale."""
    votes: bool = False
    """It learns from the votes, not from the reward."""


METHODS: dict[Optimiser, Method] = {
    "ppo": Method(ppo.climb, critic=True),
    "rloo": Method(rloo.climb),
    "grpo": Method(grpo.climb),
    "dr_grpo": Method(grpo.unbiased_climb),
    "dpo": Method(dpo.climb, votes=True),
    "online_dpo": Method(online_dpo.climb),
    "best_of_n": Method(best_of_n.climb),
}
