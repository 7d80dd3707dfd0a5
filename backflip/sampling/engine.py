"""The decode loop: prompts in, answers with the log-probability of every token out.

Where answers end, the next take their rows of the cache; once none waits, the cache is compacted. Noise is keyed by
(seed, prompt, answer index, position), so the draw depends neither on the row nor on what the other rows hold (logits
do, in their last bits, in half precision most). Sampling is plain: the temperature, no top-k, no top-p. Knows nothing
of rewards or rounds.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from math import ceil
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backflip.core.errors import BackflipError
from backflip.core.records import Answer, Prompt
from backflip.core.rng import generator
from backflip.models.chat import Chat
from backflip.models.trunk import Trunk
from backflip.sampling.portion import Portion

BLOCK = 256
"""Tokens a block in the two-level inverse of the distribution function."""
COMPACT_BELOW = 0.75
"""Finished sequences are dropped from the cache when fewer than this share still run and none waits."""
ADMIT_FROM = 1 / 4
"""The next answers begin once this share of the rows is free: a free row costs little, reading two prompts too much."""
FREE = -1
"""What a row holds that draws no answer."""

Drawn = tuple[int, NDArray[np.int64], NDArray[np.float32]]
"""A complete answer: its number, its tokens and their log-probabilities."""


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

    def sample(
        self, prompts: Sequence[Prompt], n: int, *, seed: int, max_tokens: int, finite: bool = True
    ) -> Iterator[list[Answer]]:
        """Yield answers, each prompt's `n` together, prompts in the order given, as soon as the next are complete.

        Raises: RuntimeError before `load`; DataError for a prompt longer than the context, before anything is drawn;
        BackflipError when the model's scores are no numbers, unless `finite` is False: then the caller looks.
        """
        if self.trunk is None:
            raise RuntimeError("load a policy before sampling")
        trunk, left = self.trunk, list(prompts)
        going: Iterator[list[Answer]] | None = None

        def attempt(size: int) -> list[Answer]:
            nonlocal going
            if going is None:
                begun = self._draw_all(trunk, _ask(left, n, seed, max_tokens, self.chat), size, finite)
            else:
                begun, going = going, None  # one that breaks off is not gone on with
            batch = next(begun)
            going = begun
            return batch

        while left:
            batch = self.portion.within_memory(attempt, most=len(left) * n)
            left = left[len(batch) // n :]
            yield batch

    @torch.inference_mode()
    def stream(self, prompt: Prompt, index: int = 0, *, seed: int, max_tokens: int) -> Iterator[str | Answer]:
        """Draw answer `index` to one prompt: yield its text after every token, then the answer `sample` would give.

        Raises: as `sample`, at the first text that is asked for.
        """
        if self.trunk is None:
            raise RuntimeError("load a policy before sampling")
        asked, waiting = _ask([prompt], index + 1, seed, max_tokens, self.chat), deque([index])
        rows = _Rows(self.trunk, 1, asked, self.chat.stops)
        while waiting or rows.busy:
            for number, tokens, logp in rows.advance(waiting, self.temperature):
                yield self._answer(asked, number, tokens, logp, finite=True)
            if rows.busy:
                yield self.chat.decode(rows.tokens[0, : int(rows.at[0])].tolist())

    @torch.inference_mode()
    def _draw_all(self, trunk: Trunk, asked: "_Asked", size: int, finite: bool) -> Iterator[list[Answer]]:
        """Draw every answer, `size` at a time, and yield them in order."""
        total, first, done = len(asked.prompts) * asked.n, 0, dict[int, Answer]()
        span = total if trunk.refills else size
        for begin in range(0, total, span):
            waiting = deque(range(begin, min(total, begin + span)))
            rows = _Rows(trunk, min(size, len(waiting)), asked, self.chat.stops)
            while waiting or rows.busy:
                for number, tokens, logp in rows.advance(waiting, self.temperature):
                    done[number] = self._answer(asked, number, tokens, logp, finite)
                ready = []
                while all(first + i in done for i in range(asked.n)):
                    ready += [done.pop(first + i) for i in range(asked.n)]
                    first += asked.n
                if ready:
                    yield ready

    def _answer(
        self, asked: "_Asked", number: int, tokens: NDArray[np.int64], logp: NDArray[np.float32], finite: bool
    ) -> Answer:
        """What was drawn, as a record. Raises: BackflipError when its log-probabilities are no numbers."""
        prompt, index = asked.prompts[number // asked.n], number % asked.n
        if finite and not np.isfinite(logp).all():
            raise BackflipError(
                f"The model's scores were no numbers while it answered prompt {prompt.id} (token {_first_bad(logp)}).\n"
                "Its weights hold nan or infinity, as after steps that were too large, or in a damaged file.\n"
                "Lower ppo.learning_rate (sft.learning_rate in stage 0) and begin anew, or take another model."
            )
        ended = int(tokens[-1]) in self.chat.stops
        return Answer(
            prompt_id=prompt.id, index=index, policy=self.version, tokens=tokens, logp=logp, ended=ended,
            text=self.chat.decode(tokens.tolist()),
        )  # fmt: skip


class _Asked(NamedTuple):
    """What is asked for. Answer number a is answer a % n to prompt a // n."""

    prompts: Sequence[Prompt]
    ids: Sequence[list[int]]
    n: int
    seed: int
    room: int
    """The most tokens of an answer."""

    def noise(self, number: int) -> NDArray[np.float64]:
        """(room,) uniform numbers in [0, 1), one a token."""
        return generator(self.seed, "token", self.prompts[number // self.n].id, number % self.n).random(self.room)


def _ask(prompts: Sequence[Prompt], n: int, seed: int, max_tokens: int, chat: Chat) -> _Asked:
    return _Asked(prompts, [chat.encode(p, max_tokens) for p in prompts], n, seed, max_tokens)


@final
class _Rows:
    """The rows of a decoder's cache: which answer each draws, and what it has drawn of it."""

    def __init__(self, trunk: Trunk, count: int, asked: _Asked, stops: Sequence[int]) -> None:
        device = trunk.device
        self.decoder, self.asked = trunk.start(count, asked.room), asked
        self.stops = torch.tensor(stops, dtype=torch.long, device=device)
        self.answers = [FREE] * count
        self.at = torch.zeros(count, dtype=torch.long, device=device)
        """The place of a row's next token in its answer."""
        self.last = torch.zeros_like(self.at)
        self.noise = torch.zeros(count, asked.room, dtype=torch.float64, device=device)
        self.tokens = torch.zeros(count, asked.room, dtype=torch.long, device=device)
        self.logps = torch.zeros(count, asked.room, device=device)

    @property
    def busy(self) -> int:
        """How many rows draw an answer."""
        return len(self.answers) - self.answers.count(FREE)

    def advance(self, waiting: deque[int], temperature: float) -> list[Drawn]:
        """Let waiting answers begin where enough rows are free, else draw one more token in each row.

        Returns the answers that this completes.
        """
        free = len(self.answers) - self.busy
        if waiting and free >= min(len(waiting), ceil(ADMIT_FROM * len(self.answers))):
            return self._draw(*self._admit([waiting.popleft() for _ in range(min(free, len(waiting)))]), temperature)
        if not waiting and self.busy < COMPACT_BELOW * len(self.answers):
            self._compact()
        going = [row for row, answer in enumerate(self.answers) if answer != FREE]
        rows = torch.tensor(going, device=self.at.device)
        return self._draw(rows, self.decoder.step(self.last[rows], going), temperature)

    def _admit(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Let answers begin in free rows, those to longer prompts in later ones: the rows, and their logits."""
        ids, n = self.asked.ids, self.asked.n
        free = [row for row, answer in enumerate(self.answers) if answer == FREE]
        by_length = sorted(range(len(numbers)), key=lambda i: len(ids[numbers[i] // n]))
        slots = [0] * len(numbers)
        for row, i in zip(free, by_length, strict=False):  # more rows may be free than are needed
            slots[i], self.answers[row] = row, numbers[i]
        groups = [(p, len(list(group))) for p, group in groupby(number // n for number in numbers)]
        logits = self.decoder.admit(slots, [ids[p] for p, _ in groups], [times for _, times in groups])
        rows = torch.tensor(slots, device=self.at.device)
        self.at[rows] = 0
        self.noise[rows] = torch.from_numpy(np.stack([self.asked.noise(i) for i in numbers])).to(rows.device)
        return rows, logits

    def _draw(self, rows: Tensor, logits: Tensor, temperature: float) -> list[Drawn]:
        """Draw the next token of these rows; returns the answers that it completes."""
        at = self.at[rows]
        token, logp = draw(logits, self.noise[rows, at], temperature)
        self.tokens[rows, at], self.logps[rows, at], self.last[rows] = token, logp, token
        self.at[rows] = at + 1
        over = torch.isin(token, self.stops) | (at + 1 == self.asked.room)
        complete = []
        for row, length in torch.stack([rows, at + 1], 1)[over].tolist():
            tokens, logps = self.tokens[row, :length], self.logps[row, :length]
            complete.append((self.answers[row], tokens.cpu().numpy().copy(), logps.cpu().numpy().copy()))
            self.answers[row] = FREE
        return complete

    def _compact(self) -> None:
        """Drop the free rows."""
        kept = [row for row, answer in enumerate(self.answers) if answer != FREE]
        rows = torch.tensor(kept, device=self.at.device)
        self.decoder.keep(rows)
        self.answers = [self.answers[row] for row in kept]
        self.at, self.last, self.noise = self.at[rows], self.last[rows], self.noise[rows]
        self.tokens, self.logps = self.tokens[rows], self.logps[rows]


def _first_bad(logp: NDArray[np.float32]) -> int:
    """The number of the first token whose log-probability is no number, from 1."""
    return int(np.isfinite(logp).argmin()) + 1


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
