"""What the parts of the web role are told; nothing here needs the packages that serve HTTP."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StowSettings:
    """Limits, and what counts as the called AE title of what is received. `idle_seconds`: without a byte."""

    called_ae_title: str
    maximum_uploads: int
    maximum_object_bytes: int
    maximum_request_bytes: int
    idle_seconds: float


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """`maximum_matches` of one page of a search, `maximum_reads` at a time.

    `public_url` is that below which `/studies` lies as others see it, "" for what they asked for.
    """

    maximum_matches: int
    maximum_reads: int
    public_url: str = ""


@dataclass(frozen=True, kw_only=True)
class WebServerSettings:
    """Where to listen and how long to wait; `certificate` and `private_key` are PEM files, "" for plain HTTP.

    A connection above `maximum_connections` is closed at once. `request_seconds` is how long the head of a request
    may take from the first moment on that it could come, and how long an answer may wait to be read. `drain_seconds`
    is how long requests in hand may go on when the server is closed.
    """

    host: str
    port: int
    maximum_connections: int
    request_seconds: float
    drain_seconds: float
    certificate: str = ""
    private_key: str = ""
