"""A run that stops in the narrow places, between a file and its row, carries on as if it had not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kills import differences, fingerprint, votes_wrong
from tiny_run import new_run

from backflip.core.records import Rater, Vote
from backflip.cycle import fit, measure, optimise, sample
from backflip.cycle.run import run_rounds
from backflip.store import open_store


class Crash(BaseException):
    """Stands for the end of the process: nothing catches it."""


def crash_once(real: Callable[..., Any], *, late: bool, calls: int = 1) -> Callable[..., Any]:
    """`real`, but its `calls`-th call ends in a Crash: before it does anything, or (`late`) when it has done it."""
    count = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls and not late:
            raise Crash
        out = real(*args, **kwargs)
        if count == calls:
            raise Crash
        return out

    return wrapped


PLACES = [
    (sample, "save_answers", True, 2),  # answers on the disk, no rows
    (sample, "ask_machines", False, 1),  # pairs open, no votes
    (fit, "save_array", True, 1),
    (fit, "fit_votes", False, 1),  # the watermark is set
    (fit, "write_whole", True, 1),  # the reward is on the disk, the step not done
    (optimise, "save_checkpoint", False, 2),  # a step's metrics without its checkpoint
    (optimise, "save_checkpoint", True, 2),
    (optimise, "remove", False, 1),  # the policy is on the disk beside its checkpoints
    (optimise, "remove", True, 1),
    (measure, "save_answers", True, 1),
    (measure, "ask_machines", False, 1),  # held-out pairs open, no votes
    (measure, "write_whole", True, 2),
]


def test_a_crash_in_every_narrow_place_changes_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new_run(tmp_path / "whole", tiny_model, rounds=1)
    run_rounds(whole)
    root = new_run(tmp_path / "broken", tiny_model, rounds=1, prompts=whole / "prompts.jsonl")

    for module, name, late, calls in PLACES:
        with monkeypatch.context() as m:
            m.setattr(module, name, crash_once(getattr(module, name), late=late, calls=calls))
            with pytest.raises(Crash):
                run_rounds(root)
    run_rounds(root)

    assert votes_wrong(root) == []
    assert differences(fingerprint(root), fingerprint(whole)) == []


def test_a_finished_run_started_again_does_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    run_rounds(root)
    before = fingerprint(root)
    for module, name in ((sample, "save_answers"), (fit, "fit_votes"), (optimise, "_climb"), (measure, "answered")):
        monkeypatch.setattr(module, name, crash_once(getattr(module, name), late=False))
    run_rounds(root)

    assert fingerprint(root) == before


def test_a_crash_amid_the_clearing_of_checkpoints_does_not_spoil_the_finished_policy(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(folder: Path) -> None:
        if folder.name == "checkpoints":
            (max(folder.iterdir()) / "state.json").unlink()
            raise Crash

    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    with monkeypatch.context() as m:
        m.setattr(optimise, "remove", half)
        with pytest.raises(Crash):
            run_rounds(root)
    run_rounds(root)

    assert not (root / "rounds" / "r1" / "checkpoints").exists()
    with open_store(root / "run.db") as store:
        assert store.steps_done(1) == {"sample", "rate", "fit", "optimise", "measure"}


def test_what_a_killed_process_left_half_written_is_cleared_away(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    half = root / "rounds" / "r1" / "policy.4312.part"
    half.mkdir(parents=True)
    (half / "state.safetensors.4312.part").write_text("half")
    run_rounds(root)

    assert not half.exists()


def test_a_resumed_fit_uses_the_votes_of_its_watermark_and_the_next_fit_the_late_ones_too(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    with monkeypatch.context() as m:
        m.setattr(fit, "fit_votes", crash_once(fit.fit_votes, late=False))
        with pytest.raises(Crash):
            run_rounds(root)
    with open_store(root / "run.db") as store:
        mark, pair = store.watermark(1), store.pairs(round=1, stream="fit")[0]
        late = Vote(key="late", pair_id=pair.id, rater_id="eve", choice="a", shown="ab", latency_s=2.0, at=0.0)
        with store.begin() as tx:
            tx.add_raters([Rater(id="eve", kind="person", name="Eve")])
            tx.cast([late])

    fitted: list[list[str]] = []
    real = fit.fit_votes

    def watched(features: Any, feedback: Any, *args: Any, **kwargs: Any) -> Any:
        fitted.append([f.rater_id for f in feedback])
        return real(features, feedback, *args, **kwargs)

    monkeypatch.setattr(fit, "fit_votes", watched)
    run_rounds(root)

    with open_store(root / "run.db") as store:
        assert store.watermark(1) == mark
        round_1 = store.votes(round=1, stream="fit", upto=mark)
        both = store.votes(stream="fit", upto=store.watermark(2))
    assert mark is not None
    assert "eve" not in fitted[0]
    assert len(fitted[0]) == len(round_1)
    assert fitted[1].count("eve") == 1
    assert len(fitted[1]) == len(both)


def test_a_vote_cast_while_a_fit_runs_goes_to_the_next_fit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    real, fitted = fit.fit_votes, []

    def slow(features: Any, feedback: Any, *args: Any, **kwargs: Any) -> Any:
        fitted.append([f.rater_id for f in feedback])
        if len(fitted) == 1:
            with open_store(root / "run.db") as store, store.begin() as tx:
                pair = store.pairs(round=1, stream="fit")[0]
                tx.add_raters([Rater(id="eve", kind="person", name="Eve")])
                tx.cast([Vote(key="x", pair_id=pair.id, rater_id="eve", choice="b", shown="ab", latency_s=1, at=0)])
        return real(features, feedback, *args, **kwargs)

    monkeypatch.setattr(fit, "fit_votes", slow)
    run_rounds(root)

    assert [names.count("eve") for names in fitted] == [0, 1]
    with open_store(root / "run.db") as store:
        count = {m.round: m.value for m in store.metrics(name="votes/count")}
        assert count[1] == len(
            [v for v in store.votes(round=1) if v.rater_id != "eve" and "/reference/" not in v.pair_id]
        )
