"""The encoders in the order in which they run: a later one may refer to what an earlier one wrote."""

from collections.abc import Callable, Mapping

from meddaemon.domain.result import Analysis, EncodedObject, ResultStatus
from meddaemon.results import seg, sr
from meddaemon.results.gate import check
from meddaemon.results.request import EncodingRequest, ObjectReference

__all__ = ["ENCODERS", "EncodingRequest", "ObjectReference", "applies", "encode"]

Encoder = Callable[[EncodingRequest, Mapping[str, EncodedObject]], EncodedObject]

ENCODERS: Mapping[str, Encoder] = {
    seg.KIND: lambda request, _: seg.encode_seg(request),
    sr.KIND: lambda request, encoded: sr.encode_sr(request, encoded[seg.KIND]),
}
"""Every kind of result object: its name, and how to write it given the objects before it."""


def applies(analysis: Analysis) -> bool:
    """Return whether there is anything to write: what is believed and drawn. Other findings have no encoder yet."""
    return analysis.status is ResultStatus.PLAUSIBLE and analysis.is_drawn


def why_not(analysis: Analysis) -> str:
    """Return why no object is written of a result that is believed; "" where one is."""
    if analysis.status is not ResultStatus.PLAUSIBLE or applies(analysis):
        return ""
    if analysis.segments:
        return "segments on pictures, which have no place in the patient, are measured only"
    return "nothing is drawn, and only drawings are encoded as yet"


def encode(request: EncodingRequest) -> tuple[EncodedObject, ...]:
    """Write all result objects of an analysis (SEG, then SR) and let them pass the gate.

    Raises `ObjectRefusedByGate` when what was written contradicts its source, `ContradictoryIdentity` or another
    `InputRefused` when the source cannot carry a result.
    """
    encoded: dict[str, EncodedObject] = {}
    for kind, encoder in ENCODERS.items():
        encoded[kind] = encoder(request, encoded)
    objects = tuple(encoded.values())
    check(objects, request)
    return objects
