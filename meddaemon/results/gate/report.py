"""What a measurement report is asked: document, content tree, groups, numbers (PS3.16 TID 1500)."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, ExplicitVRLittleEndian

from meddaemon.domain.codes import Code
from meddaemon.domain.outlet import ObjectKind, ReportForm
from meddaemon.domain.result import EncodedObject, Finding, ResultStatus, Segment, reported
from meddaemon.results import report
from meddaemon.results.envelope import device_serial_number
from meddaemon.results.gate.exam import Check, Exam, requests
from meddaemon.results.gate.frames import frame_table
from meddaemon.results.gate.tree import instances_in, is_code, items_of, name_of, named, shape
from meddaemon.results.identity import MANUFACTURER, RESEARCH_MARK, device_uid
from meddaemon.results.report import Part
from meddaemon.results.report.content import Entry, presence, summary
from meddaemon.results.source import is_waveform

ENGLISH = Code(value="en-US", scheme="RFC5646", meaning="English (United States)")
_LONGEST_DS = 16  # characters of VR DS (PS3.5 Table 6.2-1)
_DERIVATION = ("121401", "DCM")
_TOLERANCE_PIXELS = 1e-3  # coordinates are written in single precision

_TEMPLATES: Mapping[str, str] = {
    Part.VOLUMES: "1411",
    Part.BOXES: "1410",
    Part.CLASSES: "1501",
    Part.AREAS: "1410",
}
SOP_CLASSES: Mapping[str, str] = {
    ReportForm.COMPREHENSIVE_3D: Comprehensive3DSRStorage,
    ReportForm.COMPREHENSIVE: ComprehensiveSRStorage,
}

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


def _transfer_syntax(_: Exam, encoded: EncodedObject, __: Dataset) -> Iterator[str]:
    if encoded.transfer_syntax_uid != ExplicitVRLittleEndian:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {ExplicitVRLittleEndian}"


def _name(exam: Exam, encoded: EncodedObject, _: Dataset) -> Iterator[str]:
    """Check that the document is what it is called, and that all are there: what nobody sees missing is lost."""
    form = encoded.edition.rpartition("/")[2]
    if encoded.sop_class_uid != SOP_CLASSES.get(form):
        yield f"SOPClassUID {encoded.sop_class_uid} is not that of the form {form!r}"
    documents = [each for each in exam.objects if each.kind == ObjectKind.SR]
    if encoded is not documents[0]:
        return
    segs = [each for each in exam.objects if each.kind == ObjectKind.SEG]
    wanted = set()
    for part in report.parts_of(exam.request, segmented=bool(segs)):
        for edition in exam.request.editions:
            if part not in report.ON_SEGMENTS:
                wanted.add((str(part), str(edition.report)))
            for seg in segs if part in report.ON_SEGMENTS else ():
                if seg.edition in edition.parts:
                    wanted.add((str(part), report.edition_of(seg, edition.report)))
    found = {(each.part, each.edition) for each in documents}
    for missing in sorted(wanted - found):
        yield f"there is no report {' '.join(missing)}"
    for unasked in sorted(found - wanted):
        yield f"there is a report {' '.join(unasked)} that nothing asks for"


def _flags(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    analysis = exam.request.analysis
    plausible = analysis.status is ResultStatus.PLAUSIBLE
    wanted = {
        "Modality": "SR",
        "VerificationFlag": "UNVERIFIED",
        "PreliminaryFlag": "PRELIMINARY",
        "CompletionFlag": "COMPLETE" if plausible else "PARTIAL",
    }
    if not plausible and not dataset.get("CompletionFlagDescription"):
        yield "Completion Flag Description does not say why it is partial"
    for keyword, value in wanted.items():
        if dataset.get(keyword) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value}"
    yield from requests(exam, dataset)
    before = instances_in(dataset, "PredecessorDocumentsSequence")
    named_before = {str(item.get("ReferencedSOPInstanceUID")) for item in before}
    documents = [each for each in exam.objects if each.kind == ObjectKind.SR]
    succession = report.replaced([(each.part, each.edition) for each in documents], exam.request.predecessors)
    replaced = {each.sop_instance_uid for each in succession[documents.index(encoded)]}
    for uid in sorted(replaced ^ named_before):
        yield f"Predecessor Documents Sequence {'names' if uid in named_before else 'does not name'} {uid}"


def _root(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    if name_of(dataset) != ("126000", "DCM"):
        yield f"title is {name_of(dataset)}, not Imaging Measurement Report (126000, DCM)"
    template = dataset.get("ContentTemplateSequence") or [Dataset()]
    if (template[0].get("TemplateIdentifier"), template[0].get("MappingResource")) != ("1500", "DCMR"):
        yield "root does not name template 1500 of DCMR"
    names = [name_of(item) for item in dataset.ContentSequence]
    for name, meaning in (
        (("121049", "DCM"), "language"),
        (("121005", "DCM"), "observer type"),
        (("121058", "DCM"), "procedure reported"),
        (("111028", "DCM"), "image library"),
        (("126010", "DCM"), "imaging measurements"),
    ):
        # A waveform has no place in a library of images.
        if name not in names and (meaning != "image library" or _images_of(exam)):
            yield f"has no {meaning}"
    yield from shape(dataset)
    contract = exam.request.contract
    for value, meaning, wanted in (
        ("121012", "UID", device_uid(contract)),
        ("121013", "name", contract.title),
        ("121014", "manufacturer", contract.manufacturer or MANUFACTURER),
        ("121015", "model name", contract.name),
        ("121016", "serial number", device_serial_number(exam.request)),
    ):
        said = [str(item.get("UID", item.get("TextValue"))) for item in named(dataset, (value, "DCM"))]
        if [each.rstrip() for each in said] != [wanted.rstrip()]:
            yield f"device observer {meaning} is {said}, not the model's"
    if not all(is_code(item.get("ConceptCodeSequence"), ENGLISH) for item in named(dataset, ("121049", "DCM"))):
        yield f"language is not {ENGLISH}"
    for item in items_of(dataset):
        known = _MEANINGS.get(name_of(item))
        if known is not None and item.ConceptNameCodeSequence[0].get("CodeMeaning") != known:
            yield f"{name_of(item)} is not called {known!r}"


def _library(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    libraries = [item for item in dataset.ContentSequence if name_of(item) == ("111028", "DCM")]
    listed = Counter(
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for library in libraries
        for item in items_of(library)
        if item.get("ValueType") == "IMAGE"
    )
    frames = {str(each.get("UID")) for library in libraries for each in items_of(library) if "UID" in each}
    if frames - {series.frame_of_reference_uid for series in exam.request.source.inputs}:
        yield "image library names a frame of reference that no input has"
    images = _images_of(exam)
    if listed != Counter(images):
        yield f"image library lists {listed.total()} images and not each of {len(images)} once"


def _images_of(exam: Exam) -> list[str]:
    """Return the SOP Instance UIDs of the images among the inputs."""
    instances = [each for series in exam.request.source.inputs for each in series.instances]
    return [str(each.SOPInstanceUID) for each in instances if not is_waveform(each)]


def _evidence(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    held = {
        str(instance.ReferencedSOPInstanceUID)
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in dataset.get(keyword, ())
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    for series in exam.request.source.inputs:
        if missing := set(series.sop_instance_uids) - held:
            yield f"{len(missing)} of {len(series.instances)} instances of an input are not in evidence"
    for item in items_of(dataset):
        for reference in item.get("ReferencedSOPSequence", ()):
            if str(reference.ReferencedSOPInstanceUID) not in held:
                yield f"refers to {reference.ReferencedSOPInstanceUID}, which is not in evidence"


def _coordinates(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check 2-D regions: inside their image (0,0 is the top left corner of the top left pixel), polygons closed."""
    images = {str(each.SOPInstanceUID): each for each in exam.request.source.instances}
    for item in items_of(dataset):
        if item.get("ValueType") != "SCOORD":
            continue
        (reference,) = [each.ReferencedSOPSequence[0] for each in item.get("ContentSequence", ())] or [Dataset()]
        image = images.get(str(reference.get("ReferencedSOPInstanceUID")))
        if image is None:
            yield "SCOORD is not selected from an image of the source"
            image = exam.request.source.instances[0]
        points = np.array(item.GraphicData, float).reshape(-1, 2)
        if (points < 0).any() or (points > [image.Columns, image.Rows]).any():
            yield f"SCOORD leaves its image of {image.Rows} rows and {image.Columns} columns"
        if item.GraphicType == "POLYLINE" and not np.array_equal(points[0], points[-1]):
            yield "SCOORD polyline is not closed"


def _groups(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    found = [
        group
        for container in dataset.ContentSequence
        if name_of(container) == ("126010", "DCM")
        for group in container.get("ContentSequence", ())
        if name_of(group) == ("125007", "DCM")
    ]
    segmented = any(each.kind == ObjectKind.SEG for each in exam.objects)
    expected: Sequence[Entry] = report.parts_of(exam.request, segmented=segmented).get(Part(encoded.part), ())
    if len(found) != len(expected):
        yield f"{len(found)} measurement groups for {len(expected)} findings"
        return
    tracking = Counter(str(item.get("UID")) for group in found for item in named(group, ("112040", "DCM")))
    if tracking.total() != len(found) or any(count > 1 for count in tracking.values()):
        yield "tracking unique identifiers are absent or not unique"
    for number, (group, entry) in enumerate(zip(found, expected, strict=True), 1):
        for failure in _group(exam, encoded, group, entry):
            yield f"group {number}: {failure}"


def _group(exam: Exam, encoded: EncodedObject, group: Dataset, entry: Entry) -> Iterator[str]:
    templates = group.get("ContentTemplateSequence") or [Dataset()]
    if templates[0].get("TemplateIdentifier") != _TEMPLATES[encoded.part]:
        yield f"does not name template {_TEMPLATES[encoded.part]}"
    finding, segment = entry.finding, entry.segment
    identifiers = [str(item.get("TextValue")) for item in named(group, ("112039", "DCM"))]
    if identifiers != [entry.tracking_id]:
        yield f"tracking identifier is {identifiers}, not that of the finding"
    uids = [str(item.get("UID")) for item in named(group, ("112040", "DCM"))]
    own = segment if segment is not None and encoded.part == Part.VOLUMES else None
    first = own is not None and finding == report.findings_of(exam.request, own)[0]
    wanted_uid = own.tracking_uid if own is not None and first else entry.tracking_uid
    if uids != [wanted_uid]:
        yield f"tracking unique identifier is {uids}, not that of the finding"
    if not any(is_code(item.get("ConceptCodeSequence"), finding.code) for item in named(group, ("121071", "DCM"))):
        yield f"Finding is not {finding.code}"
    contract = exam.request.contract
    for name, wanted in (
        ("111001", [contract.name]),
        ("111003", [contract.version]),
        ("122405", [contract.manufacturer.rstrip()] if contract.manufacturer else []),
    ):
        if [str(item.get("TextValue")).rstrip() for item in named(group, (name, "DCM"))] != wanted:
            yield f"algorithm identification ({name}, DCM) is not {wanted}"
    parameters = " ".join(str(item.get("TextValue")) for item in named(group, ("111002", "DCM")))
    if contract.digest not in parameters or (contract.weights_digest or "") not in parameters:
        yield "algorithm parameters (111002, DCM) do not name the model and its weights"
    yield from _judged(exam, group, finding)
    yield from _laterality(group, (segment or finding).laterality)
    yield from _measurements(group, finding)
    if encoded.part == Part.VOLUMES and segment is not None:
        yield from _referenced_segment(exam, encoded, group, segment)
    elif encoded.part == Part.AREAS and segment is not None:
        yield from _referenced_frame(exam, encoded, group, segment, finding)
    elif encoded.part == Part.BOXES:
        yield from _region(exam, group, finding)
    else:
        yield from _about(exam, group, finding)


def _judged(exam: Exam, group: Dataset, finding: Finding) -> Iterator[str]:
    """Check whether something is said to be there, what became of the run, and that nobody may take it for more."""
    for name, wanted in (
        (("705057003", "SCT"), presence(finding, exam.request)),
        (("111017", "DCM"), summary(exam.request)),
    ):
        said = [each.get("ConceptCodeSequence") for each in named(group, name)]
        if len(said) != (wanted is not None) or any(wanted and not is_code(each, wanted) for each in said):
            yield f"({', '.join(name)}) is not {wanted or 'left out'}"
    analysis = exam.request.analysis
    comments = " ".join(str(item.get("TextValue")) for item in named(group, ("121106", "DCM")))
    if RESEARCH_MARK not in comments:
        yield f"has no comment {RESEARCH_MARK!r}"
    if analysis.status is not ResultStatus.PLAUSIBLE and analysis.reason not in comments:
        yield "does not say why it is not to be believed"
    # Nobody could look: a number would be made up.
    if not analysis.status.is_answer and any(item.ValueType == "NUM" for item in group.ContentSequence):
        yield "has a number, but nothing was evaluated"


def _laterality(group: Dataset, wanted: Code | None) -> Iterator[str]:
    said = [
        modifier.get("ConceptCodeSequence")
        for site in named(group, ("363698007", "SCT"))
        for modifier in named(site, ("272741003", "SCT"))
    ]
    if len(said) != (wanted is not None) or any(wanted and not is_code(each, wanted) for each in said):
        yield f"laterality is not {wanted or 'left out'}"


def _region(exam: Exam, group: Dataset, finding: Finding) -> Iterator[str]:
    """Hold a region against the box or landmark: on its image, on its frame, on its pixels."""
    place = exam.request.analysis.location(finding)
    regions = list(named(group, ("111030", "DCM")))
    if place is None or len(regions) != 1 or regions[0].get("ValueType") != "SCOORD":
        yield f"{len(regions)} regions for one finding"
        return
    reference = regions[0].ContentSequence[0].ReferencedSOPSequence[0]
    yield from _image(exam, reference, (place.sop_instance_uid, place.frame_number))
    images = [each for each in exam.request.source.instances if each.SOPInstanceUID == place.sop_instance_uid]
    points = np.array(regions[0].GraphicData, float).reshape(-1, 2)
    # Pixels are counted by their centres here, and by their corners there.
    corners = [
        np.clip(np.array(corner[-2:], float) + 0.5, 0, (images[0].Rows, images[0].Columns))[::-1]
        for corner in (place.low, place.high)
    ]
    if (regions[0].GraphicType == "POINT") != (finding.landmark is not None):
        yield f"region is a {regions[0].GraphicType}"
    if np.abs([points.min(axis=0) - corners[0], points.max(axis=0) - corners[1]]).max() > _TOLERANCE_PIXELS:
        yield f"region does not lie on rows {place.low[-2]:g} to {place.high[-2]:g} and their columns"
    if finding.box is not None and len({tuple(point) for point in points.tolist()}) != len(
        {(x, y) for x in points[:, 0] for y in points[:, 1]}
    ):
        yield "region is no box"


def _about(exam: Exam, group: Dataset, finding: Finding) -> Iterator[str]:
    """Hold the images that a group is about against those of the finding."""
    sources = list(named(group, ("121112", "DCM")))
    images = [item.ReferencedSOPSequence[0] for item in sources if item.get("ValueType") == "IMAGE"]
    waveforms = {str(each.SOPInstanceUID) for each in exam.request.source.instances if is_waveform(each)}
    if finding.source is not None and finding.source[0] in waveforms:
        said = {item.get("TextValue") for item in named(group, ("121106", "DCM"))}
        if images or f"Waveform: {finding.source[0]}" not in said:
            yield f"does not say in words that it is about waveform {finding.source[0]}"
        return
    if len(images) != (finding.source is not None):
        yield f"is about {len(images)} images, not {'one' if finding.source else 'all'}"
    for reference in images:
        yield from _image(exam, reference, finding.source or ("", 0))


def _image(exam: Exam, reference: Dataset, wanted: tuple[str, int]) -> Iterator[str]:
    uid, number = wanted
    if str(reference.get("ReferencedSOPInstanceUID")) != uid:
        yield f"lies on image {reference.get('ReferencedSOPInstanceUID')}, not {uid}"
    images = [each for each in exam.request.source.instances if str(each.SOPInstanceUID) == uid]
    frame = reference.get("ReferencedFrameNumber")
    if any((number if int(image.get("NumberOfFrames") or 1) > 1 else None) != frame for image in images):
        yield f"lies on frame {frame}, not {number}"


def _referenced_segment(exam: Exam, encoded: EncodedObject, group: Dataset, segment: Segment) -> Iterator[str]:
    images = [item.ReferencedSOPSequence[0] for item in named(group, ("121191", "DCM"))]
    wanted = exam.referred(ObjectKind.SEG, encoded)
    if wanted is None or len(images) != 1 or str(images[0].ReferencedSOPInstanceUID) != wanted.sop_instance_uid:
        yield "does not refer to the SEG"
        return
    series = [str(item.get("UID")) for item in named(group, ("121232", "DCM"))]
    if series != [exam.request.source.series_instance_uid]:
        yield f"source series for segmentation is {series}, not that of the volume"
    number = images[0].get("ReferencedSegmentNumber")
    if number != segment.number:
        yield f"refers to segment {number}, not {segment.number}"
    written = {item.SegmentNumber: item for item in exam.datasets[wanted.name].get("SegmentSequence", ())}
    if number not in written or not is_code(written[number].get("SegmentedPropertyTypeCodeSequence"), segment.type):
        yield f"segment {number} is not in the SEG as {segment.type}"


def _referenced_frame(
    exam: Exam, encoded: EncodedObject, group: Dataset, segment: Segment, finding: Finding
) -> Iterator[str]:
    """Hold what a group refers to in the SEG against the segment, and the picture, of its finding."""
    wanted, about = exam.referred(ObjectKind.SEG, encoded), finding.source or ("", 0)
    shown = [item.ReferencedSOPSequence[0] for item in named(group, ("121214", "DCM"))]
    sources = [item.ReferencedSOPSequence[0] for item in named(group, ("121233", "DCM"))]
    if wanted is None or [str(each.ReferencedSOPInstanceUID) for each in shown] != [wanted.sop_instance_uid]:
        yield "does not refer to the SEG"
        return
    if len(sources) != 1:
        yield f"names {len(sources)} images, not the one that its segment is on"
    for each in sources:
        yield from _image(exam, each, about)
    frames = frame_table(exam, wanted.name)
    if (said := (shown[0].get("ReferencedFrameNumber"), shown[0].get("ReferencedSegmentNumber"))).count(None) != 1:
        yield f"refers to frame and segment {said}, not to one of both"
    elif not frames.segments.any():
        if said[1] != segment.number or about not in frames.sources:
            yield f"refers to segment {said[1]}, not {segment.number}"
    elif said[0] is None or not 1 <= said[0] <= len(frames):
        yield f"refers to frame {said[0]} of {len(frames)}"
    elif (frames.sources[said[0] - 1], frames.segments[said[0] - 1]) != (about, segment.number):
        yield f"refers to frame {said[0]}, which does not show segment {segment.number} on {about}"


def _measurements(group: Dataset, finding: Finding) -> Iterator[str]:
    numbers = [item for item in group.ContentSequence if item.get("ValueType") == "NUM"]
    # What could not be measured is no number: readers take one without value for an error, or for zero.
    measured = [each for each in finding.measurements if each.value is not None]
    if len(numbers) != len(measured):
        yield f"{len(numbers)} numbers for {len(measured)} measurements"
        return
    for item, measurement in zip(numbers, measured, strict=True):
        if not is_code(item.get("ConceptNameCodeSequence"), measurement.name):
            yield f"number is not called {measurement.name}"
        derived = [each.get("ConceptCodeSequence") for each in named(item, _DERIVATION)]
        wanted = measurement.derivation
        if len(derived) != (wanted is not None) or any(wanted and not is_code(each, wanted) for each in derived):
            yield f"number of {measurement.name} is not said to be {wanted or 'the number itself'}"
        values = item.get("MeasuredValueSequence") or [Dataset()]
        text = str(getattr(values[0].get("NumericValue"), "original_string", values[0].get("NumericValue")))
        unit = values[0].get("MeasurementUnitsCodeSequence")
        if measurement.unit.scheme != "UCUM" or not is_code(unit, measurement.unit):
            yield f"unit of {measurement.name} is not {measurement.unit} of UCUM"
        if len(text) > _LONGEST_DS or not _is_finite(text):
            yield f"value {text!r} of {measurement.name} is not a finite decimal string of at most 16 characters"
        elif measurement.value is None or float(text) != reported(measurement.value):
            yield f"value {text} of {measurement.name} is not the measured {measurement.value}"
        elif values[0].get("FloatingPointValue", float(text)) != float(text):
            yield f"value {text} of {measurement.name} is {values[0].FloatingPointValue} as a floating point number"


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


CHECKS: tuple[Check, ...] = (_transfer_syntax, _name, _flags, _root, _library, _evidence, _coordinates, _groups)
"""What a report after TID 1500 is asked."""
