"""Golden cases: the same voxels stored in another way are the same, and only a model that knows it is let in."""

from pathlib import Path

import numpy as np
import pytest
from dicom_factory import affine_lps
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from meddaemon.config.admission import admitted
from meddaemon.config.contracts import BUILTIN_DIRECTORY
from meddaemon.deploy import check, golden
from meddaemon.deploy.golden import AS_GIVEN, TURNS, Grid, NotThere, Turn
from meddaemon.domain.errors import BundleRefused, InvalidConfiguration
from meddaemon.inference.volume import assemble
from tests.admission import loaded
from tests.deploy.bundles import case_of, results_of

SHAPES = st.tuples(*[st.integers(1, 4)] * 3)
FLIPS = st.sets(st.integers(0, 2)).map(lambda found: tuple(sorted(found)))
ANY_TURN = st.builds(
    lambda order, flips: Turn(name="x", order=order, flips=flips), st.permutations(range(3)).map(tuple), FLIPS
)


def grid(shape: tuple[int, ...], seed: int = 0) -> Grid:
    voxels = np.random.default_rng(seed).integers(0, 9, shape).astype(np.float32)
    return Grid(voxels=voxels, affine_lps=affine_lps(orientation="oblique"))


def places(given_grid: Grid) -> set[tuple[float, ...]]:
    """Every voxel with its place in the patient, to a hundredth of a millimetre."""
    indices = np.indices(given_grid.voxels.shape).reshape(3, -1)
    at = given_grid.affine_lps[:3, :3] @ indices + given_grid.affine_lps[:3, 3:]
    return {(*place, value) for *place, value in zip(*at.round(2) + 0.0, given_grid.voxels.ravel(), strict=True)}


# --- laws -----------------------------------------------------------------------------------------------------------


@given(shape=SHAPES, turn=ANY_TURN)
def test_a_turned_grid_has_the_same_values_at_the_same_places(shape: tuple[int, ...], turn: Turn) -> None:
    before = grid(shape)
    assert places(golden.turned(before, turn)) == places(before)


@given(shape=SHAPES, turn=ANY_TURN)
def test_what_was_turned_comes_back_onto_its_own_grid(shape: tuple[int, ...], turn: Turn) -> None:
    before = grid(shape)
    after = golden.turned(before, turn)
    labels = after.voxels.astype(np.uint8)
    back = golden.onto(labels, after.affine_lps, shape, before.affine_lps)
    assert np.array_equal(back, before.voxels)


@given(shape=SHAPES, turn=ANY_TURN, axis=st.integers(0, 2), by=st.sampled_from([-1.0, 0.5, 1.0]))
def test_what_lies_elsewhere_is_not_taken_for_it(shape: tuple[int, ...], turn: Turn, axis: int, by: float) -> None:
    before = grid(shape)
    after = golden.turned(before, turn)
    moved = before.affine_lps.copy()
    moved[:3, 3] += by * moved[:3, axis]
    with pytest.raises(NotThere):
        golden.onto(after.voxels.astype(np.uint8), after.affine_lps, shape, moved)


def test_other_axes_and_other_sizes_are_not_the_same_grid() -> None:
    labels: NDArray[np.uint8] = np.zeros((2, 3, 4), np.uint8)
    straight = np.eye(4)
    for other in (affine_lps(orientation="oblique"), np.diag([2.0, 1, 1, 1]), np.array([*np.eye(4)[[0, 0, 2, 3]]])):
        with pytest.raises((NotThere, np.linalg.LinAlgError)):
            golden.onto(labels, straight, (2, 3, 4), other)
    with pytest.raises(NotThere, match="voxels"):
        golden.onto(labels, straight, (2, 3, 5), straight)


def test_every_axis_is_moved_and_reversed_by_some_turn() -> None:
    assert {axis for turn in TURNS for axis in turn.flips} == {0, 1, 2}
    assert all(any(turn.order[axis] != axis for turn in TURNS) for axis in range(3))
    assert len({(turn.order, turn.flips) for turn in (AS_GIVEN, *TURNS)}) == len(TURNS) + 1


def test_the_worst_label_decides() -> None:
    expected = np.array([[[1, 1, 2, 2]]], np.uint8)
    assert golden.worst_dice(expected, expected) == 1.0
    assert golden.worst_dice(np.array([[[1, 1, 2, 0]]], np.uint8), expected) == pytest.approx(2 / 3)
    assert golden.worst_dice(np.array([[[1, 1, 0, 0]]], np.uint8), expected) == 0.0
    assert golden.worst_dice(np.array([[[1, 1, 2, 2]]], np.uint8) * 0, expected * 0) == 1.0
    assert golden.worst_dice(np.array([[[1, 1, 2, 3]]], np.uint8), expected) == 0.0, "a label of nobody is an error"


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-3000, 3000, width=32), min_size=24, max_size=24)
    | st.lists(st.integers(-32768, 32767).map(float), min_size=24, max_size=24),
    turn=st.sampled_from([AS_GIVEN, *TURNS]),
)
def test_files_that_are_written_hold_the_values_where_they_were(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], turn: Turn
) -> None:
    """By way of the loader that patients' files go through."""
    voxels = np.array(values, np.float32).reshape(2, 3, 4)
    before = Grid(voxels=voxels, affine_lps=affine_lps(orientation="oblique"))
    case = case_of(before)
    files = golden.files_of(case, turn, tmp_path_factory.mktemp("case"))["image"]
    volume = assemble(files)
    precision = 0 if (voxels == voxels.round()).all() else float(np.ptp(voxels)) / 60000
    back = golden.onto(volume.voxels, volume.geometry.affine_lps, voxels.shape, before.affine_lps)  # type: ignore[arg-type]
    assert np.abs(back - voxels).max() <= precision


# --- cases on disk --------------------------------------------------------------------------------------------------


def test_a_case_is_read_as_it_was_written(tmp_path: Path) -> None:
    before = case_of(grid((2, 3, 4)))
    golden.write_case(tmp_path / "c", before)
    after = golden.read_case(tmp_path / "c")
    assert (after.name, after.dice, after.sources[0].modality) == ("c", 0.99, "MR")
    assert after.sources[0].grid is not None
    assert np.array_equal(after.sources[0].grid.voxels, before.sources[0].grid.voxels)  # type: ignore[union-attr]
    assert np.array_equal(after.labels, before.labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('array = "input0.npz"', "", "case.toml:1: inputs[0]: needs either array or files"),
        ("dice = 0.99", "dice = 1.5", "case.toml:8: expected.dice"),
        ("dice = 0.99", "scores = [1.0]", "case.toml:6: expected: needs either labels, scores, boxes or landmarks"),
        ('"input0.npz"', '"../../secret.npz"', "case.toml:3: inputs[0].array"),
        ('"labels.npz"', '"/etc/passwd"', "case.toml:7: expected.labels"),
        ('modality = "MR"', 'modality = "US"', "can be written as MR, CT, PT"),
    ],
)
def test_a_case_that_is_wrong_says_where(tmp_path: Path, old: str, new: str, problem: str) -> None:
    golden.write_case(tmp_path / "c", case_of(grid((2, 3, 4))))
    file = tmp_path / "c/case.toml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(InvalidConfiguration) as invalid:
        golden.read_case(tmp_path / "c")
    assert any(problem in each for each in invalid.value.problems), invalid.value.problems


def test_arrays_that_claim_more_than_they_have_or_pickle_are_refused(tmp_path: Path) -> None:
    golden.write_case(tmp_path / "c", case_of(grid((2, 3, 4))))
    target = tmp_path / "c/labels.npz"
    for arrays in (
        {"labels": np.array([{"a": 1}], dtype=object)},
        {"labels": np.zeros((2, 3), np.uint8)},
        {"labels": np.zeros((2, 3, 4), np.int64)},
        {"labels": np.zeros((2, 3, 5), np.uint8)},
        {"labels": np.zeros((2, 3, 4), np.uint8), "affine_lps": np.zeros((4, 4))},
        {"something": np.zeros(3)},
    ):
        np.savez(target, **arrays)
        with pytest.raises(BundleRefused):
            golden.read_case(tmp_path / "c")
    np.savez(target, labels=np.zeros((2, 3, 4), np.uint8))
    huge = target.read_bytes().replace(b"(2, 3, 4), }    ", b"(9999, 9999, 9999")
    assert huge != target.read_bytes()
    target.write_bytes(huge)
    with pytest.raises(BundleRefused):
        golden.read_case(tmp_path / "c")
    target.write_bytes(b"PK nothing")
    with pytest.raises(BundleRefused):
        golden.read_case(tmp_path / "c")


# --- the model that we bring ----------------------------------------------------------------------------------------


def test_the_model_that_we_bring_comes_with_a_green_check_of_what_it_is() -> None:
    pytest.importorskip("deepbet", reason="its weights are an extra")
    contract = loaded(BUILTIN_DIRECTORY / "brain_volume/contract.toml")
    admission = admitted(contract).admission
    assert (admission.refusal, admission.forced) == ("", ""), "run `meddaemon models check brain_volume` and commit"
    found, variants = results_of(contract)
    assert set(variants) == {"as given", check.AGAIN, *(turn.name for turn in TURNS)}
    assert found.green


def test_its_case_expects_what_the_makers_of_the_model_get() -> None:
    deepbet = pytest.importorskip("deepbet")
    nibabel = pytest.importorskip("nibabel")
    case = golden.read_case(BUILTIN_DIRECTORY / "brain_volume/golden/head")
    source = case.sources[0].grid
    assert source is not None
    affine_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ source.affine_lps
    _, mask, millilitres = deepbet.BrainExtraction(no_gpu=True).run(nibabel.Nifti1Image(source.voxels, affine_ras))
    assert np.array_equal(np.asarray(mask.dataobj).astype(np.uint8), case.labels)
    assert 700 < float(millilitres) < 2300
