"""A climb that is saved, loaded and carried on is the unbroken climb, bit for bit."""

import errno
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tiny_run import Bench

from backflip.policies import state as checkpoint
from backflip.policies.ppo import PPO, climb, fresh_state
from backflip.policies.state import PolicyState, load_state, save_state

PLAN = PPO(prompts=4, answers=4, rank=4, alpha=8.0, learning_rate=1e-2, epochs=2, minibatches=2, kl_target=0.01)


class Long:
    def score(self, prompts: Any, answers: Any) -> Any:
        return np.array([len(a.tokens) / 4 for a in answers])


def climbed(model: Path, state: PolicyState | None, until: int) -> tuple[PolicyState, list[dict[str, float]]]:
    bench = Bench(model, Long())
    bench.state = state or fresh_state(bench.loaded.trunk, PLAN, 3)
    steps = list(climb(bench.state, bench.tools, PLAN, seed=3, max_tokens=8, until=until))
    return bench.state, [s.metrics for s in steps]


def content(state: PolicyState) -> dict[str, Any]:
    """Every number of a state: tensors of adapter, critic and both optimisers, KL coefficient and step."""
    tensors = {f"policy.{k}": t for k, t in state.adapter.state().items()}
    tensors |= {f"critic.{i}": t for i, t in enumerate(state.critic.parameters)}
    for name, optimiser in (("adam", state.optimiser), ("critic_adam", state.critic_optimiser)):
        for i, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{k}": v for k, v in moments.items()}
    found: dict[str, Any] = {k: t.detach().numpy().tobytes() for k, t in tensors.items()}
    groups = [
        {k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (state.optimiser, state.critic_optimiser)
    ]
    return found | {"kl_coef": state.kl_coef, "step": state.step, "groups": groups, "rank": state.adapter.rank}


def test_a_loaded_climb_goes_on_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    whole, metrics = climbed(tiny_model, None, 4)

    half, first = climbed(tiny_model, None, 2)
    save_state(half, tmp_path / "at-2")
    rest, second = climbed(tiny_model, load_state(tmp_path / "at-2"), 4)

    assert content(rest) == content(whole)
    assert first + second == metrics
    assert any(name.startswith("adam.") for name in content(whole))
    assert any(name.startswith("critic_adam.") for name in content(whole))


def test_loading_gives_back_every_number(tiny_model: Path, tmp_path: Path) -> None:
    state, _ = climbed(tiny_model, None, 1)
    save_state(state, tmp_path / "one")

    loaded = load_state(tmp_path / "one")
    assert content(loaded) == content(state)
    assert (loaded.step, loaded.version) == (1, "step-1")
    assert all(p.requires_grad for p in loaded.adapter.parameters())


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    state, _ = climbed(tiny_model, None, 1)
    save_state(state, tmp_path / "one")
    state.kl_coef = 0.75
    save_state(state, tmp_path / "one")

    assert load_state(tmp_path / "one").kl_coef == 0.75
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("where", ["tensors", "facts", "flush"])
def test_a_full_disk_leaves_the_former_checkpoint_as_it_was(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    state, _ = climbed(tiny_model, None, 1)
    save_state(state, tmp_path / "one")
    before = content(state)
    with torch.no_grad():
        next(state.adapter.parameters()).add_(1.0)

    def full(*args: Any, **kwargs: Any) -> Any:
        if where == "tensors":
            Path(args[1]).write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"tensors": (checkpoint, "save_file"), "facts": (json, "dumps"), "flush": (checkpoint, "_sync")}[where]
    with monkeypatch.context() as m:
        m.setattr(*target, full)
        with pytest.raises(OSError, match="No space left"):
            save_state(state, tmp_path / "one")

    assert content(load_state(tmp_path / "one")) == before
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_disk_that_refuses_a_big_file_leaves_the_former_checkpoint_as_it_was(
    tiny_model: Path, tmp_path: Path
) -> None:
    state, _ = climbed(tiny_model, None, 1)
    save_state(state, tmp_path / "one")
    before = content(state)
    state.kl_coef = 0.75

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a real failure of the system call
    try:
        with pytest.raises((OSError, SafetensorError)):
            save_state(state, tmp_path / "one")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert content(load_state(tmp_path / "one")) == before
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
