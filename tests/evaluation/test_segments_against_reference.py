"""Masks against masks: by hand, on every kind of grid, and brought from one grid to another."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless
from result_samples import BRAIN, KIDNEY, LEFT, analysis_of, ball, contract, geometry_of, request_for

pytest.importorskip("sklearn", reason="the extra `evaluate` is not installed")
nibabel = pytest.importorskip("nibabel")
import torch  # noqa: E402
from monai.metrics import compute_dice  # noqa: E402

from meddaemon.domain.errors import ReferenceRefused  # noqa: E402
from meddaemon.evaluation.estimates import Bootstrap  # noqa: E402
from meddaemon.evaluation.grid import Box as Region  # noqa: E402
from meddaemon.evaluation.grid import (  # noqa: E402
    Grid,
    NoOverlap,
    brought_together,
    grid_of_affine,
    grid_of_planes,
    resample,
)
from meddaemon.evaluation.masks import Named, read_label_map, read_segmentation  # noqa: E402
from meddaemon.evaluation.segmentation import (  # noqa: E402
    BOTH_EMPTY,
    NO_SIZE,
    NOT_UPRIGHT,
    ONE_EMPTY,
    SegmentCase,
    compare,
    judge_segment,
)
from meddaemon.results.encoding import encode  # noqa: E402
from tests.dicom_factory import ORIENTATIONS, affine_lps, make_series  # noqa: E402

SPACING = (3.0, 1.5, 0.5)
SHAPE = (9, 14, 12)


def grid_of(orientation: str = "axial", spacing: tuple[float, float, float] = SPACING) -> Grid:
    return grid_of_affine(affine_lps(orientation=orientation, spacing=spacing), SHAPE)


def held(result: NDArray[np.bool_], grid: Grid, reference: NDArray[np.bool_], other: Grid) -> SegmentCase:
    mine, its, box = brought_together(result, grid, reference, other)
    return compare(
        mine,
        its,
        segment="x",
        case="c",
        study="s",
        spacing_mm=grid.spacing,
        plane_voxel_mm3=grid.voxel_volumes_mm3(box),
    )


def block(low: tuple[int, int, int] = (2, 4, 3), high: tuple[int, int, int] = (6, 9, 8)) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, dtype=np.bool_)
    mask[tuple(slice(*pair) for pair in zip(low, high, strict=True))] = True
    return mask


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_reference_that_is_the_result_is_met_exactly(orientation: str) -> None:
    grid = grid_of(orientation)
    told = held(block(), grid, block(), grid)
    assert (told.dice, told.surface_distance_mm, told.hausdorff95_mm) == (1.0, 0.0, 0.0)
    assert (told.size_error, told.relative_size_error, told.reasons) == (0.0, 0.0, {})
    assert told.size == pytest.approx(4 * 5 * 5 * 3.0 * 1.5 * 0.5 / 1000)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_voxel_apart_is_the_spacing_of_that_axis(orientation: str, axis: int) -> None:
    """Two single planes of a mask, one voxel apart, lie the spacing from each other, all over."""
    grid = grid_of(orientation)
    low, high = [2, 2, 2], [7, 12, 10]
    low[axis], high[axis] = 4, 5
    mask = block((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    told = held(np.roll(mask, 1, axis), grid, mask, grid)
    assert told.dice == 0.0
    assert told.surface_distance_mm == pytest.approx(SPACING[axis])
    assert told.hausdorff95_mm == pytest.approx(SPACING[axis])
    assert told.size_error == pytest.approx(0.0)


def test_dice_and_volumes_worked_by_hand() -> None:
    grid = grid_of()
    told = held(block((2, 4, 3), (6, 9, 8)), grid, block((2, 4, 3), (6, 9, 6)), grid)
    assert told.dice == pytest.approx(2 * 60 / (100 + 60))
    assert told.size_error == pytest.approx(40 * 2.25 / 1000)
    assert told.relative_size_error == pytest.approx(40 / 60)


def test_empty_masks_are_never_a_number_by_accident() -> None:
    grid, nothing = grid_of(), np.zeros(SHAPE, dtype=np.bool_)
    both = held(nothing, grid, nothing, grid)
    assert (both.dice, both.surface_distance_mm, both.hausdorff95_mm, both.relative_size_error) == (None,) * 4
    assert both.reasons["dice"] == both.reasons["hausdorff95_mm"] == BOTH_EMPTY
    for result, reference in ((block(), nothing), (nothing, block())):
        one = held(result, grid, reference, grid)
        assert (one.dice, one.surface_distance_mm, one.hausdorff95_mm) == (0.0, None, None)
        assert one.reasons["surface_distance_mm"] == ONE_EMPTY
    assert held(block(), grid, nothing, grid).reasons["relative_size_error"] == NO_SIZE
    assert held(nothing, grid, block(), grid).relative_size_error == -1.0


def test_a_table_of_segments_leaves_out_what_is_not_defined_and_counts_it() -> None:
    grid, nothing = grid_of(), np.zeros(SHAPE, dtype=np.bool_)
    cases = [held(block(), grid, block(), grid), held(nothing, grid, block(), grid), held(nothing, grid, nothing, grid)]
    table = judge_segment("x", "mL", cases, Bootstrap(resamples=100))
    assert (table.dice.value, table.dice.count) == (0.5, 2)
    assert (table.hausdorff95_mm.value, table.hausdorff95_mm.count) == (0.0, 1)
    assert table.bias.value == pytest.approx(-100 * 2.25 / 1000 / 3)
    assert table.limits_of_agreement is not None
    errors = np.array([0.0, -0.225, 0.0])
    assert table.limits_of_agreement[0] == pytest.approx(errors.mean() - 1.96 * errors.std(ddof=1), abs=1e-4)
    none = judge_segment("x", "mL", cases[2:], Bootstrap(resamples=100))
    assert (none.dice.value, none.dice.reason) == (None, BOTH_EMPTY)


_masks = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random(SHAPE) > 0.7)


@given(_masks, _masks)
@settings(max_examples=15, deadline=None)
def test_monai_says_the_same_of_overlap(result: NDArray[np.bool_], reference: NDArray[np.bool_]) -> None:
    grid = grid_of()
    told = held(result, grid, reference, grid)
    expected = compute_dice(torch.tensor(result)[None, None], torch.tensor(reference)[None, None])
    assert told.dice == pytest.approx(float(expected), abs=1e-6)


def brute(result: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, ...]) -> tuple[float, float]:
    """The mean distance and Hausdorff's 95th percentile of all surface voxels, each to each."""

    def surface(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        inner = mask.copy()
        for axis in range(3):
            for step in (1, -1):
                inner &= np.roll(mask, step, axis)
        return np.argwhere(mask & ~inner) * spacing

    mine, its = surface(result), surface(reference)
    apart = np.linalg.norm(mine[:, None] - its[None], axis=2)
    there, back = apart.min(axis=1), apart.min(axis=0)
    worst = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(np.concatenate([there, back]).mean()), float(worst)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_distances_are_those_of_every_pair(spacing: tuple[float, float, float]) -> None:
    grid = grid_of("oblique", spacing)
    one, other = block((1, 2, 2), (6, 9, 8)), block((2, 4, 3), (8, 12, 10)) | block((3, 2, 1), (5, 3, 2))
    told = held(one, grid, other, grid)
    surface, hausdorff = brute(one, other, spacing)
    assert told.hausdorff95_mm == pytest.approx(hausdorff, rel=1e-5)
    assert told.surface_distance_mm == pytest.approx(surface, rel=1e-5)


# --- grids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    "turned",
    [
        lambda mask, affine: (mask[::-1], affine @ _flip(0)),
        lambda mask, affine: (mask[:, ::-1], affine @ _flip(1)),
        lambda mask, affine: (mask[:, :, ::-1], affine @ _flip(2)),
        lambda mask, affine: (mask.transpose(2, 0, 1), affine @ _moved((2, 0, 1))),
    ],
)
def test_the_same_voxels_in_another_order_are_the_same(
    orientation: str,
    turned: Callable[[NDArray[np.bool_], NDArray[np.float64]], tuple[NDArray[np.bool_], NDArray[np.float64]]],
) -> None:
    mask = ball(SHAPE).astype(np.bool_)
    other, affine = turned(mask, affine_lps(orientation=orientation, spacing=SPACING))
    told = held(mask, grid_of(orientation), other, grid_of_affine(affine, other.shape))
    assert (told.dice, told.hausdorff95_mm) == (1.0, 0.0)


def _flip(axis: int) -> NDArray[np.float64]:
    turn = np.eye(4)
    turn[axis, axis], turn[axis, 3] = -1.0, SHAPE[axis] - 1
    return turn


def _moved(order: tuple[int, int, int]) -> NDArray[np.float64]:
    turn = np.zeros((4, 4))
    turn[3, 3] = 1.0
    for new, old in enumerate(order):
        turn[old, new] = 1.0
    return turn


def test_a_finer_reference_is_taken_voxel_by_voxel() -> None:
    """Each voxel of the source is what its centre lies in; three times as fine, that is the middle one of three."""
    mask = ball(SHAPE).astype(np.bool_)
    fine = np.repeat(np.repeat(np.repeat(mask, 3, 0), 3, 1), 3, 2)
    affine = affine_lps(orientation="oblique", spacing=(1.0, 0.5, 0.5 / 3))
    affine[:3, 3] -= affine[:3, 0] + affine[:3, 1] + affine[:3, 2]
    told = held(mask, grid_of("oblique"), fine, grid_of_affine(affine, fine.shape))
    assert (told.dice, told.hausdorff95_mm, told.size_error) == (1.0, 0.0, 0.0)


def test_nothing_of_a_reference_is_lost_beyond_the_source() -> None:
    """The source covers half of the reference; its grid goes on, and Dice is that of the whole."""
    mask = np.zeros(SHAPE, dtype=np.bool_)
    mask[5:, 2:6, 2:6] = True
    wide = np.zeros((16, 14, 12), dtype=np.bool_)
    wide[5:13, 2:6, 2:6] = True
    told = held(mask, grid_of(), wide, grid_of_affine(affine_lps(spacing=SPACING), (16, 14, 12)))
    assert told.dice == pytest.approx(2 * 4 / (4 + 8))
    assert told.reference_size == pytest.approx(8 * 16 * 2.25 / 1000)


def test_a_reference_elsewhere_is_refused() -> None:
    far = affine_lps(spacing=SPACING, origin=(400.0, 0.0, 0.0))
    with pytest.raises(NoOverlap, match="orientation"):
        held(block(), grid_of(), block(), grid_of_affine(far, SHAPE))


def test_planes_that_are_not_there_belong_to_the_grid() -> None:
    """Frames on which nothing is are left out of objects, between others and in any order."""
    rows, columns = np.array([0, 1.5, 0]), np.array([0.5, 0, 0])
    positions = np.array([[0, 0, 12.0], [0, 0, 3.0], [0, 0, 6.0]])
    grid, places = grid_of_planes(positions, rows, columns, (4, 4))
    assert grid.shape == (4, 4, 4)
    assert grid.spacing == (3.0, 1.5, 0.5)
    assert sorted(grid.positions[places][:, 2].tolist()) == [3.0, 6.0, 12.0]
    assert grid.positions[places].tolist() == positions.tolist()


def test_planes_far_apart_are_as_thick_as_their_object_says() -> None:
    """Two frames three steps from each other: the planes between them are empty, and none is 9 mm thick."""
    rows, columns = np.array([0, 1.5, 0]), np.array([0.5, 0, 0])
    positions = np.array([[0, 0, 3.0], [0, 0, 12.0]])
    grid, places = grid_of_planes(positions, rows, columns, (4, 4), spacing_mm=3.0)
    assert (grid.shape, grid.spacing, places.tolist()) == ((4, 4, 4), (3.0, 1.5, 0.5), [0, 3])
    # What does not fit the planes is not believed.
    grid, places = grid_of_planes(positions, rows, columns, (4, 4), spacing_mm=4.0)
    assert (grid.shape, grid.spacing, places.tolist()) == ((2, 4, 4), (9.0, 1.5, 0.5), [0, 1])
    grid, _ = grid_of_planes(positions[:1], rows, columns, (4, 4), thickness_mm=2.0)
    assert grid.spacing == (2.0, 1.5, 0.5)
    with pytest.raises(ValueError, match="how thick"):
        grid_of_planes(positions[:1], rows, columns, (4, 4))


def test_uneven_planes_keep_their_places_and_have_no_distances() -> None:
    rows, columns = np.array([0, 1.0, 0]), np.array([1.0, 0, 0])
    positions = np.array([[0, 0, 0.0], [0, 0, 2.0], [0, 0, 5.1], [0, 0, 7.0]])
    grid, _ = grid_of_planes(positions, rows, columns, (4, 4))
    assert grid.positions.tolist() == positions.tolist()
    mask = np.zeros(grid.shape, dtype=np.bool_)
    mask[1:3, 1:3, 1:3] = True
    told = held(mask, grid, mask, grid)
    assert (told.dice, told.hausdorff95_mm, told.reasons["hausdorff95_mm"]) == (1.0, None, NOT_UPRIGHT)
    # Half-way to the neighbours: 1.0 to 6.05.
    assert told.size == pytest.approx(4 * 5.05 / 1000)


def test_sheared_planes_have_no_distances_and_are_found_all_the_same() -> None:
    affine = affine_lps(spacing=SPACING)
    affine[:3, 0] += affine[:3, 1]  # a gantry tilt: each plane one row further
    grid = grid_of_affine(affine, SHAPE)
    assert grid.spacing is None
    mask = block()
    straight = np.zeros((9, 24, 12), dtype=np.bool_)
    for plane in range(9):
        straight[plane, plane : plane + 14] = mask[plane]
    told = held(mask, grid, straight, grid_of_affine(affine_lps(spacing=SPACING), straight.shape))
    assert (told.dice, told.reasons["surface_distance_mm"]) == (1.0, NOT_UPRIGHT)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_points_of_voxels_are_found_again(seed: int) -> None:
    """index_of turns around what place_of says, between planes and beyond them, on any stack."""
    chance = np.random.default_rng(seed)
    steps = np.eye(3) * chance.uniform(0.5, 4, 3) + chance.uniform(-0.2, 0.2, (3, 3))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps * chance.choice([-1, 1], 3), chance.uniform(-50, 50, 3)
    grid = grid_of_affine(affine, SHAPE)
    wanted = chance.uniform(-3, 15, (20, 3))
    points = grid.place_of(wanted[:, 0]) + wanted[:, 1:] @ np.stack([grid.row_step, grid.column_step])
    assert grid.index_of(points) == pytest.approx(wanted, abs=1e-6)
    voxels = np.stack([chance.integers(0, length, 20) for length in SHAPE], axis=1)
    at = (affine @ np.column_stack([voxels, np.ones(20)]).T).T[:, :3]
    found, inside = grid.nearest(at + 0.0)
    assert inside.all()
    assert found.tolist() == voxels.tolist()


def test_resampling_onto_itself_changes_nothing() -> None:
    grid, mask = grid_of("oblique"), ball(SHAPE).astype(np.bool_)
    assert (resample(mask, grid, grid, Region(low=(0, 0, 0), high=SHAPE)) == mask).all()


# --- files -------------------------------------------------------------------------------------------------------


def seg_file(folder: Path, labels: NDArray[np.uint8], **more: object) -> tuple[Path, Path]:
    """Write a series and the Segmentation of two kidneys that our own encoder makes; return folder and file."""
    files = make_series(
        folder / "series",
        planes=6,
        rows=labels.shape[1],
        columns=labels.shape[2],
        orientation="oblique",
        spacing=SPACING,
    )
    kinds = (("Brain", BRAIN, None), ("Left kidney", KIDNEY, LEFT))
    analysis = analysis_of(labels, geometry_of(files), kinds=kinds)
    request = request_for(files, analysis=analysis, contract=contract(), **more)
    seg = next(each for each in encode(request) if each.kind == "SEG")
    path = folder / "reference.dcm"
    path.write_bytes(seg.content)
    return folder, path


def two_labels(rows: int = 12, columns: int = 8) -> NDArray[np.uint8]:
    labels = np.zeros((6, rows, columns), dtype=np.uint8)
    labels[1:3, 2:7, 1:5] = 1
    labels[3:5, 5:9, 4:8] = 2
    return labels


def test_our_own_segmentation_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    _, path = seg_file(tmp_path, two_labels())
    drawn = read_segmentation(path)
    assert [each.label for each in drawn.segments] == ["Brain", "Left kidney"]
    assert drawn.segments[1].code == "SCT:64033007/SCT:7771000"
    assert drawn.grid.spacing == pytest.approx(SPACING, abs=1e-5)
    for number in (1, 2):
        assert (drawn.mask([number]) == (two_labels() == number)).all()
    assert (drawn.mask([1, 2]) == (two_labels() > 0)).all()
    geometry = geometry_of(sorted((tmp_path / "series").iterdir()))
    assert drawn.grid.positions == pytest.approx(geometry.positions, abs=1e-6)


def test_frames_that_end_within_a_byte_are_read_as_they_were_drawn(tmp_path: Path) -> None:
    """99 pixels a frame; and our encoder leaves out the empty planes at both ends."""
    labels = two_labels(11, 9)
    _, path = seg_file(tmp_path, labels)
    drawn = read_segmentation(path)
    assert drawn.grid.shape == (4, 11, 9)
    for number in (1, 2):
        whole = grid_of_affine(affine_lps(orientation="oblique", spacing=SPACING), labels.shape)
        told = held(drawn.mask([number]), drawn.grid, labels == number, whole)
        assert (told.dice, told.hausdorff95_mm, told.size_error) == (1.0, 0.0, pytest.approx(0.0))


def test_a_segmentation_without_its_empty_frames_is_the_same(tmp_path: Path) -> None:
    """As other makers write them, here from ours: only frames on which something is, backwards."""
    _, path = seg_file(tmp_path, two_labels())
    dataset = dcmread(path)
    masks = read_segmentation(path)
    kept, bits = [], []
    for frame in reversed(dataset.PerFrameFunctionalGroupsSequence):
        number = int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        at = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        plane = int(np.abs(masks.grid.positions - at).sum(axis=1).argmin())
        mask = masks.mask([number])[plane]
        if mask.any():
            kept.append(frame)
            bits.append(mask.ravel())
    dataset.PerFrameFunctionalGroupsSequence = kept
    dataset.NumberOfFrames = len(kept)
    packed = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    dataset.save_as(tmp_path / "sparse.dcm")
    sparse = read_segmentation(tmp_path / "sparse.dcm")
    assert len(kept) == 4
    for number in (1, 2):
        one = held(masks.mask([number]), masks.grid, sparse.mask([number]), sparse.grid)
        assert (one.dice, one.hausdorff95_mm) == (1.0, 0.0)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_labelmap_segmentation_is_read_as_it_was_drawn(tmp_path: Path, compressed: bool) -> None:
    _, path = seg_file(tmp_path, two_labels())
    binary = dcmread(path)
    frames: dict[tuple[float, ...], Dataset] = {}
    for frame in binary.PerFrameFunctionalGroupsSequence:
        frames.setdefault(tuple(frame.PlanePositionSequence[0].ImagePositionPatient), frame)
    drawn = read_segmentation(path)
    labels = []
    for at in frames:
        plane = int(np.abs(drawn.grid.positions - np.array(at)).sum(axis=1).argmin())
        labels.append(two_labels()[plane])
    binary.SOPClassUID = binary.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    binary.SegmentationType = "LABELMAP"
    binary.BitsAllocated = binary.BitsStored = 8
    binary.HighBit = 7
    binary.PerFrameFunctionalGroupsSequence = list(frames.values())
    binary.NumberOfFrames = len(frames)
    pixels = np.stack(labels).tobytes()
    binary.PixelData = pixels + b"\0" * (len(pixels) % 2)
    if compressed:
        binary.compress(RLELossless, encoding_plugin="pydicom")
    binary.save_as(tmp_path / "labelmap.dcm")
    read = read_segmentation(tmp_path / "labelmap.dcm")
    for number in (1, 2):
        assert (read.mask([number]) == (two_labels() == number)).all()


def write_nifti(path: Path, labels: NDArray[np.uint8], affine: NDArray[np.float64]) -> Path:
    """Write labels [plane, row, column] and their affine to LPS as other tools do: [x, y, z], RAS."""
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    ras[:, :3] = ras[:, 2::-1]
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), ras), path)
    return path


def test_nifti_lies_where_dicom_does(tmp_path: Path) -> None:
    _, path = seg_file(tmp_path, two_labels())
    drawn = read_segmentation(path)
    file = write_nifti(tmp_path / "m.nii.gz", two_labels(), affine_lps(orientation="oblique", spacing=SPACING))
    read = read_label_map(file, drawn.segments)
    assert [each.label for each in read.segments] == ["Brain", "Left kidney"]
    for number in (1, 2):
        one = held(drawn.mask([number]), drawn.grid, read.mask([number]), read.grid)
        assert (one.dice, one.hausdorff95_mm) == (1.0, 0.0)


def test_simpleitk_writes_what_we_read(tmp_path: Path) -> None:
    simple = pytest.importorskip("SimpleITK")
    affine = affine_lps(orientation="oblique", spacing=SPACING)
    image = simple.GetImageFromArray(two_labels())
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, 2::-1] / np.array(SPACING[::-1])).ravel().tolist())
    simple.WriteImage(image, str(tmp_path / "m.nii.gz"))
    read = read_label_map(tmp_path / "m.nii.gz")
    grid = grid_of_affine(affine, (6, 12, 8))
    told = held(two_labels() == 2, grid, read.mask([2]), read.grid)
    assert (told.dice, told.size_error) == (1.0, pytest.approx(0.0))


def _fractional(dataset: Dataset) -> None:
    dataset.SegmentationType = "FRACTIONAL"


def _short(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:4]


def _undecodable(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([b"\1\0\0\0\x40\0\0\0" + b"\0" * 56 + b"\5abc"] * int(dataset.NumberOfFrames))
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True


def _headless(dataset: Dataset) -> None:
    del dataset.SharedFunctionalGroupsSequence


def _twice(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence[1] = dataset.PerFrameFunctionalGroupsSequence[0]


def _fewer(dataset: Dataset) -> None:
    dataset.NumberOfFrames = 3


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_fractional, "threshold"),
        (_short, "damaged"),
        (_undecodable, "cannot be decoded"),
        (_headless, "export it anew"),
        (_twice, "two frames draw one segment"),
        (_fewer, "frames"),
    ],
)
def test_a_segmentation_that_cannot_be_right_is_refused_by_name(
    tmp_path: Path, harm: Callable[[Dataset], None], said: str
) -> None:
    _, path = seg_file(tmp_path, two_labels())
    dataset = dcmread(path)
    harm(dataset)
    dataset.save_as(tmp_path / "harmed.dcm")
    with pytest.raises(ReferenceRefused, match=said) as refused:
        read_segmentation(tmp_path / "harmed.dcm").mask([1, 2])
    assert "harmed.dcm" in str(refused.value)


def test_label_maps_that_cannot_be_right_are_refused_by_name(tmp_path: Path) -> None:
    affine = affine_lps(spacing=SPACING)
    soft = nibabel.Nifti1Image(np.full((3, 3, 3), 0.5, np.float32), affine)
    nibabel.save(soft, tmp_path / "soft.nii.gz")
    nowhere = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), None)
    nowhere.header["sform_code"] = nowhere.header["qform_code"] = 0
    nibabel.save(nowhere, tmp_path / "nowhere.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 2), np.uint8), affine), tmp_path / "four.nii.gz")
    (tmp_path / "text.nii.gz").write_text("not at all")
    colours = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, affine), tmp_path / "colours.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.uint8), affine), tmp_path / "whole.nii")
    whole = (tmp_path / "whole.nii").read_bytes()
    # The type of the voxels (at byte 70), and how many there are (at 42).
    (tmp_path / "typeless.nii").write_bytes(whole[:70] + b"\xff\x7f" + whole[72:])
    (tmp_path / "negative.nii").write_bytes(whole[:42] + b"\xff\xff" + whole[44:])
    for name, said in {
        "soft.nii.gz": "threshold",
        "nowhere.nii.gz": "where it lies",
        "four.nii.gz": "4 axes",
        "text.nii.gz": "not a NIfTI file",
        "colours.nii": "no numbers",
        "typeless.nii": "not a NIfTI file",
        "negative.nii": "not a NIfTI file",
        "absent.nii.gz": "no such file",
    }.items():
        with pytest.raises(ReferenceRefused, match=said) as refused:
            read_label_map(tmp_path / name, [Named(number=1, label="Brain")])
        assert name in str(refused.value)
