"""A plan edited while its run goes on: what is taken up when, what is refused, what is kept of it."""

import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import new_run

from backflip.core.errors import ConfigError
from backflip.cycle import run as run_module
from backflip.cycle.folder import PLAN, run_store
from backflip.cycle.overview import overview
from backflip.cycle.plan import Plan, plan_toml, read_plan
from backflip.cycle.plan_changes import FIXED, differences, plan_history, plan_of_round
from backflip.cycle.run import run_rounds


class Said:
    """A watcher that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, what: str, total: int) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)


def edit(root: Path, **changes: Any) -> Plan:
    """Change the plan file of a run: a plain value replaces a key, a mapping changes keys of a table."""
    plan = read_plan(root / PLAN)
    tables = {k: replace(getattr(plan, k), **v) if isinstance(v, dict) else v for k, v in changes.items()}
    plan = replace(plan, **tables)
    (root / PLAN).write_text(plan_toml(plan), encoding="utf-8")
    return plan


def climbs(root: Path) -> dict[int, int]:
    """Optimiser steps that each round took."""
    with run_store(root, read_plan(root / PLAN)) as store:
        return {r: len({m.tick for m in store.metrics(round=r, step="optimise")}) for r in store.rounds()}


@pytest.fixture
def stopped_in_round_2(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a run of three rounds that stops just before, or in the middle of, its second round."""

    def make(*, step: str | None = None) -> Path:
        root = new_run(tmp_path / "run", tiny_model, rounds=3)
        real = run_module.run_round

        def stop(number: int, tools: Any) -> None:
            if number == 2 and step is None:
                raise KeyboardInterrupt
            if number == 2:
                from backflip.cycle import round as steps

                def interrupted(*_: object) -> None:
                    raise KeyboardInterrupt

                monkeypatch.setitem(steps.STEPS, step, interrupted)
            real(number, tools)

        with monkeypatch.context() as patch:
            patch.setattr(run_module, "run_round", stop)
            with pytest.raises(KeyboardInterrupt):
                run_rounds(root)
        monkeypatch.undo()
        return root

    return make


def test_an_edit_holds_from_the_next_round_on_and_the_former_plan_is_kept(stopped_in_round_2):
    root = stopped_in_round_2()
    before = (root / "plans" / "from-r1.toml").read_text(encoding="utf-8")
    edit(root, ppo={"steps": 3})
    watcher = Said()
    run_rounds(root, watcher)

    assert climbs(root) == {1: 2, 2: 3, 3: 3}
    assert "plan: ppo.steps 2 -> 3, from round 2 on" in watcher.lines
    assert (root / "plans" / "from-r1.toml").read_text(encoding="utf-8") == before
    kept = (root / "plans" / "from-r2.toml").read_text(encoding="utf-8")
    assert "#   ppo.steps: 2 -> 3\n" in kept
    assert tomllib.loads(kept)["ppo"]["steps"] == 3
    (change,) = plan_history(root)
    assert (change.round, change.changes) == (2, {"ppo.steps": ("2", "3")})


def test_a_round_that_has_begun_keeps_its_plan(stopped_in_round_2):
    root = stopped_in_round_2(step="optimise")
    edit(root, ppo={"steps": 3})
    watcher = Said()
    run_rounds(root, watcher)

    assert climbs(root) == {1: 2, 2: 2, 3: 3}
    assert "round 2 has begun and keeps the plan it began with" in watcher.lines


def test_an_edit_that_is_taken_back_leaves_the_run_as_if_it_had_never_been(stopped_in_round_2, tmp_path, tiny_model):
    root = stopped_in_round_2()
    whole = new_run(tmp_path / "whole", tiny_model, rounds=3, task=read_plan(root / PLAN).task)
    run_rounds(whole)
    edit(root, ppo={"learning_rate": 1.0})
    with run_store(root, read_plan(root / PLAN)) as store:
        run_module.adopt_plan(root, read_plan(root / PLAN), store)
    assert plan_history(root)[0].changes == {"ppo.learning_rate": ("0.005", "1.0")}
    edit(root, ppo={"learning_rate": 5e-3})
    run_rounds(root)

    assert plan_history(root) == []
    figures = [figures_of(r) for r in (root, whole)]
    assert figures[0] == figures[1]


def figures_of(root: Path) -> list[tuple[object, ...]]:
    with run_store(root, read_plan(root / PLAN)) as store:
        return sorted((m.round, m.step, m.tick, m.name, m.value) for m in store.metrics() if "seconds" not in m.name)


def test_the_learning_rate_that_a_later_round_uses_is_the_edited_one(stopped_in_round_2, monkeypatch):
    from backflip.policies.methods import METHODS

    used: list[float] = []
    real = METHODS["ppo"]

    def climb(state: Any, *rest: Any, **keys: Any) -> Any:
        used.append(state.optimiser.param_groups[0]["lr"])
        return real.climb(state, *rest, **keys)

    root = stopped_in_round_2()
    edit(root, ppo={"learning_rate": 1e-3})
    monkeypatch.setitem(METHODS, "ppo", real._replace(climb=climb))
    run_rounds(root)

    assert used == [1e-3, 1e-3]


def test_more_rounds_may_be_added_to_a_finished_run(tiny_model: Path, tmp_path: Path):
    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    run_rounds(root)
    first = (root / "models" / "policy" / "model.safetensors").read_bytes()
    edit(root, rounds=2)
    run_rounds(root)

    assert climbs(root) == {1: 2, 2: 2}
    assert (root / "models" / "r1" / "policy" / "model.safetensors").read_bytes() == first
    assert (root / "models" / "policy" / "model.safetensors").read_bytes() != first
    assert overview(root).finished


ODD: dict[str, dict[str, Any]] = {
    "seed": {"seed": 4},
    "model.dtype": {"model": {"dtype": "bfloat16"}},
    "task.weights": {"task": {"weights": {"warmth": 1.0}}},
    "sampling.max_tokens": {"sampling": {"max_tokens": 7}},
    "sampling.temperature": {"sampling": {"temperature": 0.5}},
    "measure.monitor_prompts": {"measure": {"monitor_prompts": 3}},
    "measure.monitor_answers": {"measure": {"monitor_answers": 3}},
    "ppo.rank": {"ppo": {"rank": 2}},
    "ppo.alpha": {"ppo": {"alpha": 4.0}},
    "ppo.critic": {"ppo": {"critic": "model"}},
    "ppo.adapted": {"ppo": {"adapted": 1.0}},
    "ppo.kl_coef": {"ppo": {"kl_coef": 0.3}},
    "sft.epochs": {"sft": {"epochs": 9}},
    "model.name": {"model": {"name": "another"}},
    "task.name": {"task": {"name": "another"}},
    "task.prompts": {"task": {"prompts": "another.jsonl"}},
    "database": {"database": "postgresql://nobody@127.0.0.1/none"},
}


@pytest.fixture(scope="module")
def one_round_of_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds whose first is finished."""
    root = new_run(tmp_path_factory.mktemp("fixed") / "run", tiny_model, rounds=1)
    run_rounds(root)
    edit(root, rounds=2)
    return root


def test_every_fixed_key_is_among_the_cases():
    assert {key for key in FIXED if not any(case == key or case.startswith(f"{key}.") for case in ODD)} == set()


@pytest.mark.parametrize("key", ODD)
def test_what_a_run_under_way_cannot_change_is_refused_and_nothing_is_lost(one_round_of_two: Path, key: str):
    root = one_round_of_two
    text, figures, kept = (root / PLAN).read_text(), figures_of(root), sorted((root / "plans").iterdir())
    try:
        edit(root, **ODD[key])
        with pytest.raises(ConfigError) as told:
            run_rounds(root)
    finally:
        (root / PLAN).write_text(text)
    fact, cause, cure = str(told.value).splitlines()

    assert re.search(rf"{re.escape(key)} was .+ and is now .+, and the run has begun\.$", fact)
    assert cause == FIXED.get(key, FIXED.get(key.split(".", maxsplit=1)[0]))
    assert cure == "Put the former value back, or start another run with --dir."
    assert figures_of(root) == figures
    assert sorted((root / "plans").iterdir()) == kept


def test_several_refused_keys_are_told_at_once(one_round_of_two: Path):
    root = one_round_of_two
    text = (root / PLAN).read_text()
    try:
        edit(root, seed=9, ppo={"rank": 8})
        with pytest.raises(ConfigError, match=r"seed was 3 and is now 9(.|\n)*ppo\.rank was 4 and is now 8"):
            run_rounds(root)
    finally:
        (root / PLAN).write_text(text)


def test_a_run_that_has_not_begun_takes_any_plan(tiny_model: Path, tmp_path: Path):
    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    edit(root, seed=8, ppo={"rank": 2})
    run_rounds(root)

    assert plan_history(root) == []
    assert plan_of_round(root, read_plan(root / PLAN), 1).seed == 8


def test_how_a_run_is_carried_may_change_at_once(stopped_in_round_2):
    root = stopped_in_round_2(step="measure")
    edit(root, ppo={"micro": 3})
    watcher = Said()
    run_rounds(root, watcher)

    assert "plan: ppo.micro 6 -> 3, from now on" in watcher.lines
    assert plan_of_round(root, read_plan(root / PLAN), 1).ppo.micro == 3


def test_status_tells_what_was_edited_and_what_is_waiting(stopped_in_round_2):
    root = stopped_in_round_2()
    edit(root, rate={"pairs": 24})

    assert overview(root).edited == {"rate.pairs": ("20", "24")}
    run_rounds(root)
    seen = overview(root)
    assert seen.edited == {}
    assert [(c.round, dict(c.changes)) for c in seen.plan_changes] == [(2, {"rate.pairs": ("20", "24")})]


def test_differences_reach_into_tables_and_lists():
    old = Plan()
    new = replace(old, rounds=5, ppo=replace(old.ppo, clip=0.1), fit=replace(old.fit, prior=(1.0,)))

    assert differences(old, new) == {
        "rounds": (str(old.rounds), "5"),
        "ppo.clip": ("0.2", "0.1"),
        "fit.prior": ("[100.0, 300.0, 1000.0, 3000.0]", "[1.0]"),
    }
    assert differences(old, old) == {}
