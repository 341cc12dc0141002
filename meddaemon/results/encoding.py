"""The encoders in the order in which they run: a later one may refer to what an earlier one wrote."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import Analysis, EncodedObject
from meddaemon.results import capture, paper, parametric, presentation, probability, report, seg, selection, structure
from meddaemon.results.gate import check
from meddaemon.results.request import EncodingRequest, ObjectReference

__all__ = ["ENCODERS", "EncodingRequest", "ObjectReference", "encode", "why_not"]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Writes one kind of object."""

    kind: ObjectKind
    encode: Callable[[EncodingRequest, Sequence[EncodedObject]], Iterable[EncodedObject]]
    """Yields what there is to write of its kind, nothing where there is nothing; given the objects before it."""


ENCODERS: tuple[Encoder, ...] = (
    Encoder(kind=ObjectKind.SEG, encode=seg.encode),
    Encoder(kind=ObjectKind.PROBABILITY, encode=probability.encode),
    Encoder(kind=ObjectKind.PM, encode=parametric.encode),
    Encoder(kind=ObjectKind.SR, encode=report.encode),
    Encoder(kind=ObjectKind.RTSTRUCT, encode=structure.encode),
    Encoder(kind=ObjectKind.SC, encode=capture.encode),
    Encoder(kind=ObjectKind.PR, encode=presentation.encode),
    Encoder(kind=ObjectKind.PDF, encode=paper.encode),
    # The last: it names what was written.
    Encoder(kind=ObjectKind.KO, encode=selection.encode),
)
"""Every kind of result object, in the order of what refers to what."""


def why_not(analysis: Analysis) -> str:
    """Return why there is no Segmentation of what a model has drawn; "" where there is one, or nothing was drawn."""
    if analysis.segments and not analysis.is_drawn:
        return "segments on pictures, which have no place in the patient, are measured only"
    return ""


def encode(request: EncodingRequest) -> tuple[EncodedObject, ...]:
    """Write the objects of an analysis that are asked for, in every edition, and let them pass the gate.

    Raises `ObjectRefusedByGate` when what was written contradicts its source, `ContradictoryIdentity` or another
    `InputRefused` when the source cannot carry a result.
    """
    objects: list[EncodedObject] = []
    for encoder in ENCODERS:
        if encoder.kind in request.kinds:
            objects.extend(encoder.encode(request, tuple(objects)))
    check(objects, request)
    return tuple(objects)
