"""Goodhart's law in a clean room: a world of attributes, a proxy that mentions only some, a budget all share.

The true utility of a state s is the sum over L attributes of 1 - exp(-s), the proxy is the same sum over the J it
mentions, and states are paid for: the sum of exp(s) may not exceed the budget. Raising the proxy first spends what is
left of the budget, and the utility rises with it; then it takes from the attributes that nobody mentioned, down to
their lower bound. Source: Zhuang & Hadfield-Menell 2020 (arXiv:2102.03896), with both of the cures proposed there.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backflip.core.config import require

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Cure = Literal["none", "freeze", "again"]
CURES: tuple[Cure, ...] = ("none", "freeze", "again")
"""none: the proxy is climbed as it is. freeze: what it does not mention may not change. again: every `World.again`
steps the proxy is chosen anew, and mentions the attributes that stand worst."""
STILL = 1e-9
"""A direction shorter than this is no direction: the climb has arrived."""
EXACT = 1e-12
"""How near the bounds and the budget count as reached."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What is optimised, and how."""

    attributes: int = 4
    """L, attributes that matter."""
    mentioned: int = 2
    """J, attributes that the proxy mentions."""
    budget: float = 2.0
    """Budget for each attribute; the start costs 1."""
    lowest: float = -3.0
    """No attribute can be lower."""
    pace: float = 0.01
    """Length of a step; every attribute starts at 0."""
    steps: int = 1000
    """Steps of a climb."""
    again: int = 20
    """Steps after which the proxy is chosen anew, for the cure "again"."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require(2 <= self.attributes <= 1000, "attributes", "a whole number from 2 to 1000")
        require(1 <= self.mentioned < self.attributes, "mentioned", "a whole number of 1 or more, below attributes")
        require(1 < self.budget < math.inf, "budget", "a number above 1: the start costs 1 an attribute")
        require(-20 <= self.lowest < 0, "lowest", "a number from -20, below 0")
        require(0 < self.pace <= 0.1, "pace", "a number above 0, up to 0.1")
        require(1 <= self.steps <= 100_000 and self.again >= 1, "steps", "a whole number from 1 to 100000")


class Climb(NamedTuple):
    """How a climb went. Shapes: proxy, utility (T + 1,), state (T + 1, L); row 0 is the start, where both are 0."""

    proxy: Array
    utility: Array
    state: Array

    @property
    def peak(self) -> int:
        """The step at which the utility is highest."""
        return int(self.utility.argmax())

    @property
    def below_start(self) -> int | None:
        """The first step after the peak at which the utility is below its start; None when there is none."""
        below = np.flatnonzero(self.utility[self.peak :] < 0)
        return self.peak + int(below[0]) if len(below) else None


def climb(world: World, cure: Cure = "none") -> Climb:
    """Climb the proxy in steps of one length along its gradient, as far as bounds and budget let it.

    `proxy` is that of the attributes the proxy mentions at first, whatever it mentions later.
    """
    state, budget = np.zeros(world.attributes), world.budget * world.attributes
    first = np.arange(world.attributes) < world.mentioned
    mentioned, states = first, [state]
    for step in range(world.steps):
        if cure == "again" and step % world.again == 0:
            mentioned = _worst(state, world.mentioned)
        free = mentioned if cure == "freeze" else np.ones_like(first)
        way = _direction(np.where(mentioned, np.exp(-state), 0.0), state, free, budget, world.lowest)
        length = float(np.sqrt(way @ way))
        if length > STILL:
            state = _paid(np.maximum(state + world.pace * way / length, world.lowest), free, budget, world.lowest)
        states.append(state)
    path = np.array(states)
    worth = 1 - np.exp(-path)
    return Climb(worth[:, first].sum(1), worth.sum(1), path)


def _worst(state: Array, count: int) -> Mask:
    """(L,) the `count` lowest attributes."""
    return np.isin(np.arange(len(state)), np.argsort(state, kind="stable")[:count])


def _direction(gradient: Array, state: Array, free: Mask, budget: float, lowest: float) -> Array:
    """(L,) the gradient without what would break the budget, lower what stands lowest, or move what is not free."""
    free, cost = free.copy(), np.exp(state)
    while True:
        way, price = np.where(free, gradient, 0.0), np.where(free, cost, 0.0)
        if cost.sum() >= budget - EXACT * budget and way @ price > 0:
            way = way - (way @ price) / (price @ price) * price
        stuck = free & (state <= lowest + EXACT) & (way < 0)
        if not stuck.any():
            return way
        free &= ~stuck


def _paid(state: Array, free: Mask, budget: float, lowest: float) -> Array:
    """(L,) the state, back within the budget by Newton's steps along the price of what is free."""
    while (over := np.exp(state).sum() - budget) > EXACT * budget:
        price = np.where(free & (state > lowest), np.exp(state), 0.0)
        state = np.maximum(state - over * price / (price @ price), lowest)
    return state
