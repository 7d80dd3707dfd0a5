"""`backflip import` and `backflip export`, as they are called."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call, Finished
from peft import PeftModel
from transformers import AutoModelForCausalLM

from backflip.cycle.folder import start_run
from backflip.cycle.plan import Plan
from backflip.models.load import load_model
from backflip.tasks import TASKS

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def run(tiny_plan: Plan, tmp_path: Path) -> Path:
    start_run(tmp_path / "runs" / "mine", tiny_plan)
    return tmp_path / "runs" / "mine"


ROWS: list[dict[str, Any]] = [
    {"prompt": "Say hi.", "chosen": "Hi!", "rejected": "No.", "rater": "ann"},
    {"prompt": "Say bye.", "chosen": "Bye!", "rejected": "Bye!", "rater": "ann"},
]


def test_preferences_go_into_the_newest_run(backflip: Call, run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", ROWS)
    refused = backflip("import", file)
    said = backflip("import", file, "--skip-bad")
    again = backflip("import", file, "--skip-bad", "--json")

    assert refused.code == 2
    assert "line 2: chosen is equal to rejected" in refused.err
    assert said.out.startswith("1 votes on 1 pairs imported into runs/mine")
    assert said.err == f"left out: {file}, line 2: chosen is equal to rejected.\n"
    document = json.loads(again.out)
    assert (document["form"], document["preferences"], document["known"]) == ("preferences", 0, 1)
    assert len(document["left_out"]) == 1


def test_thumbs_are_paired_and_what_is_left_over_is_told(backflip: Call, run: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Say hi.", "completion": said, "label": up} for said, up in (("Hi!", True), ("No.", False))]
    rows.append({"prompt": "Say bye.", "completion": "Bye!", "label": True})
    said = backflip("import", write(tmp_path / "t.jsonl", rows))

    assert said.out.startswith("1 votes on 1 pairs")
    assert "1 thumbs found no answer to be compared with" in said.out


def test_prompts_of_any_form_are_written_to_a_file_that_a_plan_can_name(backflip: Call, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"}]
    rows = [
        {"prompt": [*talk, {"role": "user", "content": f"Again {n}."}], "chosen": "a", "rejected": f"b{n}"}
        for n in range(40)
    ]
    said = backflip("import", write(tmp_path / "p.jsonl", rows + rows), "--as", "prompts", "--out", "mine.jsonl")
    prompts = TASKS["requests"].prompt_file(tmp_path / "mine.jsonl")

    assert said.out == "40 prompts written to mine.jsonl; name the file in the plan: task.prompts\n"
    assert len(prompts) == 40
    assert (prompts[3].text, prompts[3].history) == ("Again 3.", (("user", "Say hi."), ("assistant", "Hi!")))
    twice = backflip("import", tmp_path / "p.jsonl", "--as", "prompts", "--out", "mine.jsonl")
    assert (twice.code, twice.err.splitlines()[0]) == (2, "backflip: mine.jsonl exists and is left as it is.")


def test_prompts_alone_are_no_votes(backflip: Call, run: Path, tmp_path: Path) -> None:
    said = backflip("import", write(tmp_path / "p.jsonl", [{"prompt": "Say hi."}]))

    assert said.code == 2
    assert "holds prompts, and a run takes votes" in said.err


def test_a_folder_that_is_no_export_is_read_whole(backflip: Call, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    write(folder / "preferences.jsonl", ROWS[:1])
    write(folder / "samples.jsonl", [{"prompt": "Say bye.", "chosen": "Bye!", "rejected": "Go.", "rater": "ann"}])
    (folder / "README.md").write_text("# Not ours")
    said = backflip("import", folder)

    assert said.out.startswith("2 votes on 2 pairs"), said.err


def test_the_data_of_a_run_are_written_beside_it(finished: Finished, tmp_path: Path) -> None:
    said = finished.call("export", "data", "--json", "--out", tmp_path / "data", "--format", "parquet")

    document = json.loads(said.out)
    assert document["preferences"] > 0
    assert {f.name for f in (tmp_path / "data").iterdir()} == {"preferences.parquet", "samples.parquet", "README.md"}


def test_the_policy_is_written_in_every_format_and_is_the_same_in_each(finished: Finished, tmp_path: Path) -> None:
    paths = {kind: tmp_path / f"policy-{kind}" for kind in ("hf", "adapter", "gguf")}
    paths["gguf"] = tmp_path / "policy.gguf"
    for kind, path in paths.items():
        said = finished.call("export", "policy", "--as", kind, "--out", path)
        assert (said.code, said.out) == (0, f"policy-r1 written to {path}\n"), said.err
    ids = torch.tensor([[5, 9, 40, 17, 8]])
    own = load_model(str(paths["gguf"]), dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(paths["hf"], dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(finished.base, dtype=torch.float32)
    with torch.no_grad():
        expected = merged(ids).logits.log_softmax(-1)
        adapted = PeftModel.from_pretrained(base, paths["adapter"])(ids).logits.log_softmax(-1)

    assert torch.allclose(adapted, expected, atol=1e-4)
    state, theirs = own.trunk.state(), merged.state_dict()
    assert max(float((state[name] - theirs[name]).abs().max()) for name in state) < 1e-3  # half precision


def test_an_export_never_writes_over_a_policy(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    said = finished.call("export", "policy", "--out", tmp_path / "there")

    assert said.code == 2
    assert "exists and is left as it is" in said.err
