"""What of a result leaves, and to whom."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from types import MappingProxyType
from typing import Protocol

from meddaemon.domain.filters import Filter
from meddaemon.domain.result import ResultStatus


class ObjectKind(StrEnum):
    """What can be made of a result, as a destination asks for it, in the order in which it leaves.

    What is referred to goes before what refers to it: whoever opens the last has the rest.
    """

    SEG = "SEG"
    """Segmentation (PS3.3 A.51)."""
    PROBABILITY = "PROBABILITY"
    """Segmentation of type FRACTIONAL, of the probabilities that were kept."""
    PM = "PM"
    """Parametric Map (PS3.3 A.75) of what explains an answer."""
    SR = "SR"
    """Measurement report (PS3.16 TID 1500)."""
    RTSTRUCT = "RTSTRUCT"
    """RT Structure Set (PS3.3 A.19)."""
    SC = "SC"
    """Secondary Capture (PS3.3 A.8) that shows the findings to any viewer."""
    PR = "PR"
    """Grayscale Softcopy Presentation State (PS3.3 A.33.1)."""
    PDF = "PDF"
    """Encapsulated PDF (PS3.3 A.45.1)."""
    KO = "KO"
    """Key Object Selection (PS3.3 A.35.4)."""


REFERENCES: Mapping[ObjectKind, frozenset[ObjectKind]] = MappingProxyType(
    {ObjectKind.SR: frozenset({ObjectKind.SEG}), ObjectKind.KO: frozenset(ObjectKind) - {ObjectKind.KO}}
)
"""What an object of a kind names of its own result, unless it belongs to every edition: then it names nothing of it."""


class SegmentationForm(StrEnum):
    """How a Segmentation holds its segments (PS3.3 C.8.20.2, Segmentation Type)."""

    BINARY = "binary"
    LABELMAP = "labelmap"


class ReportForm(StrEnum):
    """Which SOP class a report has: Comprehensive 3D SR, or Comprehensive SR, which older receivers take."""

    COMPREHENSIVE_3D = "3d"
    COMPREHENSIVE = "2d"


class TransferForm(StrEnum):
    """Transfer syntaxes that a destination may prefer: RLE and JPEG-LS Lossless, explicit and implicit VR."""

    RLE = "rle"
    JPEG_LS = "jpeg-ls"
    EXPLICIT = "explicit"
    IMPLICIT = "implicit"


@dataclass(frozen=True, kw_only=True)
class Edition:
    """One coherent set of objects that say the same and refer to each other; a destination gets one of them, whole."""

    segmentation: SegmentationForm = SegmentationForm.BINARY
    report: ReportForm = ReportForm.COMPREHENSIVE_3D

    def __str__(self) -> str:
        return f"{self.segmentation}/{self.report}"

    @property
    def parts(self) -> frozenset[str]:
        """What an object is marked with that belongs to this edition; "" belongs to all."""
        return frozenset({"", self.segmentation.value, self.report.value, str(self)})


EDITIONS = tuple(Edition(segmentation=one, report=other) for one, other in product(SegmentationForm, ReportForm))
"""All that there are."""


def go_together(one: str, other: str) -> bool:
    """Return whether two objects are of one edition, given how they are marked: whether one may refer to the other."""
    return any({one, other} <= edition.parts for edition in EDITIONS)


class Marked(Protocol):
    """An object of a result, by what it is and to which editions it belongs."""

    @property
    def kind(self) -> str:
        """One of `ObjectKind`."""

    @property
    def part(self) -> str:
        """Which of several of its kind it is."""

    @property
    def edition(self) -> str:
        """What it is marked with (`Edition.parts`)."""


def turn(kind: str) -> int:
    """Return when an object of a kind leaves, among those of its result; unknown kinds go with the last."""
    kinds = list(ObjectKind)
    return kinds.index(ObjectKind(kind)) if kind in kinds else len(kinds)


def says(objects: Iterable[Marked], edition: Edition | None = None) -> set[tuple[str, str]]:
    """Return what there is of a result, whatever its form: kind and part; of one edition, or of all."""
    return {(each.kind, each.part) for each in objects if edition is None or each.edition in edition.parts}


def choose_edition(
    editions: Sequence[Edition], objects: Collection[Marked], *, begun: Collection[Marked] = ()
) -> Edition | None:
    """Return the first edition that says as much of a result as any; None where there is none to choose from.

    Not every edition is made of every result: segments that overlap have no label map. `begun` is what the
    destination has already, or waits for: its edition is kept, whether it would be chosen now or not.
    """
    marks = {each.edition for each in begun} - {""}
    if marks:
        editions = [each for each in dict.fromkeys((*editions, *EDITIONS)) if marks <= each.parts]
    # Of equals, max takes the first.
    return max(editions, key=lambda each: len(says(objects, each)), default=None)


def next_edition(
    editions: Sequence[Edition],
    objects: Collection[Marked],
    *,
    current: Collection[Marked],
    refused: Collection[Marked],
) -> Edition | None:
    """Return the first edition without a refused object that says all that the current objects say, None if none does.

    `objects` is all that was made, `current` what the destination was to get of it.
    """
    wanted = says(current)
    for edition in editions:
        found = [each for each in objects if each.edition in edition.parts]
        if wanted <= says(found) and not any(each in refused for each in found):
            return edition
    return None


@dataclass(frozen=True, kw_only=True)
class Outlet:
    """One destination: the kinds of object that it takes, and of which results (None: all).

    `editions` are those that it may be given, the preferred one first. `statuses` are those of the results that it
    takes: without being asked for, nothing leaves that nobody believes, or that says nothing. `window` is that in which
    it is sent to, "" at any time; `asked` is the condition as it is written.
    """

    kinds: tuple[str, ...]
    when: Filter | None = None
    asked: str = ""
    window: str = ""
    editions: tuple[Edition, ...] = (Edition(),)
    statuses: tuple[ResultStatus, ...] = (ResultStatus.PLAUSIBLE,)
