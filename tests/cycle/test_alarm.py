"""The alarm stops a climb whose gold falls, goes back to the best policy on its way, and says so."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_refusals import Listening
from test_resume import Crash, crash_once
from tiny_run import all_prompts, new_run, requests, save_prompts

from backflip.core.errors import ConfigError, DataError
from backflip.cycle import optimise
from backflip.cycle.checkpoints import load_policy_state
from backflip.cycle.plan import Measure, Rate, read_plan
from backflip.cycle.run import run_rounds
from backflip.measure.plan import Alarm
from backflip.policies.plan import PPO
from backflip.store import open_store

GOLD = """
calls = 0

def falls(prompt, answer):
    '''The policy's answers, asked about first, are better at the first three looks of six, and worse from then on.'''
    global calls
    calls += 1
    return (1.0 if calls <= 36 else -1.0) * (calls % 2)

def sinks(prompt, answer):
    '''The policy's answers are better in the first six comparisons, three at each of two looks, then worse.'''
    global calls
    calls += 1
    return (1.0 if calls <= 12 else -1.0) * (calls % 2)

def rises(prompt, answer):
    global calls
    calls += 1
    return calls % 2

def nothing(prompt, answer):
    return float("nan")

def raises(prompt, answer):
    raise KeyError(answer)
"""
FAST = PPO(
    steps=12, prompts=4, answers=4, rank=4, alpha=8.0, learning_rate=5e-2, micro=16, kl_coef=0.001, kl_target=60.0
)
WATCHFUL: dict[str, Any] = {"every": 1, "votes": 6, "labels": 1000}


@pytest.fixture
def gold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of gold functions, fresh for each test."""
    name = f"gold_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(GOLD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, name)
    return name


def watched(root: Path, model: Path, gold: str, **changes: Any) -> Path:
    return new_run(root, model, rounds=1, ppo=FAST, alarm=Alarm(gold=gold, **(WATCHFUL | changes)))


def figures(root: Path) -> dict[str, dict[int, float]]:
    out: dict[str, dict[int, float]] = {}
    with open_store(root / "run.db") as store:
        for m in store.metrics(round=1, step="optimise"):
            out.setdefault(m.name, {})[m.tick] = m.value
    return out


def test_falling_gold_stops_the_climb_and_goes_back(tiny_model: Path, tmp_path: Path, gold: str) -> None:
    root, heard = watched(tmp_path / "run", tiny_model, f"{gold}:falls"), Listening()
    run_rounds(root, heard)

    found = figures(root)
    [(rang, back)] = found["alarm/back_to"].items()
    assert found["alarm/wins"] == {t: 6.0 if t <= 3 else 0.0 for t in range(1, rang + 1)}
    assert 3 < rang < 12
    assert max(found["objective/kl"]) == rang
    assert 1 <= back <= 3
    told = json.loads((root / "rounds" / "r1" / "alarm.json").read_text())
    assert told["told"].startswith(f"The alarm rang after step {rang}")
    assert f"goes back to the policy after step {int(back)} " in told["told"]
    assert 1 <= len(told["samples"]) <= 3
    assert told["told"] in heard.said
    kept = load_policy_state(root / "rounds" / "r1" / "policy", torch.device("cpu"))
    assert kept.step == rang


def test_the_policy_that_is_kept_is_the_one_gone_back_to(tiny_model: Path, tmp_path: Path, gold: str) -> None:
    root = watched(tmp_path / "run", tiny_model, f"{gold}:falls")
    run_rounds(root)
    back = int(next(iter(figures(root)["alarm/back_to"].values())))
    short = new_run(tmp_path / "short", tiny_model, rounds=1, ppo=PPO(**{**vars(FAST), "steps": back}))
    run_rounds(short)

    one, two = (load_policy_state(r / "rounds" / "r1" / "policy", torch.device("cpu")) for r in (root, short))
    for a, b in zip(one.adapter.parameters(), two.adapter.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gold_that_does_not_fall_lets_the_climb_end(tiny_model: Path, tmp_path: Path, gold: str) -> None:
    root = watched(tmp_path / "run", tiny_model, f"{gold}:rises")
    run_rounds(root)

    found = figures(root)
    assert "alarm/back_to" not in found
    assert max(found["objective/kl"]) == 12
    assert not (root / "rounds" / "r1" / "alarm.json").exists()


def test_what_is_left_of_the_judgements_goes_to_the_last_policy_while_it_is_in_doubt(
    tiny_model: Path, tmp_path: Path, gold: str
) -> None:
    root = watched(tmp_path / "run", tiny_model, f"{gold}:sinks", every=3, votes=3)
    run_rounds(root, Listening())  # worse answers at two looks of four: they say too little alone

    found = figures(root)
    assert {t: found["alarm/wins"][t] for t in (3, 6, 9, 12)} == {3: 3.0, 6: 3.0, 9: 0.0, 12: 0.0}
    assert found["alarm/judged"][9] == 3
    assert found["alarm/judged"][12] > 3
    assert found["alarm/back_to"][12] in (3, 6)


def test_no_more_is_judged_than_the_plan_allows(tiny_model: Path, tmp_path: Path) -> None:
    root = watched(tmp_path / "run", tiny_model, "people", labels=20, every=2)
    run_rounds(root)

    assert list(figures(root)["alarm/judged"]) == [2, 4, 6]


def test_a_climb_killed_after_the_alarm_rang_goes_back_all_the_same(
    tiny_model: Path, tmp_path: Path, gold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = watched(tmp_path / "run", tiny_model, f"{gold}:falls")
    with monkeypatch.context() as m:
        m.setattr(optimise, "_back", crash_once(optimise._back, late=False))
        with pytest.raises(Crash):
            run_rounds(root)
    rang = max(figures(root)["objective/kl"])
    run_rounds(root)

    assert max(figures(root)["objective/kl"]) == rang
    assert (root / "rounds" / "r1" / "policy").exists()


@pytest.mark.parametrize(("name", "what"), [("nothing", "returned nan"), ("raises", "raised KeyError")])
def test_gold_that_fails_is_told_and_the_run_is_kept(
    tiny_model: Path, tmp_path: Path, gold: str, name: str, what: str
) -> None:
    root = watched(tmp_path / "run", tiny_model, f"{gold}:{name}")
    with pytest.raises(DataError, match=what) as e:
        run_rounds(root)

    assert len(str(e.value).splitlines()) == 3
    (tmp_path / f"{gold}.py").write_text(f"def {name}(prompt, answer):\n    return 0.0\n")
    sys.modules.pop(gold)
    run_rounds(root)
    assert max(figures(root)["objective/kl"]) == 12


def test_gold_that_is_not_there_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    root = watched(tmp_path / "run", tiny_model, "nowhere_at_all:gold")

    with pytest.raises(DataError, match="cannot be loaded"):
        run_rounds(root)


def test_an_alarm_without_gold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("[alarm]\nvotes = 10\n")

    with pytest.raises(ConfigError, match="an alarm without gold cannot ring"):
        read_plan(tmp_path / "plan.toml")


def test_too_few_prompts_to_look_at_are_refused_before_the_climb_and_the_run_is_kept(
    tiny_model: Path, tmp_path: Path, gold: str
) -> None:
    few = [p for p in all_prompts() if p.split != "monitor"] + requests("monitor", 3)
    root = new_run(
        tmp_path / "run", tiny_model, rounds=1, prompts=save_prompts(tmp_path / "few.jsonl", few),
        alarm=Alarm(gold=f"{gold}:rises", every=1, votes=3), measure=Measure(monitor_prompts=3, monitor_answers=2),
        rate=Rate(pairs=14, held_out=2),
    )  # fmt: skip
    with pytest.raises(DataError, match="3 monitor prompts to look at, and needs at least 4") as e:
        run_rounds(root)

    assert len(str(e.value).splitlines()) == 3
    with open_store(root / "run.db") as store:
        assert "fit" in store.steps_done(1)
