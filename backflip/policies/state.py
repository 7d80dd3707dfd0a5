"""The state of a climb, and its checkpoint: adapter, optimisers, critic, KL coefficient, step."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backflip.models.adapters import Adapter, adapter_from_state, new_adapter, upper_layers
from backflip.models.trunk import Trunk
from backflip.policies.critic import Critic, Probe, new_critic
from backflip.policies.plan import PPO
from backflip.policies.value_model import ValueModel, new_value_model

ADAM_EPS = 1e-5


@dataclass(eq=False)
class PolicyState:
    """Everything a climb carries from step to step; changed in place by `climb`."""

    adapter: Adapter
    optimiser: torch.optim.Adam
    critic: Critic
    critic_optimiser: torch.optim.Adam
    kl_coef: float
    step: int = 0
    """Steps taken since the run began."""

    @property
    def version(self) -> str:
        """Name of the policy as it stands."""
        return f"step-{self.step}"


def fresh_state(trunk: Trunk, config: PPO, seed: int) -> PolicyState:
    """The start of a run: an adapter on the upper layers that changes nothing, a critic that predicts 0."""
    shapes = upper_layers(trunk.linear_shapes(), config.adapted)
    adapter = new_adapter(shapes, rank=config.rank, alpha=config.alpha, seed=seed, device=trunk.device)
    critic = (
        new_critic(trunk.hidden_size, seed, trunk.device)
        if config.critic == "probe"
        else new_value_model(trunk, config, seed)
    )
    return PolicyState(
        adapter,
        torch.optim.Adam(list(adapter.parameters()), lr=config.learning_rate, eps=ADAM_EPS),
        critic,
        torch.optim.Adam(critic.parameters, lr=config.critic_learning_rate, eps=ADAM_EPS),
        config.kl_coef,
    )


def save_state(state: PolicyState, folder: Path) -> None:
    """Write a checkpoint into `folder`, file by file: that it is there whole or not at all is up to the caller.

    Raises: OSError or SafetensorError when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _named(state)
    save_file({k: t.detach().contiguous() for k, t in tensors.items()}, folder / "state.safetensors")
    facts = {
        "rank": state.adapter.rank, "alpha": state.adapter.alpha, "kl_coef": state.kl_coef, "step": state.step,
        "learning_rate": state.optimiser.param_groups[0]["lr"],
        "critic_learning_rate": state.critic_optimiser.param_groups[0]["lr"],
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(facts))


def load_state(folder: Path, device: torch.device | str = "cpu") -> PolicyState:
    """The checkpoint `save_state` wrote."""
    facts = json.loads((folder / "state.json").read_text())
    tensors = load_file(folder / "state.safetensors", device=str(device))
    adapter = adapter_from_state(
        {k.removeprefix("policy."): t for k, t in tensors.items() if k.startswith("policy.")},
        rank=facts["rank"], alpha=facts["alpha"], device=device,
    )  # fmt: skip
    critic = _loaded_critic(tensors, facts, device)
    state = PolicyState(
        adapter,
        torch.optim.Adam(list(adapter.parameters()), lr=facts["learning_rate"], eps=ADAM_EPS),
        critic,
        torch.optim.Adam(critic.parameters, lr=facts["critic_learning_rate"], eps=ADAM_EPS),
        facts["kl_coef"],
        facts["step"],
    )
    for name, optimiser in (("adam", state.optimiser), ("critic_adam", state.critic_optimiser)):
        for i, p in enumerate(optimiser.param_groups[0]["params"]):
            moments = {part: tensors.get(f"{name}.{i}.{part}") for part in ("step", "exp_avg", "exp_avg_sq")}
            if moments["step"] is not None:
                optimiser.state[p] = {k: v.clone() for k, v in moments.items() if v is not None}
                optimiser.state[p]["step"] = optimiser.state[p]["step"].cpu()  # where Adam keeps it, on a GPU too
    return state


def _loaded_critic(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], device: torch.device | str) -> Critic:
    """The critic among a checkpoint's tensors, whichever kind it is."""
    if "critic.head" not in tensors:
        return Probe(tuple(tensors[f"critic.{i}"].clone().requires_grad_() for i in range(4)))
    parts = {k.removeprefix("value."): t for k, t in tensors.items() if k.startswith("value.")}
    adapter = adapter_from_state(parts, rank=facts["rank"], alpha=facts["alpha"], device=device)
    return ValueModel(adapter, tensors["critic.head"].clone().requires_grad_())


def _named(state: PolicyState) -> dict[str, Tensor]:
    """Every tensor of the state by a unique name."""
    out = {f"policy.{k}": t for k, t in state.adapter.state().items()}
    if isinstance(state.critic, ValueModel):
        out |= {f"value.{k}": t for k, t in state.critic.adapter.state().items()} | {"critic.head": state.critic.head}
    else:
        out |= {f"critic.{i}": t for i, t in enumerate(state.critic.parameters)}
    for name, optimiser in (("adam", state.optimiser), ("critic_adam", state.critic_optimiser)):
        for i, p in enumerate(optimiser.param_groups[0]["params"]):
            for part, value in optimiser.state.get(p, {}).items():
                out[f"{name}.{i}.{part}"] = value
    return out
