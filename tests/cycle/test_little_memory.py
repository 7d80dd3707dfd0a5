"""A run on a machine with little memory: smaller portions, said once, and the same end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_refusals import Listening
from tiny_run import new_run

from backflip.core.errors import BackflipError
from backflip.cycle import untouched
from backflip.cycle.run import run_rounds
from backflip.models.llama import Llama
from backflip.store import open_store

MOST = 4


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No forward takes more than `MOST` answers."""
    hidden, start = Llama.hidden, Llama.start

    def small_hidden(self: Llama, batch: Any, *args: Any, **more: Any) -> Any:
        if len(batch.answer_prompt) > MOST:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return hidden(self, batch, *args, **more)

    def small_start(self: Llama, prompts: Any, repeats: int, room: int) -> Any:
        if len(prompts) * repeats > MOST:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return start(self, prompts, repeats, room)

    monkeypatch.setattr(Llama, "hidden", small_hidden)
    monkeypatch.setattr(Llama, "start", small_start)


def figures(root: Path) -> dict[str, float]:
    with open_store(root / "run.db") as store:
        return {f"{m.round} {m.step} {m.tick} {m.name}": m.value for m in store.metrics()}


def test_a_run_that_runs_out_of_memory_goes_on_in_smaller_portions_and_says_so_once(
    tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    roomy = new_run(tmp_path / "roomy", tiny_model, rounds=1)
    run_rounds(roomy)
    request.getfixturevalue("little_memory")
    cramped, watcher = new_run(tmp_path / "cramped", tiny_model, rounds=1), Listening()
    run_rounds(cramped, watcher)

    said = [line for line in watcher.said if "memory ran out" in line]
    assert len(said) == 2
    assert "9 answers at a time: 4 from now on" in said[0]
    assert "sampling.batch = 4" in said[0]
    assert "6 answers at a time: 3 from now on" in said[1]
    assert "ppo.micro = 3" in said[1]
    one, other = figures(roomy), figures(cramped)
    assert one.keys() == other.keys()
    assert np.allclose(list(one.values()), [other[k] for k in one], atol=1e-3)


def test_memory_that_runs_out_where_nothing_can_be_made_smaller_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(untouched, "load_model", fail)
    with pytest.raises(BackflipError) as told:
        run_rounds(new_run(tmp_path / "run", tiny_model))

    fact, _, cure = str(told.value).splitlines()
    assert fact == "Memory ran out while the run worked."
    assert "model.device" in cure
