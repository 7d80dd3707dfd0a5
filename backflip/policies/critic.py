"""The critic: what predicts how much an answer will earn; here a small network on the reference's hidden states.

It shares no weight with the policy, so its errors never pull on the policy, and its inputs come free with
the reference's forward. `value_model` has the other kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator
from backflip.objectives.ppo import value_loss
from backflip.sampling.score import Reader

WIDTH = 64


class Seen(NamedTuple):
    """What a critic may look at: B answers to B prompts, and the reference's states before each token, (B, T, H)."""

    reader: Reader
    prompts: Sequence[Prompt]
    answers: Sequence[Answer]
    states: Tensor


class Critic(Protocol):
    """Predicts before each token what the answer will earn from there on, in units of reward."""

    @property
    def warm_up(self) -> int:
        """How many times as many passes it takes to learn a refitted reward's scale."""
        ...

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What is trained, in a fixed order."""
        ...

    def predict(self, seen: Seen) -> Tensor:
        """(B, T) values without gradient; what stands where there is no token is to be ignored."""
        ...

    def learn(
        self, optimiser: torch.optim.Optimizer, seen: Seen, wanted: "Wanted", *, epochs: int, clip: float
    ) -> float:
        """Take `epochs` steps on the clipped value loss; returns the first loss (before any step), or NaN when a loss
        or gradient was not finite: no step was taken on it, nor after it."""
        ...


class Wanted(NamedTuple):
    """(B, T) each: a critic's own values before the update, the returns, and the mask of the answers' tokens."""

    value_old: Tensor
    returns: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Probe:
    """Two layers: tanh(x W1' + b1) W2' + b2 on (hidden state, share of the answer's room used)."""

    parameters: tuple[Tensor, ...]
    warm_up: int = 10

    def predict(self, seen: Seen) -> Tensor:
        """See `Critic.predict`."""
        with torch.no_grad():
            return self.value(seen.states)

    def learn(self, optimiser: torch.optim.Optimizer, seen: Seen, wanted: Wanted, *, epochs: int, clip: float) -> float:
        """All answers at once; see `Critic.learn`."""
        return improve(self, optimiser, CriticBatch(seen.states, *wanted), epochs=epochs, clip=clip)

    def value(self, states: Tensor) -> Tensor:
        """(B, T) value before each token, in units of reward; states (B, T, H) float32."""
        w1, b1, w2, b2 = self.parameters
        scaled = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)
        place = torch.arange(states.shape[1], device=states.device, dtype=states.dtype) / 40.0
        x = torch.cat([scaled, place[None, :, None].expand(*states.shape[:2], 1)], -1)
        return (torch.tanh(x @ w1.T + b1) @ w2.T + b2)[..., 0]


def new_critic(hidden: int, seed: int, device: torch.device | str = "cpu") -> Probe:
    """A fresh critic that predicts 0 everywhere."""
    draw = generator(seed, "critic").standard_normal((WIDTH, hidden + 1)) / (hidden + 1) ** 0.5
    first = torch.tensor(draw, dtype=torch.float32, device=device)
    zeros = (torch.zeros(WIDTH, device=device), torch.zeros(1, WIDTH, device=device), torch.zeros(1, device=device))
    return Probe(tuple(t.requires_grad_() for t in (first, *zeros)))


@dataclass(frozen=True, eq=False)
class CriticBatch:
    """What a critic learns from: states (B, T, H), its own values before the update, returns and mask (B, T)."""

    states: Tensor
    value_old: Tensor
    returns: Tensor
    mask: Tensor


def improve(
    critic: Probe,
    optimiser: torch.optim.Optimizer,
    batch: CriticBatch,
    *,
    epochs: int,
    clip: float,
    max_norm: float = 1.0,
) -> float:
    """Take `epochs` full-batch steps on the clipped value loss; returns the first loss (before any step).

    NaN when a loss or gradient was not finite: no step was taken on it, nor after it.
    """
    first = float("nan")
    for epoch in range(epochs):
        loss = value_loss(critic.value(batch.states), batch.value_old, batch.returns, batch.mask, clip).loss
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(critic.parameters, max_norm)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            return float("nan")
        optimiser.step()
        if epoch == 0:
            first = float(loss.detach())
    return first
