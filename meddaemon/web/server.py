"""The HTTP server: uvicorn with the deadlines that it leaves to others, in a thread of its own.

uvicorn waits without end for the rest of a request's head, and for a client that does not read its answer, and a
minute for the TLS handshake: all have absolute deadlines here. It also keeps in memory whatever requests a client
sends ahead: that has a limit here. How fast a body must come is said where it is read (`stow`).
"""

import asyncio
import socket
import ssl
import threading
from typing import Any, Self, cast

from starlette.types import ASGIApp
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from meddaemon.domain.errors import MeddaemonError
from meddaemon.web.settings import WebServerSettings

_LONGEST_HEAD_BYTES = 16_384
_MOST_SENT_AHEAD_BYTES = 2**19


class WebServerEnded(MeddaemonError):
    """The HTTP server has ended although nobody asked it to."""


class WebServer:
    """Serves an application until it is closed."""

    def __init__(self, app: ASGIApp, settings: WebServerSettings) -> None:
        """Bind. Raises OSError when the address is taken or not ours, or the certificate cannot be used."""
        tls = _tls(settings) if settings.certificate else None
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._socket = socket.create_server((settings.host, settings.port), family=family, backlog=128)
        self._drain_seconds = settings.drain_seconds
        self._server = _Server(_Config(app, settings, tls))
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that were bound; the port is the system's choice where 0 was asked for."""
        host, port = self._bound[:2]
        return str(host), int(port)

    def __enter__(self) -> Self:
        self._bound = self._socket.getsockname()
        self._thread.start()
        pause = threading.Event()
        while not self._server.started:
            self.require_running()
            pause.wait(0.01)
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.should_exit = True
        self._thread.join(self._drain_seconds + 2)

    def require_running(self) -> None:
        """Raise WebServerEnded when the server has ended."""
        if not self._thread.is_alive():
            raise WebServerEnded("the HTTP server has ended unasked")

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


class _Server(Server):
    """uvicorn's server, listening with a deadline for the TLS handshake too."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config = cast("_Config", self.config)

        def connection() -> _Connection:
            return _Connection(config=config, server_state=self.server_state, app_state={})

        self.servers = [
            await asyncio.get_running_loop().create_server(
                connection,
                sock=each,
                ssl=config.ssl,
                ssl_handshake_timeout=config.limits.request_seconds if config.ssl else None,
                ssl_shutdown_timeout=config.limits.request_seconds if config.ssl else None,
            )
            for each in sockets or ()
        ]
        self.started = True


class _Config(Config):
    """uvicorn's configuration, and ours for the connections."""

    def __init__(self, app: ASGIApp, settings: WebServerSettings, tls: ssl.SSLContext | None) -> None:
        super().__init__(
            cast("Any", app),
            loop="asyncio",
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            # Only what a connection says itself is believed.
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=_LONGEST_HEAD_BYTES,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        self.limits = settings


class _Connection(H11Protocol):
    """One connection with deadlines."""

    _deadline: asyncio.TimerHandle | None = None
    _reading_deadline: asyncio.TimerHandle | None = None

    @property
    def _limits(self) -> WebServerSettings:
        return cast("_Config", self.config).limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        if len(self.connections) > self._limits.maximum_connections:
            transport.abort()
            return
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.flow.read_paused and len(self.conn.trailing_data[0]) > _MOST_SENT_AHEAD_BYTES:
            self._give_up()
        if self._in_hand and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # One that was sent ahead may be in hand already.
        if not self._in_hand:
            self._expect_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading_deadline = self.loop.call_later(self._limits.request_seconds, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading_deadline is not None:
            self._reading_deadline.cancel()
            self._reading_deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for deadline in (self._deadline, self._reading_deadline):
            if deadline is not None:
                deadline.cancel()

    @property
    def _in_hand(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self._limits.request_seconds, self._give_up)

    def _give_up(self) -> None:
        self.transport.abort()


def _tls(settings: WebServerSettings) -> ssl.SSLContext:
    """Return the context of a server by BCP 195: TLS 1.2 and later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate, settings.private_key or None)
    return context
