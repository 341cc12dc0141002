"""How we call others: address, credentials and TLS of destinations and peers."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from ssl import SSLContext

from meddaemon.config.destinations import DestinationSettings
from meddaemon.config.settings import PeerSettings, Settings
from meddaemon.db.engine import Database
from meddaemon.domain.contract import ModelKind
from meddaemon.domain.custody import CustodyPolicy
from meddaemon.domain.notices import NoticeForm
from meddaemon.results.custody import Custodian, DicomCustodian, Hear, WebCustodian
from meddaemon.results.dicomweb import Service
from meddaemon.results.dimse import BackToSender, ClientTls, RemoteEntity, store
from meddaemon.results.folder import Folder
from meddaemon.results.notices import ian
from meddaemon.results.notices.outbox import Tell
from meddaemon.results.transport import Pace, Send
from meddaemon.tls import Identity, client_context


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
        transfer_forms=destination.transfer_syntaxes if isinstance(destination, DestinationSettings) else (),
        pace=pace_of(settings),
    )


def pace_of(settings: Settings) -> Pace:
    """Return what is too slow."""
    return Pace(
        bytes_per_second=settings.delivery.minimum_bytes_per_second, batch_seconds=settings.delivery.batch_seconds
    )


def way_to(settings: Settings, destination: DestinationSettings) -> Send:
    """Return what sends objects to a destination."""
    match destination.kind:
        case "dicomweb":
            return service_of(settings, destination).store
        case "folder":
            return Folder(directory=Path(destination.directory), transfer_forms=destination.transfer_syntaxes).store
        case "sender":
            forms = destination.transfer_syntaxes
            peers = {
                peer.ae_title: replace(remote_of(settings, peer), transfer_forms=forms)
                for peer in settings.listening_peers
            }
            return BackToSender(peers).store
        case "dicom":
            return partial(store, remote_of(settings, destination))


def custodian_of(
    settings: Settings, destination: DestinationSettings, policy: CustodyPolicy, hear: Hear, stop: threading.Event
) -> Callable[[str], Custodian | None]:
    """Return what says whom to ask whether a destination has what it took, by the AE that a study came from."""

    def asked(remote: RemoteEntity | None) -> Custodian | None:
        if remote is None:
            return None
        return DicomCustodian(remote=remote, hear=hear, seconds=policy.association_seconds, stop=stop)

    if destination.kind == "sender":
        known = {peer.ae_title: remote_of(settings, peer) for peer in settings.listening_peers}
        return lambda sender: asked(known.get(sender))
    if destination.kind == "dicomweb":
        service = WebCustodian(service=service_of(settings, destination))
        return lambda _: service
    return lambda _: asked(remote_of(settings, destination))


def teller_of(settings: Settings, database: Database, destination: DestinationSettings, form: NoticeForm) -> Tell:
    """Return what tells in one form that a result is done at a destination."""
    match form:
        case NoticeForm.IAN:
            remotes = {peer.ae_title: remote_of(settings, peer) for peer in settings.listening_peers}
            remotes[destination.ae_title] = remote_of(settings, destination)
            return partial(ian.tell, remotes, destination.ae_title)
        case NoticeForm.HL7:
            return _by_hl7(settings, database, destination)
        case NoticeForm.FHIR:
            return _by_fhir(settings, database, destination)


def _by_hl7(settings: Settings, database: Database, destination: DestinationSettings) -> Tell:
    from meddaemon.results.notices import hl7  # noqa: PLC0415  an extra, which the settings have asked for

    host, port = host_and_port(destination.hl7)
    interface = hl7.Interface(
        host=host,
        port=port,
        sender=_application(destination.hl7_sender),
        receiver=_application(destination.hl7_receiver),
        tls=destination.hl7_tls,
        trusted=_trusted(settings, destination.hl7_ca),
        identity=identity_of(settings),
        connection_timeout_seconds=settings.delivery.connection_timeout_seconds,
        response_timeout_seconds=settings.delivery.dimse_timeout_seconds,
    )
    return partial(hl7.tell, {destination.hl7: interface}, database, settings.store.results, _detects(settings))


def _by_fhir(settings: Settings, database: Database, destination: DestinationSettings) -> Tell:
    from meddaemon.results.notices import fhir  # noqa: PLC0415  an extra, which the settings have asked for

    services = {destination.fhir_url: fhir_service_of(settings, destination)}
    return partial(fhir.tell, services, database, settings.store.results, _detects(settings))


def fhir_service_of(settings: Settings, destination: DestinationSettings) -> Service:
    """Return the FHIR server that a destination names."""
    return Service(
        url=destination.fhir_url,
        token=_file(destination.fhir_token_file),
        user=destination.fhir_user,
        password=_file(destination.fhir_password_file),
        trusted=_trusted(settings, destination.fhir_ca),
        identity=identity_of(settings),
        pace=pace_of(settings),
        connection_timeout_seconds=settings.delivery.connection_timeout_seconds,
        response_timeout_seconds=settings.delivery.dimse_timeout_seconds,
    )


def hl7_context_of(settings: Settings, destination: DestinationSettings) -> SSLContext | None:
    """Return how TLS is spoken with who is told by HL7; None without TLS. Raises TlsUnusable."""
    if not destination.hl7_tls:
        return None
    return client_context(identity_of(settings), _trusted(settings, destination.hl7_ca), check_name=True)


def host_and_port(address: str) -> tuple[str, int]:
    """Return the host and the port that a setting names; an IPv6 address stands in brackets there."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _trusted(settings: Settings, own: str) -> Path | None:
    """Return the file of who vouches for a server; None: the authorities of the system."""
    file = own or settings.tls.ca
    return Path(file) if file else None


def _detects(settings: Settings) -> frozenset[str]:
    """Return the models that look for objects."""
    kinds = {ModelKind.DETECTION, ModelKind.LANDMARKS}
    return frozenset(name for name, contract in settings.contracts.items() if contract.kind in kinds)


def _application(written: str) -> tuple[str, str]:
    """Return the application and the facility that a setting names."""
    application, _, facility = written.partition("|")
    return application, facility


def service_of(settings: Settings, destination: DestinationSettings) -> Service:
    """Return the DICOMweb service that a destination names."""
    return Service(
        url=destination.url,
        token=_file(destination.token_file),
        user=destination.user,
        password=_file(destination.password_file),
        trusted=_trusted(settings, destination.ca),
        identity=identity_of(settings),
        transfer_forms=destination.transfer_syntaxes,
        pace=pace_of(settings),
        connection_timeout_seconds=settings.delivery.connection_timeout_seconds,
        response_timeout_seconds=settings.delivery.dimse_timeout_seconds,
    )


def _file(name: str) -> Path | str:
    """Return the file that a setting names, "" where it names none."""
    return Path(name) if name else ""


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
