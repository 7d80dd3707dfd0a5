"""How the API answers: JSON in ASCII, and errors as one clear sentence."""

import json
from collections.abc import Mapping
from typing import Any, final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from backflip.core.errors import BackflipError, BusyError, DataError

_WORDS = {404: "There is nothing here.", 405: "This address cannot be used in that way."}


@final
class Told(JSONResponse):
    """A JSON answer. Text is escaped to ASCII: answers of a model may hold halves of characters."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def refusal(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error: one clear sentence."""
    return Told({"error": sentence}, status, dict(headers or {}))


def tell_errors(app: FastAPI) -> None:
    """Let every error of the API be told as `refusal` does."""

    def by_status(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = error.detail
        plain = said in ("Not Found", "Method Not Allowed")
        return refusal(error.status_code, _WORDS[error.status_code] if plain else str(said), error.headers)

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refusal(422, sentence(error))

    def ours(request: Request, error: Exception) -> Response:
        status = 503 if isinstance(error, BusyError) else 409 if isinstance(error, DataError) else 503
        return refusal(status, str(error).partition("\n")[0], {"Retry-After": "1"} if status == 503 else {})

    app.add_exception_handler(HTTPException, by_status)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(BackflipError, ours)


def sentence(error: RequestValidationError) -> str:
    """The first thing that does not fit, without repeating what was sent."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    named = place.encode("ascii", "backslashreplace").decode()[:80]
    why = str(first["msg"]).partition(", got")[0].partition(". Got")[0]
    why = why.encode("ascii", "backslashreplace").decode()[:200]
    return f"{named or 'The request'} does not fit: {why}."
