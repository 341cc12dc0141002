"""What a prediction says: volumes, limits, identifiers, and labels nobody can code."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_contract import toy_contract

from meddaemon.domain.codes import MILLILITRE, VOLUME, Code
from meddaemon.domain.contract import ModelContract, PlausibleRange, SegmentContract
from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import Prediction, ResultStatus
from meddaemon.domain.volume import Geometry
from meddaemon.inference.analysis import analyse

STRUCTURE = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
BRAIN = Code(value="12738006", scheme="SCT", meaning="Brain")
TUMOUR = Code(value="108369006", scheme="SCT", meaning="Neoplasm")


def segment(label: int, low: float | None = None, high: float = 0) -> SegmentContract:
    return SegmentContract(
        label=label,
        name=f"segment {label}",
        category=STRUCTURE,
        type=BRAIN,
        colour=(1, 2, 3),
        plausible_volume_ml=None if low is None else PlausibleRange(minimum=low, maximum=high),
    )


def contract(*segments: SegmentContract) -> ModelContract:
    return toy_contract(segments=segments)


def prediction(labels: np.ndarray, spacing: tuple[float, float, float] = (10.0, 10.0, 10.0)) -> Prediction:
    planes = labels.shape[0]
    geometry = Geometry(
        shape=labels.shape,  # type: ignore[arg-type]
        affine_lps=np.diag([*spacing, 1.0]),
        frame_of_reference_uid="1.2",
        sop_instance_uids=("1.3",) * planes,
        frame_numbers=tuple(range(1, planes + 1)),
    )
    return Prediction(labels=labels, geometry=geometry, series_instance_uid="1.4")


def cube(label: int = 1, dtype: type = np.uint8) -> np.ndarray:
    labels = np.zeros((4, 5, 6), dtype)
    labels[1:3, 1:3, 1:3] = label
    return labels


def test_a_volume_is_the_count_times_the_volume_of_a_voxel() -> None:
    analysis = analyse(prediction(cube(), (2.0, 0.5, 0.25)), contract(segment(1)), entropy="run")
    (found,) = analysis.findings
    (measured,) = found.measurements
    assert (measured.name, measured.unit) == (VOLUME, MILLILITRE)
    assert measured.value == pytest.approx(8 * 2.0 * 0.5 * 0.25 / 1000, rel=1e-12)
    assert analysis.segments[0].voxel_count == 8
    assert analysis.status is ResultStatus.PLAUSIBLE
    assert analysis.reason == ""


@given(st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_volumes_add_up_to_what_is_labelled(values: list[int]) -> None:
    labels = np.array(values, np.uint8).reshape(2, 2, 2)
    analysis = analyse(prediction(labels), contract(segment(1), segment(2), segment(3)), entropy="run")
    assert sum(each.measurements[0].value for each in analysis.findings) == pytest.approx(np.count_nonzero(labels))
    assert [each.voxel_count for each in analysis.segments] == [int((labels == n).sum()) for n in (1, 2, 3)]


def test_the_last_of_many_segments_may_have_a_small_label() -> None:
    many = [segment(label) for label in range(300, 0, -1)]
    analysis = analyse(prediction(cube(label=5)), contract(*many), entropy="run")
    assert analysis.labels is not None
    assert np.unique(analysis.labels).tolist() == [0, 296]
    assert analysis.segments[295].voxel_count == 8


def test_beyond_the_limits_the_reason_has_the_numbers() -> None:
    assert analyse(prediction(cube()), contract(segment(1, 7.9, 8.1)), entropy="r").status is ResultStatus.PLAUSIBLE
    doubtful = analyse(prediction(cube()), contract(segment(1, 9, 20)), entropy="r")
    assert doubtful.status is ResultStatus.IMPLAUSIBLE
    assert doubtful.reason == "segment 1 measures 8 mL; plausible are 9 to 20 mL"


@pytest.mark.fault(173)
def test_nothing_at_all_is_implausible_even_without_limits() -> None:
    empty = prediction(np.zeros((2, 2, 2), np.uint8))
    analysis = analyse(empty, contract(segment(1)), entropy="r")
    assert analysis.status is ResultStatus.IMPLAUSIBLE
    assert analysis.reason == "nothing was segmented"
    assert analysis.segments[0].voxel_count == 0
    assert analyse(empty, contract(segment(1, 1, 2)), entropy="r").reason.startswith("segment 1 is empty")


@pytest.mark.fault(176)
def test_a_label_without_a_code_is_never_delivered() -> None:
    with pytest.raises(ModelFailed, match=r"label\(s\) 7"):
        analyse(prediction(cube(7)), contract(segment(1)), entropy="r")


def test_segments_are_numbered_from_one_whatever_the_labels_are() -> None:
    labels = cube(500, np.uint16)
    labels[0, 0, 0] = 30
    analysis = analyse(prediction(labels), contract(segment(500), segment(30)), entropy="r")
    assert [each.number for each in analysis.segments] == [1, 2]
    assert [each.voxel_count for each in analysis.segments] == [8, 1]
    assert np.array_equal(analysis.labels, np.where(labels == 500, 1, np.where(labels == 30, 2, 0)))
    assert [each.segment_number for each in analysis.findings] == [1, 2]


def test_tracking_uids_belong_to_the_run_and_the_segment() -> None:
    both = contract(segment(1), segment(2))
    first, again, other = (analyse(prediction(cube()), both, entropy=each) for each in ("a", "a", "b"))
    assert [s.tracking_uid for s in first.segments] == [s.tracking_uid for s in again.segments]
    uids = {s.tracking_uid for each in (first, other) for s in each.segments}
    assert len(uids) == 4


def test_the_finding_is_the_segmented_thing_unless_the_contract_says_otherwise() -> None:
    named = replace(segment(1), finding=TUMOUR)
    assert analyse(prediction(cube()), contract(segment(1)), entropy="r").findings[0].code == BRAIN
    assert analyse(prediction(cube()), contract(named), entropy="r").findings[0].code == TUMOUR
