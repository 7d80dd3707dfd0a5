"""What a run refuses or waits for, and what it says."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tiny_run import all_prompts, new_run, plan_of, save_model, save_prompts

from backflip.core.errors import BackflipError, BusyError, ConfigError, DataError, Paused
from backflip.core.records import Choice, Rater, Vote
from backflip.cycle import artefacts
from backflip.cycle.artefacts import load_array, save_array, write_whole
from backflip.cycle.folder import only_process, start_run
from backflip.cycle.intake import import_votes
from backflip.cycle.plan import Rate, TaskPlan, plan_toml, read_plan
from backflip.cycle.round import run_round
from backflip.cycle.run import open_tools, run_rounds
from backflip.cycle.tools import Silent, Tools
from backflip.models.llama import Llama
from backflip.policies.plan import SFT
from backflip.raters.personas import Crowd, Persona
from backflip.rewards.fit import Fitted, fit_votes
from backflip.store import Store, open_store


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@contextmanager
def people_rate(root: Path) -> Iterator[Tools]:
    """The run's tools with nobody simulated."""
    with open_store(root / "run.db") as store:
        tools = open_tools(root, read_plan(root / "plan.toml"), store, Silent())
        tools.crowd = None
        yield tools


def vote(store: Store, choice: Choice, rater: str = "ann", suffix: str = "") -> None:
    """`rater` votes on every pair that wants votes."""
    with store.begin() as tx:
        tx.add_raters([Rater(id=rater, kind="person", name=rater)])
        tx.cast(
            [
                Vote(
                    key=f"{p.id}/{rater}{suffix}",
                    pair_id=p.id,
                    rater_id=rater,
                    choice=choice,
                    shown="ab",
                    latency_s=1,
                    at=0,
                )
                for p, _ in store.wanting()
            ]
        )


def test_without_simulated_raters_a_round_waits_for_people_and_then_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, rate=Rate(pairs=12, held_out=4, double_share=0.1))
    with people_rate(root) as tools:
        with pytest.raises(Paused, match="Round 1 waits for people: 12 pairs"):
            run_round(1, tools)
        assert tools.store.steps_done(1) == {"sample"}
        assert tools.store.watermark(1) is None

        vote(tools.store, "a")
        with pytest.raises(Paused, match="2 pairs"):  # those that want a second rater
            run_round(1, tools)
        vote(tools.store, "b", rater="bob")
        with pytest.raises(Paused, match="comparison with the untouched model waits for people: 4 pairs"):
            run_round(1, tools)
        assert {p.stream for p, _ in tools.store.wanting(1)} == {"reference"}
        assert tools.store.steps_done(1) == {"sample", "rate", "fit", "optimise"}

        vote(tools.store, "a", suffix="/last")
        vote(tools.store, "a", rater="bob", suffix="/last")
        run_round(1, tools)
        assert "measure" in tools.store.steps_done(1)


def test_a_fit_without_votes_is_refused_and_works_once_there_are_some(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, rate=Rate(pairs=12, held_out=4, double_share=0.0))
    with people_rate(root) as tools:
        with pytest.raises(Paused):
            run_round(1, tools)
        vote(tools.store, "skip")
        with pytest.raises(DataError, match="no votes to fit a reward on"):
            run_round(1, tools)

        with tools.store.begin() as tx:
            for v in tools.store.votes():
                tx.cast([replace(v, key=f"{v.key}/undo", choice="retract", retracts=v.key, seq=None)])
        vote(tools.store, "a", suffix="/again")
        with pytest.raises(Paused, match="comparison with the untouched model"):
            run_round(1, tools)
        assert "fit" in tools.store.steps_done(1)


@pytest.mark.parametrize("imported", ["nothing", "ties", "held out"])
def test_a_plan_that_asks_for_no_votes_is_refused_before_sampling_until_some_are_imported(
    tiny_model: Path, tmp_path: Path, imported: str
) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, rate=Rate(pairs=0, held_out=0))
    row = {"prompt": "the sun", "chosen": "good", "rejected": "bad", "rater": "ann", "split": "train"}
    if imported != "nothing":
        import_votes(root, [row | ({"tie": True} if imported == "ties" else {"split": "monitor"})])
    with pytest.raises(DataError) as told:
        run_rounds(root)

    fact, _, cure = str(told.value).splitlines()
    assert fact.startswith("The plan asks for no votes (rate.pairs = 0), and none were imported")
    assert cure == f"Bring preferences with: backflip import FILE --dir {root}"
    assert not (root / "rounds").exists()
    import_votes(root, [row | {"prompt": "the sea"}, row | {"prompt": "the cat", "chosen": "be kind"}])
    run_rounds(root)
    with open_store(root / "run.db") as store:
        assert "measure" in store.steps_done(1)


def test_a_reward_that_tells_no_answers_apart_stops_the_run_before_the_climb(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flat(*args: Any, **keys: Any) -> Fitted:
        fitted = fit_votes(*args, **keys)
        return fitted._replace(reward=fitted.reward._replace(weight=np.zeros_like(fitted.reward.weight)))

    monkeypatch.setattr("backflip.cycle.fit.fit_votes", flat)
    root = new_run(tmp_path / "run", tiny_model, rounds=1)
    with pytest.raises(DataError, match="same for every answer"):
        run_rounds(root)
    with open_store(root / "run.db") as store:
        assert "fit" not in store.steps_done(1)


def test_one_simulated_rater_alone_is_enough(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, raters=Crowd(personas=(Persona(count=1),)))
    run_rounds(root)

    with open_store(root / "run.db") as store:
        assert "measure" in store.steps_done(1)


def test_a_second_process_is_refused_and_told_who_runs_it(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    with only_process(root), pytest.raises(BusyError, match=f"is being run by process {os.getpid()}"):
        run_rounds(root)

    with only_process(root):  # and nothing is left behind
        pass


def test_another_plan_for_the_same_folder_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tiny_model)
    plan = read_plan(root / "plan.toml")
    start_run(root, plan)

    with pytest.raises(ConfigError, match="already holds a run with another plan"):
        start_run(root, replace(plan, seed=99))
    assert read_plan(root / "plan.toml") == plan


@pytest.mark.parametrize("missing", ["train", "monitor", "final"])
def test_a_split_without_prompts_is_refused_by_name(tiny_model: Path, tmp_path: Path, missing: str) -> None:
    file = save_prompts(tmp_path / "some.jsonl", [p for p in all_prompts() if p.split != missing])
    root = new_run(tmp_path / "run", tiny_model, prompts=file)

    with pytest.raises(BackflipError, match=missing):
        run_rounds(root)


def test_a_prompt_longer_than_the_context_is_named_before_anything_is_computed(
    tiny_model: Path, tmp_path: Path
) -> None:
    prompts = all_prompts()
    prompts[4] = replace(prompts[4], id="too-long", text="sun " * 60)
    root = new_run(tmp_path / "run", tiny_model, prompts=save_prompts(tmp_path / "long.jsonl", prompts))

    with pytest.raises(DataError, match=r"Prompt too-long has 63 tokens; with 8 for the answer .* context of 64"):
        run_rounds(root)
    assert not (root / "rounds").exists()


def test_a_model_without_a_chat_template_is_told_once_and_works(tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", save_model(tmp_path / "plain", template=False), rounds=1)
    watcher = Listening()
    run_rounds(root, watcher)

    assert len([line for line in watcher.said if "has no chat template" in line]) == 1


def test_a_model_that_the_fast_forward_leaves_to_hugging_face_is_told_once(tiny_model: Path, tmp_path: Path) -> None:
    slow = save_model(tmp_path / "slow", mlp_bias=True)
    shown = tmp_path / "shown.jsonl"
    rows = [{"prompt": f"we love {word}", "completion": f"{word} is good"} for word in ("tea", "rain", "snow", "bread")]
    shown.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = SFT(demonstrations=str(shown), batch=2, epochs=1)
    told = []
    for name, model, more in (("plain", slow, {}), ("taught", slow, {"sft": sft}), ("fast", tiny_model, {})):
        watcher = Listening()
        run_rounds(new_run(tmp_path / name, model, rounds=1, **more), watcher)
        told.append([line for line in watcher.said if "Hugging Face's forward" in line])

    line = f"{slow} (llama) takes longer, by Hugging Face's forward: the fast forward has no place for its biases"
    assert told == [[line], [line], []]


def test_a_model_or_task_that_does_not_exist_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        run_rounds(new_run(tmp_path / "one", Path("nowhere/at-all")))
    with pytest.raises(ConfigError, match='task.name = "chess"'):
        run_rounds(new_run(tmp_path / "two", tiny_model, task=TaskPlan(name="chess")))


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_plainly_and_leaves_the_former_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    path = tmp_path / "features.safetensors"
    save_array(path, "features", np.ones(3))

    def full(arrays: Any, part: Path) -> None:
        part.write_bytes(b"half")
        raise fault

    monkeypatch.setattr(artefacts, "save_file", full)
    with pytest.raises(BackflipError, match="The disk is full or not writable; what was saved before is intact"):
        save_array(path, "features", np.zeros(3))

    assert load_array(path, "features").tolist() == [1.0, 1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_disk_that_takes_no_more_is_told_plainly(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    save_array(path, "features", np.ones(3))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a real failure of the system call
    try:
        with pytest.raises(BackflipError, match="could not be saved"):
            save_array(path, "features", np.zeros(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert load_array(path, "features").tolist() == [1.0, 1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    def write(text: str) -> Any:
        def into(part: Path) -> None:
            part.mkdir()
            (part / text).write_text(text)

        return into

    write_whole(tmp_path / "reward", write("old"))
    write_whole(tmp_path / "reward", write("new"))

    assert [p.name for p in (tmp_path / "reward").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["reward"]


def test_a_fault_of_ours_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "not there")

    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "x", write)


def test_a_plan_survives_its_file(tiny_model: Path, tmp_path: Path) -> None:
    odd = Persona(name='a "b" \\ c', sees=("warmth", "form"), error=0.0, count=2)
    plan = plan_of(
        tiny_model,
        tmp_path / 'my "own" prompts.jsonl',
        raters=Crowd(personas=(Persona(), odd)),
        task=TaskPlan(prompts="x.jsonl", weights={"warmth": 2.0, "form": 0.5}),
    )
    (tmp_path / "plan.toml").write_text(plan_toml(plan), encoding="utf-8")

    assert read_plan(tmp_path / "plan.toml") == plan


def test_a_run_with_dropout_in_training_stops_at_its_first_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Llama._feed

    def dropping(self: Llama, *args: object) -> torch.Tensor:
        out = feed(self, *args)  # type: ignore[arg-type]
        return torch.nn.functional.dropout(out, 0.1) if torch.is_grad_enabled() else out

    monkeypatch.setattr(Llama, "_feed", dropping)
    root = new_run(tmp_path / "run", tiny_model)
    with pytest.raises(BackflipError, match="The first step of the climb is not sound"):
        run_rounds(root)
