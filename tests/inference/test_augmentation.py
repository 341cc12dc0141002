"""Asked again, flipped and turned: what is averaged, how far answers differ, and that nothing is moved by it."""

import hashlib
import os
import subprocess
import sys
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
    SOFTMAX,
    SPACING,
    balls,
    config,
    make_volume,
    pictures,
    rotation,
    steps,
    write_bundle,
)
from hypothesis import given
from hypothesis import strategies as st
from toy_contract import toy_contract

torch = pytest.importorskip("torch")

from meddaemon.domain.codes import CERTAINTY_OF_FINDING, MILLILITRE, STANDARD_DEVIATION, VOLUME, Code  # noqa: E402
from meddaemon.domain.contract import (  # noqa: E402
    Augmentation,
    ClassContract,
    Combine,
    InputKind,
    ModelKind,
    ScoreContract,
    SegmentContract,
)
from meddaemon.domain.errors import ModelFailed  # noqa: E402
from meddaemon.domain.result import Measurement, Prediction  # noqa: E402
from meddaemon.inference.analysis import analyse  # noqa: E402
from meddaemon.inference.bundles.asked import Answer, Asked  # noqa: E402
from meddaemon.inference.bundles.augmentation import Change, changes, majority, spread_of_votes  # noqa: E402
from meddaemon.inference.bundles.session import load  # noqa: E402
from meddaemon.inference.bundles.terms import Feed, Terms  # noqa: E402

pytestmark = [pytest.mark.usefixtures("own_code_of_one_bundle"), pytest.mark.filterwarnings("ignore")]

ALL = Augmentation(flips=("x", "y", "z", "xyz"), rotations=(90, 180, 270), spread=True)
NAMED = ((1, "Body"),)
NETWORK = """
import torch

class Even(torch.nn.Module):
    '''Says the same of a voxel wherever it is.'''
    def forward(self, x):
        return torch.cat([torch.zeros_like(x), 0.05 * x - 2.5], 1)

class Biased(Even):
    '''Believes more the further along x it looks.'''
    def forward(self, x):
        ramp = torch.linspace(-1, 1, x.shape[2]).reshape(1, 1, -1, *[1] * (x.ndim - 3))
        raw = super().forward(x)
        return torch.cat([raw[:, :1], raw[:, 1:] + ramp], 1)

class Labels(Biased):
    def forward(self, x):
        return super().forward(x).argmax(1, keepdim=True).float()

class Means(torch.nn.Module):
    '''Two numbers: the mean of the image, and that of its first half along x.'''
    def forward(self, x):
        return torch.stack([x.mean(), x[:, :, : x.shape[2] // 2].mean()]).unsqueeze(0)
"""


def predicted(
    folder: Path,
    network: str,
    given_: Any,
    wish: Augmentation,
    *,
    pre: tuple[Any, ...] = (RAS,),
    post: tuple[Any, ...] = (SOFTMAX, INVERT, ARGMAX),
    kind: ModelKind = ModelKind.SEGMENTATION,
    feed: InputKind = InputKind.VOLUME,
    kept: bool = True,
) -> Prediction:
    bundle = folder / network
    if not bundle.exists():
        write_bundle(
            bundle,
            config(
                network_def={"_target_": f"scripts.net.{network}"},
                preprocessing=steps(LOAD, CHANNEL, *pre),
                postprocessing=steps(*post),
            ),
            scripts={"net": NETWORK},
        )
    drawing = kind is ModelKind.SEGMENTATION
    asked = Asked(
        augmentation=wish,
        kept=NAMED if drawing and kept else (),
        named=NAMED if drawing else (),
        answers=() if drawing else (Answer(name="mean"), Answer(name="half")),
    )
    terms = Terms(
        kind=kind,
        segments=(1,) if drawing else (),
        outputs=0 if drawing else 2,
        combine=Combine.MEAN,
        asked=asked,
        feeds=(Feed(name="image", key="image", kind=feed),),
    )
    return load(bundle, scratch=folder, device="cpu", terms=terms).predict({"image": given_})


def probability(found: Prediction) -> np.ndarray:
    return next(each.values for each in found.artefacts if each.name == "probability: Body").astype(float)


def spread(found: Prediction) -> np.ndarray:
    return next(each.values for each in found.artefacts if each.name == "spread: Body").astype(float)


def test_a_network_without_a_bias_says_the_very_same(tmp_path: Path) -> None:
    volume, _ = balls(rotation(2))
    plain = predicted(tmp_path, "Even", volume, Augmentation(), pre=(RAS, SPACING))
    augmented = predicted(tmp_path, "Even", volume, ALL, pre=(RAS, SPACING))
    np.testing.assert_array_equal(plain.labels, augmented.labels)
    np.testing.assert_array_equal(probability(plain), probability(augmented))
    assert np.count_nonzero(plain.labels)
    assert augmented.volume_spread_ml == (0.0,)
    assert not spread(augmented).any()
    assert augmented.provenance["augmentation"] == (
        "mean of the probabilities of 8: as it is, x flipped, y flipped, z flipped, xyz flipped, turned by 90°,"
        " turned by 180°, turned by 270°"
    )
    assert "augmentation" not in plain.provenance
    assert plain.volume_spread_ml == ()


def test_a_biased_network_is_averaged_and_its_bias_is_told(tmp_path: Path) -> None:
    volume = make_volume(np.random.default_rng(0).uniform(20, 80, (6, 8, 10)), turn=rotation(1))
    found = predicted(tmp_path, "Biased", volume, Augmentation(flips=("x",), spread=True), kept=True)
    raw = 0.05 * volume.voxels.astype(float) - 2.5
    ramp = np.linspace(-1, 1, 10)
    # In RAS, x runs against the columns of this volume or along them: the mean does not care.
    both = np.stack([1 / (1 + np.exp(-(raw + sign * ramp))) for sign in (-1, 1)])
    np.testing.assert_allclose(probability(found), both.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(spread(found), both.std(axis=0), atol=1e-3)
    np.testing.assert_array_equal(found.labels, both.mean(axis=0) > 0.5)
    sizes = np.count_nonzero(both > 0.5, axis=(1, 2, 3)) * 2.5 / 1000
    assert found.volume_spread_ml == (pytest.approx(np.std(sizes)),)
    assert np.std(sizes) > 0


@pytest.mark.parametrize("tilted", [False, True])
def test_labels_go_by_majority(tmp_path: Path, tilted: bool) -> None:
    volume = make_volume(np.random.default_rng(0).uniform(20, 80, (6, 8, 8)))
    if tilted:
        sheared = volume.geometry.affine_lps.copy()
        sheared[1, 0] = 1.0
        volume = replace(volume, geometry=replace(volume.geometry, affine_lps=sheared))
    wish = Augmentation(flips=("x", "y"), spread=True)
    found = predicted(tmp_path, "Labels", volume, wish, post=(INVERT,), kept=False)
    raw, ramp = 0.05 * volume.voxels.astype(float) - 2.5, np.linspace(-1, 1, 8)
    # As it is and flipped along y it believes in one end, flipped along x in the other: two against one.
    (one, other) = (raw + ramp > 0, raw - ramp > 0)
    drawn = found.labels > 0
    assert np.array_equal(drawn, one) or np.array_equal(drawn, other)
    thirds = (one != other) * np.sqrt(2) / 3
    if not tilted:
        np.testing.assert_allclose(spread(found), thirds, atol=1e-3)
    sizes = [
        np.count_nonzero(each) * 2.5 / 1000
        for each in ((one, one, other) if np.array_equal(drawn, one) else (other, other, one))
    ]
    assert found.volume_spread_ml == (pytest.approx(np.std(sizes)),)
    assert found.provenance["augmentation"] == "majority of 3: as it is, x flipped, y flipped"
    with pytest.raises(ModelFailed, match="no probabilities that could be kept"):
        predicted(tmp_path, "Labels", volume, wish, post=(INVERT,))


def test_numbers_are_averaged_over_pictures_and_changes(tmp_path: Path) -> None:
    frames = np.zeros((2, 6, 8))
    frames[:, :, :4] = 1.0
    frames[1, :3, :4] = 3.0
    wish = Augmentation(flips=("x",), rotations=(90,))
    found = predicted(
        tmp_path, "Means", pictures(frames), wish, pre=(), post=(), kind=ModelKind.REGRESSION, feed=InputKind.PICTURES
    )
    # The half along x is that of the left columns, of the right ones when flipped, and turned that of rows.
    halves = [(1.0 + 2.0) / 2, 0.0]
    first, second = found.scores
    assert first == pytest.approx(frames.mean())
    assert found.score_spread[0] == pytest.approx(0, abs=1e-6)
    turned = 3 * second - sum(halves)
    rows = sorted([frames[:, :3].mean(), frames[:, 3:].mean()])
    assert any(turned == pytest.approx(each) for each in rows)
    assert found.score_spread[1] == pytest.approx(np.std([*halves, turned]))


def test_each_picture_keeps_its_own_spread(tmp_path: Path) -> None:
    frames = np.random.default_rng(3).uniform(20, 80, (2, 6, 8))
    found = predicted(
        tmp_path,
        "Biased",
        pictures(frames),
        Augmentation(flips=("x",), spread=True),
        pre=(),
        post=(SOFTMAX, ARGMAX),
        feed=InputKind.PICTURES,
    )
    assert [(each.name, each.source) for each in found.artefacts] == [
        (f"{kind}: Body", source) for kind in ("probability", "spread") for source in pictures(frames).sources
    ]
    assert all(each.values.shape == (6, 8) for each in found.artefacts)
    assert found.volume_spread_ml == ()


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(2, 5), st.integers(2, 5), st.integers(1, 4)),
    flips=st.sampled_from(["", "x", "y", "z", "xy", "xz", "xyz"]),
    quarters=st.integers(0, 3),
)
def test_every_change_is_undone_exactly(shape: tuple[int, ...], flips: str, quarters: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    change = Change(flips=tuple("xyz".index(each) for each in flips), quarters=0 if flips else quarters)
    back = change.undo([change.apply(image), {"numbers": torch.zeros(1, 2)}], shape[2:])
    assert torch.equal(back[0], image)
    assert torch.equal(back[1]["numbers"], torch.zeros(1, 2))


def test_every_change_is_another() -> None:
    image = torch.arange(27.0).reshape(1, 1, 3, 3, 3)
    made = [change.apply(image) for change in changes(ALL)]
    assert len(made) == 8
    assert made[0] is image
    assert len({tuple(each.ravel().tolist()) for each in made}) == 8


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=7))
def test_the_majority_has_it_and_of_equals_the_lowest(answers: list[list[int]]) -> None:
    each = [
        Prediction(series_instance_uid="1", labels=np.array(answer, np.uint8).reshape(1, 2, 3)) for answer in answers
    ]
    labels = majority(each, (1, 2, 3)).labels
    assert labels is not None
    for at in range(6):
        votes = [answer[at] for answer in answers]
        assert labels.ravel()[at] == min(set(votes), key=lambda label: (-votes.count(label), label))
    for label, values in spread_of_votes(each, (1, 2, 3)).items():
        wanted = np.std([[value == label for value in answer] for answer in answers], axis=0)
        np.testing.assert_allclose(values.ravel(), wanted, atol=1e-3)


def test_overlapping_segments_go_by_majority_one_by_one() -> None:
    masks = np.array([[[[True, True]]], [[[True, False]]]])
    labels = np.array([[[1, 2]]], np.uint8)
    each = [
        Prediction(series_instance_uid="1", masks=masks),
        Prediction(series_instance_uid="1", masks=masks),
        Prediction(series_instance_uid="1", labels=labels),
    ]
    found = majority(each, (1, 2))
    assert found.labels is None
    np.testing.assert_array_equal(found.masks, masks)
    np.testing.assert_allclose(spread_of_votes(each, (1, 2))[2].ravel(), [np.sqrt(2) / 3] * 2, atol=1e-3)


AGAIN = """
import sys, hashlib
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_augmentation import ALL, balls, digest, predicted, rotation
volume, _ = balls(rotation(2))
print(digest(predicted(Path({folder!r}), "Biased", volume, ALL)))
"""


def digest(found: Prediction) -> str:
    parts = [found.labels, *(each.values for each in found.artefacts), np.array(found.volume_spread_ml)]
    return hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in parts)).hexdigest()


def test_another_process_says_the_same_to_the_last_bit(tmp_path: Path) -> None:
    volume, _ = balls(rotation(2))
    here = digest(predicted(tmp_path, "Biased", volume, ALL))
    script = AGAIN.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    there = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert there.stdout.split()[-1] == here


BODY = Code(value="12738006", scheme="SCT", meaning="Brain")


def test_the_spread_is_a_measurement_with_a_coded_derivation() -> None:
    """PS3.16 TID 1419: a measurement is said to be a standard deviation by its Derivation, of CID 7464."""
    segment = SegmentContract(label=1, name="Body", category=BODY, type=BODY, colour=(1, 2, 3))
    labels = np.ones((4, 5, 6), np.uint8)
    geometry = make_volume(labels).geometry
    said = Prediction(series_instance_uid="1", labels=labels, geometry=geometry, volume_spread_ml=(0.125,))
    (finding,) = analyse(said, toy_contract(segments=(segment,)), entropy="run").findings
    volume, deviation = finding.measurements
    assert (volume.name, volume.derivation) == (VOLUME, None)
    assert deviation == Measurement(
        name=VOLUME, value=0.125, unit=MILLILITRE, derivation=STANDARD_DEVIATION, key="volume_spread"
    )

    classes = tuple(ClassContract(name=name, finding=BODY, threshold=0.5) for name in ("a", "b"))
    contract = toy_contract(kind=ModelKind.CLASSIFICATION, classes=classes)
    said = Prediction(series_instance_uid="1", scores=(0.75, 0.25), score_spread=(0.125, 0.0))
    findings = analyse(said, contract, entropy="run").findings
    assert [each.measurements[1].value for each in findings] == [12.5, 0.0]
    assert {each.measurements[1].name for each in findings} == {CERTAINTY_OF_FINDING}
    assert all(each.measurements[1].derivation == STANDARD_DEVIATION for each in findings)

    score = ScoreContract(name=BODY, unit=MILLILITRE)
    said = Prediction(series_instance_uid="1", scores=(7.5,), score_spread=(0.5,))
    (finding,) = analyse(said, toy_contract(kind=ModelKind.REGRESSION, scores=(score,)), entropy="run").findings
    assert [each.value for each in finding.measurements] == [7.5, 0.5]
