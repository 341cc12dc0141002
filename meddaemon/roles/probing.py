"""Whether those whom we call are there and would take what we have: asked without telling or storing anything.

All are asked at the same time, and each has seconds, however patient deliveries are.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from meddaemon.config.destinations import DestinationSettings
from meddaemon.config.settings import PeerSettings, Settings
from meddaemon.domain.commitment import STORAGE_COMMITMENT_PUSH_MODEL
from meddaemon.domain.custody import Proof
from meddaemon.domain.outlet import ObjectKind, SegmentationForm
from meddaemon.results.dicomweb import Said, Service, failed
from meddaemon.results.dimse import Problem, offers
from meddaemon.results.folder import Folder
from meddaemon.results.gate.report import SOP_CLASSES
from meddaemon.results.gate.segmentation import LABEL_MAP_SEGMENTATION_STORAGE
from meddaemon.results.notices.ian import INSTANCE_AVAILABILITY_NOTIFICATION
from meddaemon.results.query import STUDY_ROOT_FIND
from meddaemon.roles.remote import fhir_service_of, hl7_context_of, host_and_port, remote_of, service_of
from meddaemon.tls import TlsUnusable, unreached, why_not

SECONDS = 5.0
"""How long each step of a probe may take; a delivery may wait longer."""
_AT_ONCE = 16
_NOBODY = "2.25.0"
"""A study that nobody has."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; `well` is None for a remark that is neither good nor bad."""

    what: str
    well: bool | None
    said: str


def probe(settings: Settings) -> Iterator[Check]:
    """Yield what is to be said of each destination, of whom it has told, and of each AE that listens."""
    probes: list[Callable[[], list[Check]]] = []
    for destination in settings.destinations:
        probes.append(partial(_destination, settings, destination))
        if destination.hl7:
            probes.append(partial(_hl7, settings, destination))
        if destination.fhir_url:
            probes.append(partial(_fhir, settings, destination))
    probes += [partial(_peer, settings, peer) for peer in settings.listening_peers]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for checks in pool.map(lambda each: each(), probes):
            yield from checks


def _destination(settings: Settings, destination: DestinationSettings) -> list[Check]:
    what = f"destination {destination.name}"
    match destination.kind:
        case "dicom":
            return _entity(what, settings, destination, _wanted(destination, told=destination.ae_title))
        case "sender":
            known = [peer.ae_title for peer in settings.listening_peers]
            said = f"back to {', '.join(known)}; what comes from any other AE is held"
            nobody = "no [[peers]] has host and port: there is nobody to send to"
            return [Check(what=what, well=bool(known), said=said if known else nobody)]
        case "folder":
            directory = Path(destination.directory)
            if problem := Folder(directory=directory).problem():
                return [Check(what=what, well=False, said=problem)]
            said = f"{directory} can be written to"
            if directory.is_mount():
                why = "a volume is mounted there: name a folder on it, or files will lie below it whenever it is not"
                return [Check(what=what, well=None, said=f"{said}; {why}")]
            return [Check(what=what, well=True, said=said)]
        case "dicomweb":
            return [_web(what, settings, destination)]


def _peer(settings: Settings, peer: PeerSettings) -> list[Check]:
    """Ask an AE that we may call: of commitment that it asked for, of studies, of results, or with results."""
    wanted: dict[str, _Want] = {}
    for destination in settings.destinations:
        if destination.kind == "sender":
            wanted |= _wanted(destination)
        elif peer.ae_title in destination.announce_to and peer.ae_title != destination.ae_title:
            wanted |= _wanted(destination, told=peer.ae_title, only_told=True)
    if peer.query:
        wanted[STUDY_ROOT_FIND] = _Want("take query out of its [[peers]]: how much it has cannot be asked")
    checks = _entity(f"peer {peer.ae_title}", settings, peer, wanted)
    # A modality that only hears of commitment may be switched off.
    return checks if wanted else [replace(check, well=check.well or None) for check in checks]


# --- DICOM ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Want:
    """What follows where a SOP class is not taken, and the one that goes in its place (""): then it is no fault."""

    otherwise: str
    instead: str = ""


_FORMS: Mapping[str, str] = {
    SegmentationForm.BINARY: SegmentationStorage,
    SegmentationForm.LABELMAP: LABEL_MAP_SEGMENTATION_STORAGE,
    **SOP_CLASSES,
}
_KINDS: Mapping[ObjectKind, str] = {
    ObjectKind.PROBABILITY: SegmentationStorage,
    ObjectKind.PM: ParametricMapStorage,
    ObjectKind.RTSTRUCT: RTStructureSetStorage,
    ObjectKind.SC: SecondaryCaptureImageStorage,
    ObjectKind.PR: GrayscaleSoftcopyPresentationStateStorage,
    ObjectKind.PDF: EncapsulatedPDFStorage,
    ObjectKind.KO: KeyObjectSelectionDocumentStorage,
}


def _wanted(destination: DestinationSettings, told: str = "", *, only_told: bool = False) -> dict[str, _Want]:
    """Return the SOP classes that a destination must take; one of several forms will do."""
    wanted: dict[str, _Want] = {}
    if told in destination.announce_to:
        wanted[INSTANCE_AVAILABILITY_NOTIFICATION] = _Want(f"take it out of announce_to of {destination.name}")
    if only_told:
        return wanted
    forms = {ObjectKind.SEG: destination.segmentation, ObjectKind.SR: destination.report}
    for kind in destination.objects:
        held = f"{kind} would be held: have it set up there, or take {kind} out of objects"
        if kind not in forms:
            wanted.setdefault(_KINDS[kind], _Want(held))
            continue
        classes = [str(_FORMS[form]) for form in forms[kind]]
        for place, each in enumerate(classes):
            # The last one has nothing in its place, and those before it have the next.
            wanted[each] = _Want(held, *classes[place + 1 : place + 2])
    proof, query = Proof(destination.custody), Proof.QUERY in {destination.custody, destination.custody_fallback}
    if proof is Proof.COMMITMENT:
        otherwise = "nothing would be confirmed, and all be held: have it set up there, or set custody otherwise"
        wanted[STORAGE_COMMITMENT_PUSH_MODEL] = _Want(otherwise, STUDY_ROOT_FIND if query else "")
    if query:
        wanted[STUDY_ROOT_FIND] = _Want("nothing would be found, and all be held: allow us to ask (C-FIND) there")
    return wanted


def _entity(
    what: str, settings: Settings, callee: DestinationSettings | PeerSettings, wanted: Mapping[str, _Want]
) -> list[Check]:
    remote = remote_of(settings, callee)
    remote = replace(
        remote,
        connection_timeout_seconds=_brief(remote.connection_timeout_seconds),
        association_timeout_seconds=_brief(remote.association_timeout_seconds),
        response_timeout_seconds=_brief(remote.response_timeout_seconds),
    )
    where = f"{remote.ae_title} at {remote.host}:{remote.port}"
    taken = offers(remote, wanted)
    if isinstance(taken, Problem) and not taken.refuses_contexts:
        return [Check(what=what, well=False, said=f"{taken.reason}; we call as {remote.calling_ae_title}")]
    accepted = frozenset() if isinstance(taken, Problem) else taken
    checks = [Check(what=what, well=True, said=f"{where} takes associations from {remote.calling_ae_title}")]
    for sop_class, want in wanted.items():
        if sop_class in accepted:
            continue
        name = UID(sop_class).name
        if want.instead in accepted:
            said = f"{where} does not take {name}: {UID(want.instead).name} goes in its place"
            checks.append(Check(what=what, well=None, said=said))
        elif not want.instead:
            checks.append(Check(what=what, well=False, said=f"{where} does not take {name}: {want.otherwise}"))
    return checks


# --- what is not DICOM ------------------------------------------------------------------------------------------------


def _hl7(settings: Settings, destination: DestinationSettings) -> list[Check]:
    host, port = host_and_port(destination.hl7)
    try:
        problem = unreached(host, port, SECONDS, hl7_context_of(settings, destination))
    except TlsUnusable as failure:
        problem = str(failure)
    by = "TLS" if destination.hl7_tls else "TCP"
    said = f"{destination.hl7}: {problem}" if problem else f"{destination.hl7} takes connections by {by}"
    return [Check(what=f"HL7 of {destination.name}", well=not problem, said=said)]


def _fhir(settings: Settings, destination: DestinationSettings) -> list[Check]:
    def check(well: bool | None, said: str) -> list[Check]:
        return [Check(what=f"FHIR of {destination.name}", well=well, said=f"{destination.fhir_url}: {said}")]

    said = _got(fhir_service_of(settings, destination), "/metadata", "application/fhir+json")
    if isinstance(said, str):
        return check(False, said)
    if problem := _refused(said):
        return check(False, problem)
    try:
        capable = json.loads(said.body)
    except (ValueError, RecursionError):
        capable = None
    if said.status != HTTPStatus.OK or not isinstance(capable, dict) or _kind(capable) != "CapabilityStatement":
        return check(False, f"answers HTTP {said.status} and no CapabilityStatement: check fhir_url")
    version = str(capable.get("fhirVersion", ""))[:8]
    if not version.startswith("4."):
        return check(False, f"is FHIR {version or 'of no version'}, and we speak R4: check fhir_url")
    if "transaction" not in _interactions(capable):
        return check(None, f"FHIR {version}, which does not say that it takes transactions: notices may be refused")
    return check(True, f"FHIR {version}, takes transactions")


def _web(what: str, settings: Settings, destination: DestinationSettings) -> Check:
    def check(well: bool | None, said: str) -> Check:
        return Check(what=what, well=well, said=f"{destination.url}: {said}")

    path = f"/studies?StudyInstanceUID={_NOBODY}&limit=1"
    said = _got(service_of(settings, destination), path, "application/dicom+json")
    if isinstance(said, str):
        return check(False, said)
    if problem := _refused(said):
        return check(False, problem)
    if said.status in {HTTPStatus.OK, HTTPStatus.NO_CONTENT}:
        return check(True, "answers searches")
    # Nothing matches is said so, too (PS3.18 10.6.3); and a server need not search to store.
    silent = f"answers a search with HTTP {said.status}: check url, below which /studies lies"
    if Proof(destination.custody) is Proof.QUERY or said.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return check(False, silent)
    return check(None, f"{silent}; whether it stores is known when something is sent")


def _got(service: Service, path: str, media_type: str) -> Said | str:
    """Return what a server answers, or why it does not."""
    service = replace(
        service,
        connection_timeout_seconds=_brief(service.connection_timeout_seconds),
        response_timeout_seconds=_brief(service.response_timeout_seconds),
    )
    try:
        return service.get(path, media_type)
    except OSError as failure:
        return why_not(failure)
    except (HTTPException, TlsUnusable) as failure:
        return failed(failure)


def _refused(said: Said) -> str:
    if said.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return f"answers HTTP {said.status}: check the credentials of this destination"
    if HTTPStatus.MULTIPLE_CHOICES <= said.status < HTTPStatus.BAD_REQUEST:
        return f"sends us elsewhere (HTTP {said.status}), and no redirection is followed: check the URL"
    return ""


def _kind(resource: Mapping[str, Any]) -> str:
    return str(resource.get("resourceType", ""))


def _interactions(capable: Mapping[str, Any]) -> set[str]:
    """Return what a server says that it does as a whole."""
    ways = capable.get("rest")
    listed = [way.get("interaction") for way in ways if isinstance(way, dict)] if isinstance(ways, list) else []
    return {
        str(each.get("code")) for some in listed if isinstance(some, list) for each in some if isinstance(each, dict)
    }


def _brief(seconds: float) -> float:
    return min(seconds, SECONDS)
