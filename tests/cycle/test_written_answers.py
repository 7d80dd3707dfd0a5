"""Answers that people write in the browser: stage 0 waits for them and learns from them, later ones go out."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_people import run_beside, wait_until
from tiny_run import new_run

from backflip.core.errors import ConfigError, Paused
from backflip.core.records import Demonstration, Rater, Sample
from backflip.cycle import imitate, people
from backflip.cycle.doctor import examine
from backflip.cycle.export import export_data
from backflip.cycle.folder import DATABASE, PLAN, SFT_FOLDER, run_store
from backflip.cycle.forget import forget
from backflip.cycle.imitate import demonstrations
from backflip.cycle.plan import Plan, read_plan
from backflip.cycle.run import run_rounds
from backflip.data.table import read_table
from backflip.models.chat import open_chat
from backflip.models.load import load_model
from backflip.policies.sft import SFT
from backflip.store import Store, open_store

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SHOWN = "the sun is good and the sea is blue ."


def writers_run(root: Path, model: Path, **changes: object) -> Path:
    """A run of one round whose stage 0 waits for eight written answers."""
    keys = {"written": 8, "epochs": 30, "batch": 4, "learning_rate": 2e-2, "rank": 8, "held_out": 0.0} | changes
    return new_run(root, model, rounds=1, sft=SFT(**keys))  # type: ignore[arg-type]


def write(store: Store, count: int, text: str = SHOWN, rater: str = "ann") -> None:
    """`rater` answers the first requests that nobody has answered."""
    done = {d.prompt_id for d in store.people.demonstrations()}
    with store.begin() as tx:
        tx.add_raters([Rater(id=rater, kind="person", name=rater.capitalize())])
    for prompt in [p for p in store.prompts("train") if p.id not in done][:count]:
        written = Demonstration(key=f"key-{prompt.id}", prompt_id=prompt.id, rater_id=rater, text=text, at=time.time())
        assert store.people.add_demonstration(written)


def shown_share(samples: list[Sample]) -> float:
    """The share of words that are among those of `SHOWN`; a model that draws words at random comes to a sixth."""
    words = [word for s in samples for word in s.text.split()]
    return sum(word in SHOWN.split() for word in words) / len(words)


def waits(root: Path) -> bool:
    if not (root / DATABASE).exists():
        return False
    with open_store(root / DATABASE) as store:
        return people.waits_since(store, "stage 0") is not None


@pytest.fixture(scope="module")
def written(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose stage 0 has learned from eight answers; a ninth came later."""
    root = writers_run(tmp_path_factory.mktemp("written") / "run", tiny_model)
    with run_beside(root):
        wait_until(lambda: waits(root))
        with open_store(root / DATABASE) as store:
            write(store, 6)
            write(store, 1, " ".join(["tea"] * 200))  # longer than the model's context: it does not count
            time.sleep(3 * people.POLL_S)
            assert people.learned_keys(store) is None
            write(store, 2, rater="bob")
            wait_until(lambda: people.learned_keys(store) is not None)
            write(store, 1, "one late cake .")
    return root


def test_stage_0_waits_for_written_answers_and_learns_from_them_alone(written: Path, tiny_model: Path) -> None:
    chat = open_chat(load_model(str(tiny_model)))
    with open_store(written / DATABASE) as store:
        _, answers = demonstrations(read_plan(written / PLAN), store, chat)
        steps = {m.tick for m in store.metrics(round=0, step="sft", name="sft/loss")}
        said = {v: shown_share(store.samples(policy=v, purpose="monitor")) for v in ("base", "reference")}
        kinds = {m.id: m.kind for m in store.models()}

    assert [a.text for a in answers] == [SHOWN] * 8  # neither the long one nor the late one
    assert steps == set(range(1, 61))  # thirty passes over eight answers, four a step
    assert said["base"] < 0.5
    assert said["reference"] > 0.8
    assert kinds["reference"] == "sft"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_written_answer_goes_out_as_a_file_that_stage_0_of_another_run_reads(
    written: Path, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    done = export_data(written, tmp_path / "data", kind)  # type: ignore[arg-type]
    file = tmp_path / "data" / f"demonstrations.{kind}"
    with open_store(written / DATABASE) as store:
        texts = [d.text for d in store.people.demonstrations()]
    rows = read_table(str(file), "demonstrations").records

    assert (done.demonstrations, [r.answer for r in rows]) == (10, texts)  # type: ignore[union-attr]
    assert f"| `demonstrations.{kind}` | 10 |" in (tmp_path / "data" / "README.md").read_text(encoding="utf-8")
    assert read_table(str(tmp_path / "data")).form == "preferences"  # as a whole, the folder still holds votes
    if kind == "jsonl":
        told = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert [row["learned"] for row in told] == [row["completion"] == SHOWN for row in told]
        file.write_text("".join(json.dumps(row) + "\n" for row in told if len(row["completion"]) < 99), "utf-8")
        chat = open_chat(load_model(str(tiny_model)))
        prompts, answers = demonstrations(Plan(sft=SFT(demonstrations=str(file))), None, chat)
        assert [a.text for a in answers] == [SHOWN] * 8 + ["one late cake ."]
        assert prompts[0].text == told[0]["prompt"]


def test_who_is_forgotten_takes_their_answers_along_and_it_is_said_what_learned_from_them(
    written: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(written, tmp_path / "run"))
    export_data(root)
    gone = forget(root, "bob")

    assert (gone.demonstrations, gone.imitated, gone.votes) == (2, True, 0)
    assert root / "exports" / "data" / "demonstrations.jsonl" in gone.files
    with open_store(root / DATABASE) as store:
        assert {d.rater_id for d in store.people.demonstrations()} == {"ann"}


def test_who_is_forgotten_amid_stage_0_makes_it_begin_anew_without_them(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = writers_run(tmp_path / "run", tiny_model, written=4)
    _pause(root)
    with open_store(root / DATABASE) as store:
        write(store, 3)
        write(store, 3, "cat dog .", rater="bob")
    with monkeypatch.context() as m:
        m.setattr(imitate, "imitate", _broken_off)
        with pytest.raises(KeyboardInterrupt):
            run_rounds(root)
    assert list((root / "models" / "sft-checkpoints").glob("step-*"))
    gone = forget(root, "bob")
    assert (gone.demonstrations, gone.imitated) == (3, False)
    assert not (root / "models" / "sft-checkpoints").exists()

    with pytest.raises(Paused, match="Stage 0 waits for people: 1 answers are still to be written"):
        run_rounds(root)
    with open_store(root / DATABASE) as store:
        write(store, 1)
    run_rounds(root)
    with run_store(root, read_plan(root / PLAN)) as store:
        assert len(people.learned_keys(store) or ()) == 4


def test_a_deadline_ends_the_wait_once_there_is_enough_to_learn_from(tiny_model: Path, tmp_path: Path) -> None:
    root = writers_run(tmp_path / "run", tiny_model, deadline_minutes=0.005)
    with run_beside(root):
        wait_until(lambda: waits(root))
        with open_store(root / DATABASE) as store:
            write(store, 1)
            time.sleep(0.3 + 3 * people.POLL_S)
            assert people.learned_keys(store) is None  # one is not enough
            write(store, 1)
            wait_until(lambda: people.learned_keys(store) is not None)
    with open_store(root / DATABASE) as store:
        assert len(people.learned_keys(store) or ()) == 2


def test_a_file_and_written_answers_are_learned_from_together(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "shown.jsonl"
    file.write_text('{"prompt": "we love tea", "completion": "a cat ."}\n' * 3)
    root = writers_run(tmp_path / "run", tiny_model, demonstrations=str(file), written=2)
    _pause(root)
    with open_store(root / DATABASE) as store:
        write(store, 2)
    run_rounds(root)
    chat = open_chat(load_model(str(tiny_model)))
    with open_store(root / DATABASE) as store:
        _, answers = demonstrations(read_plan(root / PLAN), store, chat)

    assert [a.text for a in answers] == ["a cat ."] * 3 + [SHOWN] * 2
    assert (root / SFT_FOLDER).exists()


def test_the_doctor_says_that_answers_are_still_to_be_written(tiny_model: Path, tmp_path: Path) -> None:
    found = {f.name: f for f in examine(read_plan(writers_run(tmp_path / "run", tiny_model) / PLAN)).findings}

    assert "8 answers (sft.written)" in (found["stage 0"].cause or "")


@pytest.mark.parametrize(("key", "value"), [("written", 1), ("written", -2), ("deadline_minutes", -1.0)])
def test_a_count_that_cannot_be_waited_for_is_refused(key: str, value: float, tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text(f"[sft]\n{key} = {value}\n")
    with pytest.raises(ConfigError, match=key):
        read_plan(tmp_path / PLAN)


def _pause(root: Path) -> None:
    """Carry the run on until it waits for people."""
    with pytest.raises(Paused, match=r"Stage 0 waits for people(.|\n)*backflip rate"):
        run_rounds(root)


def _broken_off(*_: object, **__: object) -> Iterator[None]:
    raise KeyboardInterrupt
    yield
