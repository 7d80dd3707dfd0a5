"""A language model as judge: what it is asked, what its replies mean, and what happens when it fails."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backflip.core.config import Unfit
from backflip.core.errors import ConfigError
from backflip.core.records import Prompt
from backflip.raters.judge import Endpoint, JudgePlan, NoReply, judge_pair, question, read_reply

PROMPT = Prompt(id="p", split="train", text="Praise tea.", history=(("user", "Hi"), ("assistant", "Hello")))


@dataclass
class Server:
    """An endpoint on the loopback, with a list of what it was asked."""

    reply: Callable[[dict[str, Any], int], tuple[int, str]]
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[ThreadingHTTPServer] = []

    def start(reply: Callable[[dict[str, Any], int], tuple[int, str]]) -> Server:
        server = Server(reply)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append(body | {"path": self.path})
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                code, text = server.reply(body, len(server.asked))
                self.send_response(code)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(http)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        return server

    yield start
    for http in running:
        http.shutdown()
        http.server_close()


def says(text: str) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def endpoint(server: Server, **plan: Any) -> tuple[Endpoint, list[float]]:
    waited: list[float] = []
    return Endpoint(JudgePlan(url=server.url, model="m", **plan), waited.append), waited


@pytest.mark.parametrize(
    ("forth", "back", "verdict"),
    [
        ("A", "B", "a"),  # the same answer in both orders
        ("B", "A", "b"),
        ("A", "A", "tie"),  # always the first: it leans
        ("B", "B", "tie"),
        ("tie", "tie", "tie"),
        ("A", "tie", "tie"),
        ("A", "I like both of them", "skip"),
        ("", "B", "skip"),
    ],
)
def test_both_orders_are_asked_and_must_agree(forth: str, back: str, verdict: str):
    replies = {"one\n\nAnswer B:\ntwo": forth, "two\n\nAnswer B:\none": back}
    asked = []

    def ask(question: str) -> str:
        asked.append(question)
        return next(reply for part, reply in replies.items() if part in question)

    assert judge_pair(ask, "Be kind.", PROMPT, " one\n", "two") == verdict
    assert len(asked) == 2
    assert all(part in asked[0] for part in ("Be kind.", "user: Hi", "assistant: Hello", "Praise tea."))


@pytest.mark.parametrize(
    ("reply", "said"),
    [("A", "a"), ("b.", "b"), ("**B**", "b"), ("Answer: A", "a"), ("The better answer is B", "b"), ("Tie!", "tie"),
     ("(A) because", "a"), ("Another", None), ("Both", None), ("", None), ("A or B", "a")],
)  # fmt: skip
def test_a_reply_is_read_by_its_first_word(reply: str, said: str | None):
    assert read_reply(reply) == said


def test_an_endpoint_is_asked_as_openais(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "secret")
    server = serve(lambda *_: says("B"))
    ask, waited = endpoint(server, key="MY_KEY")

    assert ask("Which?") == "B"
    [body] = server.asked
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert body["messages"] == [{"role": "user", "content": "Which?"}]
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert waited == []
    ask.close()


def test_without_a_key_none_is_sent(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = serve(lambda *_: says("B"))
    ask, _ = endpoint(server)
    ask("Which?")
    ask.close()

    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again_after_a_growing_wait(serve: Callable[..., Server], code: int):
    server = serve(lambda _, n: says("A") if n == 3 else (code, "busy"))
    ask, waited = endpoint(server)

    assert ask("Which?") == "A"
    assert waited == [0.5, 1.0]
    ask.close()


def test_an_endpoint_that_never_replies_is_given_up_in_three_lines(serve: Callable[..., Server]):
    server = serve(lambda *_: (503, "down"))
    ask, waited = endpoint(server, retries=2)

    with pytest.raises(NoReply, match=r"did not reply: it answered 503 \(3 tries\)") as told:
        ask("Which?")
    assert len(str(told.value).splitlines()) == 3
    assert len(server.asked) == 3
    assert len(waited) == 2
    ask.close()


def test_a_reply_that_takes_too_long_is_a_failure(serve: Callable[..., Server]):
    late = threading.Event()

    def slow(*_: object) -> tuple[int, str]:
        late.wait(5)
        return says("A")

    ask, _ = endpoint(serve(slow), timeout_s=0.2, retries=0)
    with pytest.raises(NoReply, match="timed out"):
        ask("Which?")
    late.set()
    ask.close()


def test_an_address_where_nobody_listens_is_a_failure():
    ask = Endpoint(JudgePlan(url="http://127.0.0.1:9/v1", model="m", retries=0))
    with pytest.raises(NoReply, match="did not reply"):
        ask("Which?")
    ask.close()


@pytest.mark.parametrize("code", [400, 401, 404])
def test_a_request_that_is_refused_is_not_sent_again(serve: Callable[..., Server], code: int):
    server = serve(lambda *_: (code, "no such key"))
    ask, _ = endpoint(server)

    with pytest.raises(ConfigError, match=f"refuses: {code} 'no such key'"):
        ask("Which?")
    assert len(server.asked) == 1
    ask.close()


@pytest.mark.parametrize("text", ["<html>", "{}", '{"choices": []}', '{"choices": [{"message": null}]}', "[1]"])
def test_a_reply_in_another_form_makes_no_sense_and_is_no_fault(serve: Callable[..., Server], text: str):
    ask, _ = endpoint(serve(lambda *_: (200, text)))

    assert read_reply(ask("Which?")) is None
    ask.close()


def test_curly_braces_in_an_answer_are_left_as_they_are():
    assert "{a} {0}" in question("Judge.", PROMPT, "{a} {0}", "b")


@pytest.mark.parametrize(
    ("key", "plan"),
    [
        ("url", {"url": "localhost", "model": "m"}),
        ("model", {"url": "http://x"}),
        ("share", {"share": 1.5}),
        ("timeout_s", {"timeout_s": 0.0}),
        ("retries", {"retries": -1}),
        ("pairs", {"pairs": -1}),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused(key: str, plan: dict[str, Any]):
    with pytest.raises(Unfit) as caught:
        JudgePlan(**plan)
    assert caught.value.key == key
