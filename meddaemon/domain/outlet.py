"""What of a result leaves, and to whom."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from meddaemon.domain.filters import Filter
from meddaemon.domain.result import ResultStatus


class ObjectKind(StrEnum):
    """What can be made of a result, as a destination asks for it."""

    SEG = "SEG"
    """Segmentation (PS3.3 A.51)."""
    SR = "SR"
    """Measurement report (PS3.16 TID 1500)."""
    PROBABILITY = "PROBABILITY"
    """Segmentation of type FRACTIONAL, of the probabilities that were kept."""
    PM = "PM"
    """Parametric Map (PS3.3 A.75) of what explains an answer."""
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


class SegmentationForm(StrEnum):
    """How a Segmentation holds its segments (PS3.3 C.8.20.2, Segmentation Type)."""

    BINARY = "binary"
    LABELMAP = "labelmap"


class ReportForm(StrEnum):
    """Which SOP class a report has: Comprehensive 3D SR, or Comprehensive SR, which older receivers take."""

    COMPREHENSIVE_3D = "3d"
    COMPREHENSIVE = "2d"


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


@dataclass(frozen=True, kw_only=True)
class Outlet:
    """One destination: the kinds of object that it takes, and of which results (None: all).

    `editions` are those that it may be given, the preferred one first. `statuses` are those of the results that it
    takes: without being asked for, nothing leaves that nobody believes, or that says nothing.
    """

    kinds: tuple[str, ...]
    when: Filter | None = None
    editions: tuple[Edition, ...] = (Edition(),)
    statuses: tuple[ResultStatus, ...] = (ResultStatus.PLAUSIBLE,)
