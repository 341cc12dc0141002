"""The encoders in the order in which they run: a later one may refer to what an earlier one wrote."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

from pydicom import dcmread

from meddaemon.domain.character_sets import UTF_8
from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import EncodedObject, LeftOut
from meddaemon.results import capture, paper, parametric, presentation, probability, report, seg, selection, structure
from meddaemon.results.gate import check
from meddaemon.results.request import EncodingRequest, ObjectReference
from meddaemon.results.texts import character_sets_of

__all__ = ["ENCODERS", "EncodingRequest", "ObjectReference", "encode"]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Writes one kind of object."""

    kind: ObjectKind
    encode: Callable[[EncodingRequest, Sequence[EncodedObject]], Iterable[EncodedObject | LeftOut]]
    """Yields what there is to write of its kind, and what there is not, with the reason; given the objects before it.

    Of a kind of which nothing is written a reason is given.
    """


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


def encode(
    request: EncodingRequest, left_out: Callable[[LeftOut], object] = lambda _: None
) -> tuple[EncodedObject, ...]:
    """Write the objects of an analysis that are asked for, in every edition, and let them pass the gate.

    `left_out` is told what is not in them although it was asked for, or stood in the source, and why. Raises
    `ObjectRefusedByGate` when what was written contradicts its source, `ContradictoryIdentity` or another
    `InputRefused` when the source cannot carry a result.
    """
    objects: list[EncodedObject] = []
    for encoder in ENCODERS:
        if encoder.kind in request.kinds:
            for made in encoder.encode(request, tuple(objects)):
                if isinstance(made, LeftOut):
                    left_out(made)
                else:
                    objects.append(made)
    check(objects, request)
    for each in _not_carried(request, objects):
        left_out(each)
    return tuple(objects)


def _not_carried(request: EncodingRequest, objects: Iterable[EncodedObject]) -> Iterator[LeftOut]:
    """Yield what no object carries of the source: attributes that cannot be written, and its character set."""
    for keyword in request.source.left_out:
        yield LeftOut(what=f"{keyword} of the source", why="some or all of its value cannot be written")
    wanted = request.character_sets
    if wanted.terms == (UTF_8,):
        return  # the gate takes no other
    for each in objects:
        header = dcmread(BytesIO(each.content), stop_before_pixels=True, specific_tags=["SpecificCharacterSet"])
        if character_sets_of(header) != wanted:
            why = "it has no code for some of the text, so this object is in ISO_IR 192"
            yield LeftOut(what=f"the character set {wanted} in {each.name}", why=why)
