"""Somebody at the pages of a run whose app is in this process."""

import itertools
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from backflip.store import Store
from backflip.web.invites import new_invite

HERE = "http://127.0.0.1:8000"


class Person:
    """Somebody who was let in, at their browser."""

    def __init__(self, app: FastAPI, role: str, name: str) -> None:
        self.client = TestClient(app, base_url=HERE, follow_redirects=False)
        self.store: Store = app.state.run.store
        self.link = new_invite(self.store, role, name)  # type: ignore[arg-type]
        self.joined = self.client.get(self.link)
        self.me = self.get("/api/me").json()
        self.id = self.me["rater"]
        self.client.headers["X-CSRF-Token"] = self.me["csrf"]
        self._keys = (f"{name.lower()}-key-{n:05}" for n in itertools.count())

    def get(self, path: str) -> Any:
        return self.client.get(path)

    def post(self, path: str, **content: Any) -> Any:
        return self.client.post(path, json=content)

    def pairs(self, count: int = 4, after: str = "") -> list[dict[str, Any]]:
        return list(self.get(f"/api/pairs?count={count}&after={after}").json()["pairs"])

    def vote(self, pair: dict[str, Any] | str, choice: str = "left", **more: Any) -> Any:
        asked = {"pair": pair} if isinstance(pair, str) else {"pair": pair["pair"], "repeat": pair["repeat"]}
        return self.post("/api/votes", **({"key": self.key(), "choice": choice, "latency_s": 1.5} | asked | more))

    def key(self) -> str:
        return next(self._keys)
