"""What a deployed model promises in DICOM terms: which series it takes and what its numbers mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from meddaemon.domain.codes import Code
from meddaemon.domain.conditions import Condition
from meddaemon.domain.formulas import Formula


class ModelKind(StrEnum):
    """What a model says."""

    SEGMENTATION = "segmentation"
    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    DETECTION = "detection"
    LANDMARKS = "landmarks"


class InputKind(StrEnum):
    """What an input is made of: a volume, each image by itself, the slices of a volume, a waveform, frames in time.

    A cine is one image (x, y, 1, frame) of all frames, as NIfTI keeps it.
    """

    VOLUME = "volume"
    PICTURES = "pictures"
    SLICES = "slices"
    WAVEFORM = "waveform"
    CINE = "cine"


class Voi(StrEnum):
    """Which greyscale values a picture has: real-world values, or what its VOI LUT makes of them (PS3.3 C.11.2)."""

    NONE = "none"
    WINDOW = "window"


@dataclass(frozen=True, kw_only=True)
class Range:
    """From `minimum` to `maximum`, both included; None is without limit."""

    minimum: float | None = None
    maximum: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether a value lies within; what is not a number never does."""
        above = math.isfinite(value) if self.minimum is None else value >= self.minimum
        return above and (math.isfinite(value) if self.maximum is None else value <= self.maximum)

    def __str__(self) -> str:
        if self.minimum is None:
            return "anything" if self.maximum is None else f"at most {self.maximum:g}"
        return f"at least {self.minimum:g}" if self.maximum is None else f"{self.minimum:g} to {self.maximum:g}"


@dataclass(frozen=True, kw_only=True)
class InputLimits:
    """What an input must be for the model to say anything about it; None is without limit.

    `spacing_mm` and `extent_mm` hold for every axis, `intensity` for the 1st to the 99th percentile. `attributes` maps
    a DICOM keyword, such as BodyPartExamined or ScanningSequence, to the values of which the header must have one.
    """

    modalities: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spacing_mm: Range | None = None
    extent_mm: Range | None = None
    planes: Range | None = None
    intensity: Range | None = None

    @property
    def values(self) -> Mapping[str, tuple[str, ...]]:
        """What the header must say, by keyword."""
        return {**({"Modality": self.modalities} if self.modalities else {}), **self.attributes}


class Unevenness(StrEnum):
    """What becomes of a stack of planes that is no box of voxels: refused, or straightened for the model."""

    REFUSE = "refuse"
    RESAMPLE = "resample"


class Duplicates(StrEnum):
    """What becomes of planes in the same place: refused, dropped where their pixels are the same, or the first taken.

    The first is the one of the lowest instance number. A series over time is never taken for one of duplicates.
    """

    REFUSE = "refuse"
    DROP = "drop"
    FIRST = "first"


class Mixed(StrEnum):
    """What becomes of a series of several stacks, or with a localizer in it: refused, or the largest stack is taken."""

    REFUSE = "refuse"
    LARGEST = "largest"


class Times(StrEnum):
    """What becomes of a series with several images in each place: refused, or the first or last of them is taken.

    What orders them is named: temporal position, echo time, b-value, trigger time, reference time, acquisition.
    """

    REFUSE = "refuse"
    FIRST = "first"
    LAST = "last"


MOMENTS: Mapping[str, str] = {
    "TemporalPositionIdentifier": "TemporalPositionIndex",
    "EchoTime": "EffectiveEchoTime",
    "InversionTime": "",
    "DiffusionBValue": "",
    "TriggerTime": "NominalCardiacTriggerDelayTime",
    "FrameReferenceTime": "",
    "AcquisitionNumber": "FrameAcquisitionNumber",
}
"""What tells images of one place apart, in the order in which it is asked, and what enhanced images call it."""


@dataclass(frozen=True, kw_only=True)
class GeometryPolicy:
    """What a model takes that is no box: planes that shift sideways at each step (gantry tilt), uneven distances.

    The model is given a straightened copy; what it says comes back to the planes of the source, which never change.
    `gap` lets a few missing planes be interpolated in that copy. `mixed`, `at`, `time` and `duplicates` say, in this
    order, which planes of a series that holds more than one stack are taken; what is left out is named in the result.
    `at` maps some of `MOMENTS` to the one value that is taken, such as a b-value.
    """

    tilt: Unevenness = Unevenness.REFUSE
    irregular: Unevenness = Unevenness.REFUSE
    gap: Unevenness = Unevenness.REFUSE
    mixed: Mixed = Mixed.REFUSE
    at: Mapping[str, float] = field(default_factory=dict)
    time: Times = Times.REFUSE
    duplicates: Duplicates = Duplicates.REFUSE


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """One input of the bundle: `key` in its data dictionary, and the series that may fill it.

    Among several series that satisfy `series`, the one that satisfies the earliest of `prefer` wins, then the one
    with the most instances. Inputs of one `key` are its channels, in this order, on the grid of the first; each has a
    `name` of its own. `extra` is put beside the image in the data dictionary, for bundles that ask for more.
    `unit` is what the values must be in: empty for those of the series, `SUVbw` for the standardized uptake value.
    `padding` is the value that pixels have of which the header says that they show nothing; None keeps what they hold.
    """

    key: str
    series: Condition
    prefer: tuple[Condition, ...] = ()
    name: str = ""
    kind: InputKind = InputKind.VOLUME
    voi: Voi = Voi.NONE
    unit: str = ""
    padding: float | None = None
    limits: InputLimits = InputLimits()
    geometry: GeometryPolicy = GeometryPolicy()
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def slot(self) -> str:
        """What tells it from the other inputs of the model: its name, or its key where it has none."""
        return self.name or self.key


class MeasurementKind(StrEnum):
    """What can be measured on a segment: see `inference.measure`; on pictures, its area on each of them.

    The last four are of the values that the model saw in it, those of the first input.
    """

    VOLUME = "volume"
    AREA = "area"
    SURFACE = "surface"
    DIAMETER = "diameter"
    LONG_AXIS = "long_axis"
    SHORT_AXIS = "short_axis"
    MEAN = "mean"
    DEVIATION = "deviation"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"


@dataclass(frozen=True, kw_only=True)
class PlausibleRange:
    """Limits, in mL for volumes, beyond which a measurement is marked implausible."""

    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class LesionContract:
    """What becomes of a segment of things apart: each of its connected parts is a segment of its own.

    Parts below `minimum_ml` are left out. Voxels are connected that have one of 6, 18 or 26 places beside each other.
    Of more than `most` parts the largest are kept, and the result is marked.
    """

    minimum_ml: float = 0.0
    connectivity: int = 26
    most: int = 100


@dataclass(frozen=True, kw_only=True)
class SegmentContract:
    """What one label of the output means.

    `category` and `type` are codes of CID 7150 and 7151, `laterality` of CID 244; `colour` is sRGB 0-255;
    `finding` is the concept that the measured value stands for (written as Finding in the SR). With `lesions`, what is
    measured is measured on each of them; the plausible volume is that of all together.
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
    lesions: LesionContract | None = None

    @property
    def measures(self) -> frozenset[str]:
        """What a formula may ask of it: of lesions, how many there are and their volume together."""
        return frozenset({"count", "volume"} if self.lesions else (kind.value for kind in self.measure))


@dataclass(frozen=True, kw_only=True)
class FormulaContract:
    """A number that is made of measurements, its unit (UCUM), and what is believed of it."""

    name: Code
    unit: Code
    formula: Formula
    plausible: Range | None = None


@dataclass(frozen=True, kw_only=True)
class ClassContract:
    """What one score of the output means; from `threshold` on (0 to 1) the finding is there.

    Classes of one `group` exclude each other, and their scores add up to 1 (softmax): the highest is the answer, if it
    reaches its threshold where it has one. Without a group each stands alone, and needs a threshold.
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


class Combine(StrEnum):
    """What becomes of the scores of several pictures or slices.

    They are not made: the study is not evaluable. Or one of all: their mean, or the highest of each. Or each picture
    keeps its own, as the views of a mammogram do.
    """

    REFUSE = "refuse"
    MEAN = "mean"
    MAX = "max"
    EACH = "each"


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

    `may_be_empty`: nothing segmented, or a landmark that is not found, is an answer, as it is for lesions; a
    detection that finds nothing always is one. `maximum_foreground` is a part of all voxels. The scores of a group of
    classes add up to 1 within `probability_tolerance`.
    """

    may_be_empty: bool = False
    maximum_foreground: float = 0.95
    probability_tolerance: float = 0.01


class Saliency(StrEnum):
    """How it is found out what a classifier looked at."""

    NONE = "none"
    GRADCAM = "gradcam"
    GRADCAM_PLUS_PLUS = "gradcam++"
    OCCLUSION = "occlusion"


class Occasion(StrEnum):
    """When an answer is explained: always, or only where something was found."""

    ALWAYS = "always"
    POSITIVE = "positive"


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What is kept beside an answer to tell what it rests on: a saliency map on the grid of the source.

    `classes` are names of the contract; without any, it is the class that is answered. `layer` is a module of the
    network; without one, the last that still knows places.
    """

    method: Saliency = Saliency.NONE
    layer: str = ""
    classes: tuple[str, ...] = ()
    when: Occasion = Occasion.ALWAYS


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Under which changes a model is asked again; what it says is averaged, and how far it differs is reported.

    `flips` are axes of the image that the network sees, together where there are several letters (`xy`); `rotations`
    are degrees, 90, 180 or 270, from x to y. `spread` keeps how far the probability of each voxel differs.
    """

    flips: tuple[str, ...] = ()
    rotations: tuple[int, ...] = ()
    spread: bool = False

    def __bool__(self) -> bool:
        return bool(self.flips or self.rotations)


class Engine(StrEnum):
    """What carries a network out: torch as it is, something that torch or others make of it, or what a bundle ships."""

    EAGER = "eager"
    COMPILE = "compile"
    TORCHSCRIPT = "torchscript"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """What a network computes with: single precision, bfloat16, or what torch mixes on the device (GPUs: float16)."""

    FP32 = "fp32"
    BF16 = "bf16"
    AMP = "amp"


class WindowSize(StrEnum):
    """How large the windows are that a network sees: as shipped, or no larger than the volume makes them useful."""

    AS_SHIPPED = "as_shipped"
    FITTED = "fitted"


@dataclass(frozen=True, kw_only=True)
class EngineContract:
    """How a network is carried out, where that is not as the bundle ships it; None is as it does.

    Whatever differs must come out like the bundle as shipped, in every golden case: by `parity`, the least Dice of a
    segment, or 1 less the largest difference of a score.
    """

    engine: Engine = Engine.EAGER
    precision: Precision = Precision.FP32
    channels_last: bool = False
    window: WindowSize = WindowSize.AS_SHIPPED
    overlap: float | None = None
    window_batch: int | None = None
    parity: float = 0.999

    @property
    def changes(self) -> tuple[str, ...]:
        """What differs from the bundle as shipped, each in words."""
        return tuple(
            said
            for differs, said in (
                (self.engine is not Engine.EAGER, f"engine {self.engine.value}"),
                (self.precision is not Precision.FP32, f"precision {self.precision.value}"),
                (self.channels_last, "channels last"),
                (self.window is not WindowSize.AS_SHIPPED, f"window {self.window.value}"),
                (self.overlap is not None, f"overlap {self.overlap}"),
                (self.window_batch is not None, f"window batch {self.window_batch}"),
            )
            if differs
        )


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
    formulas: tuple[FormulaContract, ...] = ()
    combine: Combine = Combine.REFUSE
    frame: BoxFrame = BoxFrame.RAS
    output_limits: OutputLimits = OutputLimits()
    explanation: Explanation = Explanation()
    kept_probabilities: tuple[int, ...] = ()
    """Labels of the segments of which the probability of each voxel is kept."""
    augmentation: Augmentation = Augmentation()
    configs: tuple[str, ...] = ()
    """Further configuration files of the bundle that are merged into `inference.json`, in this order."""
    memory_bytes: int | None = None
    """What one run needs at most, where the maker says so."""
    cpu_fallback: bool = True
    engine: EngineContract = EngineContract()
    time_limit_seconds: float = 900.0
    series_description: str = ""
    weights: tuple[Path, ...] = ()
    weights_digest: str = ""
    admission: Admission = Admission()
    record: Path | None = None
    """Where this installation keeps what its check found: nothing that came with the model is believed."""


def present(scores: Sequence[float], answers: Sequence[tuple[str, float | None]]) -> list[bool]:
    """Return which classes are there, given their scores, and the group and the threshold of each.

    It is the highest of each group, if it reaches its threshold where it has one, and those alone that reach theirs.
    """
    highest: dict[str, int] = {}
    for index, (score, (group, _)) in enumerate(zip(scores, answers, strict=True)):
        # The first of equals, as an argmax has it; what is not a number is not the highest.
        if math.isfinite(score) and (group not in highest or score > scores[highest[group]]):
            highest[group] = index
    return [
        score >= (threshold or 0.0) and highest.get(group) == index
        if group
        else threshold is not None and score >= threshold
        for index, (score, (group, threshold)) in enumerate(zip(scores, answers, strict=True))
    ]
