"""What a run of a model found, before and after it becomes DICOM objects."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.codes import UNITY, Code
from meddaemon.domain.picture import PictureGrid
from meddaemon.domain.volume import Geometry

Labels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""What each voxel [plane, row, column] belongs to; 0 is background."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Segments on the planes of their source, by their numbers from 1: the one way to look at labels and masks alike.

    `labels` [plane, row, column] hold segment numbers; `masks` [segment, plane, row, column] are there instead where
    segments may overlap. Everything is looked at plane by plane: a whole volume of anything wider is gigabytes.
    """

    labels: Labels | None = None
    masks: NDArray[np.bool_] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows, columns."""
        planes, rows, columns = self.masks.shape[1:] if self.masks is not None else self._labels.shape
        return planes, rows, columns

    def mask(self, number: int, plane: int) -> NDArray[np.bool_]:
        """Return where a segment lies on one plane, [row, column]."""
        there: NDArray[np.bool_] = (
            self.masks[number - 1, plane] if self.masks is not None else self._labels[plane] == number
        )
        return there

    def numbers(self, plane: int) -> Labels:
        """Return the segment of each pixel of one plane, [row, column]; of several that share one, any of them."""
        if self.masks is None:
            labels: Labels = self._labels[plane]
            return labels
        narrow, size = len(self.masks) < 256, self.shape[1:]
        numbers: Labels = np.zeros(size, np.uint8) if narrow else np.zeros(size, np.uint16)
        for number, mask in enumerate(self.masks, 1):
            numbers[mask[plane]] = number
        return numbers

    def counts(self, plane: int) -> NDArray[np.int64]:
        """Return how many voxels of one plane each segment has, by its number as far as there are any; [0] is moot."""
        if self.masks is not None:
            return np.array([0, *(np.count_nonzero(mask[plane]) for mask in self.masks)], dtype=np.int64)
        return np.bincount(self._labels[plane].ravel())

    @property
    def overlapping(self) -> bool:
        """Whether any voxel belongs to more than one segment (PS3.3 C.8.20.2, Segments Overlap)."""
        if self.masks is None:
            return False
        taken = np.empty(self.shape[1:], dtype=np.bool_)
        for plane in range(self.shape[0]):
            taken[:] = False
            for mask in self.masks:
                if (taken & mask[plane]).any():
                    return True
                taken |= mask[plane]
        return False

    @property
    def _labels(self) -> Labels:
        if self.labels is None:
            raise ValueError("nothing was drawn")
        return self.labels


@dataclass(frozen=True, kw_only=True)
class Box:
    """A detected object: label of the contract, score from 0 to 1, and where it lies on the grid of the source.

    Corners are edges of voxels, not centres, in (plane, row, column) or, on a picture, (row, column): the first voxel
    reaches from -0.5 to 0.5. `source` names the SOP Instance UID and frame of the picture.
    """

    label: int
    score: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    source: tuple[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Landmark:
    """A point: label of the contract, score from 0 to 1, and where it lies on the grid of the source.

    `position` counts voxel centres in (plane, row, column) or, on a picture, (row, column).
    """

    label: int
    score: float
    position: tuple[float, ...]
    source: tuple[str, int] | None = None


class ArtefactKind(StrEnum):
    """What an artefact shows for each voxel.

    Saliency is what an answer rests on: from 0 to 1, the most important voxel of all being 1, by Grad-CAM; by
    occlusion, how far the number of the network falls when the voxel is hidden. A spread is the standard deviation of
    the probability over the augmentations.
    """

    SALIENCY = "saliency"
    PROBABILITY = "probability"
    SPREAD = "spread"


MAX_ARTEFACTS = 48
MAX_ARTEFACT_BYTES = 2**32
"""What one prediction may carry beside the answer, all together."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Numbers for each voxel that explain an answer: [plane, row, column] on the grid of the source volume.

    On a picture they are [row, column], and `source` names its SOP Instance UID and frame. `of` is the class or the
    segment as the contract calls it. They have no unit (UCUM 1).
    """

    kind: ArtefactKind
    of: str
    values: NDArray[np.float16] | NDArray[np.float32]
    source: tuple[str, int] | None = None
    unit: Code = UNITY

    @property
    def name(self) -> str:
        """What it is called: `probability: Liver`."""
        return f"{self.kind.value}: {self.of}"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a runtime returns; which of it is there depends on the kind of model (see `ModelContract.kind`).

    `labels` [plane, row, column] and `masks` [segment, plane, row, column], for segments that overlap, lie on the grid
    of the source volume, which is `geometry`, or on frames instead of planes, which are `pictures`. `scores` are one
    number for each class of the contract, in its order; where each image keeps its own, one after the other as
    `sources` names them (SOP Instance UID and frame, from 1). Asked again under augmentations, `score_spread` and
    `volume_spread_ml`, one for each segment, are the standard deviations. `artefacts` are what was to be kept beside
    the answer. `doubts` are what speaks against the prediction as such, values that are not finite for one. `beyond`
    says why the model was not asked at all, when the input is not what it was made for. `provenance` says how it was
    computed (runtime, device, versions, shims); `seconds` how long each step took.
    """

    series_instance_uid: str
    labels: Labels | None = None
    masks: NDArray[np.bool_] | None = None
    scores: tuple[float, ...] = ()
    sources: tuple[tuple[str, int], ...] = ()
    boxes: tuple[Box, ...] = ()
    landmarks: tuple[Landmark, ...] = ()
    artefacts: tuple[Artefact, ...] = ()
    score_spread: tuple[float, ...] = ()
    volume_spread_ml: tuple[float, ...] = ()
    geometry: Geometry | None = None
    pictures: PictureGrid | None = None
    doubts: tuple[str, ...] = ()
    beyond: str = ""
    provenance: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def drawn(self) -> tuple[Labels, Geometry]:
        """The labels and where they lie. Raises ValueError where nothing was drawn."""
        if self.labels is None or self.geometry is None:
            raise ValueError("nothing was drawn")
        return self.labels, self.geometry


class ResultStatus(StrEnum):
    """Whether a result may be believed.

    Not evaluable is an input beyond what the model was made for; failed is a job that was discarded.
    """

    PLAUSIBLE = "plausible"
    IMPLAUSIBLE = "implausible"
    NOT_EVALUABLE = "not_evaluable"
    FAILED = "failed"

    @property
    def is_answer(self) -> bool:
        """Whether the model said anything at all, to be believed or not."""
        return self in {ResultStatus.PLAUSIBLE, ResultStatus.IMPLAUSIBLE}


REPORTED_DIGITS = 6
"""Significant digits of a measured value: more than any segmentation deserves, few enough for VR DS and the eye."""


def reported(value: float) -> float:
    """Return a value as it is reported, so that SR, database and command line show the same number."""
    return float(f"{value:.{REPORTED_DIGITS}g}")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number with a name (coded) and a unit (UCUM); None is for what was to be measured and could not be.

    `derivation` says what the number is of several (PS3.16 TID 1419, CID 7464), their standard deviation for one.
    `key` is what filters and formulas call it (`volume`, `mean`, `count`): the same whatever its code and its unit are.
    """

    name: Code
    value: float | None
    unit: Code
    derivation: Code | None = None
    key: str = ""


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
    """One finding and its measurements, and what shows it: a segment, a box, a landmark, or the study as a whole.

    `source` (SOP Instance UID and frame, from 1) is the one image that it is about, where each has its own.
    One that is not `present` was looked for and not found, or nobody could look: its measurements tell which.
    Its tracking identifiers are those of its segment, unless it is a further finding on the same segment.
    One of what the contract calls a segment, on which nothing is drawn as such, has its `label` and `laterality`: all
    lesions of the left lung together, or what nobody could look for.
    """

    code: Code
    segment_number: int | None
    measurements: tuple[Measurement, ...]
    box: Box | None = None
    landmark: Landmark | None = None
    source: tuple[str, int] | None = None
    present: bool = True
    label: str = ""
    laterality: Code | None = None
    tracking_id: str = ""
    tracking_uid: str = ""


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a finding is: on which image, where on it, and where in the patient.

    `low` and `high` are edges of voxels (see `Box`), the same point for a landmark, and nothing where it is the image
    as a whole. `sop_instance_uid` and
    `frame_number` (1-based) name the image that its centre lies on; `centre_lps` in mm is known in a volume only.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    sop_instance_uid: str
    frame_number: int
    frame_of_reference_uid: str = ""
    centre_lps: tuple[float, float, float] | None = None

    def on_image(self, rows: int, columns: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return its low and high corner (row, column) as DICOM counts them, cut to the image; there must be corners.

        Coordinates of DICOM begin at the top left corner of the first pixel (PS3.3 C.18.6.1.1), ours at its centre.
        """
        low, high = (
            (min(max(corner[-2] + 0.5, 0.0), rows), min(max(corner[-1] + 0.5, 0.0), columns))
            for corner in (self.low, self.high)
        )
        return low, high


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that one run says: findings over segments, drawn on `labels` (segment numbers, 0 background).

    Segments that may overlap are drawn on `masks` [segment, plane, row, column] instead, in the order of their
    numbers. Without either nothing is drawn. They lie on the planes of `geometry`, or on frames instead, which are
    `pictures`. `reason` explains a status that is not plausible with the numbers.
    """

    status: ResultStatus
    reason: str
    segments: tuple[Segment, ...]
    findings: tuple[Finding, ...]
    labels: Labels | None = None
    masks: NDArray[np.bool_] | None = None
    geometry: Geometry | None = None
    pictures: PictureGrid | None = None
    artefacts: tuple[Artefact, ...] = ()

    @property
    def is_drawn(self) -> bool:
        """Whether segments are drawn, on images that are known."""
        return bool(self.images) and (self.labels is not None or self.masks is not None)

    @property
    def drawing(self) -> Drawing:
        """The segments as they are drawn on `images`. Raises ValueError where nothing is."""
        if not self.is_drawn:
            raise ValueError("nothing was drawn")
        return Drawing(labels=self.labels, masks=self.masks)

    @property
    def drawn(self) -> tuple[Drawing, Geometry]:
        """The segments as they are drawn in a volume, and where they lie. Raises ValueError where nothing is."""
        if self.geometry is None:
            raise ValueError("nothing was drawn in a volume")
        return self.drawing, self.geometry

    @property
    def images(self) -> tuple[tuple[str, int], ...]:
        """SOP Instance UID and frame (from 1) of each plane, or of each picture that segments are drawn on."""
        if self.geometry is not None:
            return tuple(zip(self.geometry.sop_instance_uids, self.geometry.frame_numbers, strict=True))
        return self.pictures.sources if self.pictures is not None else ()

    @property
    def planes(self) -> dict[tuple[str, int], int]:
        """The number of each plane, or picture, by its SOP Instance UID and frame, in their order."""
        return {image: plane for plane, image in enumerate(self.images)}

    def location(self, finding: Finding) -> Location | None:
        """Return where a finding lies that has a box, a landmark or an image of its own; None for any other."""
        if finding.box is not None:
            low, high, source = finding.box.low, finding.box.high, finding.box.source
        elif finding.landmark is not None:
            low = high = finding.landmark.position
            source = finding.landmark.source
        elif finding.source is not None:
            low, high, source = (), (), finding.source
        else:
            return None
        if self.geometry is None or source is not None:
            uid, frame = source or ("", 0)
            return Location(low=low, high=high, sop_instance_uid=uid, frame_number=frame)
        centre, row, column = ((first + last) / 2 for first, last in zip(low, high, strict=True))
        plane = min(max(round(centre), 0), self.geometry.shape[0] - 1)
        return Location(
            low=low,
            high=high,
            sop_instance_uid=self.geometry.sop_instance_uids[plane],
            frame_number=self.geometry.frame_numbers[plane],
            frame_of_reference_uid=self.geometry.frame_of_reference_uid,
            centre_lps=self.geometry.point(centre, row, column),
        )


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What was asked for, or might be looked for, and is not in the objects of a result: `PM map 2`, and why."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class EncodedObject:
    """One DICOM result object, encoded as a Part 10 file.

    `kind` is one of `domain.outlet.ObjectKind`, `part` tells several of one kind apart (`boxes`), `edition` says to
    which editions it belongs (`domain.outlet.Edition.parts`): "" to all of them.
    """

    kind: str
    part: str = ""
    edition: str = ""
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    content: bytes

    @property
    def name(self) -> str:
        """What it is called among the objects of its result: `SR boxes 2d`."""
        return " ".join(filter(None, (self.kind, self.part, self.edition)))
