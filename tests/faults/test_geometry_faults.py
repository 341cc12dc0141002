"""Series that are not what they seem: the same place in the patient whatever the axes, or refused with the reason."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from dicom_factory import affine_lps, make_enhanced, make_series
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from result_samples import analysis_of, contract, request_for

from meddaemon.domain.conditions import ALWAYS, All, Equals, InRange
from meddaemon.domain.contract import InputContract, InputLimits, Range
from meddaemon.domain.errors import InputRefused, UnsoundVolume
from meddaemon.domain.rules import Rule
from meddaemon.domain.series import Instance
from meddaemon.domain.volume import Volume
from meddaemon.inference.guard import check_input
from meddaemon.inference.volume import assemble, assemble_read, read_headers
from meddaemon.ingest.describe import describe_study
from meddaemon.ingest.matching import Decision, decide
from meddaemon.results.encoding import encode

SHAPE = (9, 16, 14)
SPACING = (2.5, 1.5, 0.75)
MARKER = np.array([12.0, -7.0, 31.0])
"""Where the phantom has its only marker, in LPS mm: to the left, in front, and above."""

AXES = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial, left and right swapped": (-1, 0, 0, 0, 1, 0),
    "axial, front and back swapped": (1, 0, 0, 0, -1, 0),
    "axial, upside down": (-1, 0, 0, 0, -1, 0),
    "axial, rows along the columns": (0, 1, 0, 1, 0, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "sagittal, from the other side": (0, -1, 0, 0, 0, 1),
    "double oblique": (0.8, 0.6, 0, -0.36, 0.48, 0.8),
}


def phantom(folder: Path, orientation: tuple[float, ...], **how: object) -> list[Path]:
    """Write a series around the marker in these axes: bright where the marker is, whatever the indices are."""
    directions = affine_lps(orientation=orientation, spacing=SPACING, origin=(0, 0, 0))[:3, :3]
    origin = tuple(float(round(value, 3)) for value in MARKER - directions @ (np.array(SHAPE) // 2 + [0, 1, 2]))
    affine = affine_lps(orientation=orientation, spacing=SPACING, origin=origin)
    indices = np.indices(SHAPE).reshape(3, -1).T
    distance = np.linalg.norm(indices @ affine[:3, :3].T + affine[:3, 3] - MARKER, axis=1)
    voxels = np.where(distance < 2.6, 1000, 0).reshape(SHAPE).astype(np.int16)
    return make_series(folder, orientation=orientation, spacing=SPACING, origin=origin, voxels=voxels, **how)  # type: ignore[arg-type]


def centre(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the LPS centre of a mask."""
    middle: NDArray[np.float64] = (np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]).mean(axis=0)
    return middle


@pytest.mark.fault(83, 85, 90)
@pytest.mark.parametrize("name", AXES)
def test_the_marker_is_where_it_is_in_the_patient_whatever_the_axes(tmp_path: Path, name: str) -> None:
    """From files to voxels to the segmentation that goes back; pixels are not square, planes farther apart."""
    files = phantom(tmp_path, AXES[name])
    volume = assemble(files[::-1])
    assert sorted(volume.geometry.spacing) == pytest.approx(sorted(SPACING))
    bright = volume.voxels > 500
    assert centre(bright, volume.geometry.affine_lps) == pytest.approx(MARKER, abs=1.0)
    analysis = analysis_of(bright.astype(np.uint8), volume.geometry)
    (segmentation, _) = encode(request_for(files, analysis=analysis))
    read = hd.seg.segread(BytesIO(segmentation.content)).get_volume(combine_segments=True)
    assert centre(read.array == 1, read.affine) == pytest.approx(MARKER, abs=1.0)


POSITIONS = {
    "HFS": (1, 0, 0, 0, 1, 0),
    "HFP": (-1, 0, 0, 0, -1, 0),
    "HFDR": (0, -1, 0, 1, 0, 0),
    "HFDL": (0, 1, 0, -1, 0, 0),
    "FFS": (-1, 0, 0, 0, 1, 0),
    "FFP": (1, 0, 0, 0, -1, 0),
    "FFDR": (0, -1, 0, -1, 0, 0),
    "FFDL": (0, 1, 0, 1, 0, 0),
}
"""Patient Position, and the axes of images that are upright on the screen of the scanner then (PS3.3 C.7.3.1.1.2)."""


@pytest.mark.fault(85, 90)
@pytest.mark.parametrize("name", POSITIONS)
def test_how_the_patient_lay_changes_nothing_that_the_axes_do_not_say(tmp_path: Path, name: str) -> None:
    """Image Orientation and Position are those of the patient already: Patient Position must not be applied again."""
    volume = assemble(phantom(tmp_path / name, POSITIONS[name], attributes={"PatientPosition": name}))
    assert centre(volume.voxels > 500, volume.geometry.affine_lps) == pytest.approx(MARKER, abs=1.0)
    for other in (*POSITIONS, None):
        found = assemble(phantom(tmp_path / f"{other}", POSITIONS[name], attributes={"PatientPosition": other}))
        assert np.array_equal(found.voxels, volume.voxels)
        assert np.array_equal(found.geometry.affine_lps, volume.geometry.affine_lps)
        assert found.geometry.sop_instance_uids == volume.geometry.sop_instance_uids


def _shift(plane: int, dataset: Dataset, *, at: int, by: float, axis: int) -> None:
    if plane == at:
        position = list(dataset.ImagePositionPatient)
        position[axis] = float(position[axis]) + by
        dataset.ImagePositionPatient = position


def _moved(at: int, by: float, axis: int = 2) -> Callable[[int, Dataset], None]:
    return lambda plane, dataset: _shift(plane, dataset, at=at, by=by, axis=axis)


def _turned(plane: int, dataset: Dataset) -> None:
    if plane == 2:
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def _scout(plane: int, dataset: Dataset) -> None:
    if plane == 0:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def _elsewhere(plane: int, dataset: Dataset) -> None:
    if plane == 3:
        dataset.FrameOfReferenceUID = "2.25.7"


def _tilted(plane: int, dataset: Dataset) -> None:
    x, y, z = map(float, dataset.ImagePositionPatient)
    dataset.ImagePositionPatient = [x, y + 0.6 * plane, z]


def _one(keyword: str, value: object) -> Callable[[int, Dataset], None]:
    def edit(plane: int, dataset: Dataset) -> None:
        if plane == 1:
            setattr(dataset, keyword, value)

    return edit


UNSOUND = [
    pytest.param(_moved(2, -2.0), "duplicate_position", id="a repeated plane", marks=pytest.mark.fault(83)),
    pytest.param(_moved(5, 4.0), "gap", id="a gap", marks=pytest.mark.fault(83)),
    pytest.param(_moved(2, 0.4), "irregular_spacing", id="a shifted plane", marks=pytest.mark.fault(83)),
    pytest.param(_moved(2, 4.0, axis=0), "scattered", id="a plane beside the others", marks=pytest.mark.fault(83)),
    pytest.param(_turned, "mixed_orientation", id="another orientation", marks=pytest.mark.fault(84)),
    pytest.param(_scout, "localizer", id="a localizer", marks=pytest.mark.fault(84)),
    pytest.param(_tilted, "tilt", id="a tilted gantry", marks=pytest.mark.fault(85)),
    pytest.param(_one("PixelSpacing", None), "missing_pixel_spacing", id="no spacing", marks=pytest.mark.fault(86)),
    pytest.param(_one("PixelSpacing", [0, 1]), "pixel_spacing", id="no distance", marks=pytest.mark.fault(86)),
    pytest.param(_one("PixelSpacing", [-1, 1]), "pixel_spacing", id="a negative distance", marks=pytest.mark.fault(86)),
    pytest.param(
        _one("PhotometricInterpretation", "MONOCHROME1"),
        "photometric_interpretation",
        id="inverse grey",
        marks=pytest.mark.fault(87),
    ),
    pytest.param(_one("HighBit", 3), "bits", id="a high bit elsewhere", marks=pytest.mark.fault(88)),
    pytest.param(_one("BitsStored", 20), "bits", id="more bits than there are", marks=pytest.mark.fault(88)),
    pytest.param(_elsewhere, "mixed_frame_of_reference", id="another frame of reference", marks=pytest.mark.fault(90)),
]


@pytest.mark.parametrize(("edit", "reason"), UNSOUND)
def test_a_series_that_is_not_one_box_of_voxels_is_refused(
    tmp_path: Path, edit: Callable[[int, Dataset], None], reason: str
) -> None:
    with pytest.raises(InputRefused) as refused:
        assemble(make_series(tmp_path, planes=6, spacing=(2.0, 1.5, 1.25), modality="CT", edit=edit))
    assert refused.value.reason == reason


@pytest.mark.fault(86)
@pytest.mark.parametrize("thickness", [None, 0, 99])
def test_the_thickness_of_a_slice_is_not_the_distance_of_planes(tmp_path: Path, thickness: float | None) -> None:
    volume = assemble(make_series(tmp_path, spacing=(2.0, 1.5, 1.25), attributes={"SliceThickness": thickness}))
    assert volume.geometry.spacing[0] == pytest.approx(2.0)


@pytest.mark.fault(92)
@pytest.mark.parametrize("times", [2, 3])
def test_a_series_over_time_is_no_volume(tmp_path: Path, times: int) -> None:
    files = [
        file
        for time in range(times)
        for file in make_series(
            tmp_path / str(time),
            edit=lambda plane, dataset, time=time: setattr(dataset, "SOPInstanceUID", f"2.25.{time}{plane}"),  # type: ignore[misc]
        )
    ]
    with pytest.raises(UnsoundVolume) as refused:
        assemble(files)
    assert refused.value.reason == "temporal"
    assert refused.value.numbers["positions"] == 5


def _values(folder: Path, stored: NDArray[np.int16], edit: Callable[[int, Dataset], None]) -> Volume:
    return assemble(make_series(folder, voxels=stored, modality="CT", rescale=(1, 0), edit=edit))


@pytest.mark.fault(87)
def test_each_plane_has_the_rescale_of_its_own_header(tmp_path: Path) -> None:
    def edit(plane: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = plane + 0.5, -1000 * plane

    volume = _values(tmp_path, np.full((4, 3, 3), 10, np.int16), edit)
    assert volume.voxels[:, 0, 0].tolist() == [5.0, -985.0, -1975.0, -2965.0]


@pytest.mark.fault(88)
def test_each_plane_has_the_sign_and_the_bits_of_its_own_header(tmp_path: Path) -> None:
    """-1 in 16 bits, 65535 without a sign, -1 in 12 bits, 4095 without a sign; bits above the stored ones are none."""

    def edit(plane: int, dataset: Dataset) -> None:
        dataset.PixelRepresentation = 1 - plane % 2
        dataset.BitsStored = 16 if plane < 2 else 12
        dataset.HighBit = dataset.BitsStored - 1

    volume = _values(tmp_path, np.full((4, 3, 3), -1, np.int16), edit)
    assert volume.voxels[:, 1, 1].tolist() == [-1, 65535, -1, 4095]


@pytest.mark.fault(88)
def test_padding_is_a_value_like_every_other_unless_the_contract_says_more(tmp_path: Path) -> None:
    """Pixel Padding Value is there to be shown in a certain way (PS3.3 C.7.5.1.1.2): nothing is put in its place."""
    stored = np.full((3, 4, 4), 40, np.int16)
    stored[:, 0, :] = -2000
    volume = _values(tmp_path, stored, lambda _, dataset: setattr(dataset, "PixelPaddingValue", -2000))
    assert np.array_equal(volume.voxels, stored.astype(np.float32))


PADDED: dict[str, tuple[NDArray[np.int16], dict[str, object], int]] = {
    "a value": (np.array([-2000], np.int16), {"PixelPaddingValue": -2000}, 1),
    "a range": (
        np.array([-2000, -1999, -1500, -1499], np.int16),
        {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1500},
        3,
    ),
    "a range from its end": (
        np.array([-2000, -1500, -1499], np.int16),
        {"PixelPaddingValue": -1500, "PixelPaddingRangeLimit": -2000},
        2,
    ),
    "written without its sign": (np.array([-2000], np.int16), {"PixelPaddingValue": ("US", 63536)}, 1),
    "without a sign, written with one": (
        np.array([-2000], np.int16),
        {"PixelPaddingValue": ("SS", -2000), "PixelRepresentation": 0},
        1,
    ),
    "in the middle of what is seen": (np.array([0], np.int16), {"PixelPaddingValue": 0}, 1),
    "beyond what can be stored": (
        np.array([2096], np.int16),
        {"PixelPaddingValue": ("US", 63536), "PixelRepresentation": 0, "BitsStored": 12, "HighBit": 11},
        0,
    ),
}
"""Stored values, what the header says of padding, and how many of the values are."""


@pytest.mark.fault(88)
@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("fill", [-1024.0, 0.5])
def test_what_shows_nothing_has_the_value_that_the_contract_says_and_is_counted(
    tmp_path: Path, name: str, fill: float
) -> None:
    values, header, count = PADDED[name]
    stored = np.full((3, 4, 8), 40, np.int16)
    stored[1, 2, 3 : 3 + len(values)] = values

    def edit(_: int, dataset: Dataset) -> None:
        for keyword, value in header.items():
            if isinstance(value, tuple):
                dataset.add_new(keyword, *value)
            else:
                setattr(dataset, keyword, value)

    files = make_series(tmp_path, voxels=stored, modality="CT", rescale=(1, -24), edit=edit)
    kept, volume = assemble(files), assemble_read(read_headers(files), padding=fill)
    changed = np.argwhere(volume.voxels != kept.voxels)
    assert changed.tolist() == [[1, 2, 3 + each] for each in range(count)]
    assert all(volume.voxels[tuple(each)] == fill for each in changed)
    assert volume.padding == count
    assert volume.voxels.dtype == (
        np.int16 if fill.is_integer() and (count or kept.voxels.dtype == np.int16) else np.float32
    )
    if count:
        assert volume.remarks["padding"].startswith(f"{count} voxels show nothing")
    else:
        assert "padding" not in volume.remarks


@pytest.mark.fault(88)
def test_padding_says_nothing_about_the_intensities_of_an_input(tmp_path: Path) -> None:
    """Nine tenths of the image are padding; air, which has the same value, is not."""
    stored = np.full((10, 20, 20), -2000, np.int16)
    stored[:, :, :2] = np.linspace(0, 100, 10 * 20 * 2, dtype=np.int16).reshape(10, 20, 2)
    stored[0, 0, 0] = -1000
    files = make_series(tmp_path, voxels=stored, modality="CT", rescale=(1, 0), attributes={"PixelPaddingValue": -2000})
    limits = InputLimits(intensity=Range(minimum=-10, maximum=110))
    for fill, complaints in ((None, 1), (-1000.0, 0)):
        wanted = InputContract(key="image", series=ALWAYS, padding=fill, limits=limits)
        volume = assemble_read(read_headers(files), padding=fill)
        assert len(check_input(volume, wanted)) == complaints
    blank = make_series(
        tmp_path / "blank",
        voxels=np.full((3, 4, 4), -2000, np.int16),
        modality="CT",
        attributes={"PixelPaddingValue": -2000},
    )
    volume = assemble_read(read_headers(blank), padding=-1000.0)
    assert "not known" in check_input(volume, wanted)[0]


@pytest.mark.fault(89)
@pytest.mark.parametrize("orientation", ["axial", "sagittal", "oblique"])
def test_enhanced_and_classic_are_the_same_voxels(tmp_path: Path, orientation: str) -> None:
    classic = assemble(make_series(tmp_path / "classic", orientation=orientation))
    enhanced = assemble([make_enhanced(tmp_path / "enhanced", orientation=orientation)])
    assert np.array_equal(classic.voxels, enhanced.voxels)
    assert classic.geometry.affine_lps == pytest.approx(enhanced.geometry.affine_lps)


CHEST = All(
    (
        Equals(attribute="Modality", value="CT"),
        Equals(attribute="BodyPartExamined", value="CHEST"),
        InRange(attribute="instances", minimum=4),
    )
)
OTHER = {
    "another modality": ({"Modality": ("MR",)}, 5, "Modality equals 'CT'"),
    "another body part": ({"BodyPartExamined": ("HEAD",)}, 5, "BodyPartExamined equals 'CHEST'"),
    "no body part": ({"BodyPartExamined": ()}, 5, "BodyPartExamined equals 'CHEST'"),
    "too few planes": ({}, 3, "instances in range 4 ≤ x"),
}


def _decided(header: dict[str, tuple[str, ...]], planes: int) -> Decision:
    whole = {"Modality": ("CT",), "BodyPartExamined": ("CHEST",), "Rows": ("64",), **header}
    instances = tuple(
        Instance(
            sop_instance_uid=f"1.2.{number}",
            sop_class_uid=CTImageStorage,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            path=Path("nowhere"),
            sha256=str(number),
            size=1,
            header=whole,
        )
        for number in range(planes)
    )
    study = describe_study(study_id=1, study_instance_uid="1.2", generation=1, instances={"1.2.3": instances})
    model = contract(name="chest", inputs=(InputContract(key="image", series=CHEST),))
    return decide(Rule(name="rule", models=("chest",)), study, {"chest": model})


@pytest.mark.fault(91)
@pytest.mark.parametrize("name", OTHER)
def test_what_a_model_is_not_for_does_not_reach_it_and_why_is_told(name: str) -> None:
    header, planes, asked = OTHER[name]
    assert _decided({}, 5).plans
    decision = _decided(header, planes)
    assert not decision.plans
    assert decision.reason == "chest: no series for input image"
    assert f"'asked': {asked!r}" in str(decision.detail)
