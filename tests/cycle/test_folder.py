"""A run's folder: which of several is meant."""

import os
from pathlib import Path

import pytest

from backflip.core.errors import ConfigError
from backflip.cycle.folder import new_folder, newest_run, only_process, start_run
from backflip.cycle.overview import unfinished_run
from backflip.cycle.plan import Plan


def runs(root: Path) -> tuple[Path, Path]:
    """Two runs with the same plan, the second made a minute later."""
    for second, name in enumerate(("early", "late")):
        start_run(root / name, Plan())
        os.utime(root / name / "plan.toml", (1000 + 60 * second,) * 2)
    return root / "early", root / "late"


def test_the_newest_run_is_the_one_that_was_worked_on_last(tmp_path: Path) -> None:
    early, late = runs(tmp_path)
    assert newest_run(tmp_path) == unfinished_run(Plan(), tmp_path) == late

    with only_process(early):
        pass

    assert newest_run(tmp_path) == unfinished_run(Plan(), tmp_path) == early


def test_runs_begun_in_the_same_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    folders = []
    for _ in range(3):
        folders.append(new_folder("demo", tmp_path))
        folders[-1].mkdir()

    assert [folder.name for folder in folders] == [
        "demo-20260101-000000",
        "demo-20260101-000000-2",
        "demo-20260101-000000-3",
    ]


def test_without_any_run_the_way_to_start_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backflip demo"):
        newest_run(tmp_path)
