"""Measurement groups: TID 1411 on a segment, TID 1410 on a region or a segment of an image, TID 1501 on all of it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import highdicom.sr as hd
import numpy as np
from highdicom.sr import RelationshipTypeValues as Relation
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from meddaemon.domain.codes import Code
from meddaemon.domain.errors import InputRefused
from meddaemon.domain.outlet import SegmentationForm
from meddaemon.domain.result import EncodedObject, Finding, Location
from meddaemon.results.identity import RESEARCH_MARK
from meddaemon.results.report.content import (
    Entry,
    Part,
    caveat,
    measured_value,
    numbers_of,
    parameters_of,
    presence,
    side_of,
    summary,
)
from meddaemon.results.request import EncodingRequest
from meddaemon.results.seg import algorithm_parameters, frame_number, pydicom_code
from meddaemon.results.source import frames_of, is_waveform

# Highdicom knows no name for it; every reader knows it as a qualitative evaluation.
PRESENCE = Code(value="705057003", scheme="SCT", meaning="Presence")

_Group: TypeAlias = (
    hd.VolumetricROIMeasurementsAndQualitativeEvaluations
    | hd.PlanarROIMeasurementsAndQualitativeEvaluations
    | hd.MeasurementsAndQualitativeEvaluations
)


def group(request: EncodingRequest, part: Part, entry: Entry, seg: EncodedObject | None) -> _Group:
    """Return the measurement group of one finding, as the document wants it that it is for."""
    written = _GROUPS[part](request, entry, seg)
    content = written[0].ContentSequence
    for text in (
        *_marks(request),
        *_place_in_words(request, entry.finding),
        *_waveform_in_words(request, entry.finding),
    ):
        content.append(hd.TextContentItem(name=codes.DCM.Comment, value=text, relationship_type=Relation.CONTAINS))
    return written


def _volume(request: EncodingRequest, entry: Entry, seg: EncodedObject | None) -> _Group:
    if seg is None or entry.segment is None:
        raise ValueError("a segmented volume needs its Segmentation")
    return hd.VolumetricROIMeasurementsAndQualitativeEvaluations(
        **_said(request, entry),
        referenced_segment=hd.ReferencedSegment(
            sop_class_uid=seg.sop_class_uid,
            sop_instance_uid=seg.sop_instance_uid,
            segment_number=entry.segment.number,
            source_series=hd.SourceSeriesForSegmentation(request.source.series_instance_uid),
        ),
    )


def _region(request: EncodingRequest, entry: Entry, _: EncodedObject | None) -> _Group:
    place = request.analysis.location(entry.finding)
    if place is None:
        raise ValueError("a region needs its place")
    image = _image(request, place.sop_instance_uid)
    region = hd.ImageRegion(
        graphic_type="POLYLINE" if entry.finding.box is not None else "POINT",
        graphic_data=outline(place, int(image.Rows), int(image.Columns)),
        source_image=hd.SourceImageForRegion(
            str(image.SOPClassUID), place.sop_instance_uid, _frames(image, place.frame_number)
        ),
    )
    return hd.PlanarROIMeasurementsAndQualitativeEvaluations(**_said(request, entry), referenced_region=region)


def _area(request: EncodingRequest, entry: Entry, seg: EncodedObject | None) -> _Group:
    about = entry.finding.source
    if seg is None or entry.segment is None or about is None:
        raise ValueError("a segment on a picture needs its Segmentation")
    image, number = _image(request, about[0]), entry.segment.number
    reference = hd.ReferencedSegmentationFrame(
        sop_class_uid=seg.sop_class_uid,
        sop_instance_uid=seg.sop_instance_uid,
        segment_number=number,
        frame_number=frame_number(request, number, about),
        source_image=hd.SourceImageForSegmentation(str(image.SOPClassUID), about[0], _frames(image, about[1])),
    )
    # One of both (PS3.3 C.18.4): a frame is of one segment, but in a label map of all that are on its picture.
    unsaid = "ReferencedFrameNumber" if seg.edition == SegmentationForm.LABELMAP else "ReferencedSegmentNumber"
    del reference[0].ReferencedSOPSequence[0][unsaid]
    return hd.PlanarROIMeasurementsAndQualitativeEvaluations(**_said(request, entry), referenced_segment=reference)


def _class(request: EncodingRequest, entry: Entry, _: EncodedObject | None) -> _Group:
    about = entry.finding.source
    images = []
    if about is not None and not is_waveform(image := _image(request, about[0])):
        images.append(hd.SourceImageForMeasurementGroup(str(image.SOPClassUID), about[0], _frames(image, about[1])))
    return hd.MeasurementsAndQualitativeEvaluations(**_said(request, entry), source_images=images)


_GROUPS: Mapping[Part, Callable[[EncodingRequest, Entry, EncodedObject | None], _Group]] = {
    Part.VOLUMES: _volume,
    Part.BOXES: _region,
    Part.CLASSES: _class,
    Part.AREAS: _area,
}


def outline(place: Location, rows: int, columns: int) -> NDArray[np.float64]:
    """Return a box as a closed polygon, or a landmark as a point, in (column, row) of its image, cut to the image."""
    (top, left), (bottom, right) = place.on_image(rows, columns)
    if place.low == place.high:
        return np.array([[left, top]])
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])


def _image(request: EncodingRequest, sop_instance_uid: str) -> Dataset:
    for instance in request.source.instances:
        if str(instance.SOPInstanceUID) == sop_instance_uid:
            return instance
    raise InputRefused("unknown_image", f"a finding lies on {sop_instance_uid}, which is no instance of the input")


def _frames(image: Dataset, number: int) -> list[int] | None:
    """Return the number of the frame, of an image that has frames (PS3.3 10.3, Referenced Frame Number)."""
    return [number] if frames_of(image) > 1 else None


def _said(request: EncodingRequest, entry: Entry) -> dict[str, Any]:
    """Return what all groups share."""
    finding = entry.finding
    return {
        "tracking_identifier": hd.TrackingIdentifier(uid=entry.tracking_uid, identifier=entry.tracking_id),
        "finding_type": pydicom_code(finding.code),
        "finding_sites": _sites(entry),
        "algorithm_id": _algorithm(request, entry),
        "measurements": [
            hd.Measurement(
                name=pydicom_code(measurement.name),
                value=measured_value(measurement),
                unit=pydicom_code(measurement.unit),
                derivation=pydicom_code(measurement.derivation) if measurement.derivation else None,
            )
            for measurement in numbers_of(finding)
        ],
        "qualitative_evaluations": [
            hd.QualitativeEvaluation(name=name, value=pydicom_code(value))
            for name, value in (
                (pydicom_code(PRESENCE), presence(finding, request)),
                (codes.DCM.CADProcessingAndFindingsSummary, summary(request)),
            )
            if value is not None
        ],
    }


def _marks(request: EncodingRequest) -> list[str]:
    mark = f"{RESEARCH_MARK}: computed by software, for research use only, not reviewed by a physician."
    return [mark, *filter(None, (caveat(request.analysis),))]


def _place_in_words(request: EncodingRequest, finding: Finding) -> list[str]:
    """Return where a box or landmark lies in the patient: the region shows one plane of it."""
    geometry, found = request.analysis.geometry, finding.box or finding.landmark
    if geometry is None or found is None or found.source is not None:
        return []
    corners = [finding.landmark.position] if finding.landmark else [finding.box.low, finding.box.high]  # type: ignore[union-attr]
    said = [" ".join(f"{value:.1f}" for value in geometry.point(*corner)) for corner in corners]
    return [f"In the patient (LPS, mm): {' to '.join(said)}"]


def _waveform_in_words(request: EncodingRequest, finding: Finding) -> list[str]:
    """Return which waveform a finding is about: an IMAGE is none (PS3.3 C.18.4), and highdicom reads no WAVEFORM."""
    about = finding.source
    return [f"Waveform: {about[0]}"] if about is not None and is_waveform(_image(request, about[0])) else []


def _algorithm(request: EncodingRequest, entry: Entry) -> hd.AlgorithmIdentification:
    contract = request.contract
    parameters = [f"{name}: {value}" for name, value in algorithm_parameters(request).items()]
    return hd.AlgorithmIdentification(
        name=contract.name,
        version=contract.version,
        parameters=[*parameters, *parameters_of(entry, request)] or None,
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=contract.manufacturer or None,
    )


def _sites(entry: Entry) -> list[hd.FindingSite] | None:
    what, side = side_of(entry)
    return [hd.FindingSite(anatomic_location=pydicom_code(what), laterality=pydicom_code(side))] if side else None
