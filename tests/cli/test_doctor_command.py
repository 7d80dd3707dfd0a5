"""`backflip doctor`: what it prints, and its exit codes."""

import json
import re

from backflip.cli.doctor import _finite
from backflip.cycle import doctor


def test_a_sound_plan_is_told_line_by_line_with_time_and_memory(backflip, plan_file):
    said = backflip("doctor", plan_file())

    assert said.code == 0, said.out + said.err
    assert "ok       kl at the start       Before the first step the policy is 0 nats an answer" in said.out
    assert re.search(r"\nmemory: about \d+\.\d", said.out)  # of this whole process, whatever ran in it before
    assert "\ntime: about 0:" in said.out
    assert said.out.endswith("sound: nothing stands in the way\n")


def test_a_fault_is_told_with_cause_and_cure_and_exit_code_1(backflip, plan_file, monkeypatch):
    monkeypatch.setattr(doctor, "available_bytes", lambda _: 0)
    said = backflip("doctor", plan_file())

    assert said.code == 1
    assert "\nFAULT    memory                Training will take" in said.out
    assert "\n                               Close other programs, take a smaller model" in said.out
    assert said.out.endswith("1 fault found\n")


def test_figures_come_as_json(backflip, plan_file):
    told = json.loads(backflip("doctor", plan_file(), "--json").out)

    assert told["sound"] is True
    assert {f["name"]: f["level"] for f in told["findings"]}["first ratio"] == "ok"
    assert told["work"]["steps"] > 0
    assert told["memory_gb"] > 0


def test_a_run_s_folder_is_a_plan_too(backflip, plan_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.toml").write_text(plan_file().read_text())

    assert backflip("doctor", tmp_path / "run").code == 0


def test_a_model_that_is_not_there_is_told_without_a_traceback(backflip, plan_file):
    said = backflip("doctor", plan_file(), "--model", "no/such/folder/at/all")

    assert said.code == 2
    assert said.err.splitlines()[-3].startswith("backflip: The model no/such/folder/at/all does not exist.")


def test_a_folder_without_a_run_is_told_as_such(backflip, tmp_path):
    said = backflip("doctor", tmp_path)

    assert said.code == 2
    assert "holds no run: it has no plan.toml." in said.err


def test_figures_that_are_no_numbers_are_left_out_of_json():
    told = _finite({"findings": [{"figures": {"mean": float("nan"), "std": 1.0}}]})

    assert told == {"findings": [{"figures": {"mean": None, "std": 1.0}}]}
