"""Whatever is sent to any address of the API, the answer is never a fault of the server's."""

from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from person import Person

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_no_request_makes_the_server_fail(olga: Person, ann: Person) -> None:
    # "chat" is left out: it would load a model
    app = olga.client.app
    schema = schemathesis.openapi.from_dict(app.openapi())  # type: ignore[attr-defined]
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/api/chat":
            continue

        @settings(max_examples=30, suppress_health_check=list(HealthCheck), database=None, deadline=None)
        @given(case=operation.as_strategy())
        def never_a_fault(case: Any) -> None:
            nonlocal asked
            asked += 1
            sent = case.as_transport_kwargs(base_url="http://127.0.0.1:8000")
            sent["headers"] = {k: v for k, v in sent["headers"].items() if k.lower() not in ("host", "cookie")}
            told = _send(olga.client, sent)
            assert told.status_code < 500, (case.method, case.path, sent, told.text)
            if told.status_code >= 400:
                assert list(told.json()) == ["error"]

        never_a_fault()
    assert asked > 300


def _send(client: TestClient, sent: dict[str, Any]) -> Any:
    return client.request(
        sent["method"], sent["url"], params=sent.get("params"), json=sent.get("json"), content=sent.get("data"),
        headers={k: v.encode("latin-1", "replace") for k, v in sent["headers"].items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"\\ud800"', b"\xff\xfe", b"1e999", b'{"key":' * 50_000, b"9" * 10_000,
        b'{"key":"a-good-key","pair":"\\ud800","choice":"left","latency_s":1}',
        b'{"key":"a-good-key","pair":"\\u0000","choice":"left","latency_s":1}',
        b'{"key":"a-good-key","pair":"x","choice":"left","latency_s":NaN}',
        b'{"key":"a-good-key","pair":"x","choice":"left","latency_s":1e999}',
        b'{"key":"a-good-key","pair":"x","choice":"left","latency_s":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "multipart/form-data", "application/json; charset=x"]
)
def test_a_broken_body_is_refused_in_a_sentence(ann: Person, body: bytes, kind: str) -> None:
    told = ann.client.post("/api/votes", content=body, headers={"Content-Type": kind})

    assert 400 <= told.status_code < 500, told.text
    assert list(told.json()) == ["error"]


@pytest.mark.parametrize(
    "path", ["/api/clips/..%2f..%2fplan.toml", "/api/clips/../../plan.toml", "/static/..%2fapp.py"]
)
def test_no_path_leads_out(ann: Person, path: str) -> None:
    told = ann.get(path)

    assert told.status_code == 404
    assert "rounds" not in told.text
