"""Numbers that are not finite amid a climb: the step is refused, its answers are kept, and the run stops or goes on."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from kills import differences, fingerprint
from test_refusals import Listening
from test_resume import Crash, crash_once
from tiny_run import Bench, new_run

from backflip.core.errors import BackflipError
from backflip.cycle import optimise
from backflip.cycle.checkpoints import load_policy_state, newest_checkpoint
from backflip.cycle.overview import overview
from backflip.cycle.plan import plan_toml, read_plan
from backflip.cycle.run import run_rounds
from backflip.cycle.tools import Tools
from backflip.models.trunk import Trunk
from backflip.policies.not_finite import NotFinite
from backflip.policies.plan import PPO, SFT, Optimise, Optimiser
from backflip.policies.ppo import climb
from backflip.policies.state import PolicyState, fresh_state
from backflip.report import tables
from backflip.report.of_run import report_run
from backflip.store import open_store

CPU = torch.device("cpu")
KEYS: dict[str, Any] = {"prompts": 4, "answers": 4, "rank": 4, "alpha": 8.0, "learning_rate": 5e-3, "micro": 6}


def steps(count: int, **changes: Any) -> PPO:
    return PPO(steps=count, **(KEYS | changes))


@pytest.fixture
def broken_at(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Steps of the climb whose policy samples with a weight that is infinite."""
    places: set[int] = set()
    real = Tools.trunk_of

    def trunk_of(self: Tools, version: str) -> Trunk:
        trunk = real(self, version)
        if self.state is not None and version == self.state.version and self.state.step in places:
            assert trunk is not self.loaded.trunk
            trunk = deepcopy(trunk)  # the trainer works with the same folded weights
            weight = dict(trunk.state())["model.layers.1.mlp.down_proj.weight"]
            weight.data[0, 0] = float("inf")
        return trunk

    monkeypatch.setattr(Tools, "trunk_of", trunk_of)
    return places


def figures(root: Path) -> dict[tuple[int, str], float]:
    with open_store(root / "run.db") as store:
        return {(m.tick, m.name): m.value for m in store.metrics(step="optimise")}


def content(state: PolicyState | None) -> dict[str, bytes]:
    assert state is not None
    found = {k: t.detach().numpy().tobytes() for k, t in state.adapter.state().items()}
    for i, p in enumerate(state.optimiser.param_groups[0]["params"]):
        found |= {f"{i} {k}": v.numpy().tobytes() for k, v in state.optimiser.state.get(p, {}).items()}
    return found | {"kl_coef": repr(state.kl_coef).encode(), "step": repr(state.step).encode()}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def set_plan(root: Path, old: str, new: str) -> None:
    text = plan_toml(read_plan(root / "plan.toml"))
    assert old in text
    (root / "plan.toml").write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("by", get_args(Optimiser))
def test_a_broken_step_stops_the_run_with_the_state_before_it_and_its_answers_on_the_disk(
    tiny_model: Path, tmp_path: Path, broken_at: set[int], monkeypatch: pytest.MonkeyPatch, by: Any
) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, ppo=steps(3), optimise=Optimise(by=by))
    saved: list[dict[str, bytes]] = []
    real = optimise.save_checkpoint
    monkeypatch.setattr(optimise, "save_checkpoint", lambda s, *a: (real(s, *a), saved.append(content(s)))[0])
    broken_at.add(1)
    with pytest.raises(BackflipError) as told:
        run_rounds(root)

    file = root / "rounds" / "r1" / "refused" / "step-00001.jsonl"
    fact, cause, cure = str(told.value).splitlines()
    assert "step 1 is not finite: the step is refused" in fact
    assert str(file) in cause
    assert 'optimise.when_not_finite = "skip"' in cure
    assert "ppo.learning_rate" in cure
    assert content(newest_checkpoint(root / "rounds" / "r1" / "checkpoints", CPU)) == saved[-1]
    assert {tick for tick, _ in figures(root)} == {1}
    kept = lines(file)
    assert len(kept) == 4 * (1 if by in ("dpo", "best_of_n") else 4)
    assert {"nan"} == {x for line in kept for x in line["logp_sampler"] if isinstance(x, str)}
    for line in kept:
        assert len(line["tokens"]) == len(line["logp"]) == len(line["logp_reference"]) > 0
        assert line["prompt"].startswith("one ")
        assert np.isfinite(line["score"])


def test_a_run_that_stopped_goes_on_without_the_step_once_the_plan_says_so(
    tiny_model: Path, tmp_path: Path, broken_at: set[int]
) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, ppo=steps(3))
    broken_at.add(1)
    with pytest.raises(BackflipError):
        run_rounds(root)
    set_plan(root, 'when_not_finite = "stop"', 'when_not_finite = "skip"')
    watcher = Listening()
    run_rounds(root, watcher)

    found = figures(root)
    assert [name for tick, name in found if tick == 2] == ["step/refused"]
    assert (1, "objective/kl") in found
    assert (3, "objective/kl") in found
    assert [line for line in watcher.said if "the step is left out" in line]
    assert overview(root).rounds[0].refused == 1
    assert overview(root).rounds[0].climbed == 3
    health = tables.health(report_run(root).steps)
    assert health is not None
    assert dict(zip(health.heads, health.rows[0], strict=True))["steps left out, not finite"] == "1"


def test_a_climb_killed_around_a_step_that_is_left_out_is_the_unbroken_one(
    tiny_model: Path, tmp_path: Path, broken_at: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at.add(1)
    skip = Optimise(when_not_finite="skip")
    whole = new_run(tmp_path / "whole", tiny_model, rounds=2, ppo=steps(3), optimise=skip)
    run_rounds(whole)
    root = new_run(
        tmp_path / "killed", tiny_model, rounds=2, ppo=steps(3), optimise=skip, prompts=whole / "prompts.jsonl"
    )
    for name, late, calls in (
        ("save_checkpoint", True, 2),  # after the step before it
        ("save_refused", False, 1),
        ("save_refused", True, 1),  # its answers are saved, nothing else
        ("save_checkpoint", False, 1),  # it is counted, and not yet gone past
        ("save_checkpoint", True, 1),  # gone past
    ):
        with monkeypatch.context() as m:
            m.setattr(optimise, name, crash_once(getattr(optimise, name), late=late, calls=calls))
            with pytest.raises(Crash):
                run_rounds(root)
    run_rounds(root)

    assert differences(fingerprint(root), fingerprint(whole)) == []
    assert figures(whole)[2, "step/refused"] == 1.0


def test_steps_that_are_left_out_last_in_a_round_count_for_the_next_one(
    tiny_model: Path, tmp_path: Path, broken_at: set[int]
) -> None:
    broken_at.add(1)
    root = new_run(tmp_path / "run", tiny_model, ppo=steps(2), optimise=Optimise(when_not_finite="skip"))
    run_rounds(root)

    with open_store(root / "run.db") as store:
        ticks = [{m.tick for m in store.metrics(round=r, step="optimise", name="objective/kl")} for r in (1, 2)]
    assert ticks == [{1}, {1, 2}]
    assert overview(root).finished


@pytest.mark.parametrize("again", [False, True])
def test_a_policy_that_has_diverged_for_good_stops_at_the_fourth_step_in_a_row(
    tiny_model: Path, tmp_path: Path, again: bool
) -> None:
    diverging = steps(8, minibatches=1, learning_rate=1e30)  # the first step makes the weights overflow
    root = new_run(tmp_path / "run", tiny_model, rounds=1, ppo=diverging, optimise=Optimise(when_not_finite="skip"))
    for _ in range(1 + again):
        with pytest.raises(BackflipError) as told:
            run_rounds(root)

    fact, _, cure = str(told.value).splitlines()
    assert "step 4 is not finite, like the 3 steps before it" in fact
    assert "skip" not in cure
    assert [tick for tick, name in sorted(figures(root)) if name == "step/refused"] == [2, 3, 4]


def test_what_a_refused_step_had_changed_already_is_taken_back(tiny_model: Path, tmp_path: Path) -> None:
    halfway = steps(1, minibatches=2, learning_rate=1e30)  # after the first minibatch the weights overflow
    root = new_run(tmp_path / "run", tiny_model, rounds=1, ppo=halfway, optimise=Optimise(when_not_finite="skip"))
    run_rounds(root)

    state = load_policy_state(root / "rounds" / "r1" / "policy")
    assert state.step == 1
    assert not any(t.any() for t in state.adapter.b.values())
    assert not state.optimiser.state


def test_a_critic_that_overflows_refuses_the_warm_up_and_the_step(tiny_model: Path, tmp_path: Path) -> None:
    told = r"(?s)critic's loss in step 0 is not finite.*ppo\.critic_learning_rate"
    wild = steps(1, critic_learning_rate=1e30, critic_epochs=2)
    with pytest.raises(BackflipError, match=told):
        run_rounds(new_run(tmp_path / "run", tiny_model, rounds=1, ppo=wild))

    class Pays:
        def score(self, prompts: Any, answers: Any) -> Any:
            return np.arange(len(answers)) / len(answers)

    bench = Bench(tiny_model, Pays())
    bench.state = fresh_state(bench.loaded.trunk, wild, 1)
    with pytest.raises(NotFinite, match=told) as refused:
        list(climb(bench.state, bench.tools, wild, seed=1, max_tokens=6, until=1))
    assert len(refused.value.lines) == 16


def test_stage_0_keeps_the_demonstrations_at_which_it_diverged(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"we love {word}", "completion": f"{word} is good"} for word in ("tea", "rain", "snow", "bread")]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = SFT(demonstrations=str(tmp_path / "d.jsonl"), batch=2, epochs=3, held_out=0.0, learning_rate=1e30)
    root = new_run(tmp_path / "run", tiny_model, rounds=1, sft=sft)
    with pytest.raises(BackflipError) as told:
        run_rounds(root)

    fact, cause, cure = str(told.value).splitlines()
    assert "step 1 is not finite" in fact
    assert "sft.learning_rate" in cure
    assert "skip" not in cure
    kept = lines(root / "models" / "sft-refused.jsonl")
    assert str(root / "models" / "sft-refused.jsonl") in cause
    assert len(kept) == 2
    assert {line["text"] for line in kept} <= {row["completion"] for row in rows}
