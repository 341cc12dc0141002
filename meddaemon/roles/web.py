"""The web role: receives, and answers searches and retrievals, by HTTP."""

from meddaemon.config.settings import Settings, WebSettings
from meddaemon.roles.process import (
    DRAIN_SECONDS,
    TICK_SECONDS,
    Signals,
    announced,
    receiver_of,
    recovered_store,
)
from meddaemon.telemetry import log
from meddaemon.web.app import create_app
from meddaemon.web.qido import SearchTransaction
from meddaemon.web.reads import Archive, Reads
from meddaemon.web.server import WebServer
from meddaemon.web.settings import ReadSettings, StowSettings, WebServerSettings
from meddaemon.web.stow import StoreTransaction
from meddaemon.web.wado import RetrieveTransaction

_log = log(__name__)


def web(settings: Settings, stop: Signals) -> None:
    """Serve HTTP until `stop` is set, then let requests in hand finish for a moment. Raises OSError when bind fails."""
    with recovered_store(settings) as (database, store):
        stow = StoreTransaction(receiver_of(settings, database, store), store, _stow_settings(settings.web))
        archive = Archive(database, settings.store.instances, settings.store.results)
        reads = Reads(settings.web.maximum_reads)
        asked = _read_settings(settings.web)
        search, retrieve = SearchTransaction(archive, reads, asked), RetrieveTransaction(archive, reads, asked)
        app = create_app(
            [*stow.routes, *search.routes, *retrieve.routes],
            tokens=settings.web.tokens,
            readers=settings.web.readers,
            origins=settings.web.origins,
        )
        with WebServer(app, _web_server_settings(settings.web)) as server:
            host, port = server.address
            with announced(database, "web", f"{host}:{port}", stop):
                _log.info("serving HTTP", address=f"{host}:{port}", tls=bool(settings.web.certificate))
                while not stop.wait(TICK_SECONDS):
                    server.require_running()
        stow.close()
        reads.close()


def _stow_settings(web: WebSettings) -> StowSettings:
    return StowSettings(
        called_ae_title=web.ae_title,
        maximum_uploads=web.maximum_uploads,
        maximum_object_bytes=web.maximum_object_bytes,
        maximum_request_bytes=web.maximum_request_bytes,
        idle_seconds=web.idle_timeout_seconds,
    )


def _read_settings(web: WebSettings) -> ReadSettings:
    return ReadSettings(maximum_matches=web.maximum_matches, maximum_reads=web.maximum_reads, public_url=web.public_url)


def _web_server_settings(web: WebSettings) -> WebServerSettings:
    return WebServerSettings(
        host=web.host,
        port=web.port,
        maximum_connections=web.maximum_connections,
        request_seconds=web.request_timeout_seconds,
        drain_seconds=DRAIN_SECONDS,
        certificate=web.certificate,
        private_key=web.private_key,
    )
