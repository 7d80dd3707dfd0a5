"""Memory that runs out: work goes on in smaller portions, with the same results, and says so once."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ANSWERS, ASKED, RAGGED, chat, trunk_of
from torch.testing import assert_close

from backflip.core.errors import BackflipError
from backflip.core.memory import ran_out
from backflip.models.llama import Llama
from backflip.sampling.engine import Engine
from backflip.sampling.portion import Portion
from backflip.sampling.score import Reader

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def room_for(most: int, sizes: list[int]) -> Callable[[int], int]:
    """Work that runs out of memory above `most`; notes every size it is tried with."""

    def attempt(size: int) -> int:
        sizes.append(size)
        if size > most:
            raise CUDA
        return size

    return attempt


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`cramped(n)`: from now on a forward of more than n answers runs out of memory."""
    hidden, start = Llama.hidden, Llama.start

    def limit(most: int) -> None:
        def small_hidden(self: Llama, batch: Any, *args: Any, **more: Any) -> Any:
            if len(batch.answer_prompt) > most:
                raise CUDA
            return hidden(self, batch, *args, **more)

        def small_start(self: Llama, rows: int, room: int) -> Any:
            if rows > most:
                raise CUDA
            return start(self, rows, room)

        monkeypatch.setattr(Llama, "hidden", small_hidden)
        monkeypatch.setattr(Llama, "start", small_start)

    return limit


def real_errors() -> list[Callable[[], object]]:
    return [lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50)]


@pytest.mark.parametrize("allocate", real_errors(), ids=["torch", "numpy"])
def test_a_real_lack_of_memory_is_recognised(allocate: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as told:
        allocate()
    assert ran_out(told.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError(12, "memory")])
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    assert not ran_out(error)


def test_the_size_is_halved_until_it_fits_is_kept_and_said_once() -> None:
    said: list[str] = []
    sizes: list[int] = []
    portion = Portion(24, "ppo.micro", said.append)

    assert portion.within_memory(room_for(4, sizes)) == 3
    assert portion.within_memory(room_for(4, sizes)) == 3
    assert sizes == [24, 12, 6, 3, 3]
    [line] = said
    assert line.startswith("memory ran out with 24 answers at a time: 3 from now on, with the same results")
    assert "ppo.micro = 3" in line


def test_fewer_answers_than_fit_change_nothing() -> None:
    portion = Portion(24)

    assert portion.within_memory(room_for(24, []), most=5) == 5
    assert portion.size == 24


def test_one_answer_that_does_not_fit_is_told_in_three_lines() -> None:
    sizes: list[int] = []
    with pytest.raises(BackflipError, match="Memory ran out while one answer was worked on at a time") as told:
        Portion(4).within_memory(room_for(0, sizes))
    assert sizes == [4, 2, 1]
    assert len(str(told.value).splitlines()) == 3


def test_an_error_of_another_kind_goes_through() -> None:
    def fail(size: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        Portion(4).within_memory(fail)


def test_what_a_failed_attempt_held_is_free_before_the_next() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def attempt(size: int) -> None:
        if size > 1:
            tensor = torch.zeros(3)
            held.append(weakref.ref(tensor))
            raise torch.OutOfMemoryError("CUDA out of memory.")  # a new one: an error holds the frames it went through
        gc.collect()
        assert [r() for r in held] == [None]

    Portion(2).within_memory(attempt)


def test_answers_read_in_smaller_portions_are_read_the_same(cramped: Callable[[int], None]) -> None:
    trunk, _ = trunk_of("llama")
    want = Reader(trunk, chat()).read(ASKED, ANSWERS, layers=(1,))
    cramped(2)
    reader = Reader(trunk, chat(), micro=6)
    got = reader.read(ASKED, ANSWERS, layers=(1,))

    assert reader.portion.size == 1  # 6, 3, 1
    assert_close(got.logp, want.logp, atol=1e-5, rtol=0)
    assert_close(got.pooled[1], want.pooled[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("most", "fits"), [(12, 12), (4, 3), (3, 3), (1, 1)])
def test_answers_drawn_in_smaller_portions_are_the_same(cramped: Callable[[int], None], most: int, fits: int) -> None:
    trunk, _ = trunk_of("llama")
    draws = []
    for crowded in (False, True):
        if crowded:
            cramped(most)
        engine = Engine(lambda _: trunk, chat(stops=tuple(range(2, 102))), batch=12)
        engine.load("v1")
        draws.append([a for batch in engine.sample(RAGGED, 4, seed=5, max_tokens=12) for a in batch])

    assert engine.portion.size == fits
    assert [(a.prompt_id, a.index, a.tokens.tolist()) for a in draws[1]] == [
        (a.prompt_id, a.index, a.tokens.tolist()) for a in draws[0]
    ]
    for a, b in zip(*draws, strict=True):
        assert np.allclose(a.logp, b.logp, atol=1e-5)
