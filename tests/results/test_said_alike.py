"""What people read, what is coded and what rows hold say the same of a result, and which side it is of."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from pydicom import Dataset, dcmread
from reported_samples import (
    DRAWN,
    LANDMARKS,
    NODULE,
    SCORES,
    classified,
    nothing_detected,
    pictures,
    request_of,
    sources_of,
)
from result_samples import ANATOMY, LEFT, geometry_of
from sources import SOURCES

from meddaemon.domain.codes import Code
from meddaemon.domain.contract import LesionContract, ModelKind, PlausibleRange, SegmentContract
from meddaemon.domain.picture import PictureGrid
from meddaemon.domain.result import Landmark, ResultStatus
from meddaemon.results.drawing import rows_of
from meddaemon.results.encoding import EncodingRequest, encode

RIGHT = Code(value="24028007", scheme="SCT", meaning="Right")


def groups_of(request: EncodingRequest) -> list[Dataset]:
    """The measurement groups of all reports."""
    documents = [dcmread(BytesIO(each.content)) for each in encode(request) if each.kind == "SR"]
    return [group for document in documents for group in document.ContentSequence[-1].ContentSequence]


def coded(group: Dataset, name: str) -> list[str]:
    """What the content items of that name are said to be."""
    return [
        str(each.ConceptCodeSequence[0].CodeMeaning)
        for each in group.ContentSequence
        if each.ValueType == "CODE" and each.ConceptNameCodeSequence[0].CodeMeaning == name
    ]


def sides(group: Dataset) -> list[str]:
    """The laterality of the finding sites of a group."""
    return [
        str(below.ConceptCodeSequence[0].CodeMeaning)
        for each in group.ContentSequence
        if each.ConceptNameCodeSequence[0].CodeMeaning == "Finding Site"
        for below in each.ContentSequence
    ]


def test_people_read_that_an_object_is_absent_where_the_report_says_so(tmp_path: Path) -> None:
    request = nothing_detected(tmp_path)
    assert {said for group in groups_of(request) for said in coded(group, "Presence")} == {"Absent"}
    assert [row.numbers.split(";")[0] for row in rows_of(request)] == ["absent", "absent"]


def test_people_do_not_read_that_what_nobody_looked_for_is_absent(tmp_path: Path) -> None:
    """Of a segment of which nothing is measured, either."""
    unmeasured = {"kind": ModelKind.SEGMENTATION, "segments": (lung("Lung", measure=()),)}
    request = request_of(make_series(tmp_path), unmeasured, None)
    assert [coded(group, "Presence") for group in groups_of(request)] == [["Undetermined"]]
    assert [row.numbers for row in rows_of(request)] == ["not evaluated"]


def lung(name: str, label: int = 1, side: Code | None = None, **changes: object) -> SegmentContract:
    """A lung, or what lies in it."""
    fields = {"label": label, "name": name, "category": ANATOMY, "type": NODULE, "colour": (1, 2, 3)}
    return SegmentContract(**(fields | {"laterality": side} | changes))


NO_NUMBER = float("nan")


def test_nothing_is_said_to_be_without_findings_that_nobody_believes(tmp_path: Path) -> None:
    no_score = classified(tmp_path / "1", (NO_NUMBER, 0.02))
    paths = make_series(tmp_path / "2")
    no_numbers = request_of(paths, SCORES, {"scores": (NO_NUMBER, NO_NUMBER), "geometry": geometry_of(paths)})
    unusable = request_of(paths, DRAWN, {"geometry": geometry_of(paths), "doubts": ("it holds no number",)})
    empty = {"labels": np.zeros(geometry_of(paths).shape, np.uint8), "geometry": geometry_of(paths)}
    nothing_drawn = request_of(paths, DRAWN, empty)
    for request in (no_score, no_numbers, unusable, nothing_drawn):
        assert request.analysis.status is ResultStatus.IMPLAUSIBLE
        said = {each for group in groups_of(request) for each in coded(group, "CAD Processing and Findings Summary")}
        assert said == {"No algorithms succeeded; without findings"}
    believed = classified(tmp_path / "3", (0.1, 0.02))
    said = {each for group in groups_of(believed) for each in coded(group, "CAD Processing and Findings Summary")}
    assert said == {"All algorithms succeeded; without findings"}


BOTH_LUNGS = {
    "kind": ModelKind.SEGMENTATION,
    "segments": (
        lung("Left lung nodule", 1, LEFT, lesions=LesionContract()),
        lung("Right lung nodule", 2, RIGHT, lesions=LesionContract()),
    ),
}


def test_how_many_lesions_there_are_is_told_of_each_side(tmp_path: Path) -> None:
    paths = make_series(tmp_path)
    labels = np.zeros(geometry_of(paths).shape, np.uint8)
    labels[1, 2:4, 2:4] = labels[3, 6:8, 6:8] = 1
    labels[1, 7:9, 7:9] = 2
    request = request_of(paths, BOTH_LUNGS, {"labels": labels, "geometry": geometry_of(paths)})
    counted = [
        (sides(group), float(item.MeasuredValueSequence[0].NumericValue))
        for group in groups_of(request)
        for item in group.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Number of lesions"
    ]
    assert counted == [(["Left"], 2.0), (["Right"], 1.0)]
    totals = [(row.name, row.numbers.split(";")[0]) for row in rows_of(request)][-2:]
    assert totals == [("Left lung nodule", "Number of lesions: 2"), ("Right lung nodule", "Number of lesions: 1")]


def test_it_is_told_which_side_nobody_could_look_at(tmp_path: Path) -> None:
    request = request_of(make_series(tmp_path), BOTH_LUNGS, None)
    assert [sides(group) for group in groups_of(request)] == [["Left"], ["Right"]] * 2
    assert [row.name for row in rows_of(request)] == ["Left lung nodule", "Right lung nodule"] * 2


@pytest.mark.parametrize(("place", "why"), [((-40.0, 5.0), "outside"), ((5.0, 900.0), "outside"), ((11.4, 9.4), "")])
def test_a_landmark_beside_its_picture_is_not_believed(tmp_path: Path, place: tuple[float, float], why: str) -> None:
    """Reports can draw it on the image only, where it is not."""
    sources = tuple(sources_of(pictures(tmp_path)))
    point = Landmark(label=1, score=0.97, position=place, source=sources[0])
    said = {"landmarks": (point,), "pictures": PictureGrid(shape=(2, 12, 10), sources=sources)}
    analysis = request_of(sorted(tmp_path.iterdir()), LANDMARKS, said).analysis
    assert analysis.status is (ResultStatus.IMPLAUSIBLE if why else ResultStatus.PLAUSIBLE)
    assert analysis.reason == ("a landmark of label 1 lies outside of the image" if why else "")


def test_a_doubt_names_the_volume_that_the_report_has(tmp_path: Path) -> None:
    paths = make_series(tmp_path)
    limited = lung("Nodule", plausible_volume_ml=PlausibleRange(minimum=1, maximum=30))
    labels = np.zeros(geometry_of(paths).shape, np.uint8)
    labels[1, 2:4, 2:4] = 1
    model = {"kind": ModelKind.SEGMENTATION, "segments": (limited,)}
    request = request_of(paths, model, {"labels": labels, "geometry": geometry_of(paths)})
    assert request.analysis.reason == "Nodule measures 0.015 mL; plausible are 1 to 30 mL"
    assert request.analysis.findings[0].measurements[0].value == 0.015


def test_a_region_of_a_plan_says_which_side_it_is_of(tmp_path: Path) -> None:
    (plan,) = encode(replace(SOURCES["axial CT"](tmp_path), kinds=frozenset({"RTSTRUCT"})))
    observed = dcmread(BytesIO(plan.content)).RTROIObservationsSequence
    said = [each.RTROIIdentificationCodeSequence[0] for each in observed]
    assert "SegmentedPropertyTypeModifierCodeSequence" not in said[0]
    assert said[1].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
