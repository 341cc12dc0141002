"""The listener: receives by DICOM, and keeps what it acknowledges."""

import ctypes
import gc
import resource
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from meddaemon.config.custody import owed_reports
from meddaemon.config.settings import Settings
from meddaemon.ingest.announcements import AnnouncementProvider
from meddaemon.ingest.callers import Caller
from meddaemon.ingest.commitment import CommitmentProvider
from meddaemon.ingest.custody import CustodyReports
from meddaemon.ingest.intake import Intake
from meddaemon.ingest.quota import Quota
from meddaemon.ingest.scp import Listener, ListenerSettings, TlsSettings
from meddaemon.ingest.storage import StorageProvider
from meddaemon.roles.process import (
    DRAIN_SECONDS,
    EXPIRY_WARNING_DAYS,
    Signals,
    announced,
    receiver_of,
    recovered_store,
    wait_until,
)
from meddaemon.roles.remote import identity_of
from meddaemon.telemetry import log
from meddaemon.tls import TlsUnusable

MALLOC = {-8: 2, -3: 2**20, -1: 2**21}
"""mallopt(3): two heaps (M_ARENA_MAX); what takes 1 MiB is mapped by itself (M_MMAP_THRESHOLD); 2 MiB that are free at
the end of a heap go back (M_TRIM_THRESHOLD)."""
DESCRIPTORS = 8192
"""For the connections of the listener, where the system allows so many."""
_DAY_SECONDS = 86400.0
_log = log(__name__)


def listen(settings: Settings, stop: Signals) -> None:
    """Receive until `stop` is set, then let open associations finish for a moment.

    When it hangs up, certificates are read anew. Raises OSError when bind fails, TlsUnusable.
    """
    _allow_descriptors()
    _give_memory_back()
    with recovered_store(settings) as (database, store):
        most = settings.listener.caller_bytes_per_day
        receiver = receiver_of(settings, database, store, Quota(database, most) if most else None)
        commitment = CommitmentProvider(database, [peer.ae_title for peer in settings.listening_peers])
        with (
            closing(
                Intake(
                    database,
                    store,
                    receiver,
                    journal_bytes=settings.store.journal_bytes,
                    maximum_bytes=settings.listener.maximum_object_bytes,
                )
            ) as intake,
            Listener(
                _listener_settings(settings),
                receiver.take,
                commitment,
                AnnouncementProvider(database),
                StorageProvider(intake),
                has_room=lambda: store.has_room,
                custody=CustodyReports(database) if owed_reports(settings.destinations) else None,
            ) as listener,
        ):
            # What is there now stays: looking through it for garbage again and again takes a tenth of all time.
            gc.collect()
            gc.freeze()
            address = _address_of(listener)
            if listener.tls_address:
                stop.hung_up = partial(_reload, listener)
            with announced(database, "listen", address, stop):
                _log.info("listening", address=address, ae_titles=settings.listener.ae_titles)
                while not stop.wait(_until_warned(listener)):
                    pass
                listener.stop_accepting()
                wait_until(lambda: listener.associations == 0, DRAIN_SECONDS)


def _listener_settings(settings: Settings) -> ListenerSettings:
    listener = settings.listener
    # Who owes us a report calls the AE that asked, whatever else he may call.
    asking = (settings.delivery.ae_title,) if owed_reports(settings.destinations) else ()
    return ListenerSettings(
        ae_title=listener.ae_title,
        host=listener.host,
        port=listener.port,
        maximum_associations=listener.maximum_associations,
        maximum_pdu_bytes=listener.maximum_pdu,
        idle_timeout_seconds=listener.idle_timeout_seconds,
        association_timeout_seconds=listener.association_timeout_seconds,
        message_timeout_seconds=listener.idle_timeout_seconds,
        everyone=listener.accept == "everyone",
        callers=tuple(
            Caller(
                ae_title=peer.ae_title,
                addresses=peer.addresses,
                called_ae_titles=(*peer.called_ae_titles, *asking) if peer.called_ae_titles else (),
            )
            for peer in settings.peers
        ),
        called_ae_titles=(*listener.ae_titles, *asking),
        plain="plain" in listener.transports,
        tls=_listener_tls(settings),
        shared=listener.processes > 1,
    )


def _allow_descriptors() -> None:
    """Let the reception hold as many half-open connections as it may: shells and services begin with 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _give_memory_back() -> None:
    """Keep the C library from holding on to what big objects took, once for each thread that ever took one.

    By default each of many heaps grows to the largest object that it ever held; after a storm of big ones the process
    is hundreds of megabytes larger for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in MALLOC.items():
            mallopt(option, value)


def _listener_tls(settings: Settings) -> TlsSettings | None:
    identity = identity_of(settings)
    if "tls" not in settings.listener.transports or identity is None:
        return None
    return TlsSettings(
        port=settings.listener.tls_port,
        identity=identity,
        trusted=Path(settings.tls.ca) if settings.tls.ca else None,
        own={peer.ae_title: Path(peer.ca) for peer in settings.peers if peer.ca},
        required=settings.tls.client_certificates == "required",
    )


def _address_of(listener: Listener) -> str:
    """Return where it listens: `host:port`, `TLS host:port`, or both, the plain one last."""
    plain = "{}:{}".format(*listener.address)
    tls = "TLS {}:{}".format(*listener.tls_address) if listener.tls_address else ""
    if listener.tls_address == listener.address:
        return tls
    return f"{tls}, {plain}" if tls else plain


def _reload(listener: Listener) -> None:
    try:
        listener.reload()
    except TlsUnusable as failure:
        _log.error("certificates not read anew: those in use stay", reason=str(failure))
    else:
        _log.info("certificates read anew", expires_at=listener.tls_expires_at)


def _until_warned(listener: Listener) -> float | None:
    """Say how long our certificate lasts, in its last days; return the seconds until that is to be said again."""
    expires_at = listener.tls_expires_at
    if expires_at is None:
        return None
    left = (expires_at - datetime.now(UTC)).total_seconds()
    if left <= 0:
        _log.error("our certificate has expired: nobody should accept it any more", expires_at=expires_at)
    elif left <= EXPIRY_WARNING_DAYS * _DAY_SECONDS:
        _log.warning("our certificate expires soon", days=int(left // _DAY_SECONDS), expires_at=expires_at)
    return _DAY_SECONDS
