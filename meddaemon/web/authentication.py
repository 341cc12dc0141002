"""Who sends: bearer tokens (RFC 6750), of which only the digests are known here.

Without a token the whole application is closed. Where there are no tokens at all, which the settings allow on this
machine's own addresses only, everybody is the same sender: but for web pages, which a browser on this machine fetched
from anywhere, and whose requests it marks with an Origin.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from meddaemon.telemetry import log
from meddaemon.web.refusals import answer, refusal

ANYBODY = "STOW-RS"
"""How a sender is called where there are no tokens."""
_SENDER = "meddaemon.sender"
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_log = log(__name__)


class Authentication:
    """Lets requests pass that carry a token that is known, and says whose it is."""

    def __init__(self, app: ASGIApp, tokens: Mapping[str, str]) -> None:
        """`tokens` maps the name of each sender to the SHA-256 of its token, in hexadecimal."""
        self._app = app
        self._tokens = dict(tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        try:
            sender = self._sender(Headers(scope=scope))
        except HTTPException as refused:
            _log.warning("refused a request", reason=refused.detail)
            response = await answer(Request(scope), refused)
            await response(scope, receive, send)
        else:
            await self._app({**scope, _SENDER: sender}, receive, send)

    def _sender(self, headers: Headers) -> str:
        if self._tokens:
            sender = self._owner(headers.getlist("authorization"))
        elif "origin" in headers:
            raise refusal(HTTPStatus.FORBIDDEN, "web pages need a token")
        else:
            sender = ANYBODY
        if sender is None:
            challenge = {"WWW-Authenticate": 'Bearer realm="meddaemon"'}
            raise refusal(HTTPStatus.UNAUTHORIZED, "a valid bearer token is needed", challenge)
        return sender

    def _owner(self, authorization: Sequence[str]) -> str | None:
        """Return whose token it is, or None."""
        found = _BEARER.fullmatch(authorization[0]) if len(authorization) == 1 else None
        presented = hashlib.sha256(found[1].encode("ascii")).hexdigest() if found else ""
        owner = None
        # All of them, whatever was found before: how long it takes says nothing.
        for name, known in self._tokens.items():
            if hmac.compare_digest(presented, known):
                owner = name
        return owner


def sender_of(request: Request) -> str:
    """Return the name of whoever sent a request that was let pass."""
    return str(request.scope[_SENDER])
