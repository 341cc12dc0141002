"""What a structure set is asked (PS3.3 A.19): that contours go around the voxels of their region, plane by plane."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from meddaemon.domain.result import EncodedObject
from meddaemon.results.gate.areas import agree, around, covered
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.gate.segmentation import side
from meddaemon.results.gate.tree import is_code
from meddaemon.results.identity import RESEARCH_MARK, long_string

_OFF_PLANE_MM = 0.01
_OFF_EDGE = 0.1
"""How far a corner may be from that of a voxel, in voxels: coordinates have 0.001 mm."""


def _document(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    wanted = {
        "SOPClassUID": RTStructureSetStorage,
        "Modality": "RTSTRUCT",
        "ApprovalStatus": "UNAPPROVED",
        "FrameOfReferenceUID": exam.request.source.frame_of_reference_uid,
    }
    for keyword, value in wanted.items():
        if dataset.get(keyword) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value}"
    if encoded.transfer_syntax_uid != ImplicitVRLittleEndian:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {ImplicitVRLittleEndian}"
    if RESEARCH_MARK not in str(dataset.get("StructureSetDescription")):
        yield f"StructureSetDescription lacks {RESEARCH_MARK!r}"
    for keyword in ("StructureSetLabel", "StructureSetDate", "StructureSetTime"):
        if not dataset.get(keyword):
            yield f"{keyword} has no value"


def _images(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    source = exam.request.source
    for frame in dataset.ReferencedFrameOfReferenceSequence:
        if str(frame.FrameOfReferenceUID) != source.frame_of_reference_uid:
            yield f"refers to frame of reference {frame.FrameOfReferenceUID}, not the source's"
    named = [
        (str(study.ReferencedSOPInstanceUID), str(series.SeriesInstanceUID), str(image.ReferencedSOPInstanceUID))
        for frame in dataset.ReferencedFrameOfReferenceSequence
        for study in frame.RTReferencedStudySequence
        for series in study.RTReferencedSeriesSequence
        for image in series.ContourImageSequence
    ]
    wanted = [(source.study_instance_uid, source.series_instance_uid, uid) for uid in source.sop_instance_uids]
    if sorted(named) != sorted(wanted):
        yield f"names {len(named)} images and not each of {len(wanted)} once"


def _regions(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    segments = exam.request.analysis.segments
    numbers = [segment.number for segment in segments]
    for name, found in (
        ("Structure Set ROI", [each.ROINumber for each in dataset.StructureSetROISequence]),
        ("ROI Contour", [each.ReferencedROINumber for each in dataset.ROIContourSequence]),
        ("RT ROI Observations", [each.ReferencedROINumber for each in dataset.RTROIObservationsSequence]),
    ):
        if found != numbers:
            yield f"{name} Sequence is of regions {found}, not of {numbers}"
            return
    for segment, region, contours, observed in zip(
        segments,
        dataset.StructureSetROISequence,
        dataset.ROIContourSequence,
        dataset.RTROIObservationsSequence,
        strict=True,
    ):
        name = f"region {segment.number}"
        if region.ROIName != long_string(segment.label):
            yield f"{name} is not called as its segment"
        if region.ROIGenerationAlgorithm != "AUTOMATIC":
            yield f"{name} does not say that an algorithm made it"
        if str(region.ReferencedFrameOfReferenceUID) != exam.request.source.frame_of_reference_uid:
            yield f"{name} lies in another frame of reference"
        if tuple(contours.ROIDisplayColor) != segment.colour:
            yield f"{name} is not in the colour of its segment"
        if not is_code(observed.get("RTROIIdentificationCodeSequence"), segment.type):
            yield f"{name} is not identified as {segment.type}"
        else:
            yield from (f"{name}: {failure}" for failure in side(observed.RTROIIdentificationCodeSequence[0], segment))


def _contours(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Hold what contours go around on each plane against the voxels there."""
    scene = exam.request.scene
    plane_of = {image: plane for plane, image in enumerate(scene.images)}
    if scene.drawing is None:
        yield "there is nothing drawn"
        return
    for region in dataset.ROIContourSequence:
        number = int(region.ReferencedROINumber)
        lines: dict[int, list[NDArray[np.float64]]] = {}
        for contour in region.get("ContourSequence", ()):
            reference = contour.ContourImageSequence[0]
            image = (str(reference.ReferencedSOPInstanceUID), int(reference.get("ReferencedFrameNumber") or 1))
            where = f"contour {contour.ContourNumber} of region {number}"
            if image not in plane_of or contour.ContourGeometricType != "CLOSED_PLANAR":
                yield f"{where} is not closed on a plane of the volume"
                continue
            points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
            if len(points) != contour.NumberOfContourPoints:
                yield f"{where} has {len(points)} points, not {contour.NumberOfContourPoints}"
            off, corners = _on_plane(exam, plane_of[image], points)
            if not off < _OFF_PLANE_MM:
                yield f"{where} lies {off:.3g} mm from the plane of {image[0]}"
            if not np.abs(corners - np.rint(corners)).max() < _OFF_EDGE:
                yield f"{where} does not run along the edges of voxels"
            line = np.rint(corners)
            lines.setdefault(plane_of[image], []).append(np.concatenate([line, line[:1]]))
        for plane in range(len(scene.images)):
            drawn = scene.drawing.mask(number, plane)
            if not agree(around(lines.get(plane, ())), covered(drawn)):
                yield f"contours of region {number} do not go around its voxels on plane {plane}"


def _on_plane(exam: Exam, plane: int, points: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return how far points in LPS mm are from a plane, and their (row, column) on it, as corners of pixels count."""
    geometry = exam.request.analysis.drawn[1]
    offset = points - geometry.positions[plane]
    off = float(np.abs(offset @ geometry.axes[:, 0]).max())
    in_plane: NDArray[np.float64] = offset @ np.linalg.pinv(geometry.affine_lps[:3, 1:3]).T + 0.5
    return off, in_plane


CHECKS: tuple[Check, ...] = (_document, _images, _regions, _contours)
"""What a structure set is asked."""
