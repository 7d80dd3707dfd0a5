"""Who may come in: sessions, CSRF tokens, the Host header, plain HTTP, sizes, headers, and how often one may try.

Tokens are 256 random bits; the store holds their SHA-256 alone, and no log or address holds one after the join.
"""

import hashlib
import hmac
import time
from collections.abc import Iterable
from typing import Literal, NamedTuple, final
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backflip.store import Store
from backflip.web.answers import refusal
from backflip.web.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_MOST_KEPT = 10_000


class Session(NamedTuple):
    """Somebody who has been let in."""

    rater_id: str
    role: Literal["rater", "owner"]
    name: str
    csrf: str
    """What every POST of theirs must bear as X-CSRF-Token."""


def hashed(token: str) -> str:
    """What the store knows of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def csrf_of(token: str) -> str:
    """The CSRF token of a session: made from its secret, so that nothing need be stored."""
    return hmac.new(token.encode("utf-8", "surrogatepass"), b"csrf", "sha256").hexdigest()


@final
class Doorkeeper:
    """Knows who is in, by the hash of their cookie: the store is asked each time, so that a revocation holds at once,
    whoever made it.
    """

    def __init__(self, store: Store, cookie: str) -> None:
        self.cookie = cookie
        """Name of the cookie; each run has its own, since cookies do not tell ports apart."""
        self._store = store

    def session(self, token: str) -> Session | None:
        """Who bears this token; None when nobody does or they were shut out."""
        digest = hashed(token)
        found = self._store.people.let_in(digest)
        if found is None or not hmac.compare_digest(found[0].token_hash, digest):
            return None
        login, name = found
        return Session(login.rater_id, login.role, name, csrf_of(token))


def who(request: Request) -> Session:
    """Who is asking. Raises: HTTPException 401 when nobody was let in there."""
    keeper: Doorkeeper = request.app.state.doorkeeper
    token = request.cookies.get(keeper.cookie)
    session = keeper.session(token) if token else None
    if session is None:
        raise HTTPException(401, "You need an invitation: ask for a link.")
    return session


def owner_only(request: Request) -> Session:
    """The owner who is asking. Raises: HTTPException 401 or 403; see also `csrf_checked` for a POST."""
    session = csrf_checked(request) if request.method not in ("GET", "HEAD") else who(request)
    if session.role != "owner":
        raise HTTPException(403, "Only the owner of the run may do this.")
    return session


def csrf_checked(request: Request) -> Session:
    """Who is asking, when the request comes from our own pages. Raises: HTTPException 401 or 403."""
    session = who(request)
    origin = request.headers.get("origin")
    foreign = origin is not None and _hostname(urlsplit_safe(origin)) not in request.app.state.settings.hosts
    given = request.headers.get("x-csrf-token", "")
    if foreign or not hmac.compare_digest(given.encode("utf-8", "replace"), session.csrf.encode()):
        raise HTTPException(403, "The request does not come from one of our pages: load the page again.")
    return session


async def visitor(request: Request) -> Session:
    """`who`, for routes: without a thread of its own, since all it does is look up one row."""
    return who(request)


async def sender(request: Request) -> Session:
    """`csrf_checked`, for routes."""
    return csrf_checked(request)


async def owner(request: Request) -> Session:
    """`owner_only`, for routes."""
    return owner_only(request)


def urlsplit_safe(origin: str) -> str:
    """The host and port of an origin; empty when it has none that can be read."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _hostname(netloc: str) -> str:
    """A Host header without its port, in small letters."""
    name = netloc.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


@final
class Attempts:
    """Counts failed attempts by address; who fails too often must wait."""

    def __init__(self, most: int = 10, within_s: float = 60.0) -> None:
        self._most, self._within_s = most, within_s
        self._failed: dict[str, list[float]] = {}

    def check(self, address: str) -> None:
        """Raises: HTTPException 429 when the address has failed too often of late."""
        if len(self._recent(address)) >= self._most:
            raise HTTPException(429, "Too many attempts: wait a minute.", {"Retry-After": str(round(self._within_s))})

    def fail(self, address: str) -> None:
        """Count a failure."""
        if len(self._failed) >= _MOST_KEPT:
            self._failed = {a: times for a in self._failed if (times := self._recent(a))}
        self._failed[address] = [*self._recent(address), time.monotonic()]

    def _recent(self, address: str) -> list[float]:
        since = time.monotonic() - self._within_s
        return [at for at in self._failed.get(address, ()) if at > since]


def address_of(request: Request) -> str:
    """Whose attempts are counted together: the client's address, as the proxy in front tells it if there is one."""
    if request.app.state.settings.behind_proxy and (told := request.headers.get("x-forwarded-for")):
        return told.rpartition(",")[2].strip()[:60]
    return request.client.host if request.client else ""


@final
class Guard:
    """Stands before everything: refuses other hosts, plain HTTP through a proxy and long bodies; sets headers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._headers = dict(HEADERS)
        if settings.behind_proxy:
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refuse(Headers(scope=scope))
        if refused is not None:
            await refusal(*refused)(scope, receive, guarded)
            return
        await self._app(scope, _limited(receive, self._settings.longest_body), guarded)

    def _refuse(self, headers: Headers) -> tuple[int, str] | None:
        """Why a request is refused: status and sentence; None when it is not."""
        if not _one_of(headers.getlist("host"), self._settings.hosts):
            return 400, "These pages are not known under that name."
        if self._settings.behind_proxy and headers.getlist("x-forwarded-proto") != ["https"]:
            return 403, "Plain HTTP is refused: use https."
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400, "The length of the request cannot be read."
        if len(length) > 12 or int(length) > self._settings.longest_body:
            return 413, f"The request is longer than {self._settings.longest_body} bytes."
        return None


def _one_of(given: list[str], hosts: Iterable[str]) -> bool:
    return len(given) == 1 and _hostname(given[0]) in hosts


def _limited(receive: Receive, most: int) -> Receive:
    """`receive`, but a body that does not say its length is cut off too. Raises: HTTPException 413."""
    so_far = 0

    async def counted() -> Message:
        nonlocal so_far
        message = await receive()
        so_far += len(message.get("body", b""))
        if so_far > most:
            raise HTTPException(413, f"The request is longer than {most} bytes.")
        return message

    return counted
