"""How we call others: AE, address and TLS of destinations and peers."""

from pathlib import Path

from meddaemon.config.settings import DestinationSettings, PeerSettings, Settings
from meddaemon.results.dimse import ClientTls, RemoteEntity
from meddaemon.tls import Identity


def remote_of(settings: Settings, destination: DestinationSettings | PeerSettings) -> RemoteEntity:
    """Return the remote AE that a destination or peer names, and how we call it."""
    return RemoteEntity(
        ae_title=destination.ae_title,
        host=destination.host,
        port=destination.port,
        calling_ae_title=settings.delivery.ae_title,
        connection_timeout_seconds=settings.delivery.connection_timeout_seconds,
        association_timeout_seconds=settings.delivery.association_timeout_seconds,
        response_timeout_seconds=settings.delivery.dimse_timeout_seconds,
        tls=_tls_to(settings, destination),
    )


def _tls_to(settings: Settings, destination: DestinationSettings | PeerSettings) -> ClientTls | None:
    if not destination.tls:
        return None
    # A file of its own says who this peer is; one CA for all says only that it is somebody, so that names count.
    return ClientTls(
        identity=identity_of(settings), trusted=Path(destination.ca or settings.tls.ca), check_name=not destination.ca
    )


def identity_of(settings: Settings) -> Identity | None:
    """Return who we are by TLS; None where no certificate is set."""
    tls = settings.tls
    return Identity(certificate=Path(tls.certificate), key=Path(tls.key)) if tls.certificate else None
