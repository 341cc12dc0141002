"""The last look at what was encoded, before anything may be delivered.

The objects are read back from their bytes and held against the source images and the analysis. Generic validators
find no fault in an object that contradicts another one: a wrong patient, a shifted frame, a number that is not the
model's. Failures name attributes, UIDs and numbers, never a patient.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import RE_VALID_UID, ExplicitVRLittleEndian

from meddaemon.domain.codes import Code
from meddaemon.domain.errors import ObjectRefusedByGate
from meddaemon.domain.result import REPORTED_DIGITS, EncodedObject, Finding, ResultStatus, Segment
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID
from meddaemon.results import seg, sr
from meddaemon.results.identity import RESEARCH_MARK, device_uid
from meddaemon.results.request import EncodingRequest
from meddaemon.results.source import INHERITED, TYPE_2

_TOLERANCE_MM = 1e-3
# The affine of a volume is fitted to all its planes, which may stray from it a little (`inference` allows 0.06 mm).
_GRID_TOLERANCE_MM = 0.1
_LONGEST_DS = 16  # characters of VR DS (PS3.5 Table 6.2-1)
_LONGEST_UID = 64

_TYPE_1 = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesNumber",
    "InstanceNumber",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "SeriesDate",
    "SeriesTime",
    "ContentDate",
    "ContentTime",
)
"""Attributes that every result carries with a value: type 1, or ours to promise (STANDARDS list, item 8)."""

_DERIVATION = ("121401", "DCM")
_MEANINGS: Mapping[tuple[str, str], str] = {
    ("126000", "DCM"): "Imaging Measurement Report",
    ("111028", "DCM"): "Image Library",
    ("126200", "DCM"): "Image Library Group",
    ("126010", "DCM"): "Imaging Measurements",
    ("125007", "DCM"): "Measurement Group",
    ("112039", "DCM"): "Tracking Identifier",
    ("112040", "DCM"): "Tracking Unique Identifier",
    ("121071", "DCM"): "Finding",
    ("121191", "DCM"): "Referenced Segment",
}
"""Concepts that viewers recognise by their English meaning: a translated one makes a document unreadable to them."""


@dataclass(frozen=True, kw_only=True)
class _Exam:
    """The objects under examination, read back, and what they are held against."""

    request: EncodingRequest
    objects: Mapping[str, EncodedObject]

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        return {kind: dcmread(BytesIO(encoded.content)) for kind, encoded in self.objects.items()}

    @cached_property
    def known_instances(self) -> dict[str, str]:
        """SOP Class UID by SOP Instance UID of everything that a result may refer to."""
        known = {str(each.SOPInstanceUID): str(each.SOPClassUID) for each in self.request.source.instances}
        known |= {each.sop_instance_uid: each.sop_class_uid for each in self.objects.values()}
        if self.request.predecessor:
            known[self.request.predecessor.sop_instance_uid] = self.request.predecessor.sop_class_uid
        return known


def check(objects: Sequence[EncodedObject], request: EncodingRequest) -> None:
    """Refuse result objects that contradict their source, the analysis or each other.

    Raises `ObjectRefusedByGate` with every failure, one a line.
    """
    exam = _Exam(request=request, objects={each.kind: each for each in objects})
    failures: list[str] = []
    if len(exam.objects) != len(objects):
        failures.append(f"{len(objects)} objects of only {len(exam.objects)} kinds")
    for kind, dataset in exam.datasets.items():
        own = _CHECKS.get(kind)
        if own is None:
            failures.append(f"{kind}: nothing is known of this kind of object")
            continue
        for examine in (*_COMMON_CHECKS, *own):
            failures.extend(f"{kind} {failure}" for failure in _findings(examine, exam, kind, dataset))
    if failures:
        raise ObjectRefusedByGate("\n".join(failures))


def _findings(examine: "_Check", exam: _Exam, kind: str, dataset: Dataset) -> list[str]:
    try:
        return list(examine(exam, kind, dataset))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # An object that lacks what a check must look at has failed that check. The error's text may hold a value.
        return [f"cannot be examined for {examine.__name__.strip('_')}: {type(error).__name__}"]


# Any object


def _encoding(exam: _Exam, kind: str, dataset: Dataset) -> Iterator[str]:
    encoded, meta = exam.objects[kind], dataset.file_meta
    pairs = {
        "SOPClassUID": (encoded.sop_class_uid, dataset.get("SOPClassUID"), meta.get("MediaStorageSOPClassUID")),
        "SOPInstanceUID": (
            encoded.sop_instance_uid,
            dataset.get("SOPInstanceUID"),
            meta.get("MediaStorageSOPInstanceUID"),
        ),
        "SeriesInstanceUID": (encoded.series_instance_uid, dataset.get("SeriesInstanceUID")),
        "TransferSyntaxUID": (encoded.transfer_syntax_uid, meta.get("TransferSyntaxUID"), ExplicitVRLittleEndian),
        "ImplementationClassUID": (IMPLEMENTATION_CLASS_UID, meta.get("ImplementationClassUID")),
        "SpecificCharacterSet": ("ISO_IR 192", dataset.get("SpecificCharacterSet")),
    }
    for name, values in pairs.items():
        if len({str(value) for value in values}) > 1:
            yield f"{name}: {' and '.join(str(value) for value in values)} differ"
    if any(element.tag.is_private for element in dataset.iterall()):
        yield "has private attributes"


def _required(_: _Exam, __: str, dataset: Dataset) -> Iterator[str]:
    for keyword in _TYPE_1:
        if dataset.get(keyword) in (None, ""):
            yield f"{keyword} has no value"
    for keyword in TYPE_2:
        if keyword not in dataset:
            yield f"{keyword} is absent"


def _patient_and_study(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    header = exam.request.source.header
    for keyword in INHERITED:
        # Empty reads back as None or "", depending on the VR.
        wanted, found = (str("" if each.get(keyword) is None else each.get(keyword)) for each in (header, dataset))
        if (keyword in header) != (keyword in dataset) or wanted != found:
            yield f"{keyword} differs from the source"


def _identifiers(exam: _Exam, kind: str, dataset: Dataset) -> Iterator[str]:
    source = exam.request.source
    taken = {*source.sop_instance_uids, source.series_instance_uid, source.study_instance_uid}
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uid = str(dataset.get(keyword, ""))
        if len(uid) > _LONGEST_UID or not uid.isascii() or not _is_uid(uid):
            yield f"{keyword} {uid!r} is not a valid UID"
        if uid in taken:
            yield f"{keyword} {uid} is one of the source's"
    for other, encoded in exam.objects.items():
        if other != kind and str(dataset.get("SeriesInstanceUID")) == encoded.series_instance_uid:
            yield f"shares its series with {other}"
    number = dataset.get("SeriesNumber")
    if number is None or number < 1 or number == source.series_number:
        yield f"SeriesNumber {number} is not a number of its own"
    if RESEARCH_MARK not in str(dataset.get("SeriesDescription")):
        yield f"SeriesDescription lacks {RESEARCH_MARK!r}"


def _equipment(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    items = dataset.get("ContributingEquipmentSequence", ())
    purposes = Counter(str(item.PurposeOfReferenceCodeSequence[0].CodeValue) for item in items)
    if "Manufacturer" in exam.request.source.equipment and purposes["109101"] != 1:
        yield "Contributing Equipment does not name the acquisition equipment"
    if device_uid(exam.request.contract) not in {str(item.get("DeviceUID")) for item in items}:
        yield "Contributing Equipment does not name the model by its Device UID"


def _references(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        # What was inherited refers to objects of others.
        if element.VR != "SQ" or keyword_for_tag(element.tag) in (*INHERITED, "ReferencedRequestSequence"):
            continue
        for item in element.value:
            yield from _unknown_references(exam, item)


def _unknown_references(exam: _Exam, item: Dataset) -> Iterator[str]:
    if "ReferencedSOPInstanceUID" in item:
        uid, sop_class = str(item.ReferencedSOPInstanceUID), str(item.get("ReferencedSOPClassUID"))
        if exam.known_instances.get(uid) != sop_class:
            yield f"refers to {uid} of class {sop_class}, which is neither source nor result"
    for element in item:
        if element.VR == "SQ":
            for nested in element.value:
                yield from _unknown_references(exam, nested)


# SEG


def _grid(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    source = exam.request.source
    geometry = exam.request.analysis.drawn[1]
    for name, uid in (("source", source.frame_of_reference_uid), ("volume", geometry.frame_of_reference_uid)):
        if str(dataset.get("FrameOfReferenceUID")) != uid:
            yield f"FrameOfReferenceUID {dataset.get('FrameOfReferenceUID')} is not the {name}'s {uid}"
    if (dataset.Rows, dataset.Columns) != geometry.shape[1:]:
        yield f"grid {dataset.Rows} x {dataset.Columns} is not the volume's {geometry.shape[1]} x {geometry.shape[2]}"
    shared = dataset.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    row_spacing, column_spacing = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    in_plane = np.column_stack([directions[3:] * row_spacing, directions[:3] * column_spacing])
    # Over the whole grid, so that an error too small to see in one voxel is seen at the far corner.
    drift = np.abs((in_plane - geometry.affine_lps[:3, 1:3]) * geometry.shape[1:]).max()
    if not drift < _GRID_TOLERANCE_MM:
        yield f"orientation and spacing drift {drift:.3g} mm from the volume over its width"


def _frames(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    """Hold every frame against the image it names: position, and voxel by voxel the labels of its plane."""
    analysis, source = exam.request.analysis, exam.request.source
    items = dataset.PerFrameFunctionalGroupsSequence
    bits = int(dataset.NumberOfFrames) * int(dataset.Rows) * int(dataset.Columns)
    if len(items) != int(dataset.NumberOfFrames) or len(dataset.PixelData) != (bits + 15) // 16 * 2:
        yield f"{len(items)} frame descriptions or the pixel data do not fit {dataset.NumberOfFrames} frames"
        return
    drawing, geometry = analysis.drawn
    planes = {
        key: plane for plane, key in enumerate(zip(geometry.sop_instance_uids, geometry.frame_numbers, strict=True))
    }
    counts: Counter[int] = Counter()
    for number, (item, mask) in enumerate(zip(items, _masks(dataset), strict=True), 1):
        key = _named_source(item)
        segment = _segment_number(item, dataset)
        if key not in planes:
            yield f"frame {number} names {key}, which is no plane of the volume"
            continue
        position = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        for name, wanted in (
            ("source image", source.positions[key]),
            ("volume", geometry.positions[planes[key]]),
        ):
            distance = float(np.linalg.norm(position - wanted))
            if not distance < (_TOLERANCE_MM if name == "source image" else _GRID_TOLERANCE_MM):
                yield f"frame {number} lies {distance:.4g} mm from the plane of its {name} {key[0]}"
        if not 1 <= segment <= len(analysis.segments):
            yield f"frame {number} shows segment {segment} of {len(analysis.segments)}"
        elif not np.array_equal(mask, drawing.mask(segment, planes[key])):
            yield f"frame {number} does not show what is drawn of segment {segment} on plane {planes[key]}"
        counts[segment] += int(np.count_nonzero(mask))
    drawn = sum((Counter(dict(enumerate(drawing.counts(plane)))) for plane in range(geometry.shape[0])), Counter[int]())
    for segment in (each.number for each in analysis.segments):
        expected = int(drawn[segment])
        if counts[segment] != expected:
            yield f"segment {segment} has {counts[segment]} voxels, the drawing {expected}"


def _dimensions(_: _Exam, __: str, dataset: Dataset) -> Iterator[str]:
    """Check that dimension index values are unique and one-to-one with segment and position (PS3.3 C.7.6.17)."""
    indices: dict[tuple[int, ...], int] = {}
    positions: dict[int, tuple[float, ...]] = {}
    for number, item in enumerate(dataset.PerFrameFunctionalGroupsSequence, 1):
        values = item.FrameContentSequence[0].DimensionIndexValues
        index = tuple(int(value) for value in (values if not isinstance(values, int) else [values]))
        if index in indices:
            yield f"frames {indices[index]} and {number} share the dimension index {index}"
        indices[index] = number
        if len(index) != len(dataset.DimensionIndexSequence) or index[0] != _segment_number(item, dataset):
            yield f"frame {number} has dimension index {index}, but shows segment {_segment_number(item, dataset)}"
        position = tuple(float(value) for value in item.PlanePositionSequence[0].ImagePositionPatient)
        if positions.setdefault(index[-1], position) != position:
            yield f"frame {number} has position index {index[-1]} of another position"
    ranked = sorted(positions)
    if len(set(positions.values())) != len(positions):
        yield "one position has several position indices"
    if len(ranked) > 2:
        # In order along the normal: successive positions go on in one direction.
        steps = [np.subtract(positions[b], positions[a]) for a, b in pairwise(ranked)]
        if any(float(np.dot(steps[0], step)) <= 0 for step in steps):
            yield "position indices do not follow the positions"


def _segments(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    wanted = exam.request.analysis.segments
    items = dataset.get("SegmentSequence", ())
    if [item.get("SegmentNumber") for item in items] != [segment.number for segment in wanted]:
        yield f"segments {[item.get('SegmentNumber') for item in items]} are not 1 to {len(wanted)}"
        return
    for segment, item in zip(wanted, items, strict=True):
        name = f"segment {segment.number}"
        if not item.get("SegmentLabel"):
            yield f"{name} has no label"
        if item.get("SegmentAlgorithmType") != "AUTOMATIC" or not item.get("SegmentAlgorithmName"):
            yield f"{name} does not say which algorithm made it"
        if "RecommendedDisplayCIELabValue" not in item:
            yield f"{name} has no colour"
        if (item.get("TrackingID"), item.get("TrackingUID")) != (segment.tracking_id, segment.tracking_uid):
            yield f"{name} has other tracking identifiers than the analysis"
        for keyword, code in (
            ("SegmentedPropertyCategoryCodeSequence", segment.category),
            ("SegmentedPropertyTypeCodeSequence", segment.type),
        ):
            if not _is_code(item.get(keyword), code):
                yield f"{name}: {keyword} is not {code}"
    overlap = "YES" if exam.request.analysis.drawn[0].overlapping else "NO"
    if dataset.get("SegmentsOverlap") != overlap:
        yield f"SegmentsOverlap is not {overlap}"


def _referenced_series(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    source = exam.request.source
    named = Counter(
        (str(series.SeriesInstanceUID), str(instance.ReferencedSOPInstanceUID))
        for series in dataset.get("ReferencedSeriesSequence", ())
        for instance in series.ReferencedInstanceSequence
    )
    wanted = Counter((source.series_instance_uid, uid) for uid in source.sop_instance_uids)
    if named != wanted:
        yield f"Referenced Series Sequence names {named.total()} instances and not each of {wanted.total()} once"


def _masks(dataset: Dataset) -> Iterator[NDArray[np.bool_]]:
    """Yield the frames of BINARY pixel data, [row, column]; frames are packed without gaps (PS3.5 8.1.1)."""
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    size = int(dataset.Rows) * int(dataset.Columns)
    for start in range(0, int(dataset.NumberOfFrames) * size, size):
        first, offset = divmod(start, 8)
        bits = np.unpackbits(packed[first : first + (offset + size + 7) // 8], bitorder="little")
        yield bits[offset : offset + size].reshape(int(dataset.Rows), int(dataset.Columns)).view(np.bool_)


def _named_source(item: Dataset) -> tuple[str, int]:
    for derivation in item.get("DerivationImageSequence", ()):
        for image in derivation.SourceImageSequence:
            return str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber", 1))
    return "", 0


def _segment_number(item: Dataset, dataset: Dataset) -> int:
    for groups in (item, dataset.SharedFunctionalGroupsSequence[0]):
        for identification in groups.get("SegmentIdentificationSequence", ()):
            return int(identification.ReferencedSegmentNumber)
    return 0


# SR


def _flags(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    plausible = exam.request.analysis.status is ResultStatus.PLAUSIBLE
    wanted = {
        "VerificationFlag": "UNVERIFIED",
        "PreliminaryFlag": "PRELIMINARY",
        "CompletionFlag": "COMPLETE" if plausible else "PARTIAL",
    }
    for keyword, value in wanted.items():
        if dataset.get(keyword) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value}"
    if len(dataset.get("ReferencedRequestSequence", ())) != len(exam.request.source.requests):
        yield "Referenced Request Sequence does not hold the requests of the source"
    named = {str(item.get("ReferencedSOPInstanceUID")) for item in _descend(dataset, "PredecessorDocumentsSequence")}
    predecessor = exam.request.predecessor
    if predecessor is not None and predecessor.sop_instance_uid not in named:
        yield f"Predecessor Documents Sequence does not name {predecessor.sop_instance_uid}"


def _root(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    if _name(dataset) != ("126000", "DCM"):
        yield f"title is {_name(dataset)}, not Imaging Measurement Report (126000, DCM)"
    template = dataset.get("ContentTemplateSequence") or [Dataset()]
    if (template[0].get("TemplateIdentifier"), template[0].get("MappingResource")) != ("1500", "DCMR"):
        yield "root does not name template 1500 of DCMR"
    names = [_name(item) for item in dataset.ContentSequence]
    for name, meaning in (
        (("121049", "DCM"), "language"),
        (("121005", "DCM"), "observer type"),
        (("121058", "DCM"), "procedure reported"),
        (("111028", "DCM"), "image library"),
        (("126010", "DCM"), "imaging measurements"),
    ):
        if name not in names:
            yield f"has no {meaning}"
    observers = [item.get("UID") for item in dataset.ContentSequence if _name(item) == ("121012", "DCM")]
    if observers != [device_uid(exam.request.contract)]:
        yield f"device observer UID is {observers}, not the model's"
    for item in _items(dataset):
        known = _MEANINGS.get(_name(item))
        if known is not None and item.ConceptNameCodeSequence[0].get("CodeMeaning") != known:
            yield f"{_name(item)} is not called {known!r}"


def _library(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    libraries = [item for item in dataset.ContentSequence if _name(item) == ("111028", "DCM")]
    listed = Counter(
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for library in libraries
        for item in _items(library)
        if item.get("ValueType") == "IMAGE"
    )
    if listed != Counter(exam.request.source.sop_instance_uids):
        yield f"image library lists {listed.total()} images and not each of {len(exam.request.source.instances)} once"


def _evidence(_: _Exam, __: str, dataset: Dataset) -> Iterator[str]:
    held = {
        str(instance.ReferencedSOPInstanceUID)
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in dataset.get(keyword, ())
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    for item in _items(dataset):
        for reference in item.get("ReferencedSOPSequence", ()):
            if str(reference.ReferencedSOPInstanceUID) not in held:
                yield f"refers to {reference.ReferencedSOPInstanceUID}, which is not in evidence"


def _coordinates(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    """Check 2-D regions: inside their image (0,0 is the top left corner of the top left pixel), polygons closed."""
    rows, columns = exam.request.analysis.drawn[1].shape[1:]
    for item in _items(dataset):
        if item.get("ValueType") != "SCOORD":
            continue
        points = np.array(item.GraphicData, float).reshape(-1, 2)
        if (points < 0).any() or (points > [columns, rows]).any():
            yield f"SCOORD leaves its image of {rows} rows and {columns} columns"
        if item.GraphicType == "POLYLINE" and not np.array_equal(points[0], points[-1]):
            yield "SCOORD polyline is not closed"


def _groups(exam: _Exam, _: str, dataset: Dataset) -> Iterator[str]:
    analysis = exam.request.analysis
    found = [
        group
        for container in dataset.ContentSequence
        if _name(container) == ("126010", "DCM")
        for group in container.get("ContentSequence", ())
        if _name(group) == ("125007", "DCM")
    ]
    expected = [
        (segment, finding) for segment in analysis.segments for finding in sr.findings_of(exam.request, segment)
    ]
    if len(found) != len(expected):
        yield f"{len(found)} measurement groups for {len(expected)} findings"
        return
    tracking = Counter(str(item.get("UID")) for group in found for item in _named(group, ("112040", "DCM")))
    if tracking.total() != len(found) or any(count > 1 for count in tracking.values()):
        yield "tracking unique identifiers are absent or not unique"
    for number, (group, (segment, finding)) in enumerate(zip(found, expected, strict=True), 1):
        for failure in _group(exam, group, finding, segment):
            yield f"group {number}: {failure}"


def _group(exam: _Exam, group: Dataset, finding: Finding, segment: Segment) -> Iterator[str]:
    templates = group.get("ContentTemplateSequence") or [Dataset()]
    if templates[0].get("TemplateIdentifier") != "1411":
        yield "does not name template 1411"
    identifiers = [str(item.get("TextValue")) for item in _named(group, ("112039", "DCM"))]
    if identifiers != [segment.tracking_id]:
        yield f"tracking identifier is {identifiers}, not the segment's"
    first = next(iter(sr.findings_of(exam.request, segment)))
    uids = [str(item.get("UID")) for item in _named(group, ("112040", "DCM"))]
    if finding is first and uids != [segment.tracking_uid]:
        yield f"tracking unique identifier is {uids}, not the segment's"
    if not any(_is_code(item.get("ConceptCodeSequence"), finding.code) for item in _named(group, ("121071", "DCM"))):
        yield f"Finding is not {finding.code}"
    contract = exam.request.contract
    for name, wanted in (("111001", contract.name), ("111003", contract.version)):
        if [str(item.get("TextValue")) for item in _named(group, (name, "DCM"))] != [wanted]:
            yield f"algorithm identification ({name}, DCM) is not {wanted!r}"
    yield from _referenced_segment(exam, group, segment)
    yield from _measurements(group, finding)


def _referenced_segment(exam: _Exam, group: Dataset, segment: Segment) -> Iterator[str]:
    images = [item.ReferencedSOPSequence[0] for item in _named(group, ("121191", "DCM"))]
    wanted = exam.objects.get(seg.KIND)
    if wanted is None or len(images) != 1 or str(images[0].ReferencedSOPInstanceUID) != wanted.sop_instance_uid:
        yield "does not refer to the SEG"
        return
    number = images[0].get("ReferencedSegmentNumber")
    if number != segment.number:
        yield f"refers to segment {number}, not {segment.number}"
    written = {item.SegmentNumber: item for item in exam.datasets[seg.KIND].get("SegmentSequence", ())}
    if number not in written or not _is_code(written[number].get("SegmentedPropertyTypeCodeSequence"), segment.type):
        yield f"segment {number} is not in the SEG as {segment.type}"


def _measurements(group: Dataset, finding: Finding) -> Iterator[str]:
    numbers = [item for item in group.ContentSequence if item.get("ValueType") == "NUM"]
    if len(numbers) != len(finding.measurements):
        yield f"{len(numbers)} numbers for {len(finding.measurements)} measurements"
        return
    for item, measurement in zip(numbers, finding.measurements, strict=True):
        if not _is_code(item.get("ConceptNameCodeSequence"), measurement.name):
            yield f"number is not called {measurement.name}"
        derived = [each.get("ConceptCodeSequence") for each in _named(item, _DERIVATION)]
        wanted = measurement.derivation
        if len(derived) != (wanted is not None) or any(wanted and not _is_code(each, wanted) for each in derived):
            yield f"number of {measurement.name} is not said to be {wanted or 'the number itself'}"
        values = item.get("MeasuredValueSequence") or [Dataset()]
        text = str(getattr(values[0].get("NumericValue"), "original_string", values[0].get("NumericValue")))
        unit = values[0].get("MeasurementUnitsCodeSequence")
        if measurement.unit.scheme != "UCUM" or not _is_code(unit, measurement.unit):
            yield f"unit of {measurement.name} is not {measurement.unit} of UCUM"
        if len(text) > _LONGEST_DS or not _is_finite(text):
            yield f"value {text!r} of {measurement.name} is not a finite decimal string of at most 16 characters"
        elif measurement.value is None or not math.isclose(
            float(text), measurement.value, rel_tol=10.0 ** (1 - REPORTED_DIGITS)
        ):
            yield f"value {text} of {measurement.name} is not the measured {measurement.value}"


# Reading content trees


def _items(item: Dataset) -> Iterator[Dataset]:
    """Yield a content item and all below it."""
    yield item
    for child in item.get("ContentSequence", ()):
        yield from _items(child)


def _named(group: Dataset, name: tuple[str, str]) -> Iterator[Dataset]:
    return (item for item in group.get("ContentSequence", ()) if _name(item) == name)


def _name(item: Dataset) -> tuple[str, str]:
    for code in item.get("ConceptNameCodeSequence", ()):
        return str(code.get("CodeValue")), str(code.get("CodingSchemeDesignator"))
    return "", ""


def _descend(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    """Yield the instance references of a study - series - instance hierarchy (PS3.3 C.17.2.1)."""
    for study in dataset.get(keyword, ()):
        for series in study.ReferencedSeriesSequence:
            yield from series.ReferencedSOPSequence


def _is_code(items: Any, code: Code) -> bool:
    return bool(items) and (
        str(items[0].get("CodeValue")),
        str(items[0].get("CodingSchemeDesignator")),
        str(items[0].get("CodeMeaning")),
    ) == (code.value, code.scheme, code.meaning)


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_uid(uid: str) -> bool:
    return re.match(RE_VALID_UID, uid) is not None


class _Check(Protocol):
    """One question to an object: yields what is wrong with it."""

    __name__: str

    def __call__(self, exam: _Exam, kind: str, dataset: Dataset, /) -> Iterator[str]: ...


_COMMON_CHECKS: tuple[_Check, ...] = (
    _encoding,
    _required,
    _patient_and_study,
    _identifiers,
    _equipment,
    _references,
)
_CHECKS: Mapping[str, tuple[_Check, ...]] = {
    seg.KIND: (_grid, _frames, _dimensions, _segments, _referenced_series),
    sr.KIND: (_flags, _root, _library, _evidence, _coordinates, _groups),
}
