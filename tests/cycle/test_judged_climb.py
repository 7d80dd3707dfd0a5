"""People judge the climb while it goes on: nobody is waited for, late votes count for their own step, or not at all."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_alarm import FAST, figures
from test_people import run_beside, vote, wait_until
from test_resume import Crash
from tiny_run import new_run

from backflip.core.errors import Paused
from backflip.core.records import Pair, Rater, Vote
from backflip.cycle import optimise
from backflip.cycle.checkpoints import load_policy_state
from backflip.cycle.folder import DATABASE
from backflip.cycle.plan import Rate
from backflip.cycle.run import run_rounds
from backflip.measure.plan import Alarm
from backflip.policies.plan import PPO
from backflip.raters.personas import Crowd
from backflip.report.of_run import report_run
from backflip.store import Store, open_store


def climb_of_people(root: Path, model: Path, steps: int = 12, **alarm: Any) -> Path:
    """A run whose people have rated; it has yet to fit and climb."""
    keys: dict[str, Any] = {"gold": "people", "every": 1, "votes": 6, "labels": 1000, "patience": 5} | alarm
    new_run(
        root, model, rounds=1, rate=Rate(pairs=12, held_out=4, double_share=0.0), raters=Crowd(by="people"),
        alarm=Alarm(**keys), ppo=PPO(**{**vars(FAST), "steps": steps}),
    )  # fmt: skip
    with pytest.raises(Paused):
        run_rounds(root)
    with open_store(root / DATABASE) as store:
        vote(store)
    return root


def carry_on(root: Path) -> None:
    """Past the climb, to where the last round waits for judgements of its finished policy."""
    with suppress(Paused):
        run_rounds(root)


def looks(store: Store) -> dict[int, list[Pair]]:
    """The pairs that were published amid the climb, by step."""
    found: dict[int, list[Pair]] = {}
    for p in store.pairs(round=1, stream="reference"):
        if "/look/" in p.id:
            found.setdefault(int(p.id.split("/")[2]), []).append(p)
    return found


def judge(store: Store, pairs: list[Pair], *, wins: bool, rater: str = "ann") -> None:
    """`rater` says of pairs that the policy wins, or that it loses, as the server of the pages would store it."""
    ballots = [
        Vote(
            key=f"{p.id}/{rater}", pair_id=p.id, rater_id=rater, shown="ab", latency_s=1, at=0.0,
            choice="a" if ("/policy/" in p.sample_a) == wins else "b",
        )
        for p in pairs
    ]  # fmt: skip
    with store.begin() as tx:
        tx.add_raters([Rater(id=rater, kind="person", name=rater)])
        tx.cast(ballots)


def people_beside(monkeypatch: pytest.MonkeyPatch, root: Path, *, best: int = 3, crash_at: int = 0) -> None:
    """After each step people judge what was published two steps before: the policy wins up to step `best`.

    At step `crash_at` the process ends after the step's figures were stored, before its checkpoint.
    """
    real: Callable[..., None] = optimise.save_checkpoint

    def save(state: Any, *args: Any) -> None:
        if crash_at and state.step == crash_at:
            raise Crash
        real(state, *args)
        with open_store(root / DATABASE) as store:
            for tick, pairs in looks(store).items():
                if tick <= state.step - 2:
                    judge(store, pairs, wins=tick <= best)

    monkeypatch.setattr(optimise, "save_checkpoint", save)


def test_people_stop_a_climb_that_does_not_wait_for_them(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = climb_of_people(tmp_path / "run", tiny_model)
    with monkeypatch.context() as m:
        people_beside(m, root)
        carry_on(root)

    found = figures(root)
    [(at, back)] = found["alarm/back_to"].items()
    rang = max(found["objective/kl"])
    assert rang == at + 3 < 12  # published at `at`, judged after two steps, weighed at the third
    assert found["alarm/closed"] == {t: t + 3 for t in range(1, at + 1)}
    assert found["alarm/judged"] == dict.fromkeys(range(1, at + 1), 6)
    assert all(found["alarm/wins"][t] >= 5 for t in (1, 2, 3))  # the same answer twice is half a win
    assert all(found["alarm/wins"][t] <= 1 for t in range(4, at + 1))
    assert found["alarm/kl"][2] == found["objective/kl"][2]
    assert 1 <= back <= 3
    told = json.loads((root / "rounds" / "r1" / "alarm.json").read_text())
    assert f"rang after step {at} (told after step {rang}, when people had judged it)" in told["told"]
    assert 1 <= len(told["samples"]) <= 3
    with open_store(root / DATABASE) as store:
        mine = [s for s in store.samples(round=1) if s.policy.startswith("look/")]
        assert len(mine) == 2 * 6 * (rang - 1)  # none at the step where it rang
        with store.begin() as tx:  # as if the next round, which is to be the last, were climbing
            tx.add_samples([replace(s, id=f"next {s.id}", round=2, purpose="final") for s in mine])
    assert {s.policy for s in report_run(root).lengths} == {"reference", "policy-r1"}
    with open_store(root / DATABASE) as store:
        assert store.votes(stream="reference")
        assert store.metrics(round=1, name="people/win_rate") == []  # its own pairs have not been judged


def test_a_climb_killed_after_a_look_was_weighed_counts_it_as_it_was(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = climb_of_people(tmp_path / "whole", tiny_model, steps=8)
    root = climb_of_people(tmp_path / "run", tiny_model, steps=8)
    with monkeypatch.context() as m:
        people_beside(m, whole, best=8)
        carry_on(whole)
    with monkeypatch.context() as m:
        people_beside(m, root, best=8, crash_at=6)
        with pytest.raises(Crash):
            carry_on(root)
    assert figures(root)["alarm/closed"] == {1: 4, 2: 5, 3: 6}
    with open_store(root / DATABASE) as store:
        judge(store, looks(store)[2] + looks(store)[3], wins=False, rater="bob")  # too late
    with monkeypatch.context() as m:
        people_beside(m, root, best=8)
        carry_on(root)

    one, two = figures(whole), figures(root)
    for name in ("alarm/wins", "alarm/judged", "alarm/closed", "alarm/kl", "watch/foretold"):
        assert one[name] == two[name]
    assert one["alarm/closed"] == {1: 4, 2: 5, 3: 6, 4: 7, 5: 8, 6: 8, 7: 8, 8: 8}  # nobody could answer at the end
    assert one["alarm/judged"][6] == 6
    assert one["alarm/judged"][8] <= 2  # nobody had judged it: the same answer twice may be among its pairs
    kept = [load_policy_state(r / "rounds" / "r1" / "policy", torch.device("cpu")) for r in (whole, root)]
    for a, b in zip(*(s.adapter.parameters() for s in kept), strict=True):
        assert torch.equal(a, b)


def test_a_look_is_weighed_with_what_has_come_once_its_patience_is_over(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = climb_of_people(tmp_path / "run", tiny_model, steps=5, patience=2, labels=18)
    real, killed = optimise.save_checkpoint, False

    def save(state: Any, *args: Any) -> None:
        nonlocal killed
        if state.step == 4 and not killed:
            killed = True
            raise Crash
        real(state, *args)
        with open_store(root / DATABASE) as store:
            for tick, pairs in looks(store).items():
                judge(store, pairs[:2] if tick == 1 else pairs, wins=True)  # the first look stays incomplete

    monkeypatch.setattr(optimise, "save_checkpoint", save)
    with pytest.raises(Crash):
        carry_on(root)
    carry_on(root)

    found = figures(root)
    with open_store(root / DATABASE) as store:
        same = 6 - len(looks(store)[1])
        assert sorted(looks(store)) == [1, 2, 3]  # three looks of six are all that the plan allows
    assert found["alarm/judged"] == {1: 2 + same, 2: 6, 3: 6}
    assert found["alarm/closed"] == {1: 3, 2: 3, 3: 4}  # the second was full before, and waited for the first
    assert "alarm/back_to" not in found


def test_at_the_end_of_the_climb_people_are_waited_for_while_they_can_answer(tiny_model: Path, tmp_path: Path) -> None:
    root = climb_of_people(tmp_path / "run", tiny_model, steps=2)
    with run_beside(root), open_store(root / DATABASE) as store:
        wait_until(lambda: len(figures(root).get("objective/kl", {})) == 2 and len(looks(store)) == 2)
        time.sleep(1.5)
        assert "optimise" not in store.steps_done(1)
        judge(store, [p for pairs in looks(store).values() for p in pairs], wins=True)
        wait_until(lambda: "optimise" in store.steps_done(1))
        wait_until(lambda: vote(store) and not store.wanting())

    assert figures(root)["alarm/judged"] == {1: 6, 2: 6}
