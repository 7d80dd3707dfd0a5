"""Checkpoints of a climb: whole or not there, whatever the disk does midway."""

import errno
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Bench

from backflip.core.errors import BackflipError
from backflip.cycle import artefacts
from backflip.cycle.checkpoints import newest_checkpoint, save_checkpoint
from backflip.policies import state as checkpoint
from backflip.policies.plan import PPO
from backflip.policies.state import PolicyState, fresh_state

CPU = torch.device("cpu")


@pytest.fixture
def state(tiny_model: Path) -> PolicyState:
    return fresh_state(Bench(tiny_model, None).loaded.trunk, PPO(rank=4), 3)


def content(state: PolicyState | None) -> dict[str, bytes]:
    assert state is not None
    found = {k: t.detach().numpy().tobytes() for k, t in state.adapter.state().items()}
    return found | {"kl_coef": repr(state.kl_coef).encode(), "step": repr(state.step).encode()}


def change(state: PolicyState) -> None:
    with torch.no_grad():
        next(iter(state.adapter.parameters())).add_(1.0)
    state.kl_coef = 0.75


def test_saving_a_step_again_replaces_its_checkpoint_and_leaves_nothing_else(
    state: PolicyState, tmp_path: Path
) -> None:
    save_checkpoint(state, tmp_path)
    change(state)
    save_checkpoint(state, tmp_path)

    assert content(newest_checkpoint(tmp_path, CPU)) == content(state)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000"]


@pytest.mark.parametrize("where", ["tensors", "facts", "flush"])
def test_a_full_disk_leaves_the_former_checkpoint_as_it_was(
    state: PolicyState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save_checkpoint(state, tmp_path)
    before = content(state)
    change(state)

    def full(*args: Any, **kwargs: Any) -> Any:
        if where == "tensors":
            Path(args[1]).write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"tensors": (checkpoint, "save_file"), "facts": (json, "dumps"), "flush": (artefacts, "flush")}[where]
    with monkeypatch.context() as m:
        m.setattr(*target, full)
        with pytest.raises(BackflipError, match="No space left"):
            save_checkpoint(state, tmp_path)

    assert content(newest_checkpoint(tmp_path, CPU)) == before
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000"]


def test_a_disk_that_refuses_a_big_file_leaves_the_former_checkpoint_as_it_was(
    state: PolicyState, tmp_path: Path
) -> None:
    save_checkpoint(state, tmp_path)
    before = content(state)
    change(state)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a real failure of the system call
    try:
        with pytest.raises(BackflipError, match="could not be saved"):
            save_checkpoint(state, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert content(newest_checkpoint(tmp_path, CPU)) == before
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000"]
