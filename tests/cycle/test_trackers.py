"""Figures in TensorBoard, W&B and trackio: the real packages in their offline modes, and none of them at all."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import new_run

from backflip.core.errors import ConfigError
from backflip.core.records import Metric
from backflip.cycle import trackers
from backflip.cycle.folder import PLAN, run_store
from backflip.cycle.plan import read_plan
from backflip.cycle.run import run_rounds
from backflip.cycle.trackers import open_tracker


class Board:
    """Keeps what it is shown."""

    def __init__(self, root: Path, plan: Any) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def write(self, figures: Any, step: int) -> None:
        self.seen.append((step, dict(figures)))

    def close(self) -> None:
        self.closed += 1


class Said(list[str]):
    """A watcher that keeps what was said."""

    def begin(self, what: str, total: int) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None: ...

    def say(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[Board]:
    """TensorBoard's place taken by a board that can be looked at."""
    made: list[Board] = []

    def make(root: Path, plan: Any) -> Board:
        made.append(Board(root, plan))
        return made[-1]

    monkeypatch.setitem(trackers.BOARDS, "tensorboard", make)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    return made


def stored(root: Path) -> list[Metric]:
    with run_store(root, read_plan(root / PLAN)) as store:
        return store.metrics()


def test_every_figure_of_the_store_is_shown_at_its_step(tiny_model: Path, tmp_path: Path, board: list[Board]):
    root = new_run(tmp_path / "run", tiny_model, trackers=("tensorboard",))
    run_rounds(root)
    (seen,) = board

    kl = {step: f["objective/kl"] for step, f in seen.seen if "objective/kl" in f}
    rows = {(m.round - 1) * 2 + m.tick: m.value for m in stored(root) if m.name == "objective/kl"}
    assert kl == rows
    assert list(kl) == [1, 2, 3, 4]
    shown = {(step, name) for step, f in seen.seen for name in f}
    assert {(2, "monitor/win_rate"), (4, "monitor/win_rate"), (4, "final/win_rate")} <= shown
    assert {(0, "reward/heldout_accuracy"), (2, "reward/heldout_accuracy")} <= shown
    assert seen.closed == 1


def test_a_run_that_is_carried_on_counts_its_steps_on(tiny_model: Path, tmp_path: Path, board: list[Board]):
    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    run_rounds(root)
    plan = replace(read_plan(root / PLAN), trackers=("tensorboard",))
    with run_store(root, plan) as store, open_tracker(root, plan, store, Said()) as tracker:
        tracker.log([Metric(round=2, step="optimise", tick=1, name="objective/kl", value=0.5)])

    assert board[0].seen == [(3, {"objective/kl": 0.5})]


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(
    tiny_model: Path, tmp_path: Path, board: list[Board], monkeypatch: pytest.MonkeyPatch
):
    def fail(self: Board, figures: Any, step: int) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(Board, "write", fail)
    root = new_run(tmp_path / "run", tiny_model, rounds=1, trackers=("tensorboard",))
    watcher = Said()
    run_rounds(root, watcher)

    told = [line for line in watcher if "tensorboard" in line]
    assert told == [
        "tensorboard failed and is left out: no route to host. The figures are kept in the run all the same."
    ]
    assert any(m.name == "final/win_rate" for m in stored(root))


@pytest.mark.parametrize("name", trackers.PACKAGES)
def test_a_tracker_whose_package_is_missing_is_said_before_the_model_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    root = new_run(tmp_path / "run", tiny_model, trackers=(name,))
    with pytest.raises(ConfigError) as told:
        run_rounds(root)

    assert str(told.value).splitlines() == [
        f"The plan's trackers name {name}, and the package {name} is not installed.",
        "Trackers are extras; none comes with Backflip.",
        f"Install it with: pip install 'backflip[{name}]', or take it out of `trackers`.",
    ]


def in_a_process(root: Path, **variables: str) -> str:
    """Carry a run in a process of its own, as W&B and trackio start threads and servers; what it said."""
    import os

    code = f"from pathlib import Path; from backflip.cycle.run import run_rounds; run_rounds(Path({str(root)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def needs(package: str) -> None:
    pytest.importorskip(package, reason=f"the extra backflip[{package}] is not installed")


def test_tensorboard_files_hold_the_figures(tiny_model: Path, tmp_path: Path):
    needs("tensorboard")
    root = new_run(tmp_path / "run", tiny_model, rounds=1, trackers=("tensorboard",))
    in_a_process(root)
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(root / "trackers"))
    read.Reload()

    assert [(e.step, e.value) for e in read.Scalars("objective/kl")] == [
        (m.tick, pytest.approx(m.value, rel=1e-6)) for m in stored(root) if m.name == "objective/kl"
    ]
    assert {"objective/scores", "policy/clipfrac_avg", "val/ratio"} <= set(read.Tags()["scalars"])


def test_wandb_takes_the_figures_offline(tiny_model: Path, tmp_path: Path):
    needs("wandb")
    root = new_run(tmp_path / "run", tiny_model, rounds=1, trackers=("wandb",))
    said = in_a_process(root, WANDB_MODE="offline", WANDB_SILENT="true")

    assert "failed and is left out" not in said
    (file,) = (root / "trackers").rglob("*.wandb")
    assert b"objective/kl" in file.read_bytes()


def test_trackio_takes_the_figures_offline(tiny_model: Path, tmp_path: Path):
    needs("trackio")
    root = new_run(tmp_path / "run", tiny_model, rounds=1, trackers=("trackio",))
    home = tmp_path / "trackio"
    said = in_a_process(root, TRACKIO_DIR=str(home), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    import sqlite3

    assert "failed and is left out" not in said
    (file,) = home.rglob("backflip*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(m) for (m,) in database.execute("SELECT metrics FROM metrics ORDER BY step, id")]
    database.close()
    kl = [row["objective/kl"] for row in rows if "objective/kl" in row]
    assert kl == [pytest.approx(m.value) for m in stored(root) if m.name == "objective/kl"]
