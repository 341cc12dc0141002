"""What a run of a model found, before and after it becomes DICOM objects."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.codes import Code
from meddaemon.domain.volume import Geometry


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a runtime returns: labels [plane, row, column] on the grid of the source volume (0 is background).

    `provenance` says how it was computed (runtime, device, versions, shims); `seconds` how long each step took.
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16]
    geometry: Geometry
    series_instance_uid: str
    provenance: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class ResultStatus(StrEnum):
    """Whether a result may be believed."""

    PLAUSIBLE = "plausible"
    IMPLAUSIBLE = "implausible"


REPORTED_DIGITS = 6
"""Significant digits of a measured value: more than any segmentation deserves, few enough for VR DS and the eye."""


def reported(value: float) -> float:
    """Return a value as it is reported, so that SR, database and command line show the same number."""
    return float(f"{value:.{REPORTED_DIGITS}g}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number with a name (coded) and a unit (UCUM)."""

    name: Code
    value: float
    unit: Code


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of the result; `tracking_uid` is the same in SEG and SR (PS3.3 C.8.20.4)."""

    number: int
    label: str
    category: Code
    type: Code
    colour: tuple[int, int, int]
    laterality: Code | None
    voxel_count: int
    tracking_id: str
    tracking_uid: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding, the segment that shows it and the measurements made on that segment."""

    code: Code
    segment_number: int
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that one run says: findings over segments, drawn on `labels` (segment numbers, 0 background).

    `reason` explains an implausible status with the numbers.
    """

    status: ResultStatus
    reason: str
    segments: tuple[Segment, ...]
    findings: tuple[Finding, ...]
    labels: NDArray[np.uint8] | NDArray[np.uint16]
    geometry: Geometry


@dataclass(frozen=True, kw_only=True)
class EncodedObject:
    """One DICOM result object, encoded as a Part 10 file. `kind` is the name of its encoder (`SEG`, `SR`)."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    content: bytes
