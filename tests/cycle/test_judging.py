"""A language model's votes in a run."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import new_run

from backflip.core.records import Vote
from backflip.cycle import judging
from backflip.cycle.round import STEPS
from backflip.cycle.run import run_rounds
from backflip.cycle.tools import Outcome, Silent
from backflip.raters.judge import JudgePlan, NoReply
from backflip.store import open_store


@pytest.fixture(autouse=True)
def rating_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fit", "optimise", "measure"):
        monkeypatch.setitem(STEPS, name, lambda *_: Outcome())
    monkeypatch.setattr("backflip.cycle.run.publish", lambda *_: None)


def judged(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], str], **plan: Any
) -> list[str]:
    """Run one round with this judge; what was said to the user."""
    monkeypatch.setattr(judging, "local_judge", lambda _: ask)
    if not root.exists():
        new_run(root, model, rounds=1, judge=JudgePlan(model="m", **plan))
    watcher, said = Silent(), []
    monkeypatch.setattr(watcher, "say", said.append)
    run_rounds(root, watcher)
    return said


def votes_of(root: Path) -> list[Vote]:
    with open_store(root / "run.db") as store:
        streams = {p.id: p.stream for p in store.pairs()}
        votes = [v for v in store.votes() if v.rater_id == "judge/m"]
    assert {streams[v.pair_id] for v in votes} <= {"fit"}
    return votes


def test_a_judge_votes_on_every_pair_of_the_fit_and_on_no_held_out_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = iter(range(1000))
    judged(tmp_path / "run", tiny_model, monkeypatch, lambda _: "AB"[next(first) % 2])

    votes = votes_of(tmp_path / "run")
    assert Counter(v.choice for v in votes) == {"a": 14}
    with open_store(tmp_path / "run" / "run.db") as store:
        [judge] = [r for r in store.raters() if r.kind == "judge"]
        assert len([v for v in store.votes() if v.rater_id != judge.id]) >= 20  # nobody else is spared


def test_a_share_and_a_budget_hold(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(tmp_path / "few", tiny_model, monkeypatch, lambda _: "A", pairs=3)
    judged(tmp_path / "half", tiny_model, monkeypatch, lambda _: "A", share=0.5)

    assert len(votes_of(tmp_path / "few")) == 3
    assert {v.choice for v in votes_of(tmp_path / "few")} == {"tie"}
    assert 2 <= len(votes_of(tmp_path / "half")) <= 12


def test_a_round_goes_on_without_a_judge_that_is_down_and_tells_so(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def down(question: str) -> str:
        asked.append(question)
        raise NoReply("The judge is down.")

    said = judged(tmp_path / "run", tiny_model, monkeypatch, down)

    assert votes_of(tmp_path / "run") == []
    assert len(asked) == judging.GIVE_UP
    assert any("goes on without its judge. The judge is down." in line for line in said)


def test_pairs_without_a_reply_or_with_nonsense_are_counted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def moody(question: str) -> str:
        asked.append(question)
        if len(asked) == 1:
            raise NoReply("Not now.")
        return "Well, hmm" if len(asked) == 2 else "tie"

    said = judged(tmp_path / "run", tiny_model, monkeypatch, moody)

    assert Counter(v.choice for v in votes_of(tmp_path / "run")) == {"tie": 12, "skip": 1}
    assert any("left out 1 pairs, and made no sense on 1" in line for line in said)


def test_a_killed_round_asks_only_about_what_was_not_judged(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def breaks(question: str) -> str:
        asked.append(question)
        if len(asked) == 10:
            raise KeyboardInterrupt
        return "A"

    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path / "run", tiny_model, monkeypatch, breaks)
    assert len(votes_of(tmp_path / "run")) == 4
    judged(tmp_path / "run", tiny_model, monkeypatch, breaks)

    assert len(votes_of(tmp_path / "run")) == 14
    assert len(asked) == 10 + 20


def test_a_model_on_this_machine_can_be_the_judge(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(
        tmp_path / "run", tiny_model, rounds=1, judge=JudgePlan(model=str(tiny_model), pairs=2, instructions=".")
    )
    run_rounds(root)

    with open_store(root / "run.db") as store:
        votes = [v for v in store.votes() if v.rater_id == f"judge/{tiny_model}"]
    assert len(votes) == 2
    assert {v.choice for v in votes} <= {"a", "b", "tie", "skip"}
