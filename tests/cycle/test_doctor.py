"""The doctor: the work it foresees is the work that is done, memory is told before it runs out, nothing is stored."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import all_prompts, new_run, plan_of, save_model, save_prompts

from backflip.core.errors import DataError
from backflip.cycle import doctor, optimise, trial
from backflip.cycle.artefacts import save_array
from backflip.cycle.forecast import Pace, Work, seconds_by_step, work_of
from backflip.cycle.intake import import_votes
from backflip.cycle.plan import Measure, Rate, Sampling, read_plan
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
    sample, read = Engine.sample, Reader.read

    def counting_sample(self: Engine, *args: Any, **more: Any) -> Any:
        for batch in sample(self, *args, **more):
            seen["drawn"] += len(batch)
            yield batch

    def counting_read(self: Reader, prompts: Any, answers: Any, *rest: Any, **more: Any) -> Any:
        seen["read"] += len(answers)
        return read(self, prompts, answers, *rest, **more)

    monkeypatch.setattr(Engine, "sample", counting_sample)
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
    assert seen.memory_gb >= peak_bytes(CPU) / 1e9 > 0.1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_large_step_is_tried_small_and_told_in_proportion(tiny_model, tmp_path, monkeypatch):
    plan = plan_of(tiny_model, save_prompts(tmp_path / "prompts.jsonl", all_prompts()))
    patient = trial.open_patient(plan)
    tried = trial.try_sampling(patient)
    reward = trial.try_fit(patient, tried)
    monkeypatch.setattr(trial, "LARGEST_STEP", 8)
    trial.try_step(patient, tried, reward)

    assert trial._prompts_tried(plan.ppo) == 2  # of 4, with 4 answers each
    assert trial.pace_of(patient, tried).step_s == pytest.approx(2 * patient.seconds["step"])


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
    assert "a single one would take" in seen.findings[-1].cause
    assert seen.work is None


def test_memory_that_is_enough_for_fewer_answers_at_a_time_is_worth_a_warning_alone():
    found = [doctor.memory_finding(8 * 10**9, 3 * 10**9, 24, least) for least in (2 * 10**9, 4 * 10**9)]

    assert {f.fact for f in found} == {"Training will take 8.0 GB more than the model holds; 3.0 GB are free."}
    assert [f.level for f in found] == ["warning", "fault"]
    assert "a single one would take 4.0 GB" in found[1].cause


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
        patient = trial.open_patient(plan)
        needed.append(trial.foresee_training(patient, trial.try_sampling(patient)))

    assert needed[1] > 1.5 * needed[0]


def test_memory_is_read_off_the_machine():
    before, kept = used_bytes(CPU), np.ones(60_000_000 // 8)

    assert used_bytes(CPU) - before > 40_000_000
    assert peak_bytes(CPU) >= used_bytes(CPU) - 10_000_000
    assert 10**8 < available_bytes(CPU) < 10**13
    assert kept.sum() > 0


def test_a_container_s_limit_counts_and_files_it_only_read_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    monkeypatch.setattr("backflip.models.memory.CGROUP", tmp_path)
    without = available_bytes(CPU)
    (tmp_path / "memory.stat").write_text("anon 1300\ninactive_file 700\nfile 900\n")

    assert (without, available_bytes(CPU)) == (3000, 3700)


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


def test_a_plan_larger_than_what_is_tried_is_foreseen_whole(tiny_model, tmp_path, monkeypatch):
    plan = plan_of(tiny_model, save_prompts(tmp_path / "prompts.jsonl", all_prompts()))
    monkeypatch.setattr(doctor, "foresee_training", lambda *_: 3 * 10**9)
    monkeypatch.setattr(doctor, "available_bytes", lambda _: 9 * 10**9)

    assert doctor.examine(plan).memory_gb >= 3.1


def test_a_warm_up_is_timed_with_its_reading(tiny_model, tmp_path, monkeypatch):
    plan = plan_of(tiny_model, save_prompts(tmp_path / "prompts.jsonl", all_prompts()))
    patient = trial.open_patient(plan)
    tried = trial.try_sampling(patient)
    reward = trial.try_fit(patient, tried)
    read: list[int] = []
    warm_up = trial.ppo.warm_up

    def counting(*args: Any) -> float:
        real = Reader.read
        monkeypatch.setattr(Reader, "read", lambda *a, **k: (read.append(len(a[2])), real(*a, **k))[1])
        out = warm_up(*args)
        monkeypatch.setattr(Reader, "read", real)
        return out

    monkeypatch.setattr(trial.ppo, "warm_up", counting)
    trial.try_step(patient, tried, reward)

    assert read == [len(tried.answers)]


# --- the cases in which a doctor must not fall ill ------------------------------------------------------------------


def without_stop_token(model: Path, folder: Path) -> Path:
    """A copy of the model that names no token to end an answer with."""
    shutil.copytree(model, folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            settings = {k: v for k, v in settings.items() if not k.startswith(("eos", "pad"))}
            (folder / name).write_text(json.dumps(settings))
    return folder


def test_a_model_without_a_stop_token_is_a_finding_and_no_crash(tiny_model, tmp_path):
    endless = without_stop_token(tiny_model, tmp_path / "endless")
    plan = plan_of(endless, save_prompts(tmp_path / "prompts.jsonl", all_prompts()))
    seen = doctor.examine(plan)

    assert [(f.name, f.level) for f in seen.findings] == [("stop tokens", "fault")]
    assert seen.findings[0].fact == "The model names no token that ends an answer."


def test_a_model_that_the_fast_forward_leaves_to_hugging_face_is_a_warning(tiny_model, tmp_path):
    prompts = save_prompts(tmp_path / "prompts.jsonl", all_prompts())
    slow, fast = (doctor.examine(plan_of(m, prompts)) for m in (save_model(tmp_path / "m", mlp_bias=True), tiny_model))
    found = {f.name: f for f in slow.findings}["forward"]

    assert slow.sound
    assert (found.level, found.fact) == (
        "warning",
        "The model, of family llama, is computed by Hugging Face's forward.",
    )
    assert found.cause.startswith("The fast forward has no place for its biases.")
    assert "forward" not in [f.name for f in fast.findings]


def test_importing_for_a_model_without_a_stop_token_is_refused_plainly(tiny_model, tmp_path):
    endless = without_stop_token(tiny_model, tmp_path / "endless")
    root = new_run(tmp_path / "run", endless)
    with pytest.raises(DataError, match="The model names no token that ends an answer"):
        import_votes(root, [{"prompt": "we love tea", "chosen": "tea is good", "rejected": "a sad dog"}])


def test_demonstrations_that_a_finished_stage_0_learned_from_are_not_asked_for_again(tiny_model, tmp_path):
    rows = [{"prompt": f"we love {word}", "completion": f"{word} is good"} for word in ("tea", "rain", "snow", "bread")]
    demonstrations = tmp_path / "d.jsonl"
    demonstrations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = new_run(
        tmp_path / "run", tiny_model, rounds=1, sft=SFT(demonstrations=str(demonstrations), batch=2, epochs=1)
    )
    before = doctor.examine(read_plan(root / "plan.toml"), root=root)
    run_rounds(root)
    demonstrations.unlink()
    after = doctor.examine(read_plan(root / "plan.toml"), root=root)

    assert before.work is not None
    assert before.work.imitated == 2
    assert "stage 0" in before.seconds
    assert after.work is not None
    assert after.work.imitated == 0
    assert after.sound


def test_what_was_imported_is_counted_and_its_lack_is_told(tiny_model, tmp_path):
    root = new_run(tmp_path / "run", tiny_model, rate=Rate(pairs=0, held_out=0))
    plan = read_plan(root / "plan.toml")
    empty = doctor.examine(plan, root=root)
    words = ("tea", "rain", "snow", "bread", "cake", "sun", "sea", "lake", "cat", "dog")
    done = import_votes(
        root, [{"prompt": f"we love {w}", "chosen": f"{w} is good", "rejected": f"a sad {w}"} for w in words]
    )
    full = doctor.examine(plan, root=root)

    assert empty.work is not None
    assert full.work is not None
    assert [f.fact for f in empty.findings if f.name == "votes"] == [
        "The plan asks for no votes, and nothing is imported yet."
    ]
    assert "votes" not in {f.name for f in full.findings}
    assert full.work.read == empty.work.read + 2 * done.pairs
    assert full.work.votes == (done.preferences - done.held_out,) * 2


def test_a_damaged_feature_file_does_not_stop_the_doctor(tiny_model, tmp_path):
    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    run_rounds(root)
    file = root / "rounds" / "r1" / "features-rate.safetensors"
    file.write_bytes(file.read_bytes()[:100])

    assert doctor.examine(read_plan(root / "plan.toml"), root=root).sound
