"""Who sends and who reads: bearer tokens (RFC 6750), of which only the digests are known here.

To store and to read are two rights: whoever may send sees nothing, unless its token is among the readers', too.

Without a token the whole application is closed. Where there are no tokens of senders at all, which the settings allow
on this machine's own addresses only, everybody is the same sender: but for web pages, which a browser on this machine
fetched from anywhere, and whose requests it marks with an Origin. Nobody reads without a token.
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
_SENDER, _READER = "meddaemon.sender", "meddaemon.reader"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_log = log(__name__)


class Authentication:
    """Lets requests pass that carry a token that is known, and says whose it is."""

    def __init__(self, app: ASGIApp, tokens: Mapping[str, str], readers: Mapping[str, str]) -> None:
        """`tokens` maps the name of each sender to the SHA-256 of its token, in hexadecimal; `readers` likewise."""
        self._app = app
        self._tokens = dict(tokens)
        self._readers = dict(readers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        reads = scope["type"] == "http" and scope["method"] in _READING
        try:
            headers = Headers(scope=scope)
            who = {_READER: self._reader(headers)} if reads else {_SENDER: self._sender(headers)}
        except HTTPException as refused:
            _log.warning("refused a request", reason=refused.detail)
            response = await answer(Request(scope), refused)
            await response(scope, receive, send)
        else:
            await self._app({**scope, **who}, receive, send)

    def _sender(self, headers: Headers) -> str:
        if self._tokens:
            return self._named(headers, self._tokens, "store")
        if "origin" in headers:
            raise refusal(HTTPStatus.FORBIDDEN, "web pages need a token")
        return ANYBODY

    def _reader(self, headers: Headers) -> str:
        if not self._readers:
            raise refusal(HTTPStatus.FORBIDDEN, "nobody may read here")
        return self._named(headers, self._readers, "read")

    def _named(self, headers: Headers, tokens: Mapping[str, str], right: str) -> str:
        """Return who has this right by the token of the request."""
        presented = headers.getlist("authorization")
        owner = _owner(presented, tokens)
        if owner is not None:
            return owner
        if _owner(presented, self._tokens) or _owner(presented, self._readers):
            raise refusal(HTTPStatus.FORBIDDEN, f"this token gives no right to {right}")
        challenge = {"WWW-Authenticate": 'Bearer realm="meddaemon"'}
        raise refusal(HTTPStatus.UNAUTHORIZED, "a valid bearer token is needed", challenge)


def _owner(authorization: Sequence[str], tokens: Mapping[str, str]) -> str | None:
    """Return whose token it is, or None."""
    found = _BEARER.fullmatch(authorization[0]) if len(authorization) == 1 else None
    presented = hashlib.sha256(found[1].encode("ascii")).hexdigest() if found else ""
    owner = None
    # All of them, whatever was found before: how long it takes says nothing.
    for name, known in tokens.items():
        if hmac.compare_digest(presented, known):
            owner = name
    return owner


def reader_of(request: Request) -> str:
    """Return the name of whoever reads by a request that was let pass."""
    return str(request.scope[_READER])


def sender_of(request: Request) -> str:
    """Return the name of whoever sent a request that was let pass."""
    return str(request.scope[_SENDER])
