"""The doctor: the work it foresees is the work that is done, memory is told before it runs out, nothing is stored."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import all_prompts, new_run, plan_of, save_prompts

from backflip.cycle import doctor, optimise
from backflip.cycle.artefacts import save_array
from backflip.cycle.forecast import Pace, Work, seconds_by_step, work_of
from backflip.cycle.plan import Measure, Rate, Sampling
from backflip.cycle.run import run_rounds
from backflip.models.memory import available_bytes, peak_bytes, saved_bytes, used_bytes
from backflip.policies.methods import METHODS
from backflip.policies.plan import SFT, Optimise
from backflip.rewards.fit import Reward
from backflip.rewards.model import save_reward
from backflip.sampling.engine import Engine
from backflip.sampling.score import Reader

CPU = torch.device("cpu")
SPLITS = {"train": 12, "monitor": 6, "final": 5}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Answers drawn and read, wherever that happens."""
    seen: Counter[str] = Counter()
    batch, read = Engine._batch, Reader.read

    def counting_batch(self: Engine, *args: Any) -> Any:
        out = batch(self, *args)
        seen["drawn"] += len(out)
        return out

    def counting_read(self: Reader, prompts: Any, answers: Any, *rest: Any, **more: Any) -> Any:
        seen["read"] += len(answers)
        return read(self, prompts, answers, *rest, **more)

    monkeypatch.setattr(Engine, "_batch", counting_batch)
    monkeypatch.setattr(Reader, "read", counting_read)
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rounds": 1, "rate": Rate(pairs=9, held_out=2, pairs_per_prompt=1)},
        {"rate": Rate(pairs=12, held_out=3, rank=True)},
        {"measure": Measure(monitor_prompts=0, monitor_answers=1, final_prompts=3, final_answers=3)},
    ],
    ids=["plain", "one round", "ranked", "all monitor prompts"],
)
def test_the_work_that_is_foreseen_is_the_work_that_is_done(tiny_model, tmp_path, counted, changes):
    root = new_run(tmp_path / "run", tiny_model, **changes)
    plan = plan_of(tiny_model, root / "prompts.jsonl", **changes)
    work = work_of(plan, SPLITS)
    run_rounds(root)

    climbed = work.steps * plan.ppo.prompts * plan.ppo.answers
    assert counted["drawn"] == work.drawn + climbed
    assert counted["read"] == work.read + work.warmed + 2 * climbed


def test_the_votes_that_are_foreseen_are_those_a_fit_reads(tiny_model, tmp_path):
    plan = plan_of(tiny_model, tmp_path / "p", rate=Rate(pairs=26, held_out=6, double_share=0.25))

    assert work_of(plan, SPLITS).votes == (25, 50)  # 20 pairs, a quarter of them judged twice; then both rounds'


def test_stage_0_is_counted_in_passes_of_whole_batches(tiny_model, tmp_path):
    plan = plan_of(tiny_model, tmp_path / "p", sft=SFT(demonstrations="d.jsonl", epochs=3, batch=4))

    assert work_of(plan, SPLITS, demonstrations=9).imitated == 9
    assert work_of(plan, SPLITS).imitated == 0


def test_seconds_are_counts_times_pace():
    work = Work(drawn=10, read=20, warmed=5, steps=3, votes=(4, 8), imitated=0)
    pace = Pace(load_s=7, draw_s=0.1, read_s=0.2, warm_s=0.4, step_s=9, vote_s=0.5)

    assert seconds_by_step(work, pace) == {"load": 7, "sample": 1.0, "read": 4.0, "fit": 6.0, "optimise": 29.0}


def test_a_sound_plan_is_found_sound_and_nothing_is_written(tiny_model, tmp_path, monkeypatch):
    plan = plan_of(tiny_model, save_prompts(tmp_path / "prompts.jsonl", all_prompts()))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    seen = doctor.examine(plan)

    assert [f.name for f in seen.findings] == [
        "stop tokens", "template", "sampler and trainer", "padding", "kl at the start", "reward scale", "first ratio",
        "memory",
    ]  # fmt: skip
    assert seen.sound, [f for f in seen.findings if f.level == "fault"]
    assert seen.seconds.keys() == {"load", "sample", "read", "fit", "optimise"}
    assert all(s > 0 for s in seen.seconds.values())
    assert 0 < seen.memory_gb < seen.available_gb + seen.memory_gb
    assert sorted(tmp_path.rglob("*")) == before


def test_a_large_step_is_tried_small_and_told_in_proportion(tiny_model, tmp_path, monkeypatch):
    plan = plan_of(tiny_model, save_prompts(tmp_path / "prompts.jsonl", all_prompts()))
    patient = doctor.open_patient(plan)
    tried = doctor.try_sampling(patient)
    reward = doctor.try_fit(patient, tried)
    monkeypatch.setattr(doctor, "LARGEST_STEP", 8)
    doctor.try_step(patient, tried, reward)

    assert doctor._prompts_tried(plan.ppo) == 2  # of 4, with 4 answers each
    assert doctor.pace_of(patient, tried).step_s == pytest.approx(2 * patient.seconds["step"])


@pytest.mark.parametrize("by", METHODS)
def test_every_optimiser_is_tried(tiny_model, tmp_path, by):
    plan = plan_of(
        tiny_model, save_prompts(tmp_path / "prompts.jsonl", all_prompts()), optimise=Optimise(by=by, beta=0.1)
    )
    seen = doctor.examine(plan)

    assert seen.sound, [f for f in seen.findings if f.level == "fault"]
    assert ("first ratio" in {f.name for f in seen.findings}) == (by not in ("dpo", "online_dpo", "best_of_n"))
    assert seen.seconds["optimise"] > 0


def test_memory_is_told_before_it_runs_out(tiny_model, tmp_path, monkeypatch):
    plan = plan_of(tiny_model, save_prompts(tmp_path / "prompts.jsonl", all_prompts()))
    monkeypatch.setattr(doctor, "available_bytes", lambda _: 1000)
    monkeypatch.setattr(doctor, "try_step", lambda *_: pytest.fail("a step that does not fit was taken"))
    seen = doctor.examine(plan)

    assert not seen.sound
    assert (seen.findings[-1].name, seen.findings[-1].level) == ("memory", "fault")
    assert seen.findings[-1].cure.startswith("Set ppo.micro = 1:")
    assert seen.work is None


def test_the_micro_batch_that_fits_is_named():
    found = doctor.memory_finding(needed=8 * 10**9, room=3 * 10**9, micro=24)

    assert found.fact == "Training will take 8.0 GB more than the model holds; 3.0 GB are free."
    assert found.cure.startswith("Set ppo.micro = 9:")


def test_what_a_forward_keeps_is_counted_once_and_weights_not_at_all():
    w = torch.ones(10, 10, requires_grad=True)
    x = torch.ones(5, 10, requires_grad=True)

    def forward() -> object:
        y = x @ w  # keeps x and w
        return y * y  # keeps y, twice the same

    assert saved_bytes(forward, [w]) == (5 * 10 + 5 * 10) * 4


def test_more_answers_in_a_micro_batch_need_more_memory(tiny_model, tmp_path):
    prompts = save_prompts(tmp_path / "prompts.jsonl", all_prompts())
    small = plan_of(tiny_model, prompts)
    large = replace(small, ppo=replace(small.ppo, micro=8, minibatches=2))
    needed = []
    for plan in (replace(small, ppo=replace(small.ppo, micro=1)), large):
        patient = doctor.open_patient(plan)
        needed.append(doctor.foresee_training(patient, doctor.try_sampling(patient)))

    assert needed[1] > 1.5 * needed[0]


def test_memory_is_read_off_the_machine():
    before, kept = used_bytes(CPU), np.ones(60_000_000 // 8)

    assert used_bytes(CPU) - before > 40_000_000
    assert peak_bytes(CPU) >= used_bytes(CPU) - 10_000_000
    assert 10**8 < available_bytes(CPU) < 10**13
    assert kept.sum() > 0


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    monkeypatch.setattr("backflip.models.memory.CGROUP", tmp_path)

    assert available_bytes(CPU) == 3000


def test_every_reward_of_a_run_is_weighed(tiny_model, tmp_path):
    root = new_run(tmp_path / "run", tiny_model)
    features = np.array([[1.0, 5.0], [-1.0, 5.0]])
    save_array(root / "rounds" / "r1" / "features-rate.safetensors", "features", features)
    sound = Reward(np.zeros(2), np.ones(2), np.array([1.0, 0.0]), 0.0, 0.1, 1.0, 30.0)
    save_reward(sound, root / "rounds" / "r1" / "reward")
    save_reward(sound._replace(bias=2.0), root / "rounds" / "r2" / "reward")
    found = doctor._scales(root)

    assert [(f.name, f.level) for f in found] == [("reward scale, r1", "ok"), ("reward scale, r2", "fault")]


def test_answers_that_warm_up_a_critic_are_bounded(tiny_model, tmp_path):
    plan = plan_of(tiny_model, tmp_path / "p", rate=Rate(pairs=500, held_out=6), sampling=Sampling(answers=3))

    assert work_of(plan, {"train": 500, "monitor": 6, "final": 5}).warmed == 2 * optimise.WARM_UP
