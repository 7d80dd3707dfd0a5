"""The critic as a role of the trunk: an adapter of its own, low-rank or full, and a linear head on the states before
each token. It reads better than a network on the reference's states, and costs a forward and backward of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backflip.core.records import Answer, Prompt
from backflip.models.adapters import Adapter, new_adapter, upper_layers
from backflip.models.trunk import Trunk
from backflip.objectives.ppo import value_loss
from backflip.policies.critic import Seen, Wanted
from backflip.policies.plan import PPO
from backflip.sampling.score import Reader, answer_batches, pack_answers


@dataclass(frozen=True, eq=False)
class ValueModel:
    """value = head . state + bias, the states being those of the trunk under `adapter`; head is (H + 1,) float32."""

    adapter: Adapter
    head: Tensor
    warm_up: int = 1

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What is trained, in the order its optimiser has it."""
        return (self.head, *self.adapter.parameters())

    def value(self, reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Tensor:
        """(B, T) value before each token, in units of reward, 0 where masked; gradient flows into `parameters`."""
        batch = pack_answers(reader.chat, prompts, answers, reader.trunk.device)
        mask = batch.answer_mask
        after = reader.after(prompts, answers, self.adapter)
        states = reader.trunk.hidden(batch, self.adapter, after=after).final[batch.predict_rows[mask]].float()
        scaled = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)
        return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, scaled @ self.head[:-1] + self.head[-1])

    @torch.no_grad()
    def predict(self, seen: Seen) -> Tensor:
        """See `Critic.predict`."""

        def attempt(size: int) -> list[Tensor]:
            slices = answer_batches(len(seen.answers), size)
            return [self.value(seen.reader, seen.prompts[s], seen.answers[s]) for s in slices]

        parts = seen.reader.portion.within_memory(attempt, most=len(seen.answers))
        width = seen.states.shape[1]
        return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts])

    def learn(self, optimiser: torch.optim.Optimizer, seen: Seen, wanted: Wanted, *, epochs: int, clip: float) -> float:
        """All answers in one step, added up from portions; see `Critic.learn`."""
        tokens = float(wanted.mask.sum())

        def attempt(size: int) -> float:
            optimiser.zero_grad()
            total = 0.0
            for s in answer_batches(len(seen.answers), size):
                value = self.value(seen.reader, seen.prompts[s], seen.answers[s])
                old, returns, mask = (x[s, : value.shape[1]] for x in wanted)
                loss = value_loss(value, old, returns, mask, clip, tokens=tokens).loss
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            return total

        losses = []
        for _ in range(epochs):
            losses.append(seen.reader.portion.within_memory(attempt, most=len(seen.answers)))
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            if not np.isfinite(losses[-1]) or not torch.isfinite(norm):
                return float("nan")
            optimiser.step()
        return losses[0]


def new_value_model(trunk: Trunk, config: PPO, seed: int) -> ValueModel:
    """A value model that predicts 0 everywhere, with an adapter like the policy's."""
    shapes = upper_layers(trunk.linear_shapes(), config.adapted)
    adapter = new_adapter(shapes, rank=config.rank, alpha=config.alpha, seed=seed, device=trunk.device)
    return ValueModel(adapter, torch.zeros(trunk.hidden_size + 1, device=trunk.device, requires_grad=True))
