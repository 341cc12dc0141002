"""What models that do not draw, or draw what overlaps, say: classes, scores, boxes, landmarks, and their limits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_contract import toy_contract

from meddaemon.domain.codes import (
    AREA,
    CERTAINTY_OF_FINDING,
    MILLILITRE,
    PERCENT,
    PIXELS,
    SQUARE_MILLIMETRE,
    VOLUME,
    Code,
)
from meddaemon.domain.contract import (
    ClassContract,
    ModelContract,
    ModelKind,
    ObjectContract,
    OutputLimits,
    PlausibleRange,
    Range,
    ScoreContract,
    SegmentContract,
)
from meddaemon.domain.errors import ModelFailed, NotEvaluable
from meddaemon.domain.picture import PictureGrid
from meddaemon.domain.result import Analysis, Box, Landmark, Measurement, Prediction, ResultStatus
from meddaemon.domain.volume import Geometry
from meddaemon.inference.analysis import MAX_OBJECTS, analyse, unasked

BRAIN = Code(value="12738006", scheme="SCT", meaning="Brain")
NODULE = Code(value="27925004", scheme="SCT", meaning="Nodule")
AGE = Code(value="424144002", scheme="SCT", meaning="Current chronological age")
YEAR = Code(value="a", scheme="UCUM", meaning="Year")


def contract(kind: ModelKind, **parts: Any) -> ModelContract:
    return toy_contract(kind=kind, **parts)


def geometry(shape: tuple[int, int, int] = (4, 5, 6)) -> Geometry:
    affine = np.array([[0, 0, 2, 10.0], [0, 3, 0, 20.0], [5, 0, 0, 30.0], [0, 0, 0, 1]])
    return Geometry(
        shape=shape,
        affine_lps=affine,
        frame_of_reference_uid="1.2",
        sop_instance_uids=tuple(f"1.3.{plane}" for plane in range(shape[0])),
        frame_numbers=(1,) * shape[0],
    )


def answered(contract: ModelContract, **said: Any) -> Analysis:
    return analyse(Prediction(series_instance_uid="1.4", **said), contract, entropy="run")


def sick(name: str, threshold: float | None = None, group: str = "") -> ClassContract:
    code = Code(value=name, scheme="99TEST", meaning=name)
    return ClassContract(name=name, finding=code, threshold=threshold, group=group)


def test_each_image_that_has_scores_of_its_own_has_findings_of_its_own() -> None:
    """Of the four views of a mammogram one shows something: which, is what the reader must know."""
    one = contract(ModelKind.CLASSIFICATION, classes=(sick("a", group="g"), sick("b", 0.5, group="g")))
    views = (("1.5.1", 1), ("1.5.2", 1), ("1.5.3", 7))
    analysis = answered(one, scores=(0.9, 0.1, 0.2, 0.8, 0.6, 0.4), sources=views)
    assert [(each.code.value, each.source, each.present) for each in analysis.findings] == [
        ("a", views[0], True),
        ("b", views[0], False),
        ("a", views[1], False),
        ("b", views[1], True),
        ("a", views[2], True),
        ("b", views[2], False),
    ]
    place = analysis.location(analysis.findings[4])
    assert place is not None
    assert (place.sop_instance_uid, place.frame_number, place.low) == ("1.5.3", 7, ())
    assert analysis.status is ResultStatus.PLAUSIBLE
    assert "add up to 1.7" in answered(one, scores=(0.9, 0.1, 0.9, 0.8), sources=views[:2]).reason
    with pytest.raises(ModelFailed, match="gave 4 scores, its contract names 2 for each of 3 images"):
        answered(one, scores=(0.9, 0.1, 0.2, 0.8), sources=views)


def test_each_image_that_has_numbers_of_its_own_is_judged_by_itself() -> None:
    age = ScoreContract(name=AGE, unit=YEAR, plausible=Range(minimum=0, maximum=120))
    analysis = answered(
        contract(ModelKind.REGRESSION, scores=(age,)), scores=(30, 130), sources=(("1.5", 1), ("1.5", 2))
    )
    assert [(each.measurements[0].value, each.source) for each in analysis.findings] == [
        (30, ("1.5", 1)),
        (130, ("1.5", 2)),
    ]
    assert analysis.reason == "Current chronological age is 130 a; plausible are 0 to 120"


# --- classification ----------------------------------------------------------------------------------------------


def test_each_class_is_a_finding_that_is_there_or_not_and_how_sure_that_is() -> None:
    both = contract(ModelKind.CLASSIFICATION, classes=(sick("a", 0.5), sick("b", 0.5)))
    analysis = answered(both, scores=(0.75, 0.25))
    assert [(each.code.value, each.present) for each in analysis.findings] == [("a", True), ("b", False)]
    assert [each.measurements for each in analysis.findings] == [
        (Measurement(name=CERTAINTY_OF_FINDING, value=75.0, unit=PERCENT, key="certainty"),),
        (Measurement(name=CERTAINTY_OF_FINDING, value=25.0, unit=PERCENT, key="certainty"),),
    ]
    assert (analysis.status, analysis.reason) == (ResultStatus.PLAUSIBLE, "")
    assert (analysis.labels, analysis.segments) == (None, ())


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.none() | st.floats(0, 1))
def test_of_a_group_at_most_the_highest_is_there(weights: list[float], threshold: float | None) -> None:
    total = sum(weights)
    if not total > 0:
        weights, total = [1.0] * len(weights), float(len(weights))
    scores = tuple(each / total for each in weights)
    group = contract(
        ModelKind.CLASSIFICATION,
        classes=tuple(sick(str(index), threshold, "g") for index in range(len(scores))),
    )
    analysis = answered(group, scores=scores)
    there = [index for index, each in enumerate(analysis.findings) if each.present]
    assert there == ([int(np.argmax(scores))] if max(scores) >= (threshold or 0) else [])
    assert analysis.status is ResultStatus.PLAUSIBLE


@pytest.mark.fault(173)
@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((0.5, 0.2, 0.5), "the scores of g add up to 0.7, not to 1"),
        ((0.5, 0.5, 1.5), "the score of alone is 1.5, which is no probability"),
        ((float("nan"), 0.5, 0.5), "the score of one is nan, which is no probability"),
        ((0.5, 0.5, float("inf")), "the score of alone is inf, which is no probability"),
    ],
)
def test_scores_that_are_no_probabilities_are_not_believed(scores: tuple[float, ...], reason: str) -> None:
    classes = (sick("one", group="g"), sick("other", group="g"), sick("alone", 0.5))
    analysis = answered(contract(ModelKind.CLASSIFICATION, classes=classes), scores=scores)
    assert (analysis.status, analysis.reason) == (ResultStatus.IMPLAUSIBLE, reason)
    for score, each in zip(scores, analysis.findings, strict=True):
        assert each.measurements[0].value == (pytest.approx(100 * score) if np.isfinite(score) else None)


@pytest.mark.fault(176)
@pytest.mark.parametrize("scores", [(), (0.5,), (0.5, 0.5, 0.5)])
def test_scores_that_the_contract_does_not_name_are_refused(scores: tuple[float, ...]) -> None:
    two = contract(ModelKind.CLASSIFICATION, classes=(sick("a", 0.5), sick("b", 0.5)))
    with pytest.raises(ModelFailed, match=f"gave {len(scores)} scores, its contract names 2"):
        answered(two, scores=scores)


# --- regression --------------------------------------------------------------------------------------------------


def age(low: float, high: float) -> ModelContract:
    return contract(
        ModelKind.REGRESSION, scores=(ScoreContract(name=AGE, unit=YEAR, plausible=Range(minimum=low, maximum=high)),)
    )


def test_a_number_is_a_measurement_with_its_name_and_unit() -> None:
    (finding,) = answered(age(0, 120), scores=(43.123456789,)).findings
    assert finding.code == AGE
    assert finding.measurements == (Measurement(name=AGE, value=43.1235, unit=YEAR, key="score"),)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (130.0, "Current chronological age is 130 a; plausible are 0 to 120"),
        (float("nan"), "Current chronological age is nan, which is no number"),
        (float("-inf"), "Current chronological age is -inf, which is no number"),
    ],
)
def test_a_number_beyond_its_limits_is_not_believed(value: float, reason: str) -> None:
    analysis = answered(age(0, 120), scores=(value,))
    assert (analysis.status, analysis.reason) == (ResultStatus.IMPLAUSIBLE, reason)


# --- detection and landmarks -------------------------------------------------------------------------------------

FINDER = contract(
    ModelKind.DETECTION,
    objects=(
        ObjectContract(label=0, name="nodule", finding=NODULE, threshold=0.5),
        ObjectContract(label=7, name="brain", finding=BRAIN),
    ),
)


def box(label: int = 0, score: float = 0.9, **where: Any) -> Box:
    return Box(label=label, score=score, **{"low": (0.5, 0.5, 0.5), "high": (2.5, 2.5, 4.5), **where})


def test_boxes_are_findings_the_surest_first_and_below_the_threshold_none() -> None:
    boxes = (box(score=0.6), box(score=0.4), box(score=0.8))
    analysis = answered(FINDER, boxes=boxes, geometry=geometry())
    *found, absent = analysis.findings
    assert [each.box for each in found] == [boxes[2], boxes[0]]
    assert [each.measurements[0].value for each in found] == [80.0, 60.0]
    assert (absent.code, absent.present, absent.measurements[0].value) == (BRAIN, False, None)
    assert analysis.status is ResultStatus.PLAUSIBLE


def test_a_box_in_a_volume_says_where_in_the_patient_and_on_which_image() -> None:
    analysis = answered(FINDER, boxes=(box(),), geometry=geometry())
    place = analysis.location(analysis.findings[0])
    assert place is not None
    # The centre is (plane 1.5, row 1.5, column 2.5) on axes of 5, 3 and 2 mm.
    assert place.centre_lps == pytest.approx((10 + 2 * 2.5, 20 + 3 * 1.5, 30 + 5 * 1.5))
    assert (place.sop_instance_uid, place.frame_number, place.frame_of_reference_uid) == ("1.3.2", 1, "1.2")
    assert analysis.location(analysis.findings[1]) is None


def test_a_box_on_a_picture_has_its_frame_and_no_place_in_the_patient() -> None:
    picture = box(low=(1.5, 2.5), high=(4.5, 8.5), source=("1.9", 3))
    analysis = answered(FINDER, boxes=(picture,))
    place = analysis.location(analysis.findings[0])
    assert place is not None
    assert (place.low, place.high, place.centre_lps) == ((1.5, 2.5), (4.5, 8.5), None)
    assert (place.sop_instance_uid, place.frame_number) == ("1.9", 3)


def test_nothing_detected_is_an_answer() -> None:
    analysis = answered(FINDER, geometry=geometry())
    assert analysis.status is ResultStatus.PLAUSIBLE
    assert [(each.code, each.present) for each in analysis.findings] == [(NODULE, False), (BRAIN, False)]


@pytest.mark.fault(173)
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (box(low=(9.0, 0.0, 0.0), high=(10.0, 1.0, 1.0)), "a box of label 0 lies outside of the volume"),
        (box(high=(2.5, 0.5, 4.5)), "a box of label 0 has no size"),
        (box(high=(2.5, float("nan"), 4.5)), "a box of label 0 has coordinates that are no numbers"),
        (box(score=float("nan")), "a box of label 0 has the score nan, which is no probability"),
        (box(score=3.5), "a box of label 0 has the score 3.5, which is no probability"),
    ],
)
def test_boxes_that_cannot_be_are_not_believed(wrong: Box, reason: str) -> None:
    analysis = answered(FINDER, boxes=(box(), wrong), geometry=geometry())
    assert (analysis.status, analysis.reason) == (ResultStatus.IMPLAUSIBLE, reason)


@pytest.mark.fault(176)
def test_a_box_that_nobody_can_name_is_refused() -> None:
    with pytest.raises(ModelFailed, match=r"label\(s\) 3, which its contract does not name"):
        answered(FINDER, boxes=(box(3),), geometry=geometry())


@pytest.mark.parametrize(
    ("nowhere", "grid"),
    [
        (box(low=(1.0, 1.0), high=(2.0, 2.0)), geometry()),
        (box(source=("1.9", 1)), geometry()),
        (box(), None),
    ],
)
def test_a_box_that_lies_nowhere_is_refused(nowhere: Box, grid: Geometry | None) -> None:
    with pytest.raises(ModelFailed, match="gave a place of"):
        answered(FINDER, boxes=(nowhere,), geometry=grid)


def test_more_than_anybody_can_read_is_not_believed() -> None:
    boxes = tuple(box(score=0.5 + index / 10_000) for index in range(MAX_OBJECTS + 1))
    analysis = answered(FINDER, boxes=boxes, geometry=geometry())
    assert analysis.reason == f"{MAX_OBJECTS + 1} objects were found, of which the surest {MAX_OBJECTS} are kept"
    assert len(analysis.findings) == MAX_OBJECTS + 1
    assert boxes[0] not in [each.box for each in analysis.findings]


@pytest.mark.parametrize("may_be_empty", [False, True])
def test_a_landmark_that_is_missing_is_an_answer_only_where_the_contract_says_so(may_be_empty: bool) -> None:
    points = contract(
        ModelKind.LANDMARKS, objects=FINDER.objects, output_limits=OutputLimits(may_be_empty=may_be_empty)
    )
    here = Landmark(label=7, score=0.75, position=(1.0, 2.0, 3.0))
    analysis = answered(points, landmarks=(here,), geometry=geometry())
    found, missing = analysis.findings
    assert (found.landmark, found.code, found.measurements[0].value) == (here, BRAIN, 75.0)
    place = analysis.location(found)
    assert place is not None
    assert place.centre_lps == pytest.approx((16, 26, 35))
    assert place.low == place.high == (1.0, 2.0, 3.0)
    assert (missing.code, missing.present) == (NODULE, False)
    assert analysis.reason == ("" if may_be_empty else "nodule was not found")


# --- segmentation ------------------------------------------------------------------------------------------------


def segment(label: int, name: str) -> SegmentContract:
    return SegmentContract(label=label, name=name, category=BRAIN, type=BRAIN, colour=(1, 2, 3))


LESIONS = contract(
    ModelKind.SEGMENTATION, segments=(segment(1, "lesion"),), output_limits=OutputLimits(may_be_empty=True)
)


def test_no_lesion_is_an_answer() -> None:
    analysis = answered(LESIONS, labels=np.zeros((4, 5, 6), np.uint8), geometry=geometry())
    assert (analysis.status, analysis.reason) == (ResultStatus.PLAUSIBLE, "")
    (finding,) = analysis.findings
    assert (finding.present, finding.measurements[0].value) == (False, 0.0)
    assert analysis.drawn


@pytest.mark.fault(173)
def test_everything_segmented_is_not_believed() -> None:
    everything = np.ones((4, 5, 6), np.uint8)
    analysis = answered(LESIONS, labels=everything, geometry=geometry())
    assert analysis.status is ResultStatus.IMPLAUSIBLE
    assert analysis.reason == "100.0% of all voxels are segmented; plausible are at most 95.0%"
    everything[:2] = 0
    assert answered(LESIONS, labels=everything, geometry=geometry()).status is ResultStatus.PLAUSIBLE


@pytest.mark.fault(173)
def test_what_is_no_drawing_is_a_result_that_is_not_believed() -> None:
    """A network that gave NaN: the run says so, and nothing is measured."""
    analysis = answered(LESIONS, doubts=("the prediction holds values that are not finite",))
    assert (analysis.status, analysis.labels) == (ResultStatus.IMPLAUSIBLE, None)
    assert analysis.reason == "the prediction holds values that are not finite"
    (finding,) = analysis.findings
    assert finding.measurements == (Measurement(name=VOLUME, value=None, unit=MILLILITRE, key="volume"),)
    assert finding.segment_number is None


def test_segments_that_overlap_are_measured_each_on_its_own() -> None:
    whole_and_core = contract(ModelKind.SEGMENTATION, segments=(segment(1, "whole"), segment(2, "core")))
    masks = np.zeros((2, 4, 5, 6), np.bool_)
    masks[0, 1:3, 1:3, 1:3] = True
    masks[1, 1, 1, 1] = True
    analysis = answered(whole_and_core, masks=masks, geometry=geometry())
    assert [each.voxel_count for each in analysis.segments] == [8, 1]
    assert [each.measurements[0].value for each in analysis.findings] == pytest.approx([8 * 0.03, 0.03])
    assert (analysis.status, analysis.labels) == (ResultStatus.PLAUSIBLE, None)
    masks[0] = True
    assert "100.0% of all voxels" in answered(whole_and_core, masks=masks, geometry=geometry()).reason
    with pytest.raises(ModelFailed, match="drew 1 masks, its contract names 2"):
        answered(whole_and_core, masks=masks[:1], geometry=geometry())


@given(st.lists(st.floats(0.5, 20), min_size=3, max_size=3), st.integers(0, 3))
def test_planes_at_uneven_distances_count_as_far_as_they_reach(steps: list[float], plane: int) -> None:
    """A voxel of a plane reaches half-way to either neighbour; drawn as labels and as a mask it measures the same."""
    heights = np.array([0.0, *np.cumsum(steps)])
    uneven = replace(geometry(), positions_lps=np.add(np.outer(heights, [0.0, 0.0, 1.0]), [10.0, 20.0, 30.0]))
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[plane, 2, 2] = 1
    thickness = np.diff([-heights[1] / 2, *(heights[1:] + heights[:-1]) / 2, heights[-1] + steps[-1] / 2])
    expected = pytest.approx(2 * 3 * thickness[plane] / 1000, rel=1e-5)
    drawn = answered(LESIONS, labels=labels, geometry=uneven)
    masked = answered(LESIONS, masks=labels[np.newaxis].astype(np.bool_), geometry=uneven)
    assert drawn.findings[0].measurements[0].value == expected
    assert masked.findings[0].measurements[0].value == expected


def test_a_box_between_uneven_planes_lies_between_them() -> None:
    uneven = replace(geometry(), positions_lps=np.outer([0.0, 5.0, 7.0, 17.0], [0.0, 0.0, 1.0]))
    analysis = answered(FINDER, boxes=(box(low=(1.5, 0.0, 0.0), high=(3.5, 2.0, 2.0)),), geometry=uneven)
    place = analysis.location(analysis.findings[0])
    assert place is not None
    assert place.centre_lps == pytest.approx((2.0, 3.0, 12.0))


def on_pictures(spacing_mm: tuple[float, float] | None) -> PictureGrid:
    return PictureGrid(shape=(2, 5, 6), sources=(("1.5.1", 1), ("1.5.2", 1)), spacing_mm=spacing_mm)


@pytest.mark.parametrize(
    ("spacing", "unit", "pixel"), [((0.5, 0.25), SQUARE_MILLIMETRE, 0.125), (None, PIXELS, 1)], ids=["mm", "pixels"]
)
@pytest.mark.parametrize("overlap", [False, True])
def test_segments_on_pictures_have_an_area_on_each_of_them(
    overlap: bool, spacing: tuple[float, float] | None, unit: Code, pixel: float
) -> None:
    """Without a distance of pixels in the patient there are only pixels: at the detector everything is larger."""
    two = contract(ModelKind.SEGMENTATION, segments=(segment(2, "whole"), segment(5, "core")))
    masks = np.zeros((2, 2, 5, 6), np.bool_)
    masks[0, 0, 1:4, 1:3] = True
    masks[1, 1, 2, 2:6] = True
    masks[0, 1, 0, 0] = True
    drawn = {"masks": masks} if overlap else {"labels": (masks[0] * 2 + masks[1] * 5).astype(np.uint8)}
    analysis = answered(two, **drawn, pictures=on_pictures(spacing))
    found = [(each.segment_number, each.source, each.present, each.measurements) for each in analysis.findings]

    def area(count: int) -> tuple[Measurement, ...]:
        return (Measurement(name=AREA, value=count * pixel, unit=unit, key="area"),)

    first, second = ("1.5.1", 1), ("1.5.2", 1)
    assert found == [
        (1, first, True, area(6)),
        (2, first, False, area(0)),
        (1, second, True, area(1)),
        (2, second, True, area(4)),
    ]
    assert [each.voxel_count for each in analysis.segments] == [7, 4]
    assert (analysis.status, analysis.images) == (ResultStatus.PLAUSIBLE, (first, second))
    assert [int(analysis.drawing.mask(n, frame).sum()) for frame in (0, 1) for n in (1, 2)] == [6, 0, 1, 4]
    place = analysis.location(analysis.findings[3])
    assert place is not None
    assert (place.sop_instance_uid, place.low) == ("1.5.2", ())


def test_labels_on_a_picture_that_the_contract_does_not_name_are_refused() -> None:
    one = contract(ModelKind.SEGMENTATION, segments=(segment(1, "whole"),))
    with pytest.raises(ModelFailed, match=r"produced label\(s\) 3"):
        answered(one, labels=np.full((2, 5, 6), 3, np.uint8), pictures=on_pictures(None))
    with pytest.raises(ModelFailed, match="drew nothing that lies anywhere"):
        answered(one, labels=np.full((2, 5, 6), 1, np.uint8))


def test_limits_hold_for_segments_that_overlap() -> None:
    limited = SegmentContract(
        label=1,
        name="whole",
        category=BRAIN,
        type=BRAIN,
        colour=(1, 2, 3),
        plausible_volume_ml=PlausibleRange(minimum=1, maximum=2),
    )
    masks = np.zeros((1, 4, 5, 6), np.bool_)
    masks[0, 0, 0, 0] = True
    analysis = answered(contract(ModelKind.SEGMENTATION, segments=(limited,)), masks=masks, geometry=geometry())
    assert analysis.reason == "whole measures 0.03 mL; plausible are 1 to 2 mL"


@pytest.mark.fault(173)
def test_a_prediction_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelFailed, match="drew nothing that lies anywhere"):
        answered(LESIONS, scores=(0.5,))


# --- not evaluable -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "codes"),
    [
        (LESIONS, [BRAIN]),
        (FINDER, [NODULE, BRAIN]),
        (age(0, 1), [AGE]),
        (contract(ModelKind.CLASSIFICATION, classes=(sick("a", 0.5),)), [sick("a").finding]),
    ],
)
def test_what_cannot_be_evaluated_says_what_was_asked_and_gives_no_number(
    asked: ModelContract, codes: list[Code]
) -> None:
    beyond = NotEvaluable("beyond_limits", "too few planes", numbers={"series_instance_uid": "1.4"})
    prediction = unasked(beyond)
    assert prediction.series_instance_uid == "1.4"
    analysis = analyse(prediction, asked, entropy="run")
    assert (analysis.status, analysis.reason) == (ResultStatus.NOT_EVALUABLE, "beyond_limits: too few planes")
    assert [each.code for each in analysis.findings] == codes
    assert not any(each.present for each in analysis.findings)
    assert [value.value for each in analysis.findings for value in each.measurements] == [None] * len(codes)
