"""How we call others: address, credentials and TLS of destinations and peers."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from meddaemon.config.destinations import DestinationSettings
from meddaemon.config.settings import PeerSettings, Settings
from meddaemon.db.engine import Database
from meddaemon.domain.contract import ModelKind
from meddaemon.domain.custody import CustodyPolicy
from meddaemon.domain.notices import NoticeForm
from meddaemon.results.custody import Custodian, DicomCustodian, Hear, WebCustodian
from meddaemon.results.dicomweb import Service
from meddaemon.results.dimse import BackToSender, ClientTls, RemoteEntity, echo, store
from meddaemon.results.folder import Folder
from meddaemon.results.notices import ian
from meddaemon.results.notices.outbox import Tell
from meddaemon.results.transport import Pace, Send
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
        transfer_forms=destination.transfer_syntaxes if isinstance(destination, DestinationSettings) else (),
        pace=pace_of(settings),
    )


def pace_of(settings: Settings) -> Pace:
    """Return what is too slow."""
    return Pace(
        bytes_per_second=settings.delivery.minimum_bytes_per_second, batch_seconds=settings.delivery.batch_seconds
    )


def way_to(settings: Settings, destination: DestinationSettings) -> Send:
    """Return what sends objects to a destination. Raises OSError where its secret cannot be read."""
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
    """Return what says whom to ask whether a destination has what it took, by the AE that a study came from.

    Raises OSError where its secret cannot be read.
    """

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

    host, _, port = destination.hl7.rpartition(":")
    trusted = destination.hl7_ca or settings.tls.ca
    interface = hl7.Interface(
        host=host.strip("[]"),
        port=int(port),
        sender=_application(destination.hl7_sender),
        receiver=_application(destination.hl7_receiver),
        tls=destination.hl7_tls,
        trusted=Path(trusted) if trusted else None,
        identity=identity_of(settings),
        connection_timeout_seconds=settings.delivery.connection_timeout_seconds,
        response_timeout_seconds=settings.delivery.dimse_timeout_seconds,
    )
    return partial(hl7.tell, {destination.hl7: interface}, database, settings.store.results, _detects(settings))


def _by_fhir(settings: Settings, database: Database, destination: DestinationSettings) -> Tell:
    from meddaemon.results.notices import fhir  # noqa: PLC0415  an extra, which the settings have asked for

    trusted = destination.fhir_ca or settings.tls.ca
    service = Service(
        url=destination.fhir_url,
        token=_secret(destination.fhir_token_file),
        user=destination.fhir_user,
        password=_secret(destination.fhir_password_file),
        trusted=Path(trusted) if trusted else None,
        identity=identity_of(settings),
        pace=pace_of(settings),
        connection_timeout_seconds=settings.delivery.connection_timeout_seconds,
        response_timeout_seconds=settings.delivery.dimse_timeout_seconds,
    )
    return partial(fhir.tell, {destination.fhir_url: service}, database, settings.store.results, _detects(settings))


def _detects(settings: Settings) -> frozenset[str]:
    """Return the models that look for objects."""
    kinds = {ModelKind.DETECTION, ModelKind.LANDMARKS}
    return frozenset(name for name, contract in settings.contracts.items() if contract.kind in kinds)


def _application(written: str) -> tuple[str, str]:
    """Return the application and the facility that a setting names."""
    application, _, facility = written.partition("|")
    return application, facility


def problem_with(settings: Settings, destination: DestinationSettings) -> str:
    """Return why a destination cannot be reached now, "" where it can."""
    match destination.kind:
        case "dicomweb":
            try:
                return service_of(settings, destination).problem()
            except OSError as failure:
                return f"{failure.filename}: {failure.strerror}"
        case "folder":
            return Folder(directory=Path(destination.directory)).problem()
        case "sender":
            return "" if settings.listening_peers else "no [[peers]] has host and port: there is nobody to send to"
        case "dicom":
            return echo(remote_of(settings, destination))


def service_of(settings: Settings, destination: DestinationSettings) -> Service:
    """Return the DICOMweb service that a destination names. Raises OSError where its secret cannot be read."""
    trusted = destination.ca or settings.tls.ca
    return Service(
        url=destination.url,
        token=_secret(destination.token_file),
        user=destination.user,
        password=_secret(destination.password_file),
        trusted=Path(trusted) if trusted else None,
        identity=identity_of(settings),
        transfer_forms=destination.transfer_syntaxes,
        pace=pace_of(settings),
        connection_timeout_seconds=settings.delivery.connection_timeout_seconds,
        response_timeout_seconds=settings.delivery.dimse_timeout_seconds,
    )


def _secret(file: str) -> str:
    """Return what is in a file; read each time, so that one that was exchanged counts."""
    return Path(file).read_text("utf-8").strip() if file else ""


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
