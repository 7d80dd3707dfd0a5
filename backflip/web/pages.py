"""The pages and what they are made of: templates, scripts, styles. What a page shows, it asks the API for.

Whoever has no session gets a page that tells of no run. Nothing here is put into a page but the names of the pages.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.staticfiles import StaticFiles

from backflip.report import palette
from backflip.web.security import Session, who

router = APIRouter(include_in_schema=False)

PAGES = {
    "/rate": "Rate",
    "/rank": "Rank",
    "/demonstrate": "Write",
    "/chat": "Talk",
    "/progress": "Progress",
    "/owner": "Owner",
}
"""Path and name of every page, in the order of the menu."""

_FILES = StaticFiles(directory=Path(__file__).parent / "static")
_A_DAY = {"Cache-Control": "private, max-age=86400"}
_ASK_AGAIN = {"Cache-Control": "no-cache"}


@router.get("/")
def home() -> Response:
    """The front door leads to the rating page."""
    return RedirectResponse("/rate", status_code=303)


def page(request: Request) -> Response:
    """One of `PAGES`, for whom it is meant."""
    path = request.url.path
    try:
        session = who(request)
    except HTTPException as e:
        if e.status_code != 401:
            raise
        return _html("uninvited.html.j2", {"session": None}, 401)
    menu = _menu(request, session)
    if path not in menu:
        raise HTTPException(403, "This page is not yours to open.")
    return _html(f"{path[1:]}.html.j2", {"session": session, "pages": menu.items(), "here": path})


for _path in PAGES:
    router.add_api_route(_path, page, methods=["GET"])


def _menu(request: Request, session: Session) -> dict[str, str]:
    """The pages this person may open: the owner's only the owner, rankings only where the plan asks for them."""
    left_out = set() if session.role == "owner" else {"/owner"}
    if not request.app.state.run.plan.rate.rank:
        left_out.add("/rank")
    return {path: name for path, name in PAGES.items() if path not in left_out}


@router.get("/static/palette.css")
def colours() -> Response:
    """The report's colours as variables, light and dark."""
    light, dark = palette.css("light"), palette.css("dark")
    text = f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    return Response(text, media_type="text/css", headers=_ASK_AGAIN)


@router.get("/static/plotly.js")
def plotly() -> Response:
    """Plotly's script, out of its Python package."""
    return Response(_plotly(), media_type="text/javascript", headers=_A_DAY)


@router.get("/static/{name}")
async def static(name: str, request: Request) -> Response:
    """One of our own scripts, styles and pictures. Raises: HTTPException 404."""
    response = await _FILES.get_response(name, request.scope)
    response.headers.update(_ASK_AGAIN)
    return response


def _html(template: str, values: Mapping[str, Any], status: int = 200) -> Response:
    text = _templates().get_template(template).render(values)
    return Response(text, status, {"Cache-Control": "no-store"}, "text/html; charset=utf-8")


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("backflip.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
