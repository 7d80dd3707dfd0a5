"""The chat's routes: what is streamed, what is stored, what is refused."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tiny_run import new_run

from backflip.core.records import Rater
from backflip.cycle.folder import PLAN, run_store
from backflip.cycle.plan import read_plan
from backflip.web import chat
from backflip.web.security import csrf_checked

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ASKED = [{"role": "user", "content": "we love tea"}]


@pytest.fixture
def client(tiny_model: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A server of the chat alone, for the rater "ada"."""
    root = new_run(tmp_path / "run", tiny_model)
    plan = read_plan(root / PLAN)
    with run_store(root, plan) as store:
        with store.begin() as tx:
            tx.add_raters([Rater(id="ada", kind="person", name="Ada")])
        app = FastAPI()
        app.include_router(chat.router)
        app.state.run = SimpleNamespace(root=root, plan=plan, store=store)
        app.dependency_overrides[csrf_checked] = lambda: SimpleNamespace(rater_id="ada")
        with TestClient(app) as client:
            yield client
        chat.close(app)


def store_of(client: TestClient) -> Any:
    return client.app.state.run.store  # type: ignore[attr-defined]


def talk(client: TestClient, messages: list[dict[str, str]] = ASKED, again: str | None = None) -> list[dict[str, Any]]:
    """The events of one answer."""
    answer = client.post("/api/chat", json={"messages": messages, "again": again})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n") if event]


def test_the_pieces_make_the_whole_and_the_whole_is_stored(client: TestClient):
    *pieces, done = talk(client)
    [sample] = store_of(client).samples(purpose="chat")

    assert len(pieces) > 1
    assert done["text"].startswith("".join(p["text"] for p in pieces))
    assert (done["done"], done["sample"], done["pair"], sample.text) == (True, sample.id, None, done["text"])
    assert (sample.policy, sample.round) == ("reference", 0)


def test_the_same_talk_is_one_prompt_with_answers_of_their_own(client: TestClient):
    first, second = (talk(client)[-1] for _ in range(2))
    third = talk(client, [*ASKED, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and rain"}])[-1]
    samples = {s.id: s for s in store_of(client).samples(purpose="chat")}
    prompts = [p for p in store_of(client).prompts() if p.id.startswith("chat/")]

    assert [samples[e["sample"]].index for e in (first, second, third)] == [0, 1, 0]
    assert [(p.text, p.history) for p in prompts] == [
        ("we love tea", ()), ("and rain", (("user", "we love tea"), ("assistant", "yes")))
    ]  # fmt: skip


def test_again_makes_a_pair_that_no_round_waits_for(client: TestClient):
    first = talk(client)[-1]
    second = talk(client, again=first["sample"])[-1]
    [pair] = store_of(client).pairs()

    assert (pair.id, pair.sample_a, pair.sample_b) == (second["pair"], first["sample"], second["sample"])
    assert (pair.stream, pair.round) == ("fit", 0)
    assert store_of(client).wanting() == []


def test_a_thumb_is_cast_once_under_its_key_and_the_newest_counts(client: TestClient):
    sample = talk(client)[-1]["sample"]
    sent = [("key-00001", True), ("key-00001", True), ("key-00002", False), ("key-00001", True)]  # the last one late
    told = [client.post("/api/thumbs", json={"key": k, "sample": sample, "up": up}).status_code for k, up in sent]
    [thumb] = store_of(client).thumbs()

    assert told == [201, 200, 201, 200]

    assert (thumb.key, thumb.up, thumb.rater_id) == ("key-00002", False, "ada")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": []}, 422),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 422),
        ({"messages": [{"role": "user", "content": "  "}]}, 422),
        ({"messages": [{"role": "root", "content": "x"}]}, 422),
        ({"messages": ASKED, "again": "r1/rate/none"}, 404),
        ({"messages": [{"role": "user", "content": "tea " * 400}]}, 400),
    ],
)
def test_what_cannot_be_answered_is_refused_and_nothing_is_stored(client: TestClient, body: Any, status: int):
    assert client.post("/api/chat", json=body).status_code == status
    assert store_of(client).samples(purpose="chat") == []


def test_a_thumb_on_what_is_no_answer_of_the_chat_is_refused(client: TestClient):
    answer = client.post("/api/thumbs", json={"key": "key-00001", "sample": "r1/none", "up": True})

    assert answer.status_code == 404


def test_when_too_many_wait_the_next_is_sent_away(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    let_go = threading.Event()
    monkeypatch.setattr(chat.Talker, "_answer", lambda self, *_: let_go.wait(20))
    speaker = chat.Talker(client.app.state.run)  # type: ignore[attr-defined]
    client.app.state.talker = speaker  # type: ignore[attr-defined]
    for _ in range(chat.MOST_WAITING):
        speaker.ask(chat.prompt_of(chat.Talk(messages=ASKED)), None, lambda _: None, threading.Event())  # type: ignore[arg-type]
    answer = client.post("/api/chat", json={"messages": ASKED})
    let_go.set()

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


def test_whoever_stops_listening_stops_the_model_and_nothing_is_stored(client: TestClient):
    gone = threading.Event()
    gone.set()
    told: list[object] = []
    speaker = chat.Talker(client.app.state.run)  # type: ignore[attr-defined]
    speaker.ask(chat.prompt_of(chat.Talk(messages=ASKED)), None, told.append, gone)  # type: ignore[arg-type]
    speaker._worker.shutdown(wait=True)

    assert told == []
    assert store_of(client).samples(purpose="chat") == []
