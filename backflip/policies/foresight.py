"""How much memory a gradient step will take, told from a forward of one answer and of two, before one is taken."""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np

from backflip.core.records import Answer, Prompt
from backflip.models.adapters import Adapter
from backflip.models.chat import Chat
from backflip.models.memory import available_bytes, saved_bytes
from backflip.policies.plan import PPO
from backflip.policies.state import PolicyState
from backflip.sampling.score import Reader, pack_answers

SPARE = 1.3
"""What a backward needs beside what the forward kept for it: the gradients in flight. Measured: bench/doctor.py."""
STATES_HELD = 6
"""Copies of a step's states that are alive at once while the critic learns."""
TRUSTED = 0.9
"""Share of the free memory that is planned with: what is foreseen is right to within 1.08."""


class Need(NamedTuple):
    """Bytes that a gradient step takes beside what the model holds."""

    fixed: int
    """Whatever the micro-batch: gradients, Adam's moments, the merged copy, the states of a rollout."""
    first: int
    """Kept for the backward of a first answer."""
    each: int
    """Kept for every further one."""

    def of(self, micro: int) -> int:
        """Bytes for so many answers at a time."""
        return int(SPARE * (self.first + (micro - 1) * self.each)) + self.fixed

    def fits(self, room: float, most: int) -> int:
        """Answers at a time, at most `most`, that `room` bytes are enough for; 0 when one is too much."""
        return next((micro for micro in range(most, 0, -1) if self.of(micro) <= room), 0)


def need_of_step(reader: Reader, adapter: Adapter, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Need:
    """What a step that trains `adapter` needs, told from the first two of these answers, which should be long ones."""
    trunk = reader.trunk

    def kept(count: int) -> int:
        batch = pack_answers(reader.chat, prompts[:count], answers[:count], trunk.device)

        def forward() -> object:
            hidden = trunk.hidden(batch, adapter)
            return hidden, reader.of_rows(hidden.final[batch.predict_rows[batch.answer_mask]], batch)

        return saved_bytes(forward, [*trunk.state().values(), *adapter.parameters()])

    one, two = kept(1), kept(2)
    tuned = sum(p.numel() for p in adapter.parameters())
    changed = sum(a * b for name, (a, b) in trunk.linear_shapes().items() if name in adapter.b)
    # beside the sampler's merged copy, each weight twice as it is laid out, that of the adapter in training
    return Need(tuned * 4 * 3 + 4 * changed * trunk.dtype.itemsize, one, max(0, two - one))


def need_of_climb(
    reader: Reader,
    state: PolicyState,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    *,
    rollouts: int,
    room: int,
) -> Need:
    """As `need_of_step`, with the critic's weights and the states of so many answers of up to `room` tokens."""
    need = need_of_step(reader, state.adapter, prompts, answers)
    learned = sum(p.numel() for p in state.critic.parameters) * 4 * 3
    return need._replace(fixed=need.fixed + learned + STATES_HELD * rollouts * room * reader.trunk.hidden_size * 4)


def at_a_time(config: PPO, rollouts: int) -> int:
    """Answers that a gradient step of a climb works on at a time, memory allowing."""
    return min(config.micro, ceil(rollouts / config.minibatches))


def longest(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> tuple[list[Prompt], list[Answer]]:
    """The two longest answers, with their prompts."""
    rows = sorted(range(len(answers)), key=lambda i: -len(answers[i].tokens))[:2]
    return [prompts[i] for i in rows], [answers[i] for i in rows]


def longest_imaginable(chat: Chat, prompts: Sequence[Prompt], max_tokens: int) -> tuple[list[Prompt], list[Answer]]:
    """Made-up answers of `max_tokens` tokens to the two longest prompts (the same one twice where there is one)."""
    top = sorted(prompts, key=lambda p: -len(chat.encode(p)))[:2]
    tokens, logp = np.zeros(max_tokens, dtype=np.int64), np.zeros(max_tokens, dtype=np.float32)
    asked = (top * 2)[:2]
    said = [Answer(prompt_id=p.id, index=0, policy="", tokens=tokens, logp=logp, ended=False, text="") for p in asked]
    return asked, said


def keep_within_memory(reader: Reader, need: Need, most: int) -> None:
    """Before a step of `most` answers at a time runs out of memory, let the reader's portion be one that fits."""
    most = min(most, reader.portion.size)
    fits = need.fits(TRUSTED * available_bytes(reader.trunk.device), most)
    if fits < most:
        reader.portion.foreseen(max(1, fits))
