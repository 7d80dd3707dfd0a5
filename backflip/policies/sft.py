"""Supervised fine-tuning: the policy learns to give the answers that people wrote."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator
from backflip.models.trunk import Trunk
from backflip.objectives.imitation import imitation_loss
from backflip.policies.gradient import Lesson, Rows, gradient_step, trained_logp
from backflip.policies.not_finite import Lines, lines_of
from backflip.policies.plan import PPO, SFT
from backflip.policies.state import PolicyState, fresh_state
from backflip.sampling.score import Reader

__all__ = ["SFT", "Imitation", "fresh_imitator", "imitate", "imitation", "nats_per_token", "steps_of"]


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
    exactly. Raises: NotFinite when a loss or gradient is not finite.
    """
    lesson = imitation(state, reader, prompts, answers)
    per_epoch, total = -(-len(answers) // config.batch), steps_of(config, len(answers))
    while state.step < total:
        epoch, place = divmod(state.step, per_epoch)
        order = generator(seed, "demonstrations", epoch).permutation(len(answers))
        rows = np.sort(order[place * config.batch : (place + 1) * config.batch])
        state.optimiser.param_groups[0]["lr"] = config.learning_rate * (1 - state.step / total)
        figures = gradient_step(
            state, reader.portion, rows, lesson, micro=config.micro, max_norm=config.max_norm, table="sft"
        )
        state.step += 1
        yield Imitation(state, {"sft/loss": figures.pop("loss/imitation")} | figures)


def imitation(state: PolicyState, reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Lesson:
    """Learning `answers`, each to its prompt."""

    def part(rows: Rows, whole: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        logp, mask = trained_logp(state, reader, [prompts[i] for i in rows], [answers[i] for i in rows])
        loss = imitation_loss(logp, mask, tokens=sum(len(answers[i].tokens) for i in whole))
        return loss, {"loss/imitation": loss}

    def lines(rows: Rows) -> Lines:
        return lines_of([prompts[i] for i in rows], [answers[i] for i in rows], {})

    return Lesson(part, lines, len(answers))


def nats_per_token(state: PolicyState, reader: Reader, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> float:
    """Mean of -log p over the answers' tokens."""
    reading = reader.read(prompts, answers, state.adapter)
    return float(-(reading.logp * reading.mask).sum() / reading.mask.sum())
