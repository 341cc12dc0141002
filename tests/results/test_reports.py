"""Every kind of answer is a document that says what the analysis says: also that there is nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from dicom_factory import make_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from reported_samples import (
    BOX,
    CLASSES,
    DRAWN,
    SAMPLES,
    classified,
    detected_in_volume,
    detected_on_picture,
    drawn_on_pictures,
    each_classified,
    marked,
    not_evaluated,
    nothing_detected,
    request_of,
    scored,
    sources_of,
    unbelievable,
)
from result_samples import BRAIN, KIDNEY, analysis_of, ball, geometry_of, request_for

from meddaemon.domain.outlet import EDITIONS, Edition, ReportForm, SegmentationForm, go_together
from meddaemon.domain.result import EncodedObject, Location, ResultStatus
from meddaemon.results.encoding import EncodingRequest, ObjectReference, encode
from meddaemon.results.gate import check
from meddaemon.results.report import encode as write_reports
from meddaemon.results.report import measured_value, replaced
from meddaemon.results.report.groups import outline

BOTH = (Edition(), Edition(report=ReportForm.COMPREHENSIVE))


def read(encoded: EncodedObject) -> hd.sr.Comprehensive3DSR:
    return hd.sr.Comprehensive3DSR.from_dataset(dcmread(BytesIO(encoded.content)))


def report(request: EncodingRequest, part: str) -> hd.sr.Comprehensive3DSR:
    (found,) = [each for each in encode(request) if each.part == part]
    return read(found)


def groups(document: hd.sr.Comprehensive3DSR) -> list[Dataset]:
    found = {each.ConceptNameCodeSequence[0].CodeValue: each for each in document.ContentSequence}
    return list(found["126010"].ContentSequence)


def coded(group: Dataset, name: str) -> list[str]:
    """The values of the codes, or texts, of that name in a group."""
    found = [each for each in group.ContentSequence if each.ConceptNameCodeSequence[0].CodeValue == name]
    return [
        str(each.ConceptCodeSequence[0].CodeMeaning if "ConceptCodeSequence" in each else each.TextValue)
        for each in found
    ]


def numbers(group: Dataset) -> list[tuple[str, float, str]]:
    return [
        (
            each.ConceptNameCodeSequence[0].CodeMeaning,
            float(each.MeasuredValueSequence[0].NumericValue),
            each.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for each in group.ContentSequence
        if each.ValueType == "NUM"
    ]


def test_each_class_is_told_of_whether_it_is_there_how_sure_and_from_where_on(tmp_path: Path) -> None:
    request = classified(tmp_path)
    document = report(request, "classes")
    found = document.content.get_image_measurement_groups()
    assert [each.finding_type.meaning for each in found] == ["Pneumonia", "Pneumothorax"]
    assert [coded(each, "705057003") for each in groups(document)] == [["Present"], ["Absent"]]
    assert [numbers(each) for each in groups(document)] == [
        [("Certainty of Finding", 93.5, "%")],
        [("Certainty of Finding", 2.25, "%")],
    ]
    assert ["threshold: 0.5" in coded(each, "111002") for each in groups(document)] == [True, False]
    assert "threshold: 0.4" in coded(groups(document)[1], "111002")
    assert not any(coded(each, "111017") for each in groups(document))
    assert document.CompletionFlag == "COMPLETE"
    assert [each.tracking_uid for each in found] == [each.tracking_uid for each in request.analysis.findings]


def test_what_is_said_of_one_picture_names_it(tmp_path: Path) -> None:
    request = each_classified(tmp_path)
    found = report(request, "classes").content.get_image_measurement_groups()
    named = [each.source_images[0].referenced_sop_instance_uid for each in found]
    assert named == [each.source[0] for each in request.analysis.findings]
    assert len(set(named)) == 2


def test_a_number_of_a_code_of_its_own_says_whose_code_that_is(tmp_path: Path) -> None:
    document = report(scored(tmp_path), "classes")
    assert [numbers(each) for each in groups(document)] == [
        [("Current chronological age", 31.25, "a")],
        [("Shape index", 0.75, "1")],
    ]
    assert not any(coded(each, "705057003") for each in groups(document))
    (scheme,) = document.CodingSchemeIdentificationSequence
    assert (scheme.CodingSchemeDesignator, scheme.CodingSchemeResponsibleOrganization) == ("99ACME", "deepbet")
    assert "CodingSchemeIdentificationSequence" not in report(classified(tmp_path / "other"), "classes")


def covered(points: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Which pixels have their centre in a rectangle whose (column, row) begin at the corner of the first pixel."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    row, column = np.arange(rows) + 0.5, np.arange(columns) + 0.5
    return np.outer((top <= row) & (row <= bottom), (left <= column) & (column <= right))


def test_a_known_box_lies_on_the_pixels_that_were_planted(tmp_path: Path) -> None:
    planted = np.zeros((12, 10), bool)
    planted[2:7, 3:9] = True
    request = detected_on_picture(tmp_path)
    (group,) = report(request, "boxes").content.get_planar_roi_measurement_groups()
    np.testing.assert_array_equal(covered(group.roi.value, 12, 10), planted)
    assert group.roi.graphic_type is hd.sr.GraphicTypeValues.POLYLINE
    image = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
    assert image.ReferencedSOPInstanceUID == request.analysis.findings[0].box.source[0]
    assert "ReferencedFrameNumber" not in image


def test_a_box_in_a_volume_is_shown_on_the_plane_of_its_centre_and_cut_to_its_image(tmp_path: Path) -> None:
    request = detected_in_volume(tmp_path)
    document = report(request, "boxes")
    found = document.content.get_planar_roi_measurement_groups()
    assert [each.finding_type.meaning for each in found] == ["Nodule", "Nodule", "Cyst"]
    uids = request.analysis.geometry.sop_instance_uids
    shown = [each.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID for each in found]
    assert shown[0] == uids[2]
    np.testing.assert_allclose(found[1].roi.value, [[4.6, 0], [10, 0], [10, 5.8], [4.6, 5.8], [4.6, 0]], atol=1e-5)
    # Where the first box begins in the patient: half a voxel before the centre of plane 1, row 2, column 3.
    x, y, z = request.analysis.geometry.point(0.5, 1.5, 2.5)
    (where,) = [each for each in coded(groups(document)[0], "121106") if each.startswith("In the patient")]
    assert f"{x:.1f} {y:.1f} {z:.1f} to " in where


def test_a_landmark_is_a_point_in_the_middle_of_its_pixel(tmp_path: Path) -> None:
    request = marked(tmp_path)
    (group,) = report(request, "boxes").content.get_planar_roi_measurement_groups()
    assert group.roi.graphic_type is hd.sr.GraphicTypeValues.POINT
    np.testing.assert_allclose(group.roi.value, [[7.5, 4.5]])


@given(
    st.tuples(st.floats(-20, 40), st.floats(-20, 40)),
    st.tuples(st.floats(0.1, 30), st.floats(0.1, 30)),
)
@settings(deadline=None)
def test_an_outline_covers_the_pixels_whose_centres_are_in_the_box(
    low: tuple[float, float], size: tuple[float, float]
) -> None:
    rows, columns = 12, 10
    high = (low[0] + size[0], low[1] + size[1])
    points = outline(Location(low=low, high=high, sop_instance_uid="1", frame_number=1), rows, columns)
    inside = np.outer(
        (low[0] <= np.arange(rows)) & (np.arange(rows) <= high[0]),
        (low[1] <= np.arange(columns)) & (np.arange(columns) <= high[1]),
    )
    # Adding a half rounds: a centre that lies on an edge to the last digit may be on either side of it.
    edges = np.abs(np.subtract.outer(np.array([*low, *high]), np.arange(-20, 80))).min()
    if edges > 1e-9:
        np.testing.assert_array_equal(covered(points, rows, columns), inside)
    assert (points[0] == points[-1]).all()
    assert (points >= 0).all()
    assert (points <= [columns, rows]).all()


def test_areas_on_pictures_are_told_of_each_picture(tmp_path: Path) -> None:
    request = drawn_on_pictures(tmp_path)
    there, absent = (report(request, part) for part in ("areas", "classes"))
    documents = (there, absent)
    assert [[numbers(each) for each in groups(it)] for it in documents] == [
        [[("Area", 6.0, "{pixels}")]],
        [[("Area", 0.0, "{pixels}")]],
    ]
    assert [[coded(each, "705057003") for each in groups(it)] for it in documents] == [[[]], [["Absent"]]]
    (area,) = there.content.get_planar_roi_measurement_groups()
    (nothing,) = absent.content.get_image_measurement_groups()
    assert [
        area.referenced_segmentation_frame[1].referenced_sop_instance_uid,
        nothing.source_images[0].referenced_sop_instance_uid,
    ] == [each.source[0] for each in request.analysis.findings]


def test_that_nothing_was_found_is_said(tmp_path: Path) -> None:
    document = report(nothing_detected(tmp_path), "classes")
    for group in groups(document):
        assert coded(group, "705057003") == ["Absent"]
        assert coded(group, "111017") == ["All algorithms succeeded; without findings"]
        assert numbers(group) == []
    assert document.CompletionFlag == "COMPLETE"


def test_an_empty_segment_is_absent_and_still_refers_to_it(tmp_path: Path) -> None:
    paths = make_series(tmp_path)
    geometry = geometry_of(paths)
    request = request_of(paths, DRAWN, {"labels": np.zeros(geometry.shape, np.uint8), "geometry": geometry})
    (group,) = groups(report(request, "volumes"))
    assert coded(group, "705057003") == ["Absent"]
    assert [each[1] for each in numbers(group)] == [0.0]
    assert any(each.ConceptNameCodeSequence[0].CodeValue == "121191" for each in group.ContentSequence)


def test_a_study_that_cannot_be_evaluated_has_a_document_without_a_number(tmp_path: Path) -> None:
    document = report(not_evaluated(tmp_path), "classes")
    (group,) = groups(document)
    assert coded(group, "121071") == ["Brain"]
    assert coded(group, "705057003") == ["Undetermined"]
    assert coded(group, "111017") == ["No algorithms succeeded; without findings"]
    assert numbers(group) == []
    assert any("12 planes are fewer than 30" in each for each in coded(group, "121106"))
    assert document.CompletionFlag == "PARTIAL"
    assert document.CompletionFlagDescription == "Not evaluable: 12 planes are fewer than 30"
    assert document.SeriesDescription.startswith("AI NOT EVALUABLE")


def test_an_implausible_number_is_told_and_marked_wherever_it_is_read(tmp_path: Path) -> None:
    document = report(unbelievable(tmp_path), "classes")
    assert document.CompletionFlag == "PARTIAL"
    assert document.SeriesDescription.startswith("AI IMPLAUSIBLE")
    for group in groups(document):
        assert any("Implausible: Current chronological age is 250 a" in each for each in coded(group, "121106"))
    assert numbers(groups(document)[0]) == [("Current chronological age", 250.0, "a")]


def test_a_segment_is_measured_without_a_segmentation_where_nobody_wants_one(tmp_path: Path) -> None:
    request = replace(request_for(make_series(tmp_path)), kinds=frozenset({"SR"}))
    (encoded,) = encode(request)
    assert (encoded.part, encoded.edition) == ("classes", "3d")
    ((_, value, unit),) = numbers(groups(read(encoded))[0])
    assert (value, unit) == (measured_value(request.analysis.findings[0].measurements[0]), "mL")


@pytest.mark.parametrize("name", SAMPLES)
def test_the_older_form_says_the_same_under_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    request = SAMPLES[name](tmp_path)
    newer = {each.part: each for each in encode(request) if each.kind == "SR"}
    both = [each for each in encode(replace(request, editions=BOTH)) if each.kind == "SR"]
    assert {each.sop_class_uid for each in newer.values()} == {"1.2.840.10008.5.1.4.1.1.88.34"}
    assert len(both) == 2 * len(newer)
    assert len({each.sop_instance_uid for each in both}) == len(both)
    assert [each for each in both if each.edition.endswith("3d")] == list(newer.values())
    for older in (each for each in both if each.edition.endswith("2d")):
        assert older.sop_class_uid == "1.2.840.10008.5.1.4.1.1.88.33"
        assert older.series_instance_uid != newer[older.part].series_instance_uid
        assert (
            dcmread(BytesIO(older.content)).ContentSequence
            == dcmread(BytesIO(newer[older.part].content)).ContentSequence
        )


def test_a_report_on_segments_is_of_the_edition_of_its_segmentation(tmp_path: Path) -> None:
    seg, newer, older = encode(replace(request_for(make_series(tmp_path)), editions=BOTH))
    assert (seg.edition, newer.edition, older.edition) == ("binary", "binary/3d", "binary/2d")
    assert all(each.edition in Edition().parts or not go_together(each.edition, "3d") for each in (seg, newer, older))
    assert older.edition not in Edition(segmentation=SegmentationForm.LABELMAP).parts


def test_a_segmentation_that_is_in_every_edition_has_reports_that_are_in_those_of_their_form(tmp_path: Path) -> None:
    """Segments that overlap can be written in one form only, whatever is asked for."""
    request = replace(request_for(make_series(tmp_path)), editions=EDITIONS)
    seg = replace(encode(request)[0], edition="")
    documents = list(write_reports(request, [seg]))
    assert [each.edition for each in documents] == ["3d", "2d"]
    check([seg, *documents], request)


def former(part: str, edition: str) -> ObjectReference:
    uid = f"2.25.{sum(map(ord, part + edition))}"
    return ObjectReference(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance_uid=uid,
        series_instance_uid=f"{uid}.1",
        part=part,
        edition=edition,
    )


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        (["boxes 3d", "classes 3d"], ["boxes 3d", "classes 3d"], [["boxes 3d"], ["classes 3d"]]),
        (["boxes 3d", "classes 3d"], ["classes 3d"], [["boxes 3d", "classes 3d"]]),
        (["volumes binary/3d", "volumes binary/2d"], ["classes 3d", "classes 2d"], [[0], [1]]),
        (["classes 3d"], ["volumes binary/3d"], [[0]]),
        (["classes 2d"], ["classes 3d"], [[0]]),
        (["volumes binary/3d"], ["volumes labelmap/3d"], [[0]]),
        ([], ["classes 3d"], [[]]),
    ],
)
def test_a_document_that_is_gone_is_named_by_the_one_that_took_its_place(
    before: list[str], now: list[str], named: list[list[str | int]]
) -> None:
    formers = [former(*each.split()) for each in before]
    found = replaced([(part, edition) for part, edition in (each.split() for each in now)], formers)
    assert [[f"{each.part} {each.edition}" for each in of_one] for of_one in found] == [
        [before[each] if isinstance(each, int) else each for each in of_one] for of_one in named
    ]


def test_the_documents_that_are_replaced_are_named_in_them(tmp_path: Path) -> None:
    formers = (former("boxes", "3d"), former("volumes", "binary/3d"), former("classes", "2d"))
    boxes, classes = encode(replace(detected_on_picture(tmp_path), predecessors=formers))
    named = {}
    for each in (boxes, classes):
        items = dcmread(BytesIO(each.content)).get("PredecessorDocumentsSequence", ())
        named[each.part] = {
            instance.ReferencedSOPInstanceUID
            for study in items
            for series in study.ReferencedSeriesSequence
            for instance in series.ReferencedSOPSequence
        }
    assert named["boxes"] >= {formers[0].sop_instance_uid}
    assert named["boxes"] | named["classes"] == {each.sop_instance_uid for each in formers}
    assert not named["boxes"] & named["classes"]


def test_all_inputs_are_in_library_and_evidence(tmp_path: Path) -> None:
    first, second = (make_series(tmp_path / seed, planes=3, seed=seed) for seed in "12")
    request = request_for(first, others=[second, first])
    seg, _ = encode(request)
    document = report(request, "volumes")
    uids = {uid for uid, _ in (*sources_of(first), *sources_of(second))}
    assert {uid for _, _, uid, _ in document.get_evidence()} == {*uids, seg.sop_instance_uid}
    (library,) = [each for each in document.content[0].ContentSequence if each.name.value == "111028"]
    listed = [
        [each.referenced_sop_instance_uid for each in group.ContentSequence if each.ValueType == "IMAGE"]
        for group in library.ContentSequence
    ]
    assert [len(each) for each in listed] == [3, 3]
    assert {uid for each in listed for uid in each} == uids
    alone = encode(request_for(first))
    assert {each.sop_instance_uid for each in alone}.isdisjoint(each.sop_instance_uid for each in encode(request))


REAL = (
    "cxr/RG1_J2KI.dcm",
    "cxr/PatientA.dcm",
    "cxr/ex-covid_rgb_sc.dcm",
    "other/MG_OutOfBoundsOverlay.dcm",
    "other/US1_J2KR.dcm",
    "other/XA1_J2KR.dcm",
    "nonimage/waveform_ecg.dcm",
)


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_pictures_and_a_waveform_are_classified(name: str, shared_dicom: Path) -> None:
    path = shared_dicom / name
    (encoded,) = encode(request_of([path], CLASSES, {"scores": (0.9, 0.1)}))
    source, document = dcmread(path, stop_before_pixels=True), read(encoded)
    assert document.StudyInstanceUID == source.StudyInstanceUID
    assert str(document.PatientName) == str(source.get("PatientName", ""))
    assert {uid for _, _, uid, _ in document.get_evidence()} == {source.SOPInstanceUID}
    (procedure,) = [each for each in document.content[0].ContentSequence if each.name.value == "121058"]
    assert procedure.value.meaning == "Imaging procedure"
    libraries = [each for each in document.content[0].ContentSequence if each.name.value == "111028"]
    assert len(libraries) == (0 if name.startswith("nonimage") else 1)


_PROGRAM = """
import hashlib, sys
from dataclasses import replace
from pathlib import Path
from reported_samples import SAMPLES
from test_reports import BOTH
from meddaemon.results.encoding import encode
for name in ("detected_in_volume", "not_evaluated", "each_classified"):
    for each in encode(replace(SAMPLES[name](Path(sys.argv[1]) / name), editions=BOTH)):
        print(name, each.name, each.sop_instance_uid, hashlib.sha256(each.content).hexdigest())
"""


def test_two_processes_write_the_same_documents(tmp_path: Path) -> None:
    here = Path(__file__).resolve().parent
    path = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    runs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(tmp_path / seed)],
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed, "TZ": zone},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    ]
    assert runs[0] == runs[1]
    assert len(runs[0].splitlines()) == 6


def other_status(request: EncodingRequest) -> EncodingRequest:
    return replace(
        request, analysis=replace(request.analysis, status=ResultStatus.IMPLAUSIBLE, reason="too much of it")
    )


@pytest.mark.parametrize(
    "change", [other_status, lambda request: replace(request, configuration="other")], ids=["status", "configuration"]
)
def test_what_changes_a_document_changes_its_uid(
    tmp_path: Path, change: Callable[[EncodingRequest], EncodingRequest]
) -> None:
    request = classified(tmp_path)
    (before,), (after,) = encode(request), encode(change(request))
    assert before.sop_instance_uid != after.sop_instance_uid


def test_further_findings_on_a_segment_keep_the_tracking_that_they_have(tmp_path: Path) -> None:
    paths = make_series(tmp_path)
    kinds = [("Brain", BRAIN, None), ("Kidney", KIDNEY, None)]
    analysis = analysis_of(ball(geometry_of(paths).shape), geometry_of(paths), kinds=kinds)
    again = replace(analysis.findings[0], code=KIDNEY, tracking_id="second", tracking_uid="2.25.77")
    request = request_for(paths, analysis=replace(analysis, findings=(analysis.findings[0], again)))
    found = report(request, "volumes").content.get_volumetric_roi_measurement_groups()
    assert [each.tracking_uid for each in found][1] == "2.25.77"
    assert [each.tracking_identifier for each in found][1] == "second"


def test_the_box_of_the_samples_is_what_its_name_says() -> None:
    (low, high) = BOX
    assert [int(np.ceil(each)) for each in low] == [2, 3]
    assert [int(np.floor(each)) for each in high] == [6, 8]
