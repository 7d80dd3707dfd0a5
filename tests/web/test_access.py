"""Nobody uninvited: what a stranger, a rater and another site's page may not do."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from person import HERE, Person

from backflip.core.errors import ConfigError
from backflip.cycle.folder import DATABASE
from backflip.store import open_store
from backflip.web.invites import new_invite
from backflip.web.settings import Settings

LetIn = Callable[..., Person]
Serve = Callable[..., FastAPI]


def routes(app: FastAPI, prefix: str = "/api") -> list[tuple[str, str]]:
    """(method, path) of every address below `prefix`, its parameters filled in."""
    found = [
        (method.upper(), re.sub(r"{[^}]*}", "x", path))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if path.startswith(prefix)
    ]
    assert len(found) > 5
    return [*found, ("GET", "/api/openapi.json")] if prefix == "/api" else found


def test_a_stranger_gets_nothing_from_any_address(app: FastAPI) -> None:
    stranger = TestClient(app, base_url=HERE, cookies={app.state.doorkeeper.cookie: "made-up"})
    for method, path in routes(app):
        told = stranger.request(method, path, json={})
        assert told.status_code == 401, (method, path)
        assert "reference" not in told.text
    for path in ("/rate", "/rank", "/demonstrate", "/chat", "/progress", "/owner"):
        assert stranger.get(path).status_code == 401, path


def test_a_link_lets_one_person_in_once(ann: Person, app: FastAPI) -> None:
    assert ann.joined.status_code == 303
    assert ann.joined.headers["location"] == "/rate"
    again = TestClient(app, base_url=HERE).get(ann.link)

    assert again.status_code == 404
    assert "set-cookie" not in again.headers


def test_two_who_open_a_link_at_once_are_one(app: FastAPI) -> None:
    from concurrent.futures import ThreadPoolExecutor

    link = new_invite(app.state.run.store, "rater", "Ann")
    with ThreadPoolExecutor(8) as threads:
        opened = threads.map(lambda _: TestClient(app, base_url=HERE, follow_redirects=False).get(link), range(8))
        codes = sorted(answer.status_code for answer in opened)

    assert codes == [303] + [404] * 7
    assert len(app.state.run.store.people.logins()) == 1


def test_the_store_holds_no_secret(ann: Person, root: Path) -> None:
    secrets = [ann.link.rpartition("/")[2], next(iter(ann.client.cookies.values())), ann.me["csrf"]]
    assert all(len(s) > 40 for s in secrets)
    files = [p for p in root.rglob("*") if p.is_file()]

    assert any("run.db" in p.name for p in files)
    assert not [(p, s) for p in files for s in secrets if s.encode() in p.read_bytes()]


def test_a_cookie_is_out_of_reach_of_scripts_and_other_sites(ann: Person) -> None:
    cookie = ann.joined.headers["set-cookie"].lower()

    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "path=/" in cookie


def test_a_post_without_our_pages_token_is_refused_everywhere(app: FastAPI, olga: Person) -> None:
    posts = [path for method, path in routes(app) if method == "POST"]
    for headers in ({"X-CSRF-Token": "guess"}, {"X-CSRF-Token": ""}, {"Origin": "https://evil.example"}):
        for path in posts:
            told = olga.client.post(path, json={}, headers=headers)
            assert told.status_code == 403, (path, told.text)
    right = {"key": olga.key(), "choice": "left", "latency_s": 1, "pair": olga.pairs(1)[0]["pair"]}
    for headers in ({"X-CSRF-Token": "guess"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert olga.client.post("/api/votes", json=right, headers=headers).status_code == 403
    assert olga.client.post("/api/votes", json=right, headers={"Origin": HERE}).status_code == 201


def test_another_raters_token_does_not_fit(ann: Person, bob: Person) -> None:
    told = ann.client.post(
        "/api/flags", json={"key": "flag-key", "sample": "x"}, headers={"X-CSRF-Token": bob.me["csrf"]}
    )

    assert told.status_code == 403


def test_a_rater_may_do_nothing_of_the_owners(app: FastAPI, ann: Person) -> None:
    owners = routes(app, "/api/owner")
    for method, path in owners:
        told = ann.client.request(method, path, json={"name": "Eve", "text": "x"} if method == "POST" else None)
        assert told.status_code == 403, (method, path, told.text)
    assert ann.post("/api/owner/invites", name="Eve").status_code == 403
    assert ann.get("/owner").status_code == 403


def test_who_is_revoked_is_out_at_once(ann: Person, olga: Person) -> None:
    [pair] = ann.pairs(1)
    assert olga.post(f"/api/owner/raters/{ann.id}/revoke").status_code == 200

    assert ann.get("/api/me").status_code == 401
    assert ann.vote(pair).status_code == 401
    assert ann.store.votes() == []
    assert olga.post(f"/api/owner/raters/{ann.id}/revoke").status_code == 404
    assert olga.post(f"/api/owner/raters/{olga.id}/revoke").status_code == 409


@pytest.mark.parametrize("how", ["revoked", "forgotten"])
def test_who_is_shut_out_by_another_process_is_out_at_once(ann: Person, root: Path, how: str) -> None:
    assert ann.get("/api/pairs").status_code == 200
    with open_store(root / DATABASE) as elsewhere:  # as `backflip forget` does
        if how == "revoked":
            assert elsewhere.people.revoke_rater(ann.id, 1.0)
        else:
            elsewhere.forget_rater(ann.id)

    for path in ("/rate", "/api/me", "/api/pairs", "/api/progress", "/api/openapi.json"):
        assert ann.get(path).status_code == 401, path
    assert ann.post("/api/flags", key="flag-it-1", sample="x").status_code == 401


def test_a_revoked_link_lets_nobody_in(olga: Person, app: FastAPI) -> None:
    link = olga.post("/api/owner/invites", name="Eve").json()["link"]
    [open_link] = olga.get("/api/owner/raters").json()["invites"]
    assert olga.post(f"/api/owner/invites/{open_link['invite']}/revoke").status_code == 200

    assert TestClient(app, base_url=HERE).get(link).status_code == 404


def test_guessing_links_is_slowed_down(app: FastAPI) -> None:
    guesser = TestClient(app, base_url=HERE)
    codes = [guesser.get(f"/join/guess-{n}").status_code for n in range(12)]

    assert codes == [404] * 10 + [429] * 2


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_another_host_name_is_refused(ann: Person, host: str) -> None:
    told = ann.client.get("/api/me", headers={"Host": host})

    assert told.status_code == 400
    assert ann.me["csrf"] not in told.text


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.9", "example.org", "::"])
def test_the_network_is_refused_without_a_proxy(host: str) -> None:
    with pytest.raises(ConfigError, match="plain HTTP"):
        Settings(host=host)


def test_a_proxy_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="needs the name"):
        Settings(behind_proxy=True)


def test_behind_a_proxy_plain_http_is_refused_and_the_cookie_stays_on_https(serve: Serve, root: Path) -> None:
    app = serve(root, host="0.0.0.0", behind_proxy=True, names=("rate.example.org",))
    link = new_invite(app.state.run.store, "rater", "Ann")
    browser = TestClient(app, base_url="https://rate.example.org", follow_redirects=False)
    for headers in ({}, {"X-Forwarded-Proto": "http"}, {"X-Forwarded-Proto": "https, http"}):
        assert browser.get(link, headers=headers).status_code == 403
    assert TestClient(app, base_url="https://0.0.0.0").get(link).status_code == 400
    joined = browser.get(link, headers={"X-Forwarded-Proto": "https"})

    assert joined.status_code == 303
    assert "; secure" in joined.headers["set-cookie"].lower()
    assert joined.headers["set-cookie"].startswith("__Host-")
    assert "max-age" in joined.headers["strict-transport-security"]


@pytest.mark.parametrize("path", ["/rate", "/api/pairs", "/api/nothing", "/join/wrong", "/static/api.js"])
def test_every_answer_bears_the_policy_against_foreign_scripts(ann: Person, path: str) -> None:
    headers = ann.get(path).headers

    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_a_long_body_is_refused_whether_or_not_it_says_so(ann: Person) -> None:
    said = ann.client.post("/api/votes", content=b"x" * 1_000_001)
    unsaid = ann.client.post("/api/votes", content=(b"x" * 100_000 for _ in range(20)))

    assert (said.status_code, unsaid.status_code) == (413, 413)


def test_the_log_holds_no_secret(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        eve = Person(app, "rater", "Eve")
        eve.get("/api/pairs")
    cookie = next(iter(eve.client.cookies.values()))

    told = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpx2")))
    assert cookie not in told
    assert eve.link.rpartition("/")[2] not in told
