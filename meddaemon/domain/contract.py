"""What a deployed model promises in DICOM terms: which series it takes and what its numbers mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from meddaemon.domain.codes import Code
from meddaemon.domain.conditions import Condition


class ModelKind(StrEnum):
    """What a model says."""

    SEGMENTATION = "segmentation"
    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    DETECTION = "detection"
    LANDMARKS = "landmarks"


class InputKind(StrEnum):
    """What an input is made of: a volume, each image by itself, the slices of a volume, or a waveform."""

    VOLUME = "volume"
    PICTURES = "pictures"
    SLICES = "slices"
    WAVEFORM = "waveform"


class Voi(StrEnum):
    """Which greyscale values a picture has: real-world values, or what its VOI LUT makes of them (PS3.3 C.11.2)."""

    NONE = "none"
    WINDOW = "window"


@dataclass(frozen=True, kw_only=True)
class Range:
    """From `minimum` to `maximum`, both included; None is without limit."""

    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, kw_only=True)
class InputLimits:
    """What an input must be for the model to say anything about it; None is without limit.

    `spacing_mm` and `extent_mm` hold for every axis, `intensity` for the 1st to the 99th percentile.
    """

    modalities: tuple[str, ...] = ()
    spacing_mm: Range | None = None
    extent_mm: Range | None = None
    planes: Range | None = None
    intensity: Range | None = None


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """One input of the bundle: `key` in its data dictionary, and the series that may fill it.

    Among several series that satisfy `series`, the one that satisfies the earliest of `prefer` wins, then the one
    with the most instances. Inputs of one `key` are its channels, in this order, on the grid of the first; each has a
    `name` of its own. `extra` is put beside the image in the data dictionary, for bundles that ask for more.
    """

    key: str
    series: Condition
    prefer: tuple[Condition, ...] = ()
    name: str = ""
    kind: InputKind = InputKind.VOLUME
    voi: Voi = Voi.NONE
    unit: str = ""
    limits: InputLimits = InputLimits()
    extra: Mapping[str, object] = field(default_factory=dict)


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
class ClassContract:
    """What one score of the output means; from `threshold` on (0 to 1) it is reported as a finding.

    Classes of one `group` exclude each other, and their scores add up to 1 (softmax); without one each stands alone.
    """

    name: str
    finding: Code
    threshold: float | None = None
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class ScoreContract:
    """What one number of a regression means: a coded measurement with its unit (UCUM)."""

    name: Code
    unit: Code
    plausible: Range | None = None


class BoxFrame(StrEnum):
    """In what a bundle gives its boxes and landmarks: voxels of its image, or patient coordinates in mm."""

    VOXEL = "voxel"
    RAS = "ras"
    LPS = "lps"


@dataclass(frozen=True, kw_only=True)
class ObjectContract:
    """What one label of a detected box or landmark means; those with a lower score are not reported."""

    label: int
    name: str
    finding: Code
    threshold: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OutputLimits:
    """What a prediction must be to be believed.

    `may_be_empty`: nothing segmented is an answer, as it is for lesions. `maximum_foreground` is a part of all voxels.
    """

    may_be_empty: bool = False
    maximum_foreground: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Whether a model is given work: `refusal` says why not, `forced` why somebody let it in without a green check."""

    refusal: str = ""
    forced: str = ""


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
    segments: tuple[SegmentContract, ...] = ()
    kind: ModelKind = ModelKind.SEGMENTATION
    classes: tuple[ClassContract, ...] = ()
    scores: tuple[ScoreContract, ...] = ()
    objects: tuple[ObjectContract, ...] = ()
    frame: BoxFrame = BoxFrame.RAS
    output_limits: OutputLimits = OutputLimits()
    configs: tuple[str, ...] = ()
    """Further configuration files of the bundle that are merged into `inference.json`, in this order."""
    memory_bytes: int | None = None
    """What one run needs at most, where the maker says so."""
    cpu_fallback: bool = True
    time_limit_seconds: float = 900.0
    series_description: str = ""
    weights: tuple[Path, ...] = ()
    weights_digest: str = ""
    admission: Admission = Admission()
