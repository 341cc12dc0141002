"""The probabilities that a segmentation had before it became labels, on the voxels of the source."""

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
    RAS,
    SAVE,
    SOFTMAX,
    SPACING,
    balls,
    config,
    dice,
    make_volume,
    pictures,
    rotation,
    steps,
    write_bundle,
)

torch = pytest.importorskip("torch")

from meddaemon.domain.contract import InputKind  # noqa: E402
from meddaemon.domain.errors import ModelFailed  # noqa: E402
from meddaemon.domain.result import ArtefactKind, Prediction  # noqa: E402
from meddaemon.domain.volume import Volume  # noqa: E402
from meddaemon.inference.bundles.asked import Asked  # noqa: E402
from meddaemon.inference.bundles.session import load  # noqa: E402
from meddaemon.inference.bundles.terms import Feed, Terms  # noqa: E402

pytestmark = [pytest.mark.usefixtures("own_code_of_one_bundle"), pytest.mark.filterwarnings("ignore")]

KEPT = Asked(kept=((1, "Body"),), named=((1, "Body"),))
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
THRESHOLD = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
LARGEST = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]}
OWN_THRESHOLD = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: (x[1:] >= 0.5).float()"}
OWN_SIGMOID = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.sigmoid()"}


def soft(channels: int = 2, dimensions: int = 3) -> Any:
    """A convolution whose probabilities rise slowly about 50: the last channel is the body."""
    kind = torch.nn.Conv3d if dimensions == 3 else torch.nn.Conv2d
    network = kind(1, channels, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 0.05])[-channels:].reshape(channels, 1, *[1] * dimensions))
        network.bias.copy_(torch.tensor([0.0, -2.5])[-channels:])
    return network


def predicted(
    folder: Path,
    volume: Any,
    post: tuple[Any, ...],
    *,
    pre: tuple[Any, ...] = (RAS,),
    wish: Asked = KEPT,
    channels: int = 2,
    segments: tuple[int, ...] = (1,),
    kind: InputKind = InputKind.VOLUME,
) -> Prediction:
    dimensions = 3 if kind is InputKind.VOLUME else 2
    network = soft(channels, dimensions)
    described = {
        "_target_": f"torch.nn.Conv{dimensions}d",
        "in_channels": 1,
        "out_channels": channels,
        "kernel_size": 1,
    }
    content = config(preprocessing=steps(LOAD, CHANNEL, *pre), postprocessing=steps(*post), network_def=described)
    bundle = write_bundle(
        folder / f"b{len(list(folder.iterdir()))}",
        content,
        weights=lambda models: torch.save(network.state_dict(), models / "model.pt"),
    )
    terms = Terms(segments=segments, asked=wish, feeds=(Feed(name="image", key="image", kind=kind),))
    return load(bundle, scratch=folder, device="cpu", terms=terms).predict({"image": volume})


def smooth(turn: np.ndarray | None = None) -> Volume:
    index = np.moveaxis(np.indices((7, 12, 9)), 0, -1) * (2.5, 1.0, 1.0)
    distance = np.linalg.norm(index - (7.5, 4.0, 5.0), axis=-1)
    return make_volume(np.clip(100 - 12 * distance, 0, 100), turn=turn)


def truth(volume: Volume) -> np.ndarray:
    return 1 / (1 + np.exp(-(0.05 * volume.voxels.astype(np.float64) - 2.5)))


@pytest.mark.parametrize(
    ("post", "channels"),
    [
        ((SOFTMAX, INVERT, ARGMAX, SAVE), 2),
        ((SOFTMAX, ARGMAX, {**INVERT, "nearest_interp": True}), 2),
        ((INVERT, SOFTMAX, ARGMAX), 2),
        ((SOFTMAX, ARGMAX), 2),
        ((SOFTMAX,), 2),
        ((SOFTMAX, INVERT, ARGMAX, LARGEST), 2),
        ((SOFTMAX, INVERT, OWN_THRESHOLD), 2),
        ((SIGMOID, INVERT, THRESHOLD), 1),
        ((OWN_SIGMOID, INVERT, THRESHOLD), 1),
        ((steps(SIGMOID, steps(INVERT)), THRESHOLD), 1),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_they_are_those_of_the_network_and_say_what_the_labels_say(
    post: tuple[Any, ...], channels: int, seed: int, tmp_path: Path
) -> None:
    volume = smooth(rotation(seed))
    found = predicted(tmp_path, volume, post, channels=channels)
    (artefact,) = found.artefacts
    assert (artefact.kind, artefact.name) == (ArtefactKind.PROBABILITY, "probability: Body")
    assert artefact.values.dtype == np.float16
    np.testing.assert_allclose(artefact.values, truth(volume), atol=1e-3)
    assert found.labels is not None
    np.testing.assert_array_equal(artefact.values >= 0.5, found.labels > 0)


def test_keeping_them_changes_nothing(tmp_path: Path) -> None:
    volume, _ = balls(rotation(4))
    post = (SOFTMAX, INVERT, ARGMAX)
    plain = predicted(tmp_path, volume, post, pre=(RAS, SPACING), wish=Asked())
    kept = predicted(tmp_path, volume, post, pre=(RAS, SPACING))
    assert plain.artefacts == ()
    np.testing.assert_array_equal(plain.labels, kept.labels)
    # What the bundle inverts linearly, it made labels of afterwards: they differ at most where both are as likely.
    values = kept.artefacts[0].values
    apart = (values >= 0.5) != kept.labels
    assert np.abs(values[apart].astype(float) - 0.5).max(initial=0) < 1e-3


@pytest.mark.parametrize("post", [(SOFTMAX, ARGMAX), (SOFTMAX, ARGMAX, {**INVERT, "nearest_interp": True})])
def test_what_a_bundle_does_not_invert_is_brought_back_by_its_affine(post: tuple[Any, ...], tmp_path: Path) -> None:
    volume, around = balls(rotation(4))
    found = predicted(tmp_path, volume, post, pre=(RAS, SPACING))
    values = found.artefacts[0].values.astype(float)
    wanted = truth(volume)
    for box in around:
        for axis in range(3):
            others = tuple(each for each in range(3) if each != axis)
            index = np.arange(values[box].shape[axis])
            centres = [(each[box] ** 4).sum(axis=others) @ index / (each[box] ** 4).sum() for each in (values, wanted)]
            assert abs(centres[0] - centres[1]) < 0.1
    assert dice(values >= 0.5, wanted >= 0.5) > 0.92


def test_a_tilted_stack_keeps_them_on_its_own_planes(tmp_path: Path) -> None:
    volume = smooth(rotation(2))
    sheared = volume.geometry.affine_lps.copy()
    sheared[:3, 0] += 1.25 * sheared[:3, 1]
    tilted = replace(volume, geometry=replace(volume.geometry, affine_lps=sheared))
    found = predicted(tmp_path, tilted, (SOFTMAX, INVERT, ARGMAX))
    values = found.artefacts[0].values
    assert values.shape == volume.voxels.shape
    # Moved sideways by quarters of a pixel and back, a smooth body is blurred a little and nothing else.
    inside = (slice(None), slice(1, -1), slice(1, -1))
    assert np.abs(values[inside] - truth(volume)[inside]).max() < 0.02


def test_each_picture_has_its_own(tmp_path: Path) -> None:
    frames = np.stack([np.full((6, 8), 20.0), np.full((6, 8), 80.0)])
    given = pictures(frames)
    found = predicted(tmp_path, given, (SOFTMAX, ARGMAX), pre=(), kind=InputKind.PICTURES)
    assert [each.source for each in found.artefacts] == list(given.sources)
    for artefact, value in zip(found.artefacts, (20, 80), strict=True):
        assert artefact.values.shape == (6, 8)
        np.testing.assert_allclose(artefact.values, 1 / (1 + np.exp(2.5 - 0.05 * value)), atol=1e-3)


@pytest.mark.parametrize(
    ("post", "wish", "problem"),
    [
        ((ARGMAX,), KEPT, "no probabilities that could be kept, but labels alone"),
        (
            (SOFTMAX, ARGMAX),
            Asked(kept=((3, "Three"),)),
            "2 channels, which are neither one for each of the 1 segments .* nor one for each label",
        ),
    ],
)
def test_a_bundle_without_them_says_so(post: tuple[Any, ...], wish: Asked, problem: str, tmp_path: Path) -> None:
    segments = tuple(label for label, _ in wish.kept)
    with pytest.raises(ModelFailed, match=problem):
        predicted(tmp_path, smooth(), post, wish=wish, segments=segments)


@pytest.mark.parametrize("post", [(SOFTMAX, INVERT, ARGMAX), (OWN_SIGMOID, INVERT)])
@pytest.mark.parametrize("wrong", ["one", "all"])
def test_what_is_not_a_number_is_told_of_and_kept_as_nothing(post: tuple[Any, ...], wrong: str, tmp_path: Path) -> None:
    """The prediction is marked all the same, as it is without: nothing is lost by what was to be kept beside it."""
    volume = smooth()
    volume.voxels[(2, 3, 4) if wrong == "one" else ...] = np.nan
    channels = 2 if post[0] is SOFTMAX else 1
    plain = predicted(tmp_path, volume, post, channels=channels, wish=Asked())
    found = predicted(tmp_path, volume, post, channels=channels)
    assert found.doubts == plain.doubts
    np.testing.assert_array_equal(found.labels, plain.labels)
    for artefact in found.artefacts:
        assert np.isfinite(artefact.values).all()
    if wrong == "one":
        assert found.artefacts[0].values[2, 3, 4] == 0
        assert found.artefacts[0].values.max() > 0.5
