"""Supervised fine-tuning: the policy learns to give the answers that people wrote."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backflip.core.errors import BackflipError
from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator
from backflip.models.trunk import Trunk
from backflip.policies.plan import PPO, SFT
from backflip.policies.ppo import fresh_state
from backflip.policies.state import PolicyState
from backflip.sampling.score import Reader, answer_batches, pack_answers

__all__ = ["SFT", "Imitation", "fresh_imitator", "imitate", "nats_per_token", "steps_of"]


class Imitation(NamedTuple):
    """One finished step: the policy after it, and its figures by name."""

    state: PolicyState
    metrics: dict[str, float]


def fresh_imitator(trunk: Trunk, config: SFT, seed: int) -> PolicyState:
    """An adapter on every layer that changes nothing yet. The critic that comes with a state is never used."""
    adapter = PPO(rank=config.rank, alpha=2.0 * config.rank or 1.0, adapted=1.0, learning_rate=config.learning_rate)
    return fresh_state(trunk, adapter, seed)


def steps_of(config: SFT, count: int) -> int:
    """Gradient steps that `count` demonstrations take."""
    return config.epochs * -(-count // config.batch)


def imitate(
    state: PolicyState, reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answer], config: SFT, *, seed: int
) -> Iterator[Imitation]:
    """Yield one gradient step after the other until the demonstrations have been read `epochs` times.

    `answers[i]` answers `prompts[i]`; only its tokens are learned, the stop token included. The loss is the mean of
    -log p over all answer tokens of a batch, in nats, whatever the micro-batch. A state from a checkpoint carries on
    exactly. Raises: BackflipError when a gradient is not finite.
    """
    per_epoch, total = -(-len(answers) // config.batch), steps_of(config, len(answers))
    while state.step < total:
        epoch, place = divmod(state.step, per_epoch)
        order = generator(seed, "demonstrations", epoch).permutation(len(answers))
        rows = np.sort(order[place * config.batch : (place + 1) * config.batch])
        state.optimiser.param_groups[0]["lr"] = config.learning_rate * (1 - state.step / total)
        state.optimiser.zero_grad()
        tokens = sum(len(answers[i].tokens) for i in rows)
        loss = 0.0
        for s in answer_batches(len(rows), config.micro):
            part = _nats(state, reader, [prompts[i] for i in rows[s]], [answers[i] for i in rows[s]]) / tokens
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        norm = torch.nn.utils.clip_grad_norm_(list(state.adapter.parameters()), config.max_norm)
        if not torch.isfinite(norm):
            raise BackflipError(
                f"The gradient of fine-tuning step {state.step} is not finite: the policy has diverged.\n"
                "The learning rate is probably too high for this model.\n"
                "Start a new run (another --dir) with a lower sft.learning_rate."
            )
        state.optimiser.step()
        state.step += 1
        yield Imitation(state, {"sft/loss": loss, "grad/norm": float(norm)})


def _nats(state: PolicyState, reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Tensor:
    """The sum of -log p over the answers' tokens, with gradient into the adapter."""
    batch = pack_answers(reader.chat, prompts, answers, reader.trunk.device)
    hidden = reader.trunk.hidden(batch, state.adapter)
    logp, _ = reader.of_rows(hidden.final[batch.predict_rows[batch.answer_mask]], batch)
    return -logp.sum()


def nats_per_token(state: PolicyState, reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> float:
    """Mean of -log p over the answers' tokens."""
    reading = reader.read(prompts, answers, state.adapter)
    return float(-(reading.logp * reading.mask).sum() / reading.mask.sum())
