"""A run on a machine with little memory: smaller portions, said once, and the same end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_refusals import Listening
from tiny_run import Bench, new_run

from backflip.core.errors import BackflipError
from backflip.cycle import untouched
from backflip.cycle.run import run_rounds
from backflip.models.llama import Llama
from backflip.policies import foresight
from backflip.policies.foresight import Need, keep_within_memory
from backflip.policies.plan import PPO, SFT
from backflip.sampling.portion import Portion
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

    def small_start(self: Llama, rows: int, room: int) -> Any:
        if rows > MOST:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return start(self, rows, room)

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


def test_memory_that_would_run_out_is_foreseen_and_smaller_portions_give_the_same_figures(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"we love {word}", "completion": f"{word} is good"} for word in ("tea", "rain", "snow", "bread")]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = SFT(demonstrations=str(tmp_path / "d.jsonl"), batch=4, epochs=1, held_out=0.0)
    ppo = PPO(steps=2, prompts=4, answers=4, rank=4, alpha=8.0, learning_rate=5e-3, micro=6, kl_coef=0.1)
    roomy = new_run(tmp_path / "roomy", tiny_model, rounds=1, sft=sft, ppo=ppo)
    run_rounds(roomy)
    needs: list[Need] = []
    fits, hidden, largest = Need.fits, Llama.hidden, 0

    def room_for_two(self: Need, room: float, most: int) -> int:
        needs.append(self)
        return fits(self, self.of(3) - 1, most)  # as if the machine had one byte too little for three

    def watched(self: Llama, batch: Any, *args: Any, **more: Any) -> Any:
        nonlocal largest
        largest = max(largest, len(batch.answer_prompt) if torch.is_grad_enabled() else 0)
        return hidden(self, batch, *args, **more)

    monkeypatch.setattr(Need, "fits", room_for_two)
    monkeypatch.setattr(Llama, "hidden", watched)
    cramped, watcher = new_run(tmp_path / "cramped", tiny_model, rounds=1, sft=sft, ppo=ppo), Listening()
    run_rounds(cramped, watcher)

    said = [line for line in watcher.said if "free memory" in line]
    assert largest == 2
    assert len(needs) == len(said) == 2
    assert said[0].startswith("the free memory is too little for 16 answers at a time: 2 from now on")
    assert "sft.micro = 2" in said[0]
    assert said[1].startswith("the free memory is too little for 6 answers at a time: 2 from now on")
    assert "ppo.micro = 2" in said[1]
    assert all(need.of(1) < need.of(2) < need.of(3) for need in needs)
    one, other = figures(roomy), figures(cramped)
    assert one.keys() == other.keys()
    assert np.allclose(list(one.values()), [other[k] for k in one], atol=1e-3)


@pytest.mark.parametrize("free", [0, 10**12])
def test_the_machines_free_memory_decides(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    said: list[str] = []
    bench = Bench(tiny_model, None)
    bench.reader.portion = Portion(8, "ppo.micro", said.append)
    monkeypatch.setattr(foresight, "available_bytes", lambda _: free)
    keep_within_memory(bench.reader, Need(fixed=0, first=100, each=50), 8)

    assert (bench.reader.portion.size, len(said)) == ((8, 0) if free else (1, 1))


def test_what_fits_is_the_most_that_does() -> None:
    need = Need(fixed=1000, first=100, each=50)

    assert need.of(3) == 1000 + int(1.3 * 200)
    assert [need.fits(room, 8) for room in (1129, 1130, 1259, 1260, 10**6)] == [0, 1, 2, 3, 8]


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
