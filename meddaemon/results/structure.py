"""RT Structure Set: the segments as closed contours on the planes of the source (PS3.3 A.19)."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import EncodedObject, LeftOut, Segment
from meddaemon.domain.volume import Geometry
from meddaemon.results.envelope import finish
from meddaemon.results.identity import MANUFACTURER, RESEARCH_MARK, long_string
from meddaemon.results.request import EncodingRequest
from meddaemon.results.scene import Mark
from meddaemon.results.skeleton import STUDY_CLASS, begin, code_item, image_item, item

KIND = ObjectKind.RTSTRUCT
MOST_POINTS = 4_000_000
"""Of all contours together: 100 MB of text."""


def encode(request: EncodingRequest, _: Sequence[EncodedObject]) -> Iterator[EncodedObject | LeftOut]:
    """Yield the structure set of what is drawn in a volume, if anything is, a region for each segment.

    Contours run along the edges of voxels; where one lies within another it is a hole (what is inside an odd number
    of contours is of the region). It is written in Implicit VR: VR DS ends at 64 KB in Explicit VR, one contour may
    be longer, and it cannot be cut.
    """
    geometry = request.analysis.geometry
    marks = {mark.segment: mark for mark in request.scene.marks if mark.segment is not None}
    if geometry is None or not marks:
        yield LeftOut(what=KIND, why="nothing is drawn in a volume")
        return
    regions = {}
    points = 0
    for segment in request.analysis.segments:
        mark = marks.get(segment.number)
        regions[segment.number] = list(contours(request, mark, geometry)) if mark else []
        points += sum(len(contour) for _, contour in regions[segment.number])
        if points > MOST_POINTS:
            yield LeftOut(what=KIND, why=f"its contours have more points than the {MOST_POINTS} that they may have")
            return
    obj = begin(request, KIND, RTStructureSetStorage, "RTSTRUCT", number=1, syntax=ImplicitVRLittleEndian)
    obj.OperatorsName = ""
    obj.FrameOfReferenceUID = geometry.frame_of_reference_uid
    obj.PositionReferenceIndicator = str(request.source.instances[0].get("PositionReferenceIndicator") or "")
    obj.StructureSetLabel = "AI"
    obj.StructureSetName = long_string(request.contract.title)
    obj.StructureSetDescription = f"{RESEARCH_MARK}. A contour within another is a hole (odd-even rule)."
    obj.StructureSetDate, obj.StructureSetTime = request.source.moment
    obj.ReferencedFrameOfReferenceSequence = [_frame_of_reference(request, geometry)]
    obj.StructureSetROISequence = [_region(request, segment, geometry) for segment in request.analysis.segments]
    obj.ROIContourSequence = [
        _contours(request, segment, regions[segment.number]) for segment in request.analysis.segments
    ]
    obj.RTROIObservationsSequence = [
        item(
            ObservationNumber=segment.number,
            ReferencedROINumber=segment.number,
            RTROIInterpretedType="",
            ROIInterpreter="",
            RTROIIdentificationCodeSequence=[_identified(segment)],
        )
        for segment in request.analysis.segments
    ]
    obj.ApprovalStatus = "UNAPPROVED"
    yield finish(obj, request, KIND)


def contours(request: EncodingRequest, mark: Mark, geometry: Geometry) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the contours of a segment, (plane, points in LPS mm), plane by plane."""
    scene = request.scene
    in_plane = geometry.affine_lps[:3, 1:3].T
    for plane in scene.images_of(mark):
        for polygon in scene.polygons(mark, plane):
            yield plane, geometry.positions[plane] + (polygon - 0.5) @ in_plane


def _frame_of_reference(request: EncodingRequest, geometry: Geometry) -> Dataset:
    source = request.source
    images = [
        item(ReferencedSOPClassUID=str(each.SOPClassUID), ReferencedSOPInstanceUID=str(each.SOPInstanceUID))
        for each in source.instances
    ]
    study = item(
        ReferencedSOPClassUID=STUDY_CLASS,
        ReferencedSOPInstanceUID=source.study_instance_uid,
        RTReferencedSeriesSequence=[item(SeriesInstanceUID=source.series_instance_uid, ContourImageSequence=images)],
    )
    return item(FrameOfReferenceUID=geometry.frame_of_reference_uid, RTReferencedStudySequence=[study])


def _region(request: EncodingRequest, segment: Segment, geometry: Geometry) -> Dataset:
    return item(
        ROINumber=segment.number,
        ReferencedFrameOfReferenceUID=geometry.frame_of_reference_uid,
        ROIName=long_string(segment.label),
        ROIDescription=long_string(f"{segment.type.meaning} by {request.contract.name} {request.contract.version}"),
        ROIGenerationAlgorithm="AUTOMATIC",
        ROIGenerationDescription=long_string(f"{MANUFACTURER} - {RESEARCH_MARK}"),
    )


def _identified(segment: Segment) -> Dataset:
    """Return what a region is, and which side."""
    made = code_item(segment.type)
    if segment.laterality is not None:
        made.SegmentedPropertyTypeModifierCodeSequence = [code_item(segment.laterality)]
    return made


def _contours(request: EncodingRequest, segment: Segment, traced: Sequence[tuple[int, NDArray[np.float64]]]) -> Dataset:
    made = item(ReferencedROINumber=segment.number, ROIDisplayColor=list(segment.colour))
    if traced:
        made.ContourSequence = [
            item(
                ContourNumber=number,
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourData=[f"{value:.3f}" for value in points.ravel()],
                ContourImageSequence=[image_item(request, request.scene.images[plane])],
            )
            for number, (plane, points) in enumerate(traced, 1)
        ]
    return made
