"""What a destination must prove before a result is done there, as it is written: `custody` and `[custody]`."""

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import Field

from meddaemon.config.destinations import DestinationSettings
from meddaemon.config.problems import Problems
from meddaemon.config.section import Count, Seconds, Section
from meddaemon.config.toml_file import Keys
from meddaemon.domain.custody import CustodyPolicy, Proof

_PROOFS: Mapping[str, tuple[str, ...]] = {
    "dicom": tuple(Proof),
    "sender": tuple(Proof),
    "dicomweb": (Proof.SENT, Proof.QUERY),
    "folder": (Proof.SENT,),
}
"""What each kind of destination can be asked for."""


class CustodySettings(Section):
    """How patiently destinations are asked whether they have what they took."""

    report_seconds: Seconds = 3600.0
    association_seconds: Annotated[float, Field(ge=0)] = 10.0
    maximum_requests: Count = 3
    query_pause_seconds: Seconds = 300.0
    maximum_losses: Annotated[int, Field(ge=0)] = 3
    retry_seconds: Seconds = 60.0


def policy_of(destination: DestinationSettings, patience: CustodySettings) -> CustodyPolicy:
    """Return what a destination must prove."""
    return CustodyPolicy(
        proof=Proof(destination.custody),
        fallback=bool(destination.custody_fallback),
        reported_by=destination.reported_by,
        report_seconds=patience.report_seconds,
        association_seconds=patience.association_seconds,
        maximum_requests=patience.maximum_requests,
        query_pause_seconds=patience.query_pause_seconds,
        maximum_losses=patience.maximum_losses,
        retry_seconds=patience.retry_seconds,
    )


def owed_reports(destinations: Iterable[DestinationSettings]) -> bool:
    """Return whether anybody is asked for storage commitment: then he calls us, by the name that asked him."""
    return any(Proof(each.custody) is Proof.COMMITMENT for each in destinations)


def check_custody(written: Mapping[str, object], keys: Keys, problems: Problems) -> None:
    """Note what a destination of its kind cannot prove, and settings that mean nothing beside its proof."""
    kind, proof = str(written.get("kind", "dicom")), str(written.get("custody", Proof.SENT))
    known = _PROOFS.get(kind, tuple(Proof))
    if proof in tuple(Proof) and proof not in known:
        problems.add((*keys, "custody"), f"a destination of kind {kind} cannot be asked for this")
    if kind != "dicom" and written.get("announce_to"):
        problems.add((*keys, "announce_to"), f"nobody could retrieve from a destination of kind {kind}")
    if proof != Proof.COMMITMENT:
        for other in ("custody_fallback", "reported_by"):
            if written.get(other):
                problems.add((*keys, other), 'means nothing without custody = "commitment"')


def check_announced(destinations: Iterable[DestinationSettings], listening: frozenset[str], problems: Problems) -> None:
    """Note who is to be told of results, and where we do not know."""
    for index, each in enumerate(destinations):
        for place, ae_title in enumerate(each.announce_to):
            if ae_title not in {each.ae_title, *listening}:
                problems.add(
                    ("destinations", index, "announce_to", place),
                    f"{ae_title!r} is neither this destination nor in [[peers]] with host and port",
                )


def check_reporters(
    destinations: Iterable[DestinationSettings], known: frozenset[str], problems: Problems, *, listed: bool
) -> None:
    """Note who owes us reports and may not call us: only those in `known` may, where it is so `listed`."""
    if not listed:
        return
    for index, each in enumerate(destinations):
        if Proof(each.custody) is Proof.COMMITMENT and each.kind == "dicom":
            for ae_title in sorted({*(each.reported_by or (each.ae_title,))} - known):
                problems.add(
                    ("destinations", index, "custody"),
                    f"{ae_title!r} will call us to report, and is not in [[peers]]: it would be rejected",
                )
