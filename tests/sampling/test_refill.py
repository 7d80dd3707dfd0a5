"""Rows that are taken by the next answers: nothing is lost, nothing changes, no row is worked on in vain."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny import RAGGED, chat, prompt, trunk_of
from torch.testing import assert_close

from backflip.core.errors import BackflipError, DataError
from backflip.core.records import Answer, Prompt
from backflip.models.cache import Cache
from backflip.models.llama import Llama
from backflip.models.trunk import Trunk
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader

SOME = tuple(range(2, 32))
"""A tenth of the vocabulary ends an answer: most are short, some run to the limit."""
TOKENS = 40
UNEVEN = [prompt(f"p{i}", " ".join(f"w{40 + (i + j) % 9}" for j in range(1 + i * 5 % 14))) for i in range(20)]
STOP = 5


def engine(trunk: Any, stops: Sequence[int] = SOME, **more: Any) -> Engine:
    made = Engine(lambda _: trunk, chat(stops=stops), **more)
    made.load("v1")
    return made


def drawn(trunk: Trunk, n: int, prompts: Sequence[Prompt] = UNEVEN, **more: Any) -> list[Answer]:
    return [a for b in engine(trunk, **more).sample(prompts, n, seed=3, max_tokens=TOKENS) for a in b]


def said(answers: Sequence[Answer]) -> list[tuple[str, int, list[int], bool]]:
    return [(a.prompt_id, a.index, a.tokens.tolist(), a.ended) for a in answers]


class Scripted:
    """A trunk without a model: a prompt of n tokens is answered with n times the token n + 100, then the stop token."""

    device, vocabulary = torch.device("cpu"), 300

    def __init__(self, *, refills: bool = True) -> None:
        self.refills = refills
        self.steps, self.stepped, self.read = 0, 0, 0
        self.seated: list[list[tuple[int, int]]] = []

    def start(self, rows: int, room: int) -> "Scripted":
        self.sequences: list[tuple[int, int]] = [(0, 0)] * rows
        return self

    def admit(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> torch.Tensor:
        lengths = [len(p) for p, times in zip(prompts, repeats, strict=True) for _ in range(times)]
        self.seated.append(list(zip(slots, lengths, strict=True)))
        for slot, length in self.seated[-1]:
            self.sequences[slot] = (length, 0)
        return self.scores(slots)

    def step(self, tokens: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        self.steps, self.stepped = self.steps + 1, self.stepped + len(rows)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            length, done = self.sequences[row]
            assert token == length + 100
            self.sequences[row] = (length, done + 1)
        return self.scores(rows)

    def keep(self, rows: torch.Tensor) -> None:
        self.sequences = [self.sequences[row] for row in rows.tolist()]

    def scores(self, rows: Sequence[int]) -> torch.Tensor:
        out = torch.full((len(rows), self.vocabulary), -torch.inf)
        for at, row in enumerate(rows):
            length, done = self.sequences[row]
            out[at, length + 100 if done < length else STOP] = 0.0
        return out


def words(*lengths: int) -> list[Prompt]:
    """Prompts of so many tokens each, and no template's."""
    return [prompt(f"p{i}", " ".join(["w40"] * length)) for i, length in enumerate(lengths)]


def run_script(
    trunk: Scripted, lengths: Sequence[int], n: int, batch: int, max_tokens: int = 34
) -> Iterator[list[Answer]]:
    made = Engine(lambda _: trunk, chat(stops=(STOP,), template=False, bos=False), batch=batch)  # type: ignore[arg-type]
    made.load("v1")
    return made.sample(words(*lengths), n, seed=0, max_tokens=max_tokens)


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("batch", [1, 2, 5, 8, 64])
@pytest.mark.parametrize("refills", [True, False])
def test_no_answer_is_lost_doubled_or_out_of_order(batch: int, n: int, refills: bool) -> None:
    lengths = [3, 30, 1, 1, 12, 1, 2, 30, 1, 1, 1, 25, 1, 2, 1]
    batches = list(run_script(Scripted(refills=refills), lengths, n, batch))

    assert said([a for b in batches for a in b]) == [
        (f"p{p}", i, [length + 100] * length + [STOP], True) for p, length in enumerate(lengths) for i in range(n)
    ]
    assert all(len(b) % n == 0 for b in batches)


def test_one_long_answer_in_every_batch_holds_up_no_row() -> None:
    # 64 answers, 8 at a time, each eighth of 31 tokens, the others of 2: one after the other 8 batches of 30 steps
    lengths = [30 if i % 8 == 0 else 1 for i in range(64)]
    work = {}
    for refills in (True, False):
        trunk = Scripted(refills=refills)
        answers = [a for b in run_script(trunk, lengths, 1, 8) for a in b]
        work[refills] = trunk.steps
        assert trunk.stepped == sum(len(a.tokens) - 1 for a in answers)  # no row is stepped once it is over

    assert work[False] == 8 * 30
    assert work[True] < work[False] / 2


def test_answers_are_yielded_as_soon_as_the_next_prompts_in_order_are_complete() -> None:
    trunk = Scripted()
    batches = run_script(trunk, [2, 1, 30, 1], 2, 8)

    assert [a.prompt_id for a in next(batches)] == ["p0", "p0", "p1", "p1"]
    assert trunk.steps == 2
    assert [a.prompt_id for a in next(batches)] == ["p2", "p2", "p3", "p3"]
    assert trunk.steps == 30


def test_longer_prompts_sit_in_later_rows() -> None:
    trunk = Scripted()
    list(run_script(trunk, [9, 4, 20, 1, 6, 2, 3, 8], 2, 8))

    assert len(trunk.seated) > 1
    for seated in trunk.seated:
        lengths = [length for _, length in sorted(seated)]
        assert lengths == sorted(lengths)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_row_changes_no_answer(family: str) -> None:
    trunk, _ = trunk_of(family)
    alone, seven, many = (drawn(trunk, 5, batch=b) for b in (1, 7, 64))

    assert len({len(a.tokens) for a in alone}) > 15
    for other in (seven, many):
        assert [a[:2] for a in said(other)] == [a[:2] for a in said(alone)]
        same = [a == b for a, b in zip(said(alone), said(other), strict=True)]
        assert np.mean(same) >= 0.99
        for a, b in zip(alone, other, strict=True):
            if len(a.tokens) == len(b.tokens):
                assert_close(torch.from_numpy(a.logp), torch.from_numpy(b.logp), atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch", [7, 16])
def test_the_same_seed_and_batch_give_the_same_bits(batch: int) -> None:
    trunk, _ = trunk_of("llama")
    one, two = (drawn(trunk, 3, batch=batch) for _ in range(2))

    assert said(one) == said(two)
    assert [a.logp.tobytes() for a in one] == [a.logp.tobytes() for a in two]


def test_answers_are_the_same_whether_rows_are_refilled_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, _ = trunk_of("llama")
    refilled = drawn(trunk, 3, batch=8)
    monkeypatch.setattr(Llama, "refills", False)
    plain = drawn(trunk, 3, batch=8)

    assert said(refilled) == said(plain)
    for a, b in zip(refilled, plain, strict=True):
        assert_close(torch.from_numpy(a.logp), torch.from_numpy(b.logp), atol=1e-4, rtol=0)


def test_refilled_rows_record_what_the_reader_reads() -> None:
    trunk, _ = trunk_of("llama")
    answers = drawn(trunk, 3, batch=8)
    by_id = {p.id: p for p in UNEVEN}
    read = Reader(trunk, chat(stops=SOME)).read([by_id[a.prompt_id] for a in answers], answers)

    for row, a in enumerate(answers):
        assert_close(read.logp[row, : len(a.tokens)], torch.from_numpy(a.logp), atol=1e-4, rtol=0)


def test_a_prompt_is_read_once_also_when_its_answers_do_not_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, _ = trunk_of("llama")
    read, seen = Llama.read, []

    def noting(self: Llama, prompts: Any, store: Callable[..., None]) -> torch.Tensor:
        seen.extend(map(tuple, prompts))
        return read(self, prompts, store)

    monkeypatch.setattr(Llama, "read", noting)
    answers = drawn(trunk, 11, batch=4)

    assert len(answers) == 11 * len(UNEVEN)
    assert sorted(seen) == sorted(tuple(chat().encode(p)) for p in UNEVEN)


@pytest.mark.parametrize("at", [3, 20, 60])
def test_memory_that_runs_out_midway_loses_and_doubles_nothing(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    trunk, _ = trunk_of("llama")
    want = drawn(trunk, 3, batch=8)
    decode, calls = Llama.decode, 0

    def crowded(self: Llama, *args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return decode(self, *args)

    monkeypatch.setattr(Llama, "decode", crowded)
    made = engine(trunk, batch=8)
    got = [a for b in made.sample(UNEVEN, 3, seed=3, max_tokens=TOKENS) for a in b]

    assert made.portion.size == 4
    assert said(got) == said(want)


def test_scores_that_are_no_numbers_are_told_in_three_lines() -> None:
    trunk, _ = trunk_of("llama")
    assert isinstance(trunk, Llama)
    broken = Llama(trunk.config, trunk.embedding, trunk.blocks, trunk.norm, trunk.output * torch.nan)

    with pytest.raises(BackflipError, match=r"no numbers while it answered prompt short \(token 1\)") as told:
        drawn(broken, 2, RAGGED)
    assert len(str(told.value).splitlines()) == 3


def test_scores_that_overflow_late_are_told_too() -> None:
    # After two tokens of an answer to the prompt of two words comes infinity.
    class Overflowing(Scripted):
        def scores(self, rows: Sequence[int]) -> torch.Tensor:
            out = super().scores(rows)
            return torch.where(out[:, STOP : STOP + 1] == 0, torch.inf, out)

    with pytest.raises(BackflipError, match=r"prompt p0 \(token 3\)"):
        list(run_script(Overflowing(), [2], 1, 1, max_tokens=3))


def test_the_longest_prompt_is_refused_before_anything_is_drawn() -> None:
    trunk = Scripted()
    batches = run_script(trunk, [1, 1, 1, 30], 1, 1, max_tokens=40)
    with pytest.raises(DataError, match="Prompt p3 has 30 tokens; with 40 for the answer"):
        next(batches)
    assert trunk.seated == []


def test_rows_of_like_length_are_looked_at_together() -> None:
    cache = Cache(1, 8, (1, 2), torch.zeros(1))
    cache.widen(300)
    cache.seat(range(8), [9, 10, 9, 10, 100, 10, 199, 100])

    # four bands of two rows; the first two are alike, and each looks at one token more than its longest holds
    assert cache.bands(range(8)) == [(0, 4, 11), (4, 6, 101), (6, 8, 200)]
    assert cache.bands([0, 3, 7]) == [(0, 4, 11), (7, 8, 101)]
    cache.seat([4, 6, 7], [12, 9, 11])
    assert cache.bands(range(8)) == [(0, 8, 13)]


def test_a_wider_cache_holds_what_the_narrow_one_held() -> None:
    cache = Cache(2, 2, (1, 2), torch.zeros(1))
    cache.widen(5)
    cache.seat([0, 1], [3, 5])
    kept = [torch.randn_like(k) for k in cache.keys]
    for own, k in zip(cache.keys, kept, strict=True):
        own.copy_(k)
    cache.widen(70)

    assert [k.shape[2] for k in (*cache.keys, *cache.values)] == [96] * 4
    assert all(torch.equal(own[:, :, : k.shape[2]], k) for own, k in zip(cache.keys, kept, strict=True))
    assert (cache.mask[:, 0, 0] == 0).sum(1).tolist() == [3, 5]
