"""What a Parametric Map is asked (PS3.3 A.75): each frame where its image is, each value as it was computed."""

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ParametricMapStorage

from meddaemon.domain.result import Artefact, EncodedObject
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.gate.segmentation import measures
from meddaemon.results.gate.tree import is_code
from meddaemon.results.identity import RESEARCH_MARK, long_string
from meddaemon.results.parametric import QUANTITIES, heights_of, why_not

_OFF_MM = 1e-3


def _document(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    source = exam.request.source
    wanted = {
        "SOPClassUID": ParametricMapStorage,
        "Modality": "OT",
        "FrameOfReferenceUID": source.frame_of_reference_uid,
        "BitsAllocated": 32,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
    }
    for keyword, value in wanted.items():
        if dataset.get(keyword) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value}"
    if encoded.transfer_syntax_uid != ExplicitVRLittleEndian:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {ExplicitVRLittleEndian}"
    if RESEARCH_MARK not in str(dataset.get("ContentDescription")):
        yield f"ContentDescription lacks {RESEARCH_MARK!r}"
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if "FrameAnatomySequence" not in shared:
        yield "has no Frame Anatomy, without which readers fail"


def _grid(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    geometry = exam.request.analysis.geometry
    if geometry is None:
        yield "lies nowhere"
        return
    if (dataset.Rows, dataset.Columns) != geometry.shape[1:]:
        yield f"grid {dataset.Rows} x {dataset.Columns} is not the volume's {geometry.shape[1]} x {geometry.shape[2]}"
    yield from measures(exam, geometry, dataset)


def _frames(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Hold every frame against the image it names, value by value."""
    artefact = _artefact(exam, encoded)
    frames = dataset.PerFrameFunctionalGroupsSequence
    size = int(dataset.Rows) * int(dataset.Columns)
    values = np.frombuffer(dataset.FloatPixelData, "<f4")
    if artefact is None or len(frames) != int(dataset.NumberOfFrames) or len(values) != len(frames) * size:
        yield f"{len(frames)} frames of {len(values)} values are no map of this result"
        return
    plane_of = {image: plane for plane, image in enumerate(exam.request.scene.images)}
    seen = set()
    for number, item in enumerate(frames, 1):
        image = item.DerivationImageSequence[0].SourceImageSequence[0]
        key = (str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 1))
        if key not in plane_of or key in seen:
            yield f"frame {number} names {key}, which is no plane of the volume, or twice"
            continue
        seen.add(key)
        position = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        distance = float(np.linalg.norm(position - exam.request.source.positions[key]))
        if not distance < _OFF_MM:
            yield f"frame {number} lies {distance:.4g} mm from its image {key[0]}"
        found = values[(number - 1) * size : number * size]
        wanted = artefact.values[plane_of[key]].astype("<f4").ravel()
        if not np.array_equal(found, wanted, equal_nan=True):
            yield f"frame {number} does not hold the values of plane {plane_of[key]}"
    heights = heights_of(dataset)
    if heights != sorted(heights):
        yield "frames are not in the order in which they lie, and readers take them for it"
    indices = [int(frame.FrameContentSequence[0].DimensionIndexValues) for frame in frames]
    if indices != list(range(1, len(frames) + 1)):
        yield f"dimension indices are {indices[:8]}, not those of the frames"
    if len(seen) != len(plane_of):
        yield f"holds {len(seen)} of {len(plane_of)} planes"


def _meaning(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that values are said to be what they are, as they stand."""
    artefact = _artefact(exam, encoded)
    if artefact is None:
        return
    shared = dataset.SharedFunctionalGroupsSequence[0]
    mapping, rescale = shared.RealWorldValueMappingSequence[0], shared.PixelValueTransformationSequence[0]
    lines = (
        (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept),
        (rescale.RescaleSlope, rescale.RescaleIntercept),
    )
    if any((float(slope), float(intercept)) != (1.0, 0.0) for slope, intercept in lines):
        yield "real-world values are not the values as they stand"
    if mapping.get("LUTExplanation") != long_string(artefact.name):
        yield f"is not called {artefact.name!r}"
    if not is_code(mapping.get("MeasurementUnitsCodeSequence"), artefact.unit):
        yield f"unit is not {artefact.unit}"
    definitions = [each.get("ConceptCodeSequence") for each in mapping.get("QuantityDefinitionSequence", ())]
    if not any(is_code(each, QUANTITIES[artefact.kind]) for each in definitions):
        yield f"quantity is not {QUANTITIES[artefact.kind]}"


def _artefact(exam: Exam, encoded: EncodedObject) -> Artefact | None:
    """Return which artefact a map is of, by its part."""
    for number, artefact in enumerate(exam.request.analysis.artefacts, 1):
        if encoded.part == f"map {number}" and not why_not(exam.request, artefact):
            return artefact
    return None


CHECKS: tuple[Check, ...] = (_document, _grid, _frames, _meaning)
"""What a Parametric Map is asked."""
