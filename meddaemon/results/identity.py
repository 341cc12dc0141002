"""Who made a result and how it is named: deterministic UIDs, device, descriptions.

The same input, model and configuration give the same UIDs; whatever could change the bytes takes part in the SOP
Instance UID, because one UID must never name two different objects (PS3.5 chapter 9).
"""

import hashlib
from importlib.metadata import version
from itertools import product

import numpy as np

from meddaemon import __version__
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.result import Analysis, Drawing, ResultStatus
from meddaemon.domain.uids import derived_uid, digest_of
from meddaemon.results.request import EncodingRequest

MANUFACTURER = "meddaemon"
RESEARCH_MARK = "NOT FOR DIAGNOSTIC USE"
_LONGEST_LO = 64  # characters of VR LO (PS3.5 Table 6.2-1)
_WRITER = f"{__version__} highdicom {version('highdicom')} pydicom {version('pydicom')}"


def device_uid(contract: ModelContract) -> str:
    """Return the UID of the model as a device: a changed bundle, weights or contract is another device."""
    return derived_uid("device", contract.name, contract.version, contract.digest)


def series_uid(request: EncodingRequest, kind: str, *ordinal: str) -> str:
    """Return the Series Instance UID of the results of one kind, or of those of them that are named by `ordinal`."""
    # Of an input and a model there is one answer, and before it any number of failures: no series has both.
    failure = _state(request) if request.analysis.status is ResultStatus.FAILED else ()
    return derived_uid("series", kind, *_origin(request), *failure, *ordinal)


def instance_uid(request: EncodingRequest, kind: str, *ordinal: str) -> str:
    """Return the SOP Instance UID of one result, or of something inside it named by `ordinal`."""
    return derived_uid("instance", kind, *_origin(request), *_state(request), _WRITER, *ordinal)


def series_description(request: EncodingRequest) -> str:
    """Return the SeriesDescription: what it is, that software made it, and that nobody may diagnose with it."""
    status = request.analysis.status
    head = "AI" if status is ResultStatus.PLAUSIBLE else f"AI {status.value.replace('_', ' ').upper()}"
    subject = request.contract.series_description or request.contract.title
    room = _LONGEST_LO - len(f"{head}  - {RESEARCH_MARK}")
    return f"{head} {long_string(subject)[:room].rstrip()} - {RESEARCH_MARK}"


def long_string(text: str) -> str:
    """Return the text as VR LO can hold it: one line, no backslash, at most 64 characters."""
    return " ".join(text.replace("\\", "/").split())[:_LONGEST_LO].rstrip()


def _origin(request: EncodingRequest) -> tuple[str, ...]:
    source, contract = request.source, request.contract
    inputs = digest_of(*sorted({uid for series in source.inputs for uid in series.sop_instance_uids}))
    origin = (source.study_instance_uid, inputs, contract.name, contract.version, contract.digest)
    # The same result in another character set is other bytes.
    return (*origin, request.configuration, *(("in the character set of the source",) if request.in_source_set else ()))


def _state(request: EncodingRequest) -> tuple[str, str]:
    """Return what is said, and what was said before."""
    return _digest(request.analysis), digest_of(*(each.sop_instance_uid for each in request.predecessors))


def _digest(analysis: Analysis) -> str:
    said = (analysis.status, analysis.reason, analysis.segments, analysis.findings)
    if analysis.labels is None and analysis.masks is None:
        return digest_of(repr(said))
    drawing = Drawing(labels=analysis.labels, masks=analysis.masks)
    voxels = hashlib.sha256()
    if drawing.labels is not None:
        for plane in drawing.labels:
            voxels.update(plane.astype("<u2").tobytes())
    else:
        voxels.update(b"masks")
        for segment, plane in product(analysis.segments, range(drawing.shape[0])):
            voxels.update(np.packbits(drawing.mask(segment.number, plane)).tobytes())
    return digest_of(voxels.hexdigest(), str(drawing.shape), repr(said))
