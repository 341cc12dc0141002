"""What a reference says: of which case, and what is true of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from meddaemon.evaluation.masks import Named


@dataclass(frozen=True, kw_only=True, order=True)
class Case:
    """What is compared: a series of a study, or one image of it. What is "" (0 for a frame) is not said."""

    study_instance_uid: str
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    frame_number: int = 0

    def __str__(self) -> str:
        parts = [f"study {self.study_instance_uid}"]
        parts += [f"series {self.series_instance_uid}"] if self.series_instance_uid else []
        parts += [f"image {self.sop_instance_uid} frame {self.frame_number}"] if self.sop_instance_uid else []
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Masks:
    """A file that draws segments; `names` are those of the numbers of a label map."""

    path: Path
    names: tuple[Named, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which findings are there. Of those that are not named, nothing is known, or, if `closed`, none is there."""

    present: Mapping[str, bool]
    closed: bool


@dataclass(frozen=True, kw_only=True)
class Sphere:
    """A lesion in the patient: its centre in LPS mm and its radius."""

    centre_lps: tuple[float, float, float]
    radius_mm: float


@dataclass(frozen=True, kw_only=True)
class Rectangle:
    """A lesion on a picture: edges of pixels (row, column), the first pixel reaching from -0.5 to 0.5."""

    sop_instance_uid: str
    frame_number: int
    low: tuple[float, float]
    high: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Cuboid:
    """A lesion in a volume: edges of voxels of its source (plane, row, column), the first from -0.5 to 0.5."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


Place: TypeAlias = Sphere | Rectangle | Cuboid


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing to be found."""

    finding: str
    place: Place


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Everything that is to be found in a case; nothing, where there is nothing.

    `asked` is False where the reference is no reference for places by itself: a report without any.
    """

    targets: tuple[Target, ...]
    asked: bool = True


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """How much segments measure in mL, where nobody drew them."""

    millilitres: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Value:
    """One number of a finding, in a unit (UCUM); `measurement` is "" where the finding itself is a number."""

    finding: str
    measurement: str
    number: float
    unit: str
    origin: str


@dataclass(frozen=True, kw_only=True)
class Values:
    """Numbers of one case."""

    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What one file, or one line of it, says of one case; `origin` names it for people."""

    case: Case
    origin: str
    says: Masks | Labels | Targets | Volumes | Values
    of_report: bool = False
    """Whether a report says it, which may well speak of more than the model was made for."""
