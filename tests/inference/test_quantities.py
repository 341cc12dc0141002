"""What a contract may ask of segments: held against SimpleITK, on grids that are uneven, oblique and sheared."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own name
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from toy_contract import toy_contract

from meddaemon.domain.codes import LESION_COUNT, STANDARD_DEVIATION, TOTAL, UNITY, Code
from meddaemon.domain.contract import (
    FormulaContract,
    LesionContract,
    MeasurementKind,
    ModelContract,
    OutputLimits,
    PlausibleRange,
    Range,
    SegmentContract,
)
from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.formulas import parse_formula
from meddaemon.domain.result import Analysis, Drawing, Finding, Prediction, ResultStatus, reported
from meddaemon.domain.volume import Geometry, Volume, VoxelMeaning
from meddaemon.inference.analysis import analyse, not_evaluable

STRUCTURE = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
LESION = Code(value="52988006", scheme="SCT", meaning="Lesion")
LEFT = Code(value="7771000", scheme="SCT", meaning="Left")
RATIO = Code(value="RATIO", scheme="99TEST", meaning="Ratio")
SPACING = (3.0, 0.7, 1.1)
OBLIQUE = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
EVERYTHING = tuple(kind for kind in MeasurementKind if kind is not MeasurementKind.AREA)
VOLUME_ONLY = (MeasurementKind.VOLUME,)


def place(
    shape: tuple[int, ...], axes: NDArray[np.float64] | None = None, positions: NDArray[np.float64] | None = None
) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * SPACING if axes is None else axes
    planes, rows, columns = shape
    return Geometry(
        shape=(planes, rows, columns),
        affine_lps=affine,
        frame_of_reference_uid="1.2",
        sop_instance_uids=("1.3",) * planes,
        frame_numbers=(1,) * planes,
        positions_lps=positions,
    )


def segment(label: int = 1, name: str = "Lesion", **fields: object) -> SegmentContract:
    return SegmentContract(
        label=label, name=name, category=STRUCTURE, type=LESION, colour=(1, 2, 3), laterality=LEFT, **fields
    )  # type: ignore[arg-type]


def contract(*segments: SegmentContract, formulas: tuple[FormulaContract, ...] = ()) -> ModelContract:
    return toy_contract(
        segments=segments, formulas=formulas, output_limits=OutputLimits(may_be_empty=True, maximum_foreground=1.0)
    )


def ratio(formula: str, **fields: object) -> FormulaContract:
    return FormulaContract(name=RATIO, unit=UNITY, formula=parse_formula(formula), **fields)  # type: ignore[arg-type]


def analysed(
    drawn: NDArray[np.uint8] | NDArray[np.bool_],
    said: ModelContract,
    geometry: Geometry | None = None,
    voxels: NDArray[np.float32] | None = None,
    meaning: VoxelMeaning = VoxelMeaning.HOUNSFIELD,
) -> Analysis:
    grid = drawn.shape[-3:]
    geometry = geometry or place(grid)
    values = np.zeros(grid, np.float32) if voxels is None else voxels
    shown = Volume(voxels=values, geometry=geometry, series_instance_uid="1.4", meaning=meaning)
    of = {"masks": drawn} if drawn.ndim == 4 else {"labels": drawn}
    prediction = Prediction(series_instance_uid="1.4", geometry=geometry, **of)  # type: ignore[arg-type]
    return analyse(prediction, said, entropy="run", shown=shown)


def numbers(finding: Finding) -> dict[str, float | None]:
    return {each.key: each.value for each in finding.measurements}


label_maps = arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(0, 3))


@given(label_maps, st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_segment_has_what_simpleitk_says_of_it(labels: NDArray[np.uint8], oblique: bool, seed: int) -> None:
    """SimpleITK takes voxels of right angles; the same shape sheared or turned is held to other things below."""
    voxels = np.random.default_rng(seed).normal(40, 300, labels.shape).astype(np.float32)
    segments = [segment(label, f"segment {label}", measure=EVERYTHING) for label in (1, 2, 3)]
    axes = (OBLIQUE if oblique else np.eye(3)) * SPACING
    analysis = analysed(labels, contract(*segments), place(labels.shape, axes), voxels)
    image, values = sitk.GetImageFromArray(labels), sitk.GetImageFromArray(voxels)
    for each in (image, values):
        each.SetSpacing(SPACING[::-1])
    shapes, intensities = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelIntensityStatisticsImageFilter()
    shapes.ComputeFeretDiameterOn()
    shapes.Execute(image)
    intensities.Execute(image, values)
    for label, finding in enumerate(analysis.findings, 1):
        found = numbers(finding)
        if label not in shapes.GetLabels():
            assert found == {kind.value: 0.0 if kind is MeasurementKind.VOLUME else None for kind in EVERYTHING}
            continue
        assert found["volume"] == pytest.approx(shapes.GetPhysicalSize(label) / 1000, rel=1e-5)
        assert found["mean"] == pytest.approx(intensities.GetMean(label), rel=1e-5, abs=1e-3)
        assert (found["minimum"], found["maximum"]) == pytest.approx(
            (intensities.GetMinimum(label), intensities.GetMaximum(label)), rel=1e-5, abs=1e-3
        )
        if shapes.GetNumberOfPixels(label) > 1:
            assert found["deviation"] == pytest.approx(intensities.GetStandardDeviation(label), rel=1e-5, abs=1e-3)
        # Between centres of voxels there, between their borders here.
        assert found["diameter"] is not None
        assert -1e-3 <= found["diameter"] - shapes.GetFeretDiameter(label) <= np.linalg.norm(SPACING) + 1e-3
        assert {each.value for each in finding.measurements} == {
            None if each.value is None else reported(each.value) for each in finding.measurements
        }


@given(label_maps, st.floats(-0.6, 0.6), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_a_sheared_stack_measures_in_its_planes_what_the_straight_one_does(
    labels: NDArray[np.uint8], shift: float, where: int
) -> None:
    """A gantry tilt moves planes sideways: no volume and nothing within a plane changes; nor does space beside it."""
    kinds = (MeasurementKind.VOLUME, MeasurementKind.LONG_AXIS, MeasurementKind.SHORT_AXIS, MeasurementKind.SURFACE)
    said = contract(*(segment(label, f"segment {label}", measure=kinds) for label in (1, 2, 3)))
    sheared = OBLIQUE * SPACING
    sheared[:, 0] += shift * sheared[:, 1]
    straight, tilted = (analysed(labels, said, place(labels.shape, axes)) for axes in (OBLIQUE * SPACING, sheared))
    padded = np.pad(labels, [(2, 1) if axis == where else (0, 0) for axis in range(3)])
    beside = analysed(padded, said, place(padded.shape, sheared))
    for one, other, moved in zip(straight.findings, tilted.findings, beside.findings, strict=True):
        flat, tilted_numbers = numbers(one), numbers(other)
        assert tilted_numbers == numbers(moved)
        del tilted_numbers["surface"], flat["surface"]
        assert tilted_numbers == flat
    masks = np.stack([labels == label for label in (1, 2, 3)])
    overlapping = analysed(masks, said, place(labels.shape, sheared))
    assert [numbers(each) for each in overlapping.findings] == [numbers(each) for each in tilted.findings]


@pytest.mark.parametrize(
    ("meaning", "name", "unit"),
    [
        (VoxelMeaning.HOUNSFIELD, "Attenuation Coefficient", "[hnsf'U]"),
        (VoxelMeaning.UPTAKE, "SUVbw", "g/ml{SUVbw}"),
        (VoxelMeaning.MR_SIGNAL, "MR signal intensity", "1"),
        (VoxelMeaning.UNNAMED, "Voxel value", "1"),
    ],
)
def test_values_are_called_what_they_are(meaning: VoxelMeaning, name: str, unit: str) -> None:
    asked = contract(segment(measure=(MeasurementKind.MEAN, MeasurementKind.DEVIATION)))
    (finding,) = analysed(np.ones((2, 2, 2), np.uint8), asked, meaning=meaning).findings
    assert [(each.name.meaning, each.unit.value) for each in finding.measurements] == [(name, unit)] * 2
    assert [str(each.derivation.meaning) for each in finding.measurements if each.derivation] == [
        "Mean",
        "Standard Deviation",
    ]


def test_without_the_input_values_are_not_known_and_nobody_guesses() -> None:
    asked = contract(segment(measure=(MeasurementKind.VOLUME, MeasurementKind.MEAN)))
    labels = np.ones((2, 2, 2), np.uint8)
    prediction = Prediction(series_instance_uid="1.4", labels=labels, geometry=place(labels.shape))
    analysis = analyse(prediction, asked, entropy="run")
    assert numbers(analysis.findings[0])["mean"] is None
    assert "the input is not there any more" in analysis.reason
    other = Volume(voxels=np.zeros((3, 2, 2), np.float32), geometry=place((3, 2, 2)), series_instance_uid="1.4")
    with pytest.raises(ModelFailed, match=r"drew on \(2, 2, 2\) voxels, its input has \(3, 2, 2\)"):
        analyse(prediction, asked, entropy="run", shown=other)


# --- lesions -----------------------------------------------------------------------------------------------------


def three() -> NDArray[np.uint8]:
    """Lesions of 2, 12 and 1 voxels in this order, of label 2, beside an organ of label 1."""
    labels = np.zeros((6, 8, 9), np.uint8)
    labels[0, 0, 0:2] = 2
    labels[2:4, 2:4, 2:5] = 2
    labels[5, 7, 8] = 2
    labels[0, 4:6, 4:6] = 1
    return labels


ORGAN = segment(1, "Organ", measure=VOLUME_ONLY)


@pytest.mark.parametrize("form", ["labels", "masks", "overlapping masks"])
def test_each_lesion_is_a_segment_the_largest_first(form: str) -> None:
    drawn: NDArray[np.uint8] | NDArray[np.bool_] = three()
    if form != "labels":
        drawn = np.stack([drawn == 1, drawn == 2])
    if form == "overlapping masks":
        drawn[0, 2, 2, 2] = True
    lesions = segment(2, measure=VOLUME_ONLY, lesions=LesionContract())
    analysis = analysed(drawn, contract(ORGAN, lesions), place(drawn.shape[-3:], np.eye(3) * 10))
    assert [each.label for each in analysis.segments] == ["Organ", "Lesion 1", "Lesion 2", "Lesion 3"]
    assert [each.voxel_count for each in analysis.segments][1:] == [12, 2, 1]
    assert [each.laterality for each in analysis.segments] == [LEFT] * 4
    assert len({each.tracking_uid for each in analysis.segments}) == 4
    assert (analysis.labels is None) is (form == "overlapping masks")
    picture = Drawing(labels=analysis.labels, masks=analysis.masks)
    for each in analysis.segments:
        assert sum(int(picture.mask(each.number, plane).sum()) for plane in range(6)) == each.voxel_count
    assert np.argwhere(np.stack([picture.mask(4, plane) for plane in range(6)])).tolist() == [[5, 7, 8]]
    *of_segments, total = analysis.findings
    assert [numbers(each)["volume"] for each in of_segments][1:] == [12.0, 2.0, 1.0]
    assert (total.segment_number, total.present, numbers(total)) == (None, True, {"count": 3.0, "volume": 15.0})
    assert (total.measurements[0].name, total.measurements[0].derivation) == (LESION_COUNT, None)
    assert total.measurements[1].derivation == TOTAL
    assert analysis.status is ResultStatus.PLAUSIBLE


def test_lesions_keep_their_identifiers_whatever_is_drawn_beside_them() -> None:
    lesions = segment(2, lesions=LesionContract())
    both = analysed(three(), contract(ORGAN, lesions)).segments
    again = analysed(three(), contract(ORGAN, lesions)).segments
    assert [each.tracking_uid for each in both] == [each.tracking_uid for each in again]
    assert [each.tracking_id for each in both][1:] == ["toy 2.1", "toy 2.2", "toy 2.3"]
    plain = analysed(three(), contract(ORGAN, segment(2))).segments
    assert both[0].tracking_uid == plain[0].tracking_uid


def test_small_ones_are_left_out_and_too_many_are_said() -> None:
    ten_mm = place((6, 8, 9), np.eye(3) * 10)
    small = segment(2, lesions=LesionContract(minimum_ml=2.0))
    analysis = analysed(three(), contract(ORGAN, small), ten_mm)
    assert [each.voxel_count for each in analysis.segments] == [4, 12, 2]
    assert analysis.labels is not None
    assert analysis.labels[5, 7, 8] == 0
    assert numbers(analysis.findings[-1]) == {"count": 2.0, "volume": 14.0}
    few = segment(2, lesions=LesionContract(most=1))
    analysis = analysed(three(), contract(ORGAN, few), ten_mm)
    assert [each.voxel_count for each in analysis.segments] == [4, 12]
    # What was found is what is counted.
    assert numbers(analysis.findings[-1]) == {"count": 3.0, "volume": 15.0}
    assert analysis.reason == "Lesion: 3 were found, of which the largest 1 are kept"
    limited = segment(2, lesions=LesionContract(), plausible_volume_ml=PlausibleRange(minimum=1, maximum=14))
    assert "Lesion measures 15 mL" in analysed(three(), contract(ORGAN, limited), ten_mm).reason


def test_no_lesion_is_an_answer() -> None:
    labels = np.where(three() == 2, 0, three()).astype(np.uint8)
    analysis = analysed(labels, contract(ORGAN, segment(2, lesions=LesionContract())))
    assert [(each.label, each.voxel_count) for each in analysis.segments] == [("Organ", 4), ("Lesion", 0)]
    assert [each.present for each in analysis.findings] == [True, False, False]
    assert numbers(analysis.findings[-1]) == {"count": 0.0, "volume": 0.0}
    assert analysis.status is ResultStatus.PLAUSIBLE


@pytest.mark.parametrize(("connectivity", "count"), [(6, 3), (18, 2), (26, 1)])
def test_what_is_connected_is_one_lesion(connectivity: int, count: int) -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 1] = 1
    analysis = analysed(labels, contract(segment(lesions=LesionContract(connectivity=connectivity))))
    assert numbers(analysis.findings[-1])["count"] == count


def test_more_lesions_than_a_byte_counts() -> None:
    labels = np.zeros((3, 40, 40), np.uint8)
    labels[::2, ::2, ::2] = 1
    analysis = analysed(labels, contract(segment(lesions=LesionContract(most=1000))))
    assert analysis.labels is not None
    assert (analysis.labels.dtype, int(analysis.labels.max()), len(analysis.segments)) == (np.uint16, 800, 800)
    # Of the same size, they are in the order in which they begin.
    assert np.array_equal(analysis.labels[labels == 1], np.arange(1, 801))


@given(label_maps, st.sampled_from([6, 18, 26]))
@settings(max_examples=40, deadline=None)
def test_lesions_are_the_components_of_simpleitk(labels: NDArray[np.uint8], connectivity: int) -> None:
    said = contract(*(segment(label, f"s{label}", lesions=LesionContract(most=500)) for label in (1, 2, 3)))
    analysis = analysed(labels, said)
    assert analysis.labels is not None
    assert np.array_equal(analysis.labels > 0, labels > 0)
    shapes = sitk.LabelShapeStatisticsImageFilter()
    for label, total in zip((1, 2, 3), analysis.findings[-3:], strict=True):
        image = sitk.ConnectedComponent(sitk.GetImageFromArray((labels == label).astype(np.uint8)), True)
        image.SetSpacing(SPACING[::-1])
        shapes.Execute(image)
        volumes = sorted((shapes.GetPhysicalSize(each) / 1000 for each in shapes.GetLabels()), reverse=True)
        own = [each for each in analysis.segments if each.label.startswith(f"s{label} ")]
        of_own = {each.number for each in own}
        measured = [numbers(each)["volume"] for each in analysis.findings if each.segment_number in of_own]
        assert measured == pytest.approx(volumes, rel=1e-5)
        assert numbers(total) == pytest.approx({"count": len(volumes), "volume": sum(volumes)}, rel=1e-5)


# --- formulas ----------------------------------------------------------------------------------------------------


def test_formulas_are_of_what_was_measured_not_of_what_was_rounded() -> None:
    said = contract(
        ORGAN,
        segment(2, lesions=LesionContract()),
        formulas=(ratio('volume of "Lesion" / (volume of "Organ" + volume of "Lesion") * count of "Lesion"'),),
    )
    analysis = analysed(three(), said, place((6, 8, 9), np.eye(3) * np.pi))
    (found,) = (each for each in analysis.findings if each.code == RATIO)
    assert (found.segment_number, found.present) == (None, True)
    assert numbers(found) == {"formula": reported(15 / 19 * 3)}
    assert analysis.status is ResultStatus.PLAUSIBLE


@pytest.mark.parametrize(
    ("formula", "limits", "value", "reason"),
    [
        ('volume of "Organ" / 2', Range(maximum=1), 2.0, "Ratio is 2 1; plausible are at most 1"),
        ('1 / volume of "Lesion"', None, None, "Ratio cannot be computed: it divides by zero, or is too large"),
        ('mean of "Lesion" * 2', Range(maximum=1), None, "Ratio cannot be computed: no mean of Lesion"),
    ],
)
def test_what_a_formula_cannot_say_it_does_not_say(
    formula: str, limits: Range | None, value: float | None, reason: str
) -> None:
    both = (MeasurementKind.VOLUME, MeasurementKind.MEAN)
    said = contract(ORGAN, segment(2, measure=both), formulas=(ratio(formula, plausible=limits),))
    labels = np.where(three() == 2, 0, three()).astype(np.uint8)
    analysis = analysed(labels, said, place(labels.shape, np.eye(3) * 10))
    assert numbers(analysis.findings[-1]) == {"formula": value}
    assert analysis.status is ResultStatus.IMPLAUSIBLE
    assert analysis.reason.startswith(reason)


def test_what_is_not_evaluable_lists_all_that_was_asked_without_a_number() -> None:
    said = contract(
        replace(ORGAN, measure=EVERYTHING),
        segment(2, measure=VOLUME_ONLY, lesions=LesionContract()),
        formulas=(ratio('volume of "Organ"'),),
    )
    analysis = not_evaluable(said, "too few planes", entropy="run")
    assert [list(numbers(each)) for each in analysis.findings] == [
        [kind.value for kind in EVERYTHING],
        ["volume"],
        ["count", "volume"],
        ["formula"],
    ]
    assert not any(each.value is not None for finding in analysis.findings for each in finding.measurements)
    assert len({each.tracking_uid for each in analysis.findings}) == 4
    deviation = analysis.findings[0].measurements[EVERYTHING.index(MeasurementKind.DEVIATION)]
    assert deviation.derivation == STANDARD_DEVIATION
