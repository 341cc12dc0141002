"""Models that find boxes and landmarks are let in by where they find them in the patient, however it is stored."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_factory import make_series
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.deploy import check, golden
from meddaemon.deploy.golden import TURNS
from meddaemon.deploy.places import NotThere, Place, farthest, worst_overlap
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.domain.volume import Geometry
from meddaemon.inference.warm import WarmModels
from tests.admission import loaded
from tests.deploy.bundles import FINDER, case_of, head, results_of, write_segmenter


@pytest.fixture(scope="module")
def models() -> Iterator[WarmModels]:
    with check.processes() as processes:
        yield processes


AT = "(lambda at: {})(torch.nonzero(y[0, 0]).float())"
EDGES = "torch.cat([at.amin(0) - 0.5, at.amax(0) + 0.5])[None]"
BOX = AT.format(f"[{{'box': {EDGES}, 'label': torch.ones(1), 'score': torch.ones(1) * S}}]")
"""Round what is bright, edge to edge of its voxels."""
CORNER = AT.format("at.amin(0)[None, None]")
CENTRE = AT.format("at.mean(0)[None, None]")

LOW, HIGH = (0.5, 1.5, 0.5), (2.5, 6.5, 4.5)
"""Where `head` is bright, in edges of its voxels."""


def lps(*point: float) -> tuple[float, ...]:
    return tuple((head().affine_lps @ (*point, 1))[:3])


def finder(
    folder: Path, behaviour: str, kind: str, *places: Place, oriented: bool = True, **near: Any
) -> ModelContract:
    """A model with a golden case that expects these places."""
    contract = write_segmenter(folder, behaviour, oriented=oriented, contract=FINDER.replace("KIND", kind))
    about = {"labels": None, "affine_lps": None, "places": places, "is_of_landmarks": kind == "landmarks"}
    golden.write_case(folder / "golden/head", replace(case_of(head()), **about))
    return loaded(contract)


def box(score: float = 0.75, *, low: tuple[float, ...] = LOW, high: tuple[float, ...] = HIGH) -> Place:
    return Place(label=1, score=score, points=(lps(*low), lps(*high)))


def test_a_detector_that_finds_the_same_in_every_way_is_let_in(tmp_path: Path, models: WarmModels) -> None:
    contract = finder(tmp_path / "m", BOX.replace("S", "0.75"), "detection", box())
    assert check.check(contract, models).admission.refusal == ""
    found, variants = results_of(contract)
    assert variants == dict.fromkeys(["as given", check.AGAIN, *(turn.name for turn in TURNS)], True)
    assert {each.measure for each in found.cases} == {"overlap"}
    assert min(each.value or 0 for each in found.cases) > 0.999


@pytest.mark.parametrize(
    ("score", "expected", "why"),
    [
        ("0.75", [], "1 objects of label 1 were found, the case has 0"),
        ("0.75", [box(), box()], "1 objects of label 1 were found, the case has 2"),
        ("0.75", [box(0.9)], "has the score 0.7500, the case 0.9000"),
        ("0.75", [box(high=(4.5, 6.5, 4.5))], "overlap 0.50000, at least 0.9 is wanted"),
        ("0.25", [box()], "0 objects of label 1 were found, the case has 1"),
        ("float('nan')", [], "an object of label 1 has a score or a place that is no number"),
    ],
)
def test_a_detector_that_finds_something_else_is_not_let_in(
    tmp_path: Path, models: WarmModels, score: str, expected: list[Place], why: str
) -> None:
    contract = finder(tmp_path / "m", BOX.replace("S", score), "detection", *expected)
    assert why in check.check(contract, models).admission.refusal


def test_a_landmark_that_moves_when_the_patient_is_stored_otherwise_keeps_a_model_out(
    tmp_path: Path, models: WarmModels
) -> None:
    """The first corner of an array is another corner of the patient each time."""
    corner = Place(label=1, score=1.0, points=(lps(1, 2, 1),))
    moving = finder(tmp_path / "m", CORNER, "landmarks", corner, oriented=False)
    assert "its check failed (case head, " in check.check(moving, models).admission.refusal
    _, variants = results_of(moving)
    assert variants["as given"]
    assert not all(variants.values())
    centre = Place(label=1, score=1.0, points=(lps(1.5, 4, 2.5),))
    assert check.check(finder(tmp_path / "n", CENTRE, "landmarks", centre), models).admission.refusal == ""


@pytest.mark.parametrize(("behaviour", "kind"), [(BOX.replace("S", "0.625"), "detection"), (CENTRE, "landmarks")])
def test_what_a_person_has_seen_is_frozen_and_found_again(
    tmp_path: Path, models: WarmModels, behaviour: str, kind: str
) -> None:
    file = write_segmenter(tmp_path / "m", behaviour, oriented=True, contract=FINDER.replace("KIND", kind))
    series = make_series(tmp_path / "s", voxels=head().voxels.astype(np.int16), orientation="oblique")
    folder = check.freeze(loaded(file), models, "seen", {"image": series}, "MR")
    assert sorted(path.name for path in folder.iterdir()) == ["case.toml", "input0.npz"]
    (place,) = golden.read_case(folder).places or ()
    wanted = (lps(*LOW), lps(*HIGH)) if kind == "detection" else (lps(1.5, 4, 2.5),)
    np.testing.assert_allclose(sorted(place.points), sorted(wanted), atol=1e-3)
    assert check.check(loaded(file), models).admission.refusal == ""


def test_a_case_of_another_kind_than_the_model_is_no_proof(tmp_path: Path, models: WarmModels) -> None:
    contract = finder(tmp_path / "m", CENTRE, "landmarks")
    assert "0.0000" not in check.check(contract, models).admission.refusal
    file = tmp_path / "m/golden/head/case.toml"
    file.write_text(file.read_text().replace("landmarks", "boxes").replace("distance = 1.0\n", ""))
    refusal = check.check(contract, models).admission.refusal
    assert "measured by its overlap, a model of kind landmarks by its distance" in refusal


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("boxes = [{ label = 1, corners = [[1.0, 2.0], [3.0, 4.0]] }]", "is [x, y, z] in LPS mm, or names its image"),
        ('landmarks = [{ label = 1, point = [1.0, 2.0, 3.0], image = "1.2" }]', "is [row, column] on an image"),
        ("boxes = []\nlandmarks = []", "needs either labels, scores, boxes or landmarks"),
        ("boxes = [{ label = 1, corners = [[1.0, 2.0, 3.0]] }]", "expected.boxes[0].corners"),
    ],
)
def test_a_place_that_is_none_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "dicom").touch()
    (tmp_path / "case.toml").write_text(f'[[inputs]]\nkey = "image"\nfiles = "dicom"\n\n[expected]\n{text}\n')
    with pytest.raises(InvalidConfiguration) as invalid:
        golden.read_case(tmp_path)
    assert any(problem in each for each in invalid.value.problems), invalid.value.problems


# --- laws -----------------------------------------------------------------------------------------------------------

CORNERS = st.lists(
    st.tuples(*[st.floats(-20, 20)] * 3).flatmap(
        lambda low: st.tuples(*[st.floats(0.5, 9)] * 3).map(lambda size: (low, tuple(np.add(low, size))))
    ),
    min_size=1,
    max_size=4,
)


def oblique() -> Geometry:
    grid = head()
    return Geometry(
        shape=grid.voxels.shape,
        affine_lps=grid.affine_lps,
        frame_of_reference_uid="1.2",
        sop_instance_uids=("1.3",) * 5,
        frame_numbers=(1,) * 5,
    )


def boxes(corners: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> list[Place]:
    return [Place(label=1, score=0.5, points=(lps(*low), lps(*high))) for low, high in corners]


@given(CORNERS)
def test_boxes_overlap_wholly_with_themselves_in_any_order(corners: list[Any]) -> None:
    found, expected = boxes(corners), boxes(corners[::-1])
    assert worst_overlap(found, expected, oblique(), difference=0) == pytest.approx(1)


@given(CORNERS, st.floats(0.05, 0.45))
def test_a_box_that_is_moved_by_a_part_of_its_size_overlaps_by_that_much_less(corners: list[Any], part: float) -> None:
    low, high = corners[0]
    by = ((high[0] - low[0]) * part, 0.0, 0.0)
    moved = boxes([(tuple(np.add(low, by)), tuple(np.add(high, by)))])
    overlap = worst_overlap(moved, boxes(corners[:1]), oblique(), difference=0)
    assert overlap == pytest.approx((1 - part) / (1 + part))


def test_landmarks_are_as_far_apart_as_they_are_in_the_patient_and_stay_on_their_picture() -> None:
    def point(*at: float, image: str = "") -> Place:
        return Place(label=1, score=1.0, points=(at,), image=(image, 1) if image else None)

    assert farthest([point(0, 0, 0), point(9, 0, 0)], [point(9, 0, 4), point(0, 3, 0)], difference=0) == 4
    with pytest.raises(NotThere, match=r"on image 1\.2 frame 1 were found, the case has 0"):
        farthest([point(1, 2, image="1.2")], [point(1, 2, image="1.3")], difference=0)
