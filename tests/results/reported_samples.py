"""Results of every kind for the tests of the reports: what a model said, made into findings by the real analysis."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dicom_factory import make_series
from pydicom import dcmread
from result_samples import ANATOMY, BRAIN, contract, geometry_of

from meddaemon.domain.codes import Code
from meddaemon.domain.contract import (
    ClassContract,
    Combine,
    ModelKind,
    ObjectContract,
    OutputLimits,
    Range,
    ScoreContract,
    SegmentContract,
)
from meddaemon.domain.picture import PictureGrid
from meddaemon.domain.result import Box, Landmark, Prediction
from meddaemon.inference.analysis import analyse, not_evaluable
from meddaemon.results.encoding import EncodingRequest

NODULE = Code(value="27925004", scheme="SCT", meaning="Nodule")
CYST = Code(value="367643001", scheme="SCT", meaning="Cyst")
PNEUMONIA = Code(value="233604007", scheme="SCT", meaning="Pneumonia")
PNEUMOTHORAX = Code(value="36118008", scheme="SCT", meaning="Pneumothorax")
AGE = Code(value="424144002", scheme="SCT", meaning="Current chronological age")
YEAR = Code(value="a", scheme="UCUM", meaning="Year")
SHAPE = Code(value="SHAPE1", scheme="99ACME", meaning="Shape index")
UNITY = Code(value="1", scheme="UCUM", meaning="no units")

PICTURES = {
    "FrameOfReferenceUID": None,
    "ImagePositionPatient": None,
    "ImageOrientationPatient": None,
    "PixelSpacing": None,
    "SliceThickness": None,
    "Modality": "DX",
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
}


def pictures(folder: Path, *, count: int = 2, **changes: Any) -> list[Path]:
    """Radiographs that lie nowhere in the patient: 12 rows, 10 columns."""
    return make_series(folder, planes=count, attributes={**PICTURES, **changes})


def sources_of(paths: Sequence[Path]) -> list[tuple[str, int]]:
    """SOP Instance UID and frame of each file."""
    return [(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID), 1) for path in paths]


def request_of(
    paths: Sequence[Path], model: dict[str, Any], prediction: dict[str, Any] | None, **changes: Any
) -> EncodingRequest:
    """What is asked of the encoders when a model of this kind said this; without a prediction, it was not asked."""
    deployed = contract(**({"segments": ()} | model))
    if prediction is None:
        analysis = not_evaluable(deployed, "12 planes are fewer than 30", entropy="run")
    else:
        analysis = analyse(Prediction(series_instance_uid="1.2", **prediction), deployed, entropy="run")
    return EncodingRequest(analysis=analysis, contract=deployed, sources=list(paths), **changes)


CLASSES = {
    "kind": ModelKind.CLASSIFICATION,
    "classes": (
        ClassContract(name="pneumonia", finding=PNEUMONIA, threshold=0.5),
        ClassContract(name="pneumothorax", finding=PNEUMOTHORAX, threshold=0.4),
    ),
}
SCORES = {
    "kind": ModelKind.REGRESSION,
    "scores": (
        ScoreContract(name=AGE, unit=YEAR, plausible=Range(minimum=0, maximum=120)),
        ScoreContract(name=SHAPE, unit=UNITY),
    ),
}
OBJECTS = (ObjectContract(label=1, name="nodule", finding=NODULE, threshold=0.5),)
DETECTION = {
    "kind": ModelKind.DETECTION,
    "objects": (*OBJECTS, ObjectContract(label=2, name="cyst", finding=CYST, threshold=0.25)),
}
LANDMARKS = {"kind": ModelKind.LANDMARKS, "objects": OBJECTS, "output_limits": OutputLimits(may_be_empty=True)}
DRAWN = {
    "kind": ModelKind.SEGMENTATION,
    "segments": (SegmentContract(label=1, name="Brain", category=ANATOMY, type=BRAIN, colour=(1, 2, 3)),),
}


def classified(folder: Path, scores: tuple[float, ...] = (0.935, 0.0225), **changes: Any) -> EncodingRequest:
    """Two classes of radiographs, the first of them there."""
    return request_of(pictures(folder), CLASSES, {"scores": scores}, **changes)


def each_classified(folder: Path) -> EncodingRequest:
    """Two classes of each of two radiographs."""
    paths = pictures(folder)
    said = {"scores": (0.9, 0.1, 0.2, 0.6), "sources": tuple(sources_of(paths))}
    return request_of(paths, {**CLASSES, "combine": Combine.EACH}, said)


def scored(folder: Path, scores: tuple[float, ...] = (31.25, 0.75), **changes: Any) -> EncodingRequest:
    """Two numbers of a volume, one of them with a code of its own."""
    paths = make_series(folder)
    return request_of(paths, SCORES, {"scores": scores, "geometry": geometry_of(paths)}, **changes)


BOX = ((1.5, 2.5), (6.5, 8.5))
"""Low and high edges (row, column): rows 2 to 6 and columns 3 to 8."""


def detected_on_picture(folder: Path, **changes: Any) -> EncodingRequest:
    """A nodule on the second radiograph that was written, no cyst."""
    paths = pictures(folder)
    box = Box(label=1, score=0.88, low=BOX[0], high=BOX[1], source=sources_of(paths)[1])
    return request_of(paths, DETECTION, {"boxes": (box,)}, **changes)


def detected_in_volume(folder: Path, **changes: Any) -> EncodingRequest:
    """Two nodules in an oblique volume of 5 planes, one of them partly beyond it, and a cyst."""
    paths = make_series(folder, orientation="oblique", modality="CT")
    boxes = (
        Box(label=1, score=0.88, low=(0.5, 1.5, 2.5), high=(3.5, 6.5, 8.5)),
        Box(label=1, score=0.6, low=(2.2, -4.0, 4.1), high=(9.0, 5.3, 40.0)),
        Box(label=2, score=0.3, low=(0.0, 3.0, 3.0), high=(1.0, 4.0, 4.0)),
    )
    return request_of(paths, DETECTION, {"boxes": boxes, "geometry": geometry_of(paths)}, **changes)


def marked(folder: Path, **changes: Any) -> EncodingRequest:
    """A landmark on plane 3 of a volume, at the centre of row 4, column 7."""
    paths = make_series(folder, modality="CT")
    point = Landmark(label=1, score=0.97, position=(3.0, 4.0, 7.0))
    return request_of(paths, LANDMARKS, {"landmarks": (point,), "geometry": geometry_of(paths)}, **changes)


def drawn_on_pictures(folder: Path, **changes: Any) -> EncodingRequest:
    """A segment on one of two radiographs, 6 pixels."""
    paths = pictures(folder)
    labels = np.zeros((2, 12, 10), np.uint8)
    labels[0, 2:5, 3:5] = 1
    grid = PictureGrid(shape=labels.shape, sources=tuple(sources_of(paths)))
    return request_of(paths, DRAWN, {"labels": labels, "pictures": grid}, **changes)


def nothing_detected(folder: Path) -> EncodingRequest:
    """Neither nodule nor cyst."""
    return request_of(pictures(folder), DETECTION, {"boxes": ()})


def not_evaluated(folder: Path) -> EncodingRequest:
    """A segmentation of a volume that the model was not asked about."""
    return request_of(make_series(folder), DRAWN, None)


def unbelievable(folder: Path) -> EncodingRequest:
    """An age that nobody has."""
    return scored(folder, (250.0, 0.5))


SAMPLES = {
    "classified": classified,
    "each_classified": each_classified,
    "scored": scored,
    "detected_on_picture": detected_on_picture,
    "detected_in_volume": detected_in_volume,
    "marked": marked,
    "drawn_on_pictures": drawn_on_pictures,
    "nothing_detected": nothing_detected,
    "not_evaluated": not_evaluated,
    "unbelievable": unbelievable,
}
