"""What a deployed model promises in DICOM terms: which series it takes and what its numbers mean."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from meddaemon.domain.codes import Code
from meddaemon.domain.conditions import Condition


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """One input of the bundle: `key` in its data dictionary, and the series that may fill it.

    Among several series that satisfy `series`, the one that satisfies the earliest of `prefer` wins, then the one
    with the most instances.
    """

    key: str
    series: Condition
    prefer: tuple[Condition, ...] = ()


class MeasurementKind(StrEnum):
    """What can be measured on a segment."""

    VOLUME = "volume"


@dataclass(frozen=True, kw_only=True)
class PlausibleRange:
    """Limits, in mL for volumes, beyond which a measurement is marked implausible."""

    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class SegmentContract:
    """What one label of the output means.

    `category` and `type` are codes of CID 7150 and 7151, `laterality` of CID 244; `colour` is sRGB 0-255;
    `finding` is the concept that the measured value stands for (written as Finding in the SR).
    """

    label: int
    name: str
    category: Code
    type: Code
    colour: tuple[int, int, int]
    laterality: Code | None = None
    finding: Code | None = None
    measure: tuple[MeasurementKind, ...] = (MeasurementKind.VOLUME,)
    plausible_volume_ml: PlausibleRange | None = None


@dataclass(frozen=True, kw_only=True)
class ModelContract:
    """A deployed model: a MONAI bundle and its meaning.

    `digest` is a SHA-256 over every file of the bundle, its weights and the contract: it names exactly what ran.
    `weights` are the resolved files of the weights that lie outside the bundle, in the order of the contract.
    `output` is the key of the prediction in the bundle's data dictionary; `time_limit_seconds` bounds one run.
    """

    name: str
    title: str
    version: str
    manufacturer: str
    bundle: Path
    contract_file: Path
    digest: str
    inputs: tuple[InputContract, ...]
    output: str
    segments: tuple[SegmentContract, ...]
    time_limit_seconds: float = 900.0
    series_description: str = ""
    weights: tuple[Path, ...] = ()
    weights_digest: str = ""
