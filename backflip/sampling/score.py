"""Read given answers with a model: log-probabilities and features, each prompt computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from backflip.core.errors import DataError
from backflip.core.records import Answer, Prompt
from backflip.models.adapters import Adapter, layers_below
from backflip.models.chat import Chat
from backflip.models.logp import token_logp
from backflip.models.packed import Packed, pack
from backflip.models.trunk import Trunk
from backflip.sampling.portion import Portion


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model makes of B answers, in the order they were given.

    Shapes: mask, logp, entropy (B, T), logp and entropy in nats, 0 where masked; pooled[layer] (B, H)
    float32, the mean over an answer's tokens of the hidden states after that many layers; last (B, H)
    float32, the final hidden state at its last token; states (B, T, H) float32, the final hidden state
    *before* each token, or None when not asked for.
    """

    mask: Tensor
    logp: Tensor
    entropy: Tensor
    pooled: dict[int, Tensor]
    last: Tensor
    states: Tensor | None


MOST_LOWER = 1 << 28
"""Bytes of lower states that are kept at most; what finds no room is computed anew."""


@dataclass(eq=False)
class Lower:
    """States after the lower `layer` layers, of texts that were read once.

    A policy whose adapter lies above need not compute them again, neither to be read nor in any pass of its training.
    `prompts` (Tp, H) by the prompt's id, `answers` (T, H) by the answer's identity.
    """

    layer: int
    prompts: dict[str, Tensor] = field(default_factory=dict)
    answers: dict[int, Tensor] = field(default_factory=dict)
    room: int = MOST_LOWER

    def add(self, states: Tensor, batch: Packed, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> None:
        """Keep what a packed batch's tokens (N, H) became, if there is room."""
        self.room -= states.nbytes
        if self.room < 0:
            return
        names = dict.fromkeys(p.id for p in prompts)
        for name, rows, mask in zip(names, batch.prompt_rows, batch.prompt_mask, strict=True):
            self.prompts[name] = states[rows[mask]]
        for a, rows, mask in zip(answers, batch.answer_rows, batch.answer_mask, strict=True):
            self.answers[id(a)] = states[rows[mask]]

    def of(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Tensor | None:
        """(N, H) as `pack_answers` lays these out; None when one was not kept."""
        known = [self.prompts.get(name) for name in dict.fromkeys(p.id for p in prompts)]
        known += [self.answers.get(id(a)) for a in answers]
        found = [rows for rows in known if rows is not None]
        return torch.cat(found) if len(found) == len(known) else None


def sampled_logp(answers: Sequence[Answer], reading: Reading) -> Tensor:
    """(B, T) log-probabilities recorded while the answers were sampled, laid out as in their `reading`; else 0."""
    out = torch.zeros_like(reading.logp)
    for row, a in enumerate(answers):
        out[row, : len(a.logp)] = torch.from_numpy(np.array(a.logp)).to(out.device)
    return out


def middle_layer(layers: int) -> int:
    """The layer whose mean over an answer serves the reward: the middle one."""
    return max(1, layers // 2)


def answer_batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` answers."""
    for at in range(0, count, size):
        yield slice(at, min(at + size, count))


def pack_answers(chat: Chat, prompts: Sequence[Prompt], answers: Sequence[Answer], device: torch.device) -> Packed:
    """Pack `answers` (B) with `prompts` (B, one per answer; repeats are stored once).

    Raises: DataError when a prompt and its answer exceed the model's context.
    """
    index: dict[str, int] = {}
    ids: list[list[int]] = []
    for p, a in zip(prompts, answers, strict=True):
        if p.id not in index:
            index[p.id] = len(ids)
            ids.append(chat.encode(p))
        if (count := len(ids[index[p.id]]) + len(a.tokens)) > chat.context:
            raise DataError(
                f"Prompt {p.id} and an answer to it have {count} tokens, more than the model's context of "
                f"{chat.context}.\n"
                "The answer was made for a model with a longer context, or another chat template adds tokens here.\n"
                "Shorten the prompt, lower sampling.max_tokens, or take a model with a longer context."
            )
    return pack(ids, [a.tokens.tolist() for a in answers], [index[p.id] for p in prompts], device)


@dataclass(eq=False)
class Reader:
    """One trunk and its chat side; every read names the adapter, None for the reference."""

    trunk: Trunk
    chat: Chat
    micro: int | Portion = 32
    """Answers per forward; see `portion`."""
    temperature: float = 1.0
    """Logits are divided by it, as they were when the answers were sampled."""
    recent: dict[tuple[int, ...], tuple[Sequence[Answer], "Reading"]] = field(default_factory=dict)
    """The last reading by the reference, so that reward, critic and KL share one forward."""
    lower: Lower | None = None
    """Lower states of the answers in `recent`, so that the policy's forwards begin above them."""

    def __post_init__(self) -> None:
        """Derive the portion that fits into the memory; what trains on the same trunk works in it too."""
        self.portion = self.micro if isinstance(self.micro, Portion) else Portion(self.micro)

    def reference(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Reading:
        """Read with the untouched model, keeping the middle layer and the states; the last call is remembered."""
        key = tuple(id(a) for a in answers)
        if key not in self.recent:
            middle = middle_layer(self.trunk.layers)
            lower = Lower(middle)
            self.recent, self.lower = {}, None
            reading = self.read(prompts, answers, None, layers=(middle,), states=True, lower=lower)
            self.recent[key] = (list(answers), reading)  # the answers are held, so that no id is used again
            self.lower = lower
        return self.recent[key][1]

    def after(
        self, prompts: Sequence[Prompt], answers: Sequence[Answer], adapter: Adapter | None
    ) -> tuple[int, Tensor] | None:
        """From where a forward over these, packed, may go on: see `Trunk.hidden`. None where nothing is known."""
        if adapter is None or self.lower is None or layers_below(adapter) < self.lower.layer:
            return None
        states = self.lower.of(prompts, answers)
        return None if states is None else (self.lower.layer, states)

    @torch.no_grad()
    def read(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Answer],
        adapter: Adapter | None = None,
        *,
        layers: Sequence[int] = (),
        states: bool = False,
        lower: Lower | None = None,
    ) -> Reading:
        """Read B answers to B prompts (one per answer); `lower` is given the states after its layer, one of `layers`.

        Raises: ValueError when there are none or one is empty; DataError when one exceeds the model's context.
        """
        if not answers or any(len(a.tokens) == 0 for a in answers):
            raise ValueError("nothing to read: every answer needs at least one token")
        width = max(len(a.tokens) for a in answers)

        def attempt(size: int) -> list[Reading]:
            slices = answer_batches(len(answers), size)
            return [self._part(prompts[s], answers[s], adapter, layers, states, lower) for s in slices]

        parts = self.portion.within_memory(attempt, most=len(answers))

        def join(name: str) -> Tensor:
            return torch.cat([_widen(getattr(p, name), width) for p in parts])

        return Reading(
            mask=join("mask"), logp=join("logp"), entropy=join("entropy"),
            pooled={k: torch.cat([p.pooled[k] for p in parts]) for k in layers},
            last=torch.cat([p.last for p in parts]), states=join("states") if states else None,
        )  # fmt: skip

    def _part(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Answer],
        adapter: Adapter | None,
        layers: Sequence[int],
        states: bool,
        lower: Lower | None,
    ) -> Reading:
        batch = pack_answers(self.chat, prompts, answers, self.trunk.device)
        after = None if layers else self.after(prompts, answers, adapter)
        hidden = self.trunk.hidden(batch, adapter, keep=layers, after=after)
        if lower is not None:
            lower.add(hidden.kept[lower.layer], batch, prompts, answers)
        mask = batch.answer_mask
        rows = hidden.final[batch.predict_rows[mask]]
        logp, entropy = self.of_rows(rows, batch)
        count = mask.sum(1, keepdim=True)
        pooled = {k: ((h[batch.answer_rows].float() * mask[..., None]).sum(1) / count) for k, h in hidden.kept.items()}
        full = hidden.final[batch.predict_rows].float() * mask[..., None] if states else None
        return Reading(mask, logp, entropy, pooled, hidden.final[batch.last_rows].float(), full)

    def of_rows(self, rows: Tensor, batch: Packed) -> tuple[Tensor, Tensor]:
        """(B, T) log-probabilities and entropies from the hidden states `rows` of the unmasked answer tokens.

        Gradient flows into `rows` through the log-probabilities.
        """
        mask = batch.answer_mask
        out = token_logp(rows, self.trunk.head(), batch.ids[batch.answer_rows[mask]], self.temperature)
        zeros = torch.zeros(mask.shape, device=mask.device)
        return zeros.masked_scatter(mask, out.logp), zeros.masked_scatter(mask, out.entropy)


def _widen(x: Tensor, width: int) -> Tensor:
    """Pad dimension 1 to `width` with zeros (False)."""
    short = width - x.shape[1]
    if short == 0:
        return x
    return torch.cat([x, x.new_zeros(x.shape[0], short, *x.shape[2:])], 1)
