"""Stage 0 and rankings in a whole run: base, then demonstrations, then rounds."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from tiny_run import all_prompts, new_run, save_model

from backflip.core.errors import DataError
from backflip.cycle import imitate
from backflip.cycle.fit import features_of_round
from backflip.cycle.folder import PLAN
from backflip.cycle.imitate import demonstrations
from backflip.cycle.plan import Plan, Rate, Sampling, read_plan
from backflip.cycle.publish import export_policy
from backflip.cycle.run import open_tools, run_rounds
from backflip.cycle.talk import load_policy
from backflip.cycle.tools import Silent
from backflip.cycle.votes import votes_table
from backflip.models.chat import open_chat
from backflip.models.load import load_model
from backflip.policies.sft import SFT
from backflip.report import build_report, gather
from backflip.store import Store, open_store

SHOWN = "the sun is good and the sea is blue ."


def write(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def stage(folder: Path, **changes: object) -> SFT:
    """A stage 0 of 50 steps on 23 demonstrations, of which two are held out."""
    rows: list[dict[str, object]] = [{"prompt": p.text, "completion": SHOWN} for p in all_prompts()]
    file = write(folder / "demonstrations.jsonl", rows)
    return SFT(**({"demonstrations": str(file), "epochs": 10, "batch": 5, "learning_rate": 2e-2, "rank": 8} | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    root = new_run(folder / "run", tiny_model, rounds=1, sft=stage(folder))
    run_rounds(root)
    return root


@pytest.fixture
def store(run: Path) -> Store:
    return open_store(run / "run.db")


def test_the_model_that_stage_zero_leaves_is_the_runs_untouched_model(run: Path, store: Store) -> None:
    kinds = {m.id: (m.kind, m.parent) for m in store.models()}
    at_first = {m.name: m.value for m in store.metrics(round=1, step="optimise") if m.tick == 1}
    texts = Counter(s.text for s in store.samples(policy="reference", purpose="monitor"))

    assert kinds["base"] == ("base", None)
    assert kinds["reference"] == ("sft", "base")
    assert kinds["policy-r1"] == ("policy", "reference")
    assert at_first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert texts.most_common(1)[0][0].startswith("the sun is good")  # 8 tokens are all it may say
    assert load_policy(run, "reference", seed=1).answer("is the cat bad").text.startswith("the sun")


def test_the_base_answers_the_same_prompts_and_stays_in_the_figures(store: Store) -> None:
    for split in ("monitor", "final"):
        base, reference = (store.samples(policy=p, purpose=split) for p in ("base", "reference"))
        assert [(s.prompt_id, s.index) for s in base] == [(s.prompt_id, s.index) for s in reference]
        assert not any(s.text.startswith("the sun is good") for s in base)
    named = {m.name for m in store.metrics(round=1, step="measure")}
    assert {"final/against/base/win_rate", "final/against/base/win_rate_reference"} <= named


def test_the_report_shows_base_then_demonstrations_then_rounds(store: Store) -> None:
    data = gather(store)
    page = build_report(data)

    assert data.stage_zero
    assert [o.name for o in data.others] == ["base"]
    heads = [page.index(words) for words in ("base model</", "after stage 0 (SFT)", "policy after round 1 (RLHF)")]
    assert heads == sorted(heads)
    assert all(pair.policy.text != "" or pair.reference.text != "" for pair in data.side_by_side)


def test_the_loss_on_demonstrations_held_out_is_measured_to_the_end(store: Store) -> None:
    out = [m for m in store.metrics(round=0, step="sft") if m.name == "sft/heldout_loss"]

    assert [m.tick for m in out] == [20, 40, 50]
    assert out[-1].value < 0.5


def test_a_stage_zero_that_was_stopped_carries_on_to_the_same_model(
    run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new_run(tmp_path / "run", tiny_model, rounds=1, sft=stage(tmp_path))
    real = imitate.save_checkpoint

    def stop(state: object, folder: Path) -> None:
        real(state, folder)  # type: ignore[arg-type]
        if state.step == 20:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(imitate, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            run_rounds(root)
    assert not (root / "models" / "sft").exists()
    run_rounds(root)

    weights = [load_model(str(r / "models" / "sft"), dtype=torch.float32).trunk.state() for r in (run, root)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not (root / "models" / "sft-checkpoints").exists()


def test_a_pure_language_model_may_be_the_base(tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain", template=False)
    root = new_run(
        tmp_path / "run", plain, rounds=1, sft=stage(tmp_path, epochs=25), sampling=Sampling(max_tokens=16, batch=9)
    )
    run_rounds(root)

    with open_store(root / "run.db") as store:
        before, after = (
            sum(s.text == SHOWN and s.ended for s in store.samples(policy=p)) for p in ("base", "reference")
        )
    assert before == 0
    assert after >= 5  # of 8 + 8 answers, and what was sampled for rating


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "the sun", "completion": "the sea ."}], r"Stage 0 has 1 demonstration, and needs at least 2"),
        ([{"prompt": "the sun", "completion": "sea " * 80}] * 2, r"line 1.*more tokens than the model's context of 64"),
        ([{"prompt": "the sun", "chosen": "sea"}], r"cannot be read as demonstrations.*prompt"),
        ([], r"demonstrations.jsonl"),
    ],
)
def test_demonstrations_that_cannot_be_learned_from_are_refused(
    tiny_model: Path, tmp_path: Path, rows: list[dict[str, object]], words: str
) -> None:
    chat = open_chat(load_model(str(tiny_model), dtype=torch.float32))
    with pytest.raises(DataError, match=f"(?s){words}"):
        demonstrations(Plan(sft=SFT(demonstrations=str(write(tmp_path / "demonstrations.jsonl", rows)))), None, chat)


def test_a_run_of_rankings_counts_each_order_as_one_vote(tiny_model: Path, tmp_path: Path) -> None:
    root = new_run(
        tmp_path / "run", tiny_model, rounds=1, rate=Rate(pairs=40, held_out=4, rank=True),
        sampling=Sampling(answers=4, max_tokens=8, batch=9),
    )  # fmt: skip
    run_rounds(root)
    with open_store(root / "run.db") as store:
        tools = open_tools(root, read_plan(root / PLAN), store, Silent())
        pairs, votes = store.pairs(stream="fit"), store.votes(stream="fit")
        table = votes_table(store, {1: features_of_round(tools, 1)}, votes)
        held_out = store.pairs(stream="random")

    rankings = {p.ranking for p in pairs}
    weight: dict[tuple[str, str], float] = defaultdict(float)
    for f in table.feedback:
        weight[table.prompt[f.a], f.rater_id] += f.weight
    assert len(rankings) == 6  # 36 pairs at 6 a ranking
    assert len(weight) == 7  # one ranking in ten, rounded up, was ordered by two raters
    assert list(weight.values()) == pytest.approx([1.0] * 7)
    assert all(p.ranking == "" for p in held_out)


@pytest.mark.parametrize("cut", [False, True])
def test_a_model_of_stage_zero_that_was_lost_is_named_and_made_anew(run: Path, tmp_path: Path, cut: bool) -> None:
    root = Path(shutil.copytree(run, tmp_path / "run"))
    model = root / "models" / "sft"
    weights = (model / "model.safetensors").read_bytes()
    if cut:
        (model / "model.safetensors").write_bytes(weights[:1000])
    else:
        shutil.rmtree(model)
    for use in (load_policy, lambda r: export_policy(r, None, "adapter")):
        with pytest.raises(DataError) as told:
            use(root)
        fact, _, cure = str(told.value).splitlines()
        assert fact.startswith(str(model))
        assert cure.endswith(f"make it anew with: backflip run --dir {root}")

    shutil.rmtree(model, ignore_errors=True)
    run_rounds(root)
    assert (model / "model.safetensors").read_bytes() == weights
