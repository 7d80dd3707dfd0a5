"""One-time links: the owner makes one, whoever opens it first is in."""

import re
import secrets
import time
from typing import Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from backflip.core.records import Rater
from backflip.store import Store
from backflip.web.security import Attempts, address_of, hashed

router = APIRouter(include_in_schema=False)
A_YEAR_S = 365 * 24 * 3600


def new_invite(store: Store, role: Literal["rater", "owner"], name: str) -> str:
    """Make an invitation; returns the path of its link, which is told once and not stored."""
    token = secrets.token_urlsafe(32)
    store.people.invite(hashed(token), role, name, time.time())
    return f"/join/{token}"


@router.get("/join/{token}")
def join(token: str, request: Request) -> Response:
    """Use an invitation up and go to the pages. Raises: HTTPException 404 or 429."""
    attempts: Attempts = request.app.state.attempts
    address = address_of(request)
    attempts.check(address)
    if "prefetch" in request.headers.get("sec-purpose", "") or "prefetch" in request.headers.get("purpose", ""):
        raise HTTPException(403, "Open the link yourself: it can be used once.")
    store, settings = request.app.state.run.store, request.app.state.settings
    secret = secrets.token_urlsafe(32)
    digest = hashed(token)
    name = store.people.invited(digest)
    login = store.people.join(digest, Rater(id=_id_for(name), kind="person", name=name), hashed(secret), time.time())
    if login is None:
        attempts.fail(address)
        raise HTTPException(404, "This link does not work: it was used, revoked, or mistyped. Ask for another.")
    answer = RedirectResponse("/owner" if login.role == "owner" else "/rate", 303)
    answer.set_cookie(
        request.app.state.doorkeeper.cookie, secret, max_age=A_YEAR_S, path="/", httponly=True, samesite="lax",
        secure=settings.behind_proxy,
    )  # fmt: skip
    return answer


def _id_for(name: str) -> str:
    """A rater's id that people can read: their name in plain letters, and something that makes it unique."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24]
    return f"{plain or 'person'}-{secrets.token_hex(4)}"
