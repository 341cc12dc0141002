"""Views show a finding where it is, the right way round and in proportion, and a summary names no patient."""

from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from pydicom import dcmread
from result_samples import BRAIN, analysis_of, geometry_of, request_for
from sources import SOURCES, pictures, with_everything

from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.picture import Pictures
from meddaemon.domain.result import Analysis, ResultStatus
from meddaemon.domain.volume import Geometry, Volume
from meddaemon.results.capture import encode
from meddaemon.results.drawing import HEIGHT, WIDTH, rows_of, summary, written
from meddaemon.results.encoding import EncodingRequest
from meddaemon.results.views import View, brightness, directions, views_of

ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0.0, -0.36, 0.48, 0.8),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "prone": (-1, 0, 0, 0, -1, 0),
    "decubitus": (0, 1, 0, -1, 0, 0),
}
SIDE = 120
AXES = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "H": (2, 1), "F": (2, -1)}


def planted(folder: Path, orientation: tuple[float, ...]) -> EncodingRequest:
    """A series that is dark but for one bright block, which was found."""
    voxels = np.zeros((12, 20, 24), np.int16)
    voxels[2:5, 4:9, 12:20] = 1000
    paths = make_series(folder, voxels=voxels, orientation=orientation, spacing=(3.0, 1.5, 1.0))
    geometry = geometry_of(paths)
    request = request_for(paths, (voxels > 0).astype(np.uint8))
    return replace(request, shown=Volume(voxels=voxels, geometry=geometry, series_instance_uid="1"))


def lps(geometry: Geometry, view: View, y: int, x: int) -> np.ndarray:
    return np.array(geometry.point(*(float(each) for each in view.at[:, y, x])))


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_three_planes_show_the_finding_where_it_is(name: str, tmp_path: Path) -> None:
    request = planted(tmp_path, ORIENTATIONS[name])
    geometry = request.analysis.drawn[1]
    views = views_of(request, SIDE)
    assert len(views) == 3
    centre = np.array(geometry.point(3, 6, 15.5))
    normals = []
    for view in views:
        origin, right, down = (lps(geometry, view, *at) for at in ((0, 0), (0, 1), (1, 0)))
        right, down = right - origin, down - origin
        # Square pixels at right angles: what is round is round.
        assert np.linalg.norm(right) == pytest.approx(np.linalg.norm(down)) == pytest.approx(1 / view.millimetre)
        assert right @ down == pytest.approx(0, abs=1e-9)
        normals.append(np.cross(right, down))
        # What is bright is what was found, and it is where the block is.
        y, x = (each.mean() for each in np.nonzero(np.nan_to_num(view.grey) > 500))
        found = origin + x * right + y * down
        away = found - centre
        away -= (away @ normals[-1]) * normals[-1] / (normals[-1] @ normals[-1])
        assert np.linalg.norm(away) < 1.0
        inside = request.scene.inside(request.scene.marks[0], view.at)
        bright = np.nan_to_num(view.grey) > 500
        assert np.count_nonzero(inside ^ bright) < 0.15 * np.count_nonzero(inside)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert normals[one] @ normals[other] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_letters_say_where_the_patient_is(name: str, tmp_path: Path) -> None:
    request = planted(tmp_path, ORIENTATIONS[name])
    geometry = request.analysis.drawn[1]
    for view in views_of(request, SIDE):
        assert view.letters is not None
        middle = SIDE // 2
        ends = [(middle, 0), (middle, SIDE - 1), (0, middle), (SIDE - 1, middle)]
        for letters, end in zip(view.letters, ends, strict=True):
            away = lps(geometry, view, *end) - lps(geometry, view, middle, middle)
            axis, sign = AXES[letters[0]]
            assert np.abs(away).argmax() == axis
            assert np.sign(away[axis]) == sign
        # As it is read: the head is up, else the front; the patient's left is on the right, else the back.
        left, right, top, bottom = (each[0] for each in view.letters)
        assert top in "HA"
        assert right in "LP"
        assert {left + right, right + left} & {"LR", "AP"}
        assert {top + bottom, bottom + top} & {"HF", "AP"}


def test_directions_are_named_by_what_they_have_most_of() -> None:
    assert directions(np.array([0.8, 0.6, 0.0])) == "LP"
    assert directions(np.array([-0.1, 0.0, -0.99])) == "F"


def test_the_window_of_the_image_is_used_where_it_shows_anything(tmp_path: Path) -> None:
    windows = {"near": (400, 900), "far": (5000, 10)}
    limits = {}
    for name, (centre, width) in windows.items():
        paths = make_series(
            tmp_path / name, modality="CT", attributes={"WindowCenter": [centre, 1], "WindowWidth": [width, 2]}
        )
        request = with_everything(paths)
        limits[name] = brightness(request, views_of(request, 60))
    assert limits["near"] == (-50, 850)
    assert limits["far"][0] < limits["far"][1] <= 1000


def test_slanted_and_uneven_planes_are_shown_where_they_lie(tmp_path: Path) -> None:
    request = SOURCES["uneven and tilted"](tmp_path)
    geometry = request.analysis.drawn[1]
    reformatted = views_of(request, SIDE)[1]
    inside = np.isfinite(reformatted.grey)
    y, x = (int(each) for each in np.argwhere(inside)[len(np.argwhere(inside)) // 3])
    steps = [lps(geometry, reformatted, y, x + each) - lps(geometry, reformatted, y, x) for each in range(4)]
    for one, other in pairwise(np.linalg.norm(each) for each in steps):
        assert other - one == pytest.approx(1 / reformatted.millimetre, abs=1e-6)


def test_a_summary_is_one_picture_that_says_what_it_is(tmp_path: Path) -> None:
    request = planted(tmp_path, ORIENTATIONS["oblique"])
    (encoded,) = encode(replace(request, kinds=frozenset({ObjectKind.SC})), ())
    pixels = dcmread(BytesIO(encoded.content)).pixel_array
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert len(encoded.content) < 2_000_000
    amber = np.abs(pixels.astype(int) - (255, 196, 0)).max(axis=2) < 80
    panels = [amber[62:390, 6 + n * 334 : 334 + n * 334] for n in range(3)]
    assert all(np.count_nonzero(panel[-24:]) > 200 for panel in panels)
    outline = (pixels == request.analysis.segments[0].colour).all(axis=2)
    assert all(np.count_nonzero(outline[62:390, 6 + n * 334 : 334 + n * 334]) > 100 for n in range(3))


def test_no_patient_is_in_the_picture(tmp_path: Path) -> None:
    one = planted(tmp_path / "one", ORIENTATIONS["axial"])

    def rename(path: Path) -> Path:
        dataset = dcmread(path)
        dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "Roe^Richard", "Q-77", "A-99"
        target = tmp_path / "other" / path.name
        target.parent.mkdir(exist_ok=True)
        dataset.save_as(target)
        return target

    other = replace(one, sources=[rename(path) for path in one.sources])
    np.testing.assert_array_equal(summary(one), summary(other))


def test_without_pixels_there_is_a_page_of_text(tmp_path: Path) -> None:
    request = planted(tmp_path, ORIENTATIONS["axial"])
    page = summary(replace(request, shown=None))
    assert page.shape == (HEIGHT, WIDTH, 3)
    assert 1000 < np.count_nonzero(page.any(axis=2)) < 60_000
    assert (page == (255, 196, 0)).all(axis=2).any()
    nothing = Analysis(status=ResultStatus.NOT_EVALUABLE, reason="3 planes", segments=(), findings=())
    unsaid = summary(replace(request, shown=None, analysis=nothing))
    assert (unsaid == (255, 96, 96)).all(axis=2).any()


def test_more_findings_than_lines_are_counted(tmp_path: Path) -> None:
    request = planted(tmp_path, ORIENTATIONS["axial"])
    many = replace(request.analysis, findings=request.analysis.findings * 400)
    assert not np.array_equal(summary(request), summary(replace(request, analysis=many)))
    assert len(rows_of(replace(request, analysis=many))) == 400


def test_pictures_show_boxes_and_say_which_way_round(tmp_path: Path) -> None:
    request = pictures()(tmp_path)
    views = views_of(request, SIDE)
    assert len(views) == 2
    assert views[0].letters == ("R", "L", "H", "F")
    box = request.scene.marks[0]
    y, x = np.nonzero(request.scene.inside(box, views[0].at))
    # 24 rows and 18 columns in 120 pixels: 5 pixels for each.
    scale = SIDE / 24
    assert (y.max() - y.min() + 1) / scale == pytest.approx(8, abs=0.3)
    assert (x.max() - x.min() + 1) / scale == pytest.approx(6, abs=0.3)
    assert y.min() == pytest.approx(3 * scale, abs=1)
    assert x.min() == pytest.approx(15 + 4 * scale, abs=1)
    ((_, x_at, y_at),) = views[1].points
    assert (x_at, y_at) == (pytest.approx(15 + 5.5 * scale - 0.5), pytest.approx(20.5 * scale - 0.5))
    assert isinstance(request.shown, Pictures)


def test_segments_of_pictures_are_drawn_on_them(tmp_path: Path) -> None:
    request = pictures()(tmp_path)
    labels = np.zeros((2, 24, 18), np.uint8)
    labels[1, 3:9, 4:12] = 1
    geometry = geometry_of(make_series(tmp_path / "any"))
    drawn = replace(analysis_of(labels, geometry), geometry=None)
    asked = replace(request, analysis=drawn)
    (mark,) = asked.scene.marks
    assert (mark.key, mark.name) == (1, "Brain")
    assert (summary(asked) == (216, 101, 80)).all(axis=2).sum() > 100
    # Nobody knows which picture is which when they are gone.
    assert replace(asked, shown=None).scene.marks == ()


def test_numbers_are_written_with_their_units(tmp_path: Path) -> None:
    request = planted(tmp_path, ORIENTATIONS["axial"])
    ((measurement,),) = (each.measurements for each in request.analysis.findings)
    assert written(measurement) == "Volume: 0.54 mL"
    assert written(replace(measurement, value=None)) == "Volume: not measured"
    assert rows_of(request)[0].name == "Brain"
    assert request.analysis.findings[0].code == BRAIN
