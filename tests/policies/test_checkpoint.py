"""A climb that is saved, loaded and carried on is the unbroken climb, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import Bench

from backflip.policies.plan import Critics
from backflip.policies.ppo import PPO, climb, fresh_state
from backflip.policies.state import PolicyState, load_state, save_state

CRITICS = (("probe", 4), ("model", 4), ("model", 0))
PLAN = PPO(prompts=4, answers=4, rank=4, alpha=8.0, learning_rate=1e-2, epochs=2, minibatches=2, kl_target=0.01)


class Long:
    def score(self, prompts: Any, answers: Any) -> Any:
        return np.array([len(a.tokens) / 4 for a in answers])


def climbed(
    model: Path, state: PolicyState | None, until: int, plan: PPO = PLAN
) -> tuple[PolicyState, list[dict[str, float]]]:
    bench = Bench(model, Long())
    bench.state = state or fresh_state(bench.loaded.trunk, plan, 3)
    steps = list(climb(bench.state, bench.tools, plan, seed=3, max_tokens=8, until=until))
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


@pytest.mark.parametrize(("critic", "rank"), CRITICS)
def test_a_loaded_climb_goes_on_bit_for_bit(tiny_model: Path, tmp_path: Path, critic: Critics, rank: int) -> None:
    plan = replace(PLAN, critic=critic, rank=rank, critic_epochs=2)
    whole, metrics = climbed(tiny_model, None, 4, plan)

    half, first = climbed(tiny_model, None, 2, plan)
    save_state(half, tmp_path / "at-2")
    rest, second = climbed(tiny_model, load_state(tmp_path / "at-2"), 4, plan)

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
