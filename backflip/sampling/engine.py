"""The decode loop: prompts in, answers with the log-probability of every token out.

Noise is keyed by (seed, prompt, answer index, position), so the draw does not depend on the batch
(half-precision logits may, in the last bit). Sampling is plain: the temperature, no
top-k, no top-p. Knows nothing of rewards or rounds.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator
from backflip.models.chat import Chat
from backflip.models.trunk import Trunk
from backflip.sampling.portion import Portion

BLOCK = 256
"""Tokens a block in the two-level inverse of the distribution function."""
COMPACT_BELOW = 0.75
"""Finished sequences are dropped from the cache when fewer than this share still run."""


class Engine:
    """A `Sampler` over a trunk with merged weights.

    `fetch(version)` gives the trunk of a policy version; it is called by `load` only. `batch` is how many answers
    are drawn at a time.
    """

    def __init__(
        self, fetch: Callable[[str], Trunk], chat: Chat, *, batch: int | Portion = 64, temperature: float = 1.0
    ) -> None:
        self.fetch, self.chat, self.temperature = fetch, chat, temperature
        self.portion = batch if isinstance(batch, Portion) else Portion(batch, "sampling.batch")
        self.trunk: Trunk | None = None
        self.version = ""

    def load(self, policy: str) -> str:
        """Take the policy's newest weights; returns their version."""
        self.trunk, self.version = self.fetch(policy), policy
        return policy

    def sample(self, prompts: Sequence[Prompt], n: int, *, seed: int, max_tokens: int) -> Iterator[list[Answer]]:
        """Yield batches of answers, each prompt's `n` answers together, prompts in the order given.

        Raises: RuntimeError before `load`; DataError for a prompt longer than the context.
        """
        if self.trunk is None:
            raise RuntimeError("load a policy before sampling")
        trunk, step = self.trunk, max(1, self.portion.size // n)
        for at in range(0, len(prompts), step):
            batch = prompts[at : at + step]

            def attempt(size: int, batch: Sequence[Prompt] = batch) -> list[Answer]:
                parts = _parts(batch, n, size)
                return [a for part, which in parts for a in self._batch(trunk, part, which, seed, max_tokens)]

            yield self.portion.within_memory(attempt, most=len(batch) * n)

    @torch.inference_mode()
    def _batch(self, trunk: Trunk, prompts: Sequence[Prompt], which: range, seed: int, max_tokens: int) -> list[Answer]:
        ids = [self.chat.encode(p, max_tokens) for p in prompts]
        keys = [(p, i) for p in prompts for i in which]
        noise = np.stack([generator(seed, "token", p.id, i).random(max_tokens) for p, i in keys])
        uniform = torch.from_numpy(noise).to(trunk.device)
        tokens = torch.zeros(len(keys), max_tokens, dtype=torch.long, device=trunk.device)
        logps = torch.zeros(len(keys), max_tokens, device=trunk.device)
        lengths = np.full(len(keys), max_tokens)
        ended = np.zeros(len(keys), dtype=bool)
        stops = torch.tensor(self.chat.stops, dtype=torch.long, device=trunk.device)
        running = torch.arange(len(keys), device=trunk.device)  # rows of the cache -> answers
        decoder, logits = trunk.start(ids, len(which), max_tokens)
        alive = torch.ones(len(keys), dtype=torch.bool, device=trunk.device)
        for t in range(max_tokens):
            token, logp = draw(logits, uniform[running, t], self.temperature)
            tokens[running[alive], t], logps[running[alive], t] = token[alive], logp[alive]
            stopped = alive & torch.isin(token, stops)
            for row in running[stopped].tolist():
                lengths[row], ended[row] = t + 1, True
            alive = alive & ~stopped
            left = int(alive.sum())
            if left == 0 or t + 1 == max_tokens:
                break
            if left < COMPACT_BELOW * len(running):
                rows = alive.nonzero()[:, 0]
                decoder.keep(rows)
                running, token, alive = running[rows], token[rows], alive[rows]
            logits = decoder.step(token)
        return self._answers(keys, tokens, logps, lengths, ended)

    def _answers(
        self,
        keys: Sequence[tuple[Prompt, int]],
        tokens: Tensor,
        logps: Tensor,
        lengths: NDArray[np.int64],
        ended: NDArray[np.bool_],
    ) -> list[Answer]:
        table, scores = tokens.cpu().numpy(), logps.cpu().numpy()
        return [
            Answer(
                prompt_id=p.id, index=i, policy=self.version,
                tokens=table[r, : lengths[r]], logp=scores[r, : lengths[r]],
                ended=bool(ended[r]), text=self.chat.decode(table[r, : lengths[r]].tolist()),
            )
            for r, (p, i) in enumerate(keys)
        ]  # fmt: skip


def _parts(prompts: Sequence[Prompt], n: int, size: int) -> Iterator[tuple[Sequence[Prompt], range]]:
    """(prompts, which of the `n` answers to each) of at most `size` answers, in order."""
    whole = size // n
    for at in range(0, len(prompts), max(1, whole)):
        for first in range(0, n, n if whole else size):
            yield prompts[at : at + max(1, whole)], range(first, min(n, first + (n if whole else size)))


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the distribution function; returns tokens and log-probabilities.

    Shapes: logits (B, V), uniform (B,) in [0, 1) -> (B,) int64, (B,) float32 in nats. Exact up to float32
    rounding: first the block of 256 tokens is found, then the token in it.
    """
    scores = logits.float()
    if temperature != 1:
        scores = scores / temperature
    rows, vocabulary = scores.shape
    top = scores.amax(1, keepdim=True)
    p = torch.exp(scores - top)
    if vocabulary % BLOCK:
        p = torch.nn.functional.pad(p, (0, -vocabulary % BLOCK))
    p = p.view(rows, -1, BLOCK)
    mass = p.sum(2).double()
    cumulative = mass.cumsum(1)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=mass.shape[1] - 1)
    rest = target - (cumulative.gather(1, block) - mass.gather(1, block))
    inner = p[torch.arange(rows, device=p.device), block[:, 0]].double().cumsum(1)
    inside = torch.searchsorted(inner, rest, right=True).clamp_(max=BLOCK - 1)
    token = (block * BLOCK + inside)[:, 0].clamp_(max=vocabulary - 1)
    logp = (scores.gather(1, token[:, None]) - top)[:, 0].double() - cumulative[:, -1].log()
    return token, logp.float()
