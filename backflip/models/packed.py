"""Packed batches: each prompt once, followed by the answers given to it; no padding in the matmuls.

Knows nothing of models. A prompt's keys and values are computed once and shared by its answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packed:
    """P prompts and B answers as one row of N tokens: all prompts, then all answers.

    Shapes: ids, positions (N,) int64; prompt_rows (P, Tp) and answer_rows (B, Ta) int64 indices into
    the N tokens (0 where the mask is False); prompt_mask (P, Tp) and answer_mask (B, Ta) bool;
    answer_prompt (B,) int64, the prompt of each answer; predict_rows (B, Ta), the token whose hidden
    state predicts each answer token (the prompt's last token for the first one).
    """

    ids: Tensor
    positions: Tensor
    prompt_rows: Tensor
    prompt_mask: Tensor
    answer_rows: Tensor
    answer_mask: Tensor
    answer_prompt: Tensor
    predict_rows: Tensor

    @property
    def answers(self) -> Tensor:
        """(B, Ta) answer token ids, 0 where masked."""
        return self.ids[self.answer_rows] * self.answer_mask

    @property
    def last_rows(self) -> Tensor:
        """(B,) index of each answer's last real token; its prompt's last token when the answer is empty."""
        count = self.answer_mask.sum(1)
        last = (
            self.answer_rows.gather(1, (count - 1).clamp_min(0)[:, None])[:, 0] if self.answer_mask.shape[1] else count
        )
        prompt_last = (self.prompt_mask.sum(1) - 1).clamp_min(0)
        ends = self.prompt_rows.gather(1, prompt_last[:, None])[:, 0][self.answer_prompt]
        return torch.where(count > 0, last, ends)


def pack(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]] = (),
    answer_prompt: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> Packed:
    """Pack token lists. `answer_prompt[b]` is the index of answer b's prompt.

    Raises: ValueError when there is no prompt or one is empty, the two answer lists differ in length, or an
    answer names a prompt that is not there.
    """
    if not prompts or any(len(p) == 0 for p in prompts):
        raise ValueError("there is no prompt, or one has no tokens")
    if len(answers) != len(answer_prompt):
        raise ValueError(f"{len(answers)} answers but {len(answer_prompt)} prompt indices")
    if any(not 0 <= p < len(prompts) for p in answer_prompt):
        raise ValueError(f"an answer's prompt index is none of 0..{len(prompts) - 1}")
    p_rows, p_mask = _rows([len(p) for p in prompts], 0)
    start = sum(len(p) for p in prompts)
    a_rows, a_mask = _rows([len(a) for a in answers], start)
    owner = torch.tensor(list(answer_prompt), dtype=torch.long)
    p_len = p_mask.sum(1)
    positions = [torch.arange(len(p)) for p in prompts]
    positions += [torch.arange(len(a)) + int(p_len[o]) for a, o in zip(answers, answer_prompt, strict=True)]
    p_last = p_rows.gather(1, (p_len - 1)[:, None])[:, 0]
    if len(answers):
        predict = torch.cat([p_last[owner][:, None], a_rows[:, :-1]], 1)
        predict = torch.where(a_mask, predict, torch.zeros_like(predict))
    else:
        predict = a_rows
    ids = torch.tensor([t for p in prompts for t in p] + [t for a in answers for t in a], dtype=torch.long)
    parts = (ids, torch.cat(positions), p_rows, p_mask, a_rows, a_mask, owner, predict)
    return Packed(*(x.to(device) for x in parts))


def prompt_attention(batch: Packed, window: int | None = None) -> Tensor | None:
    """(Tp, Tp) bool: what a prompt's token may see, itself and the `window - 1` tokens before it.

    None without a window: it sees all that came before.
    """
    if window is None:
        return None
    width = batch.prompt_rows.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=batch.ids.device).tril()
    return causal.triu(1 - window)


def answer_attention(batch: Packed, window: int | None = None) -> Tensor | None:
    """(B, 1, Ta, Tp + Ta) bool: what an answer token may see; None without answers.

    Its prompt's real tokens, and its own answer up to itself; of both the last `window`, where there is one, itself
    included. Rows of padding see the prompt or themselves, so that no softmax is empty; nothing reads them.
    """
    if batch.answer_rows.numel() == 0:
        return None
    count, width = batch.answer_rows.shape
    prompt = batch.prompt_mask[batch.answer_prompt][:, None, :].expand(count, width, -1)
    causal = torch.ones(width, width, dtype=torch.bool, device=batch.ids.device).tril()
    own = causal[None] & batch.answer_mask[:, None, :]
    if window is not None:
        columns = torch.arange(width + prompt.shape[2], device=batch.ids.device)
        at = batch.prompt_mask.sum(1)[batch.answer_prompt][:, None] + columns[:width]
        prompt = prompt & (at[:, :, None] - columns[: prompt.shape[2]] < window)
        own = own & causal.triu(1 - window) | torch.eye(width, dtype=torch.bool, device=batch.ids.device)
    return torch.cat([prompt, own], 2)[:, None]


def _rows(lengths: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
    """Row indices (n, max) of sequences laid end to end from `start`, and the mask of real ones."""
    n, width = len(lengths), max(lengths, default=0)
    length = torch.tensor(list(lengths), dtype=torch.long)
    begin = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)[:-1]]) if n else length
    columns = torch.arange(width)
    mask = columns[None] < length[:, None] if n else torch.zeros(0, 0, dtype=torch.bool)
    rows = begin[:, None] + columns[None] + start if n else torch.zeros(0, 0, dtype=torch.long)
    return torch.where(mask, rows, torch.zeros_like(rows)), mask
