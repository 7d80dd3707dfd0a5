"""`backflip run` and `backflip demo`: a whole run through the command line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backflip.cli.demo import demo_plan
from backflip.core.errors import Paused
from backflip.cycle import round as rounds
from backflip.cycle.plan import read_plan
from backflip.cycle.plan_changes import differences

HOLD = """
import os, sys
from filelock import FileLock
with FileLock("run.lock"):
    open("run.pid", "w").write(str(os.getpid()))
    print("held", flush=True)
    sys.stdin.read()
"""


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def pause(*_: object) -> None:
    raise Paused("Round 1 waits for people: 3 pairs are still to be judged.")


@pytest.fixture
def other_process(finished) -> Iterator[int]:
    """A process that holds the finished run; its number."""
    owner = finished.root / "run.pid"
    before = owner.read_text()
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, cwd=finished.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == "held\n"
        yield p.pid
        p.communicate("")
    owner.write_text(before)


def test_a_run_ends_with_a_report_that_tells_the_win_rate(finished):
    page = (finished.root / "report.html").read_text()
    won = re.search(r"wins (\d+%)", finished.said.out)

    assert won
    assert won[1] in page
    assert f"report: runs/{finished.root.name}/report.html" in finished.said.out
    assert f"backflip chat runs/{finished.root.name}" in finished.said.out


def test_progress_goes_to_standard_error_first_news_first(finished):
    lines = finished.said.err.splitlines()

    assert lines[0] == f"run folder: runs/{finished.root.name}"
    assert lines[1].startswith("loading ")
    assert any(re.match(r"round 1: sample and rate: \d+/\d+, \d+ votes", line) for line in lines)
    assert finished.root.name.startswith("tiny-")


def test_a_finished_run_is_carried_on_without_doing_anything_again(finished):
    database = (finished.root / "run.db").read_bytes()
    again = finished.call("run", "--json")

    assert again.code == 0
    assert "sample and rate" not in again.err
    told = json.loads(again.out)
    assert told["run"] == f"runs/{finished.root.name}"
    assert told["final"]["win_rate"]["value"] is not None
    assert (finished.root / "run.db").read_bytes() == database


def test_a_second_process_is_refused_and_told_which_one_runs(finished, other_process):
    said = finished.call("run", "--dir", finished.root)

    assert said.code == 2
    assert said.err.splitlines()[-3].startswith(f"backflip: {finished.root} is being run by process {other_process}.")
    assert said.out == ""


def test_status_names_the_process_that_runs(finished, other_process):
    assert json.loads(finished.call("status", "--json").out)["process"] == other_process


def test_a_stopped_run_says_where_it_is_and_the_same_command_carries_on(backflip, plan_file, tmp_path, monkeypatch):
    file = plan_file()
    with monkeypatch.context() as patch:
        patch.setitem(rounds.STEPS, "optimise", stop)
        stopped = backflip("run", file)
    [root] = (tmp_path / "runs").iterdir()
    seen = json.loads(backflip("status", "--json").out)
    words = backflip("status").out
    no_policy = backflip("chat", "--prompt", "Say something kind.")
    early = backflip("report")

    assert stopped.code == 130
    assert stopped.err.endswith("stopped; the same command carries on\n")
    assert "Traceback" not in stopped.err
    assert seen["finished"] is False
    assert seen["process"] is None
    assert list(seen["rounds"][0]["done"]) == ["sample", "rate", "fit"]
    assert seen["rounds"][0]["next"] == "optimise"
    assert seen["rounds"][0]["votes"] == seen["votes"] == 15  # 12 pairs, a quarter of them judged twice
    assert "next: optimise (0 of 1 steps); 15 votes on 12 pairs" in words
    assert f"carry on with: backflip run --dir runs/{root.name}" in words
    assert no_policy.code == 2
    assert "has no finished policy yet" in no_policy.err
    assert early.out == f"runs/{root.name}/report.html\n"

    carried = backflip("run", file)

    assert carried.code == 0
    assert list((tmp_path / "runs").iterdir()) == [root]
    assert "sample and rate" not in carried.err
    assert json.loads(backflip("status", "--json").out)["finished"] is True


def test_a_run_that_waits_for_people_is_no_error(backflip, plan_file, monkeypatch):
    monkeypatch.setitem(rounds.STEPS, "sample", pause)
    said = backflip("run", plan_file())

    assert said.code == 0
    assert said.err.endswith("Round 1 waits for people: 3 pairs are still to be judged.\n")
    assert "backflip:" not in said.err


def test_options_win_over_the_plan(backflip, plan_file, tmp_path, monkeypatch):
    monkeypatch.setitem(rounds.STEPS, "sample", stop)
    file = plan_file()
    (tmp_path / "own.jsonl").write_text((Path(read_plan(file).task.prompts)).read_text())
    backflip("run", file, "--dir", "here", "--seed", 5, "--rounds", 2, "--prompts", "own.jsonl")
    plan, given = read_plan(tmp_path / "here" / "plan.toml"), read_plan(file)

    expected = replace(
        given, seed=5, rounds=2, task=replace(given.task, prompts=str((tmp_path / "own.jsonl").resolve()))
    )
    assert plan == expected


def test_a_folder_with_another_plan_is_left_alone(finished):
    before = (finished.root / "plan.toml").read_bytes()
    said = finished.call("run", "--dir", finished.root, "--seed", 99)

    assert said.code == 2
    assert "already holds a run with another plan" in said.err
    assert (finished.root / "plan.toml").read_bytes() == before


def test_an_unknown_key_is_refused_by_name(backflip, tmp_path):
    (tmp_path / "plan.toml").write_text("[ppo]\nstep = 3\n")
    said = backflip("run", "plan.toml")

    assert said.code == 2
    assert said.err == "backflip: plan.toml: unknown key ppo.step.\nDid you mean ppo.steps?\n"
    assert not (tmp_path / "runs").exists()


def test_a_model_that_is_not_there_is_refused_without_a_traceback(backflip, plan_file):
    said = backflip("run", plan_file(), "--model", "no/such-model")

    assert said.code == 2
    assert "backflip: The model 'no/such-model' is no folder here" in said.err


def test_a_folder_that_is_a_file_is_refused(backflip, plan_file, tmp_path):
    (tmp_path / "taken").write_text("")
    said = backflip("run", plan_file(), "--dir", "taken")

    assert said.code == 2
    assert said.err.startswith("backflip: taken cannot be a run's folder")


@pytest.mark.parametrize("command", ["run", "status", "report", "chat"])
def test_without_any_run_a_command_says_how_to_start_one(backflip, command: str):
    said = backflip(command)

    assert said.code == 2
    assert said.err.startswith("backflip: There is no run below ")
    assert "backflip demo" in said.err


def test_the_same_demo_command_carries_on_what_was_stopped_and_then_makes_a_new_run(
    backflip, tiny_plan, tmp_path, monkeypatch
):
    monkeypatch.setattr("backflip.cli.demo.demo_plan", lambda *of, people: replace(tiny_plan, seed=of[1] or 0))
    with monkeypatch.context() as patch:
        patch.setitem(rounds.STEPS, "rate", stop)
        stopped = backflip("demo", "--seed", 3)
    [root] = (tmp_path / "runs").iterdir()
    carried = backflip("demo", "--seed", 3, "--json")
    other = backflip("demo", "--seed", 4, "--json")

    assert root.name.startswith("demo-")
    assert stopped.code == 130
    assert stopped.err.endswith("stopped; the same command carries on\n")
    assert carried.code == other.code == 0
    assert json.loads(carried.out)["seed"] == "3"
    assert json.loads(other.out)["seed"] == "4"
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_the_demo_with_people_waits_for_thirty_votes_a_round_and_differs_in_nothing_else():
    plan, by_people = (demo_plan("requests", 1, 2, people=people) for people in (False, True))

    assert differences(plan, by_people) == {
        "rate.votes": ("0", "30"), "raters.by": ('"personas"', '"people"'),
    }  # fmt: skip


def test_the_run_notes_which_process_it_is(finished):
    assert (finished.root / "run.pid").read_text() == str(os.getpid())


def test_a_full_disk_while_the_report_is_written_is_told_plainly(finished, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("backflip.report.of_run.write_report", full)
    said = finished.call("report")

    assert said.code == 2
    assert "could not be saved" in said.err
    assert "Traceback" not in said.err
