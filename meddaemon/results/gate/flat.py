"""What a Segmentation of pictures is asked: that each frame lies on the image that it names, pixel for pixel."""

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset

from meddaemon.results.flat import lie_somewhere, series_attributes
from meddaemon.results.gate.exam import Exam
from meddaemon.results.gate.frames import FrameTable
from meddaemon.results.source import frames_of

_MACROS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
_OF_ALL = ("FrameOfReferenceUID", "PositionReferenceIndicator", "PatientOrientation", "PixelAspectRatio")
_TOLERANCE_MM = 1e-3


def grid(exam: Exam, dataset: Dataset) -> Iterator[str]:
    """Check that the frames have the size of the pictures, and say what these have in common."""
    size = (dataset.Rows, dataset.Columns)
    drawn = exam.request.analysis.drawing.shape[1:]
    if size != drawn:
        yield f"grid {size[0]} x {size[1]} is not the drawing's {drawn[0]} x {drawn[1]}"
    for uid in sorted({uid for uid, _ in exam.request.analysis.images}):
        image = exam.request.source.instance(uid)
        if (image.get("Rows"), image.get("Columns")) != size:
            yield f"grid {size[0]} x {size[1]} is not that of {uid}"
    said = series_attributes(exam.request)
    for keyword in _OF_ALL:
        found, wanted = (str(each.get(keyword) or "") for each in (dataset, said))
        if found != wanted or (keyword in said) != (keyword in dataset):
            yield f"{keyword} is not that of the pictures"


def places(exam: Exam, frames: FrameTable, dataset: Dataset) -> Iterator[str]:
    """Hold every frame against the one image that it names, and where that says it lies."""
    source, images = exam.request.source, set(exam.request.analysis.images)
    lies = lie_somewhere(exam.request)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    labels: dict[tuple[str, int], str] = {}
    items = zip(dataset.PerFrameFunctionalGroupsSequence, frames.sources, strict=True)
    for number, (item, key) in enumerate(items, 1):
        named = [image for each in item.DerivationImageSequence for image in each.SourceImageSequence]
        if key not in images or len(named) != 1:
            yield f"frame {number} names {key} among {len(named)}, which is no picture that was drawn on"
            continue
        several = frames_of(source.instance(key[0])) > 1
        if several != ("ReferencedFrameNumber" in named[0]):
            yield f"frame {number} names {'no frame' if several else 'a frame'} of {key[0]}"
        label = str(item.FrameContentSequence[0].get("FrameLabel") or "")
        if not label or labels.setdefault(key, label) != label:
            yield f"frame {number} has not the label of its picture"
        if {keyword in item or keyword in shared for keyword in _MACROS} != {lies}:
            yield f"frame {number} {'does not lie' if lies else 'lies'} in the patient, unlike its image"
        elif lies:
            yield from (f"frame {number} {failure}" for failure in _place(item, source.image(*key)))
    if len(set(labels.values())) != len(labels):
        yield "two pictures have one label"


def _place(item: Dataset, image: Dataset) -> Iterator[str]:
    said = {
        "ImagePositionPatient": item.PlanePositionSequence[0].ImagePositionPatient,
        "ImageOrientationPatient": item.PlaneOrientationSequence[0].ImageOrientationPatient,
        "PixelSpacing": item.PixelMeasuresSequence[0].PixelSpacing,
    }
    for keyword, values in said.items():
        if (
            not np.abs(np.subtract(np.array(values, float), np.array(image[keyword].value, float))).max()
            < _TOLERANCE_MM
        ):
            yield f"has another {keyword} than its image"


def ranks(exam: Exam, frames: FrameTable) -> Iterator[str]:
    """Check that the index of each picture is its own, in the order of the pictures."""
    index_of: dict[tuple[str, int], int] = {}
    for number, (key, index) in enumerate(zip(frames.sources, frames.indices[:, -1].tolist(), strict=True), 1):
        if index_of.setdefault(key, index) != index:
            yield f"frame {number} has index {index} of another picture"
    found = [index_of[image] for image in exam.request.analysis.images if image in index_of]
    if found != sorted(set(found)):
        yield "picture indices do not follow the pictures"
