"""Refusing a request: a status and one line of plain text that quotes nothing of what was sent."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response


def refusal(status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None) -> HTTPException:
    """Return what to raise."""
    return HTTPException(status, reason, headers)


async def answer(request: Request, refused: Exception) -> Response:
    """Turn what was raised into the answer.

    Where the client waits for permission to send its body, nobody can tell afterwards whether it sends it or begins
    another request: the connection is closed (RFC 9110 10.1.1).
    """
    if not isinstance(refused, HTTPException):
        raise refused
    headers = {"X-Content-Type-Options": "nosniff", **(refused.headers or {})}
    if "expect" in request.headers:
        headers["Connection"] = "close"
    return PlainTextResponse(f"{refused.detail}\n", refused.status_code, headers)
