"""The server: everything put together, and started."""

import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI, Request

from backflip.core.errors import ConfigError
from backflip.cycle.folder import only_server
from backflip.web import chat, clips, invites, owner, pages, progress, votes, writing
from backflip.web.answers import Told, tell_errors
from backflip.web.invites import new_invite
from backflip.web.security import Attempts, Doorkeeper, Guard, visitor
from backflip.web.served import Served
from backflip.web.settings import Settings


def create_app(root: Path, *, settings: Settings | None = None) -> FastAPI:
    """The pages and the API of the run in `root`. Close it by its lifespan, or with `app.state.run.close()`.

    Raises: ConfigError, DataError or BusyError when the run's store cannot be opened.
    """
    settings = settings or Settings()
    run = Served(root, settings.lease_s)
    app = FastAPI(
        title="Backflip", version=version("backflip"), docs_url=None, redoc_url=None, openapi_url=None,
        lifespan=_lifespan, default_response_class=Told,
    )  # fmt: skip
    app.state.run, app.state.settings, app.state.attempts = run, settings, Attempts()
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    app.state.doorkeeper = Doorkeeper(run.store, f"{'__Host-' if settings.behind_proxy else ''}backflip-{digest}")
    tell_errors(app)
    for part in (votes, writing, progress, owner, invites, chat, clips, pages):
        app.include_router(part.router)

    @app.get("/api/openapi.json", include_in_schema=False, dependencies=[Depends(visitor)])
    def described(request: Request) -> Told:
        """What the API takes, for other front ends."""
        return Told(request.app.openapi())

    app.add_middleware(Guard, settings=settings)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    chat.close(app)
    app.state.run.close()


def serve(root: Path, settings: Settings, *, fresh_link: bool, tell: Callable[[str, str | None], None]) -> None:
    """Serve the run in `root` until the process is stopped.

    `tell` hears the address and, when nobody has come in as owner yet or `fresh_link` asks for it, a one-time link.
    Raises: BusyError when another process serves it; ConfigError when the address is taken.
    """
    with only_server(root):
        app = create_app(root, settings=settings)
        listening = _listen(settings)
        port = listening.getsockname()[1]
        store = app.state.run.store
        known = any(login.role == "owner" and login.revoked_at is None for login in store.people.logins())
        link = None if known and not fresh_link else settings.link(new_invite(store, "owner", "owner"), port)
        app.state.run.load()
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
                timeout_keep_alive=75, timeout_graceful_shutdown=3, backlog=2048,
            )
        )  # fmt: skip
        tell(settings.link("/", port), link)
        server.run(sockets=[listening])


def _listen(settings: Settings) -> socket.socket:
    """A socket on the address. Raises: ConfigError when it is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(2048)
    except OSError as e:
        listening.close()
        raise ConfigError(
            f"{settings.host}:{settings.port} cannot be listened on: {e.strerror}.\n"
            "Another server may be using the port.\nChoose another with --port, or 0 for any free one."
        ) from None
    return listening
