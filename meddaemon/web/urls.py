"""Where we are, as whoever asks has reached us."""

import re
from http import HTTPStatus

from starlette.requests import Request

from meddaemon.web.refusals import refusal

_HOST = re.compile(r"[A-Za-z0-9._~-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")


def root_of(request: Request, public_url: str) -> str:
    """Return the URL under which studies lie: the one that the settings say, else the one that was asked."""
    if public_url:
        return public_url.rstrip("/")
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise refusal(HTTPStatus.BAD_REQUEST, "the Host of the request is no host")
    return f"{request.url.scheme}://{host}/dicom-web"
