"""Known bodies come back in the voxels where they are, whatever a bundle does to the image, inverted or not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import (
    ARGMAX,
    CHANNEL,
    INVERT,
    LOAD,
    LOADER,
    RAS,
    SOFTMAX,
    balls,
    config,
    dice,
    make_volume,
    phantom,
    rotation,
    saved,
    steps,
    write_bundle,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meddaemon.domain.contract import ModelKind
from meddaemon.domain.errors import InputRefused, ModelFailed
from meddaemon.domain.volume import Volume

torch = pytest.importorskip("torch")
ndimage = pytest.importorskip("scipy.ndimage")
session = pytest.importorskip("meddaemon.inference.bundles.session")
Terms = pytest.importorskip("meddaemon.inference.bundles.terms").Terms
Feed = pytest.importorskip("meddaemon.inference.bundles.terms").Feed

SPACING = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.3, 1.3, 1.7], "mode": "bilinear"}
CROP = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "margin": 2, "allow_smaller": True}
RESIZE = {"_target_": "Resized", "keys": "image", "spatial_size": [41, 43, 37], "mode": "trilinear"}
PAD = {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [64, 64, 64]}
LPI = {**RAS, "axcodes": "SPL"}
NEAREST = {**INVERT, "nearest_interp": True}


def run(folder: Path, preprocessing: Any, postprocessing: Any, volume: Volume, **changes: Any) -> np.ndarray:
    content = config(preprocessing=steps(*preprocessing), postprocessing=steps(*postprocessing), **changes)
    loaded = session.load(
        write_bundle(folder / "b", content, weights=saved), scratch=folder, terms=Terms(segments=(1,))
    )
    return loaded.predict({"image": volume}).labels


INVERSIONS = {
    "probabilities, inverted": (SOFTMAX, INVERT, ARGMAX),
    "labels, inverted": (SOFTMAX, ARGMAX, NEAREST),
    "labels, not inverted": (SOFTMAX, ARGMAX),
    "probabilities, not inverted": (SOFTMAX,),
    "nothing done": (),
}


@pytest.mark.parametrize("after", INVERSIONS)
@pytest.mark.parametrize(
    "before", [(), (RAS,), (LPI,), (LPI, PAD), (RAS, CROP)], ids=["as is", "RAS", "SPL", "pad", "crop"]
)
@pytest.mark.filterwarnings("ignore")
def test_what_only_turns_crops_or_pads_comes_back_exactly(before: Any, after: str, tmp_path: Path) -> None:
    volume = phantom(rotation(3))
    labels = run(tmp_path, (LOAD, CHANNEL, *before), INVERSIONS[after], volume)
    assert np.array_equal(labels, volume.voxels > 50)


@pytest.mark.parametrize("after", INVERSIONS)
@pytest.mark.parametrize("before", [(RAS, SPACING), (SPACING, LPI), (RESIZE,), (RAS, SPACING, CROP, PAD)])
@pytest.mark.filterwarnings("ignore")
def test_what_resamples_comes_back_within_its_blur(before: Any, after: str, tmp_path: Path) -> None:
    volume, around = balls(rotation(5))
    labels = run(tmp_path, (LOAD, CHANNEL, *before), INVERSIONS[after], volume)
    truth = volume.voxels > 50
    assert labels.shape == truth.shape
    assert dice(labels > 0, truth) > 0.92
    # A shift of half a voxel of any ball would show here.
    for box in around:
        centre = np.mean(np.argwhere(labels[box] > 0), axis=0)
        assert np.abs(centre - np.mean(np.argwhere(truth[box]), axis=0)).max() < 0.25


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.sampled_from([1, -1])] * 3),
    codes=st.sampled_from(["RAS", "LPS", "SPL", "AIR", "PRS"]),
    seed=st.integers(0, 99),
)
@pytest.mark.filterwarnings("ignore")
def test_law_any_layout_of_the_source_gives_the_same_place(
    order: list[int], flips: tuple[int, ...], codes: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = np.random.default_rng(seed)
    voxels = generator.integers(0, 2, (5, 6, 7)) * 100
    turn = rotation(seed) @ np.eye(3)[:, order] * flips
    volume = make_volume(voxels, turn=turn)
    folder = tmp_path_factory.mktemp("law")
    labels = run(folder, (LOAD, CHANNEL, {**RAS, "axcodes": codes}), (SOFTMAX, ARGMAX), volume)
    assert np.array_equal(labels, voxels > 50)


@pytest.mark.filterwarnings("ignore")
def test_labels_are_never_interpolated_between_their_numbers(tmp_path: Path) -> None:
    """A bundle that inverts its labels linearly would draw label 1 wherever label 2 meets the background."""
    only_two = {
        "_target_": "Lambdad",
        "keys": "pred",
        "func": "$lambda x: x * 2",
    }
    volume = phantom(rotation(7))
    content = config(
        preprocessing=steps(LOAD, CHANNEL, RAS, SPACING),
        postprocessing=steps(ARGMAX, only_two, INVERT),
        checkpointloader=LOADER,
    )
    loaded = session.load(write_bundle(tmp_path / "b", content, weights=saved), scratch=tmp_path)
    assert set(np.unique(loaded.predict({"image": volume}).labels)) == {0, 2}
    assert loaded.provenance["shims"] == "labels_inverted_by_nearest"


@pytest.mark.filterwarnings("ignore")
def test_a_prediction_of_another_size_is_refused(tmp_path: Path) -> None:
    smaller = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.as_tensor()[..., 1:]"}
    with pytest.raises(ModelFailed, match="lies on another grid than the source, and than the image"):
        run(tmp_path, (LOAD, CHANNEL), (smaller,), phantom())


# --- several series as channels -------------------------------------------------------------------------------------

SUM = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 2, "kernel_size": 1}


def summed(models: Path) -> None:
    """Class 1 where both channels together are above 150."""
    network = torch.nn.Conv3d(2, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]).reshape(2, 2, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, -150.0]))
    torch.save({"model": network.state_dict()}, models / "model.pt")


def two_series(folder: Path) -> Any:
    content = config(preprocessing=steps(LOAD, RAS), network_def=SUM, postprocessing=steps(SOFTMAX, INVERT, ARGMAX))
    feeds = (Feed(name="t1", key="image"), Feed(name="t2", key="image"))
    bundle = write_bundle(folder / "b", content, weights=summed)
    return session.load(bundle, scratch=folder, terms=Terms(feeds=feeds, segments=(1,), kind=ModelKind.SEGMENTATION))


@pytest.mark.filterwarnings("ignore")
def test_series_of_one_key_are_its_channels_on_the_grid_of_the_first(tmp_path: Path) -> None:
    first = phantom(rotation(1))
    whole = np.full(first.voxels.shape, 100)
    whole[:, :, :22] = 0
    # The same place at twice the resolution in the plane, begun one plane earlier, and turned upside down.
    fine = np.concatenate([whole[:1], whole]).repeat(2, axis=1).repeat(2, axis=2)[::-1]
    second = make_volume(fine, spacing=(2.5, 0.5, 0.5), turn=rotation(1))
    affine = second.geometry.affine_lps
    axes = rotation(1)
    affine[:3, 3] = first.geometry.affine_lps[:3, 3] - axes @ [0.25, 0.25, 2.5] + axes @ [0, 0, 2.5 * 18]
    affine[:3, 0] *= -1
    labels = two_series(tmp_path).predict({"t1": first, "t2": second}).labels
    assert np.array_equal(labels, (first.voxels > 50) & (whole > 50))


@pytest.mark.filterwarnings("ignore")
def test_series_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    loaded = two_series(tmp_path)
    first, other = phantom(), phantom()
    other.geometry.affine_lps[:3, 3] += 30
    with pytest.raises(InputRefused, match="little_shared"):
        loaded.predict({"t1": first, "t2": other})
    elsewhere = make_volume(other.voxels)
    object.__setattr__(elsewhere.geometry, "frame_of_reference_uid", "1.2.99")
    elsewhere.geometry.affine_lps[:3, 3] += 0.4
    with pytest.raises(InputRefused, match="other_frame_of_reference"):
        loaded.predict({"t1": first, "t2": elsewhere})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("moves", [(), (LPI,)])
def test_a_result_without_a_place_is_believed_only_where_nothing_was_moved(moves: Any, tmp_path: Path) -> None:
    """After a turn it could be meant before or after its inversion: the same numbers, in another place."""
    placeless = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.argmax(0).numpy()", "track_meta": False}
    volume = make_volume(phantom(rotation(2)).voxels[:18, :18, :18], spacing=(1, 1, 1))
    if moves:
        with pytest.raises(ModelFailed, match="does not know where it lies"):
            run(tmp_path, (LOAD, CHANNEL, *moves), (placeless,), volume)
    else:
        labels = run(tmp_path, (LOAD, CHANNEL, *moves), (placeless,), volume)
        assert np.array_equal(labels, volume.voxels > 50)


# --- stacks that are no box -----------------------------------------------------------------------------------------


def leaning(volume: Volume, *, uneven: bool) -> Volume:
    """Return the same planes pushed along their rows, as by a gantry's tilt, and at uneven distances."""
    geometry = volume.geometry
    affine = geometry.affine_lps.copy()
    affine[:3, 0] += 0.4 * affine[:3, 2] / np.linalg.norm(affine[:3, 2]) * geometry.spacing[0]
    positions = None
    if uneven:
        rising = np.cumsum(np.linspace(0.8, 1.2, geometry.shape[0])) - 0.8
        positions = affine[:3, 3] + np.outer(rising, affine[:3, 0])
    # The world is the one of the straight volume: each plane sees another part of it.
    world = np.linalg.inv(geometry.affine_lps)
    shape = geometry.shape
    leant = replace(geometry, affine_lps=affine, positions_lps=positions)
    index = np.moveaxis(np.indices(shape[1:]), 0, -1)
    voxels = np.zeros(shape, np.float32)
    for plane, position in enumerate(leant.positions):
        places = position + index @ affine[:3, 1:3].T
        at = np.moveaxis(places @ world[:3, :3].T + world[:3, 3], -1, 0)
        voxels[plane] = ndimage.map_coordinates(volume.voxels, at, order=1, mode="nearest")
    return replace(volume, voxels=voxels, geometry=leant)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("inverted", [False, True])
def test_what_is_seen_in_a_leaning_stack_lies_in_its_planes(uneven: bool, inverted: bool, tmp_path: Path) -> None:
    source, _ = balls(rotation(5))
    volume = leaning(source, uneven=uneven)
    content = config(
        preprocessing=steps(LOAD, CHANNEL, RAS, SPACING),
        postprocessing=steps(SOFTMAX, *([INVERT] if inverted else []), ARGMAX),
    )
    loaded = session.load(
        write_bundle(tmp_path / "b", content, weights=saved), scratch=tmp_path, terms=Terms(segments=(1,))
    )
    prediction = loaded.predict({"image": volume})
    assert prediction.geometry is volume.geometry
    assert prediction.labels.shape == volume.voxels.shape
    truth = volume.voxels > 50
    assert dice(prediction.labels > 0, truth) > 0.9
    # Plane by plane: at 18 planes' 18 columns of lean, one step too much or too little would show in the last ones.
    whole = [(drawn, seen) for drawn, seen in zip(prediction.labels > 0, truth, strict=True) if seen.sum() > 150]
    assert len(whole) > 8
    assert min(dice(drawn, seen) for drawn, seen in whole) > 0.8
    assert "straightened" in prediction.provenance
    assert "straightened" not in loaded.predict({"image": source}).provenance
