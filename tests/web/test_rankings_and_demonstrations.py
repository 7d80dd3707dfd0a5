"""Rankings and demonstrations over the API."""

import io
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from fastapi import FastAPI
from person import Person
from tiny_run import new_run
from voters import run_with_pairs

from backflip.core.records import Pair, Prompt, Sample
from backflip.cycle.folder import only_process
from backflip.cycle.people import LEARNED
from backflip.policies.sft import SFT


@pytest.fixture
def ranked(serve: Callable[..., FastAPI], tmp_path: Path) -> Person:
    """Ann, in a run with one ranking of three answers that wants two raters."""
    ann = Person(serve(run_with_pairs(tmp_path / "run", 0, rank=True)), "rater", "Ann")
    with ann.store.begin() as tx:
        tx.add_prompts([Prompt(id="q", split="train", text="Say it."), Prompt(id="chat/x", split="train", text="?")])
        tx.add_samples(
            [
                Sample(
                    id=f"s{i}", round=1, purpose="rate", prompt_id="q", policy="reference", index=i, text=f"Answer {i}",
                    ended=True, length=2, artefact="none", row=i,
                )
                for i in range(3)
            ]
        )  # fmt: skip
        tx.add_pairs(
            [
                Pair(
                    id=f"rank/{a}-{b}", round=1, stream="fit", prompt_id="q", sample_a=f"s{a}", sample_b=f"s{b}",
                    policy="reference", raters_wanted=2, ranking="rank",
                )
                for a, b in combinations(range(3), 2)
            ]
        )  # fmt: skip
    return ann


def test_an_order_is_stored_as_the_votes_on_its_pairs(ranked: Person) -> None:
    [asked] = ranked.get("/api/rankings").json()["rankings"]
    assert (asked["ranking"], {a["sample"] for a in asked["answers"]}) == ("rank", {"s0", "s1", "s2"})
    order = {"key": "order-key", "ranking": "rank", "order": [["s2"], ["s0", "s1"]], "latency_s": 9}
    said = [ranked.post("/api/rankings", **order).status_code for _ in range(2)]

    assert said == [201, 200]
    assert {(v.pair_id, v.choice) for v in ranked.store.votes()} == {
        ("rank/0-1", "tie"),
        ("rank/0-2", "b"),
        ("rank/1-2", "b"),
    }
    seen = [a["sample"] for a in asked["answers"]]
    for v in ranked.store.votes():
        a, b = (f"s{n}" for n in v.pair_id[-3::2])
        assert v.shown == ("ab" if seen.index(a) < seen.index(b) else "ba")
    assert ranked.get("/api/rankings").json()["rankings"] == []
    assert ranked.pairs() == []  # its pairs are never asked one by one


@pytest.mark.parametrize("order", [[["s2"], ["s0"]], [["s2"], ["s0", "s1", "s2"]], [["s0"], ["s1"], ["s9"]]])
def test_an_order_that_leaves_something_out_is_refused(ranked: Person, order: list[list[str]]) -> None:
    told = ranked.post("/api/rankings", key="order-key", ranking="rank", order=order, latency_s=9)

    assert told.status_code == 422
    assert ranked.store.vote_log() == []


def test_a_pair_of_a_ranking_takes_no_vote_alone(ranked: Person) -> None:
    assert ranked.vote("rank/0-1").status_code == 409


def test_a_demonstration_is_stored_and_its_prompt_is_not_asked_again(ranked: Person) -> None:
    asked = ranked.get("/api/demonstration").json()
    assert asked.pop("use").startswith("What you write is kept for the next run to learn from")
    assert asked == {"prompt": "q", "messages": [{"role": "user", "content": "Say it."}]}
    said = [ranked.post("/api/demonstrations", key="demo-key", prompt="q", text="It.").status_code for _ in range(2)]

    assert said == [201, 200]
    assert [(d.prompt_id, d.rater_id, d.text) for d in ranked.store.people.demonstrations()] == [
        ("q", ranked.id, "It.")
    ]
    left = ranked.get("/api/demonstration").json()
    assert (left["prompt"], left["messages"]) == (None, [])
    assert ranked.post("/api/demonstrations", key="demo-key-2", prompt="chat/x", text="It.").status_code == 404
    assert ranked.post("/api/demonstrations", key="demo-key-3", prompt="q", text="  ").status_code == 422


def test_another_prompt_is_told_when_one_would_rather_not(serve: Callable[..., FastAPI], tmp_path: Path) -> None:
    ann = Person(serve(run_with_pairs(tmp_path / "run", 3)), "rater", "Ann")
    asked = [ann.get("/api/demonstration").json()["prompt"]]
    for _ in range(3):
        asked.append(ann.get(f"/api/demonstration?after={asked[-1]}").json()["prompt"])

    assert len(set(asked)) == 3
    assert asked[3] == asked[0]


def test_the_page_says_what_is_done_with_what_one_writes(serve: Callable[..., FastAPI], tmp_path: Path) -> None:
    root = new_run(tmp_path / "run", tmp_path / "model", sft=SFT(written=3))
    app = serve(root)
    ann = Person(app, "rater", "Ann")
    with ann.store.begin() as tx:
        tx.add_prompts([Prompt(id=f"q{n}", split="train", text="Say it.") for n in range(4)])
        tx.set_note("stage 0 waits for people since", "1.0")
    with only_process(root):
        state = [ann.get("/api/progress").json()]
        assert ann.get("/api/pairs").json()["waiting"].startswith("Nothing is to be judged yet")
        told = [ann.get("/api/demonstration").json()]
        for n in range(3):
            assert ann.post(
                "/api/demonstrations", key=f"demo-key-{n}", prompt=told[-1]["prompt"], text="It."
            ).is_success
            told.append(ann.get("/api/demonstration").json())
        state.append(ann.get("/api/progress").json())
        with ann.store.begin() as tx:
            tx.set_note(LEARNED, '["demo-key-0", "demo-key-1", "demo-key-2"]')
        told.append(ann.get("/api/demonstration").json())

    before = "Before its first round, the model learns from what you write"
    assert [t["use"] for t in told[:4]] == [
        f"{before}: 0 of 3 answers are there.", f"{before}: 1 of 3 answers are there.",
        f"{before}: 2 of 3 answers are there.", f"{before}.",
    ]  # fmt: skip
    assert told[4]["use"].startswith("What you write is kept for the next run to learn from")
    assert [(s["state"], s["waits_for"]) for s in state] == [
        ("waiting", "Stage 0 waits for 3 more written answers."), ("running", "")
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_written_answers_are_exported_by_the_owner(ranked: Person, form: str) -> None:
    ranked.post("/api/demonstrations", key="demo-key", prompt="q", text="It.")
    olga = Person(ranked.client.app, "owner", "Olga")  # type: ignore[arg-type]
    told = olga.get(f"/api/owner/export?what=demonstrations&form={form}")
    if form == "jsonl":
        [row] = map(json.loads, told.text.splitlines())
    else:
        from pyarrow.parquet import read_table

        [row] = read_table(io.BytesIO(told.content)).to_pylist()

    assert {key: row[key] for key in ("completion", "rater", "learned")} == {
        "completion": "It.", "rater": ranked.id, "learned": False,
    }  # fmt: skip
