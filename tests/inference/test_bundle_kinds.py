"""What bundles say besides one map of labels: overlapping segments, classes, numbers, boxes, points."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import (
    ARGMAX,
    CHANNEL,
    EVALUATOR,
    INVERT,
    LOAD,
    LOADER,
    RAS,
    SOFTMAX,
    above_50,
    config,
    make_volume,
    phantom,
    pictures,
    rotation,
    steps,
    write_bundle,
)

from meddaemon.domain.contract import BoxFrame, Combine, InputKind, ModelKind
from meddaemon.domain.errors import ModelFailed, NotEvaluable
from meddaemon.domain.picture import Signal
from meddaemon.domain.volume import Volume

torch = pytest.importorskip("torch")
session = pytest.importorskip("meddaemon.inference.bundles.session")
terms = pytest.importorskip("meddaemon.inference.bundles.terms")
Terms, Feed = terms.Terms, terms.Feed

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("own_code_of_one_bundle")]


def load(folder: Path, content: dict[str, Any], *, network: Any = None, scripts: Any = None, **agreed: Any) -> Any:
    def weights(models: Path) -> None:
        if network is not None:
            torch.save({"model": network.state_dict()}, models / "model.pt")

    bundle = write_bundle(folder / "b", content, weights=weights, scripts=scripts)
    return session.load(bundle, scratch=folder, terms=Terms(**agreed))


# --- segments -------------------------------------------------------------------------------------------------------

LEVELS = """
import torch

class Levels(torch.nn.Module):
    def __init__(self, *levels):
        super().__init__()
        self.levels = levels
    def forward(self, x):
        return torch.cat([(x - level) * 8 for level in self.levels], dim=1)
"""
SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}


def levels(*numbers: float) -> dict[str, Any]:
    return {"network_def": "$__import__('scripts.net', fromlist=['net']).Levels(" + ",".join(map(str, numbers)) + ")"}


@pytest.fixture(scope="module")
def ramp() -> Volume:
    return make_volume(np.linspace(0, 100, 6 * 7 * 8).reshape(6, 7, 8), turn=rotation(2))


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("inverted", [True, False])
def test_overlapping_channels_are_one_mask_each(ramp: Volume, tmp_path: Path, discrete: bool, inverted: bool) -> None:
    after = [SIGMOID, *([INVERT] if inverted else []), {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}]
    content = config(**levels(20.1, 50.1, 80.1), postprocessing=steps(*after[: None if discrete else -1]))
    prediction = load(tmp_path, content, scripts={"net": LEVELS}, segments=(1, 2, 4)).predict({"image": ramp})
    assert prediction.labels is None
    assert prediction.masks.dtype == bool
    assert np.array_equal(prediction.masks, np.stack([ramp.voxels > level for level in (20.1, 50.1, 80.1)]))
    assert prediction.geometry is ramp.geometry


def test_one_hot_channels_and_logits_are_labels(ramp: Volume, tmp_path: Path) -> None:
    one_hot = {**ARGMAX, "to_onehot": 2}
    for name, after in (("onehot", [SOFTMAX, INVERT, one_hot]), ("logits", [INVERT]), ("softmax", [SOFTMAX])):
        content = config(postprocessing=steps(*after), checkpointloader=LOADER)
        prediction = load(tmp_path / name, content, network=above_50(), segments=(1,)).predict({"image": ramp})
        assert np.array_equal(prediction.labels, ramp.voxels > 50), name


def test_the_probability_of_the_one_segment_is_cut_at_a_half(ramp: Volume, tmp_path: Path) -> None:
    content = config(**levels(50.1), postprocessing=steps(SIGMOID, INVERT))
    labels = load(tmp_path / "a", content, scripts={"net": LEVELS}, segments=(3,)).predict({"image": ramp}).labels
    assert np.array_equal(labels, (ramp.voxels > 50) * 3)
    undeclared = load(tmp_path / "b", content, scripts={"net": LEVELS})
    with pytest.raises(ModelFailed, match="not labels"):
        undeclared.predict({"image": ramp})


def test_channels_that_the_contract_does_not_explain_are_refused(ramp: Volume, tmp_path: Path) -> None:
    for name, after, segments in (
        ("nothing said", [SIGMOID], ()),
        ("too many segments", [SIGMOID], (1, 2, 3, 4, 5)),
        ("no probabilities", [], (1, 2, 3)),
    ):
        content = config(**levels(20, 50, 80), postprocessing=steps(*after))
        loaded = load(tmp_path / name, content, scripts={"net": LEVELS}, segments=segments)
        with pytest.raises(ModelFailed, match="neither a map of labels nor one channel"):
            loaded.predict({"image": ramp})


def test_more_than_255_labels_keep_their_numbers(ramp: Volume, tmp_path: Path) -> None:
    many = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: (x * 3).round()"}
    content = config(**levels(0), postprocessing=steps({**many, "func": "$lambda x: (x / 8 * 3).round()"}, INVERT))
    labels = load(tmp_path, content, scripts={"net": LEVELS}).predict({"image": ramp}).labels
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, np.rint(ramp.voxels * np.float32(3)))


def test_values_that_are_not_finite_are_a_doubt_not_a_crash(ramp: Volume, tmp_path: Path) -> None:
    holes = {
        "_target_": "Lambdad",
        "keys": "pred",
        "func": "$lambda x: torch.where(x > 90, torch.nan, (x > 50).float())",
    }
    content = config(
        **levels(0), postprocessing=steps({**holes, "func": holes["func"].replace("x >", "x / 8 >")}, INVERT)
    )
    prediction = load(tmp_path, content, scripts={"net": LEVELS}).predict({"image": ramp})
    assert prediction.doubts == (
        f"the prediction holds {np.count_nonzero(ramp.voxels > 90)} values that are not finite",
    )
    assert np.array_equal(prediction.labels, (ramp.voxels > 50) & ~(ramp.voxels > 90))


def test_a_flat_model_runs_on_every_slice(ramp: Volume, tmp_path: Path) -> None:
    flat = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    resize = {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [32, 32]}
    content = config(
        network_def=flat,
        checkpointloader=LOADER,
        preprocessing=steps(LOAD, CHANNEL, resize),
        postprocessing=steps(SOFTMAX, ARGMAX),
    )
    feeds = (Feed(name="image", key="image", kind=InputKind.SLICES),)
    loaded = load(tmp_path, content, network=above_50(2), segments=(1,), feeds=feeds)
    prediction = loaded.predict({"image": ramp})
    assert np.array_equal(prediction.labels, ramp.voxels > 50)
    assert prediction.geometry is ramp.geometry


def test_slices_that_happen_not_to_overlap_are_masks_like_the_others(tmp_path: Path) -> None:
    voxels = np.full((3, 4, 5), 10.0)
    voxels[1, :2], voxels[2, 2:] = 60, 90
    volume = make_volume(voxels)
    background = LEVELS.replace("return torch.cat([", "return torch.cat([(5 - x) * 8] + [")
    content = config(**levels(50.1, 80.1), preprocessing=steps(LOAD, CHANNEL), postprocessing=steps(SIGMOID))
    feeds = (Feed(name="image", key="image", kind=InputKind.SLICES),)
    loaded = load(tmp_path, content, scripts={"net": background}, segments=(1, 2), feeds=feeds)
    masks = loaded.predict({"image": volume}).masks
    assert np.array_equal(masks, np.stack([voxels > 50, voxels > 80]))


# --- classes and numbers --------------------------------------------------------------------------------------------

MEANS = """
import torch

class Means(torch.nn.Module):
    def forward(self, x):
        mean = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([mean, -mean, mean / 2], dim=1)
"""


def means(**changes: Any) -> dict[str, Any]:
    return config(network_def={"_target_": "scripts.net.Means"}, **changes)


def test_classes_and_regressions_are_numbers(tmp_path: Path) -> None:
    volume = make_volume(np.full((3, 4, 5), 2.0))
    agreed = {"scripts": {"net": MEANS}, "kind": ModelKind.CLASSIFICATION}
    classes = load(tmp_path / "a", means(postprocessing=steps(SOFTMAX)), outputs=3, **agreed).predict({"image": volume})
    expected = np.exp([2.0, -2.0, 1.0]) / np.exp([2.0, -2.0, 1.0]).sum()
    assert classes.scores == pytest.approx(tuple(expected), abs=1e-6)
    assert classes.labels is None
    assert classes.series_instance_uid == volume.series_instance_uid
    agreed["kind"] = ModelKind.REGRESSION
    loaded = load(tmp_path / "b", means(postprocessing=None), outputs=3, **agreed)
    assert loaded.predict({"image": volume}).scores == pytest.approx((2, -2, 1))
    wrong = load(tmp_path / "c", means(postprocessing=None), outputs=4, **agreed)
    with pytest.raises(ModelFailed, match="3 numbers, the contract names 4"):
        wrong.predict({"image": volume})


def viewer(folder: Path, combine: Combine, kind: InputKind = InputKind.PICTURES) -> Any:
    """A classifier of images (x, y), whose scores are their mean, minus that, and half of it."""
    content = means(preprocessing=steps(LOAD, CHANNEL), postprocessing=None)
    feeds = (Feed(name="view", key="image", kind=kind),)
    agreed: dict[str, Any] = {"outputs": 3, "kind": ModelKind.CLASSIFICATION, "feeds": feeds, "combine": combine}
    return load(folder, content, scripts={"net": MEANS}, **agreed)


VIEWS = np.stack([np.full((4, 6), 1.0), np.full((4, 6), 3.0)])


@pytest.mark.parametrize(
    ("combine", "scores"),
    [(Combine.MEAN, (2, -2, 1)), (Combine.MAX, (3, -1, 1.5)), (Combine.EACH, (1, -1, 0.5, 3, -3, 1.5))],
)
def test_several_pictures_are_run_one_by_one(tmp_path: Path, combine: Combine, scores: tuple[float, ...]) -> None:
    sent = pictures(VIEWS)
    prediction = viewer(tmp_path, combine).predict({"view": sent})
    assert prediction.scores == pytest.approx(scores)
    each = combine is Combine.EACH
    assert prediction.sources == (sent.sources if each else ())
    assert prediction.provenance.get("scores") == (None if each else f"{combine.value} of 2 images")


def test_scores_of_several_pictures_are_refused_unless_the_contract_says_what_becomes_of_them(tmp_path: Path) -> None:
    loaded = viewer(tmp_path, Combine.REFUSE)
    assert loaded.predict({"view": pictures(VIEWS[:1])}).scores == pytest.approx((1, -1, 0.5))
    sent = pictures(VIEWS)
    with pytest.raises(NotEvaluable, match=r"view has 2 images, .* no 'combine'") as refused:
        loaded.predict({"view": sent})
    assert refused.value.numbers == {"images": 2, "series_instance_uid": sent.series_instance_uid}


def test_each_slice_keeps_its_scores_and_its_image(tmp_path: Path) -> None:
    volume = make_volume(np.stack([np.full((3, 4), value) for value in (5, 7)]).astype(np.float32))
    prediction = viewer(tmp_path, Combine.EACH, InputKind.SLICES).predict({"view": volume})
    assert prediction.scores == pytest.approx((5, -5, 2.5, 7, -7, 3.5))
    assert prediction.sources == tuple(zip(volume.geometry.sop_instance_uids, (1, 1), strict=True))


@pytest.mark.parametrize("combine", [Combine.MEAN, Combine.MAX])
def test_a_score_that_is_no_number_is_not_lost_among_others(tmp_path: Path, combine: Combine) -> None:
    broken = VIEWS.copy()
    broken[0] = np.nan
    prediction = viewer(tmp_path, combine).predict({"view": pictures(broken)})
    assert np.isnan(prediction.scores[0])
    assert prediction.doubts == ("3 of 3 numbers of the prediction are not finite",)


def test_segments_on_pictures_lie_on_the_pixels_of_each(tmp_path: Path) -> None:
    frames = np.zeros((2, 5, 7))
    frames[0, 1:3, 2:6], frames[1, 4, 0] = 90, 70
    content = config(
        network_def={"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        preprocessing=steps(LOAD, CHANNEL, {"_target_": "Flipd", "keys": "image", "spatial_axis": 0}),
    )
    feeds = (Feed(name="image", key="image", kind=InputKind.PICTURES),)
    sent = pictures(frames)
    agreed: dict[str, Any] = {"feeds": feeds, "segments": (1,)}
    prediction = load(tmp_path, content, network=above_50(2), **agreed).predict({"image": sent})
    assert np.array_equal(prediction.labels, frames > 50)
    assert (prediction.pictures, prediction.geometry) == (sent.grid, None)


def test_a_colour_picture_has_its_channels_where_monai_has_them(tmp_path: Path) -> None:
    frames = np.zeros((1, 4, 6, 3))
    frames[..., 1] = 7
    content = config(
        network_def="$torch.nn.Flatten(2)",
        preprocessing=steps(LOAD, {**CHANNEL, "channel_dim": -1}),
        postprocessing=steps({"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.mean(1)"}),
    )
    feeds = (Feed(name="image", key="image", kind=InputKind.PICTURES),)
    loaded = load(tmp_path, content, kind=ModelKind.REGRESSION, outputs=3, feeds=feeds)
    assert loaded.predict({"image": pictures(frames)}).scores == (0, 7, 0)


def test_a_waveform_is_channels_of_samples(tmp_path: Path) -> None:
    signal = Signal(
        samples=np.array([[1, 2, 3], [4, 5, 9]], np.float32),
        rate_hz=500,
        channels=("I", "II"),
        unit="uV",
        sop_instance_uid="1.2.8",
        series_instance_uid="1.2.9",
    )
    content = config(
        network_def="$torch.nn.Flatten(2)",
        preprocessing=steps(LOAD, CHANNEL),
        postprocessing=steps({"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.mean(1)"}),
    )
    feeds = (Feed(name="image", key="image", kind=InputKind.WAVEFORM),)
    loaded = load(tmp_path, content, kind=ModelKind.REGRESSION, outputs=2, feeds=feeds)
    assert loaded.predict({"image": signal}).scores == (2, 6)


def test_extra_items_of_the_contract_reach_the_bundle(tmp_path: Path) -> None:
    content = means(
        preprocessing=steps(LOAD, CHANNEL),
        postprocessing=steps({"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x"}),
        inferer={"_target_": "SimpleInferer"},
    )
    content["preprocessing"]["transforms"].append({"_target_": "CopyItemsd", "keys": "prompt", "names": "seen"})
    feeds = (Feed(name="image", key="image", extra={"prompt": [3]}),)
    agreed = {"scripts": {"net": MEANS}, "kind": ModelKind.REGRESSION, "feeds": feeds}
    prepared = load(tmp_path, content, **agreed).prepare({"image": make_volume(np.ones((2, 2, 2)))})
    assert prepared.items[0].data["seen"] == [3]


# --- boxes and points -----------------------------------------------------------------------------------------------

DETECTOR = """
import torch
from monai.engines import SupervisedEvaluator

def objects(image):
    # Each value above 0 is one object: its box in voxels (low and high corners), its label and its score.
    rows = []
    for value in image.unique():
        if value > 0:
            at = (image[0] == value).nonzero().float()
            rows.append((at.min(0).values - 0.5, at.max(0).values + 0.5, value))
    boxes = torch.stack([torch.cat([low, high]) for low, high, _ in rows]) if rows else torch.zeros(0, 6)
    values = torch.tensor([float(value) for *_, value in rows])
    return {"box": boxes, "label": values.long() // 10, "label_scores": (values % 10) / 10}

class Net(torch.nn.Module):
    def forward(self, x):
        return [objects(each) for each in x]

class Evaluator(SupervisedEvaluator):
    def _register_decollate(self):
        pass
    def _iteration(self, engine, batch):
        images = [each["image"].to(engine.state.device) for each in batch]
        found = [engine.inferer(image[None], engine.network)[0] for image in images]
        engine.state.output = [{"image": image, "pred": each} for image, each in zip(images, found)]
        from monai.engines.utils import IterationEvents
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

class FileSaver:
    def __init__(self, output_dir):
        raise AssertionError("a saver was made")
"""
TO_WORLD = {
    "_target_": "monai.apps.detection.transforms.dictionary.AffineBoxToWorldCoordinated",
    "box_keys": "box",
    "box_ref_image_keys": "image",
    "affine_lps_to_ras": True,
}
BOX_MODE = {
    "_target_": "monai.apps.detection.transforms.dictionary.ConvertBoxModed",
    "box_keys": "box",
    "src_mode": "xyzxyz",
    "dst_mode": "cccwhd",
}


@pytest.fixture(scope="module")
def two_objects() -> Volume:
    voxels = np.zeros((10, 12, 14))
    voxels[2:5, 3:9, 1:4] = 17
    voxels[7, 10, 11:14] = 29
    return make_volume(voxels, turn=rotation(4))


EXPECTED = {
    (1, 0.7): ((1.5, 2.5, 0.5), (4.5, 8.5, 3.5)),
    (2, 0.9): ((6.5, 9.5, 10.5), (7.5, 10.5, 13.5)),
}


def detection(own_evaluator: bool, **changes: Any) -> dict[str, Any]:
    evaluator = {key: value for key, value in EVALUATOR.items() if key != "postprocessing"}
    return config(
        network_def={"_target_": "scripts.net.Net"},
        evaluator={**evaluator, "_target_": "scripts.net.Evaluator"} if own_evaluator else EVALUATOR,
        dataloader={**config()["dataloader"], "collate_fn": "$monai.data.utils.no_collation"},
        preprocessing=steps(LOAD, CHANNEL, {**RAS, "axcodes": "SPL"}),
        handlers=[{"_target_": "scripts.net.FileSaver", "output_dir": "@output_dir"}],
        output_dir="/nonexistent",
        **changes,
    )


@pytest.mark.parametrize("own_evaluator", [True, False])
@pytest.mark.parametrize("frame", [BoxFrame.VOXEL, BoxFrame.LPS, BoxFrame.RAS])
def test_boxes_lie_on_the_voxels_of_their_objects(
    two_objects: Volume, tmp_path: Path, own_evaluator: bool, frame: BoxFrame
) -> None:
    """Also in an oblique volume, where the bundle's own conversion to the patient would make them no boxes."""
    after = steps() if frame is BoxFrame.VOXEL else steps(TO_WORLD, BOX_MODE)
    loaded = load(
        tmp_path,
        detection(own_evaluator, postprocessing=after),
        scripts={"net": DETECTOR},
        kind=ModelKind.DETECTION,
        frame=frame,
    )
    assert loaded.provenance["mode"] == ("evaluator" if own_evaluator else "direct")
    for _ in range(2):
        boxes = loaded.predict({"image": two_objects}).boxes
        assert {(box.label, round(box.score, 3)) for box in boxes} == set(EXPECTED)
        for box in boxes:
            low, high = EXPECTED[box.label, round(box.score, 3)]
            assert box.low == pytest.approx(low, abs=1e-3)
            assert box.high == pytest.approx(high, abs=1e-3)
    empty = make_volume(np.zeros((5, 6, 7)))
    assert loaded.predict({"image": empty}).boxes == ()


def test_boxes_in_patient_coordinates_are_what_the_contract_says(two_objects: Volume, tmp_path: Path) -> None:
    upright = make_volume(two_objects.voxels)
    world = """
def to_world(pred, image, sign):
    import torch
    corners = pred["box"].reshape(-1, 2, 3)
    affine = torch.as_tensor(image.affine, dtype=torch.float32)
    mm = corners @ affine[:3, :3].T + affine[:3, 3]
    mm = mm * torch.tensor([sign, sign, 1.0])
    low, high = mm.amin(1), mm.amax(1)
    return {**pred, "box": torch.cat([(low + high) / 2, high - low], 1)}
"""
    for sign, frame in ((1, BoxFrame.RAS), (-1, BoxFrame.LPS)):
        text = f"$lambda d: __import__('scripts.world', fromlist=['world']).to_world(d['pred'], d['image'], {sign})"
        after = [{"_target_": "Lambda", "func": text}, {**BOX_MODE, "src_mode": "cccwhd", "dst_mode": "xyzxyz"}]
        loaded = load(
            tmp_path / frame,
            detection(False, postprocessing=steps(*after)),
            scripts={"net": DETECTOR, "world": world},
            kind=ModelKind.DETECTION,
            frame=frame,
            output="box",
        )
        for box in loaded.predict({"image": upright}).boxes:
            low, high = EXPECTED[box.label, round(box.score, 3)]
            assert box.low == pytest.approx(low, abs=1e-3)
            assert box.high == pytest.approx(high, abs=1e-3)
        for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
            del sys.modules[name]
        sys.path.remove(str((tmp_path / frame / "b").resolve()))


def test_flat_boxes_lie_in_their_slice_or_on_their_picture(two_objects: Volume, tmp_path: Path) -> None:
    content = detection(False, postprocessing=steps())
    content["preprocessing"] = steps(LOAD, CHANNEL, {"_target_": "Flipd", "keys": "image", "spatial_axis": 0})
    agreed = {"scripts": {"net": DETECTOR}, "kind": ModelKind.DETECTION, "frame": BoxFrame.VOXEL}
    feeds = (Feed(name="image", key="image", kind=InputKind.SLICES),)
    boxes = load(tmp_path / "a", content, feeds=feeds, **agreed).predict({"image": two_objects}).boxes
    assert [box.low[0] for box in boxes] == [1.5, 2.5, 3.5, 6.5]
    assert boxes[-1].low == pytest.approx((6.5, 9.5, 10.5), abs=1e-4)
    assert boxes[-1].high == pytest.approx((7.5, 10.5, 13.5), abs=1e-4)
    feeds = (Feed(name="image", key="image", kind=InputKind.PICTURES),)
    loaded = load(tmp_path / "b", content, feeds=feeds, **agreed)
    (box, other) = loaded.predict({"image": pictures(two_objects.voxels[[0, 2, 7]])}).boxes
    assert (box.source, other.source) == (("1.2.6.1", 1), ("1.2.6.2", 1))
    assert box.low == pytest.approx((2.5, 0.5), abs=1e-4)
    assert box.high == pytest.approx((8.5, 3.5), abs=1e-4)


BRIGHTEST = """
import torch

class Brightest(torch.nn.Module):
    def __init__(self, count):
        super().__init__()
        self.count = count
    def forward(self, x):
        order = x[0, 0].flatten().argsort(descending=True)[: self.count]
        points = torch.stack(torch.unravel_index(order, x.shape[2:]), dim=1).float()
        return points[None]
"""


@pytest.mark.parametrize("transposed", [False, True])
def test_points_lie_where_they_are_seen(tmp_path: Path, transposed: bool) -> None:
    voxels = np.zeros((6, 9, 11))
    voxels[4, 2, 8], voxels[1, 7, 3] = 90, 60
    after = [{"_target_": "Transposed", "keys": "pred", "indices": [1, 0]}] if transposed else []
    content = config(
        network_def={"_target_": "scripts.net.Brightest", "count": 2},
        preprocessing=steps(LOAD, CHANNEL, {**RAS, "axcodes": "PIR"}),
        postprocessing=steps(*after),
    )
    loaded = load(tmp_path, content, scripts={"net": BRIGHTEST}, kind=ModelKind.LANDMARKS, frame=BoxFrame.VOXEL)
    points = loaded.predict({"image": make_volume(voxels, turn=rotation(6))}).landmarks
    assert [point.label for point in points] == [1, 2]
    assert points[0].position == pytest.approx((4, 2, 8), abs=1e-4)
    assert points[1].position == pytest.approx((1, 7, 3), abs=1e-4)


def test_arrays_without_keys_and_frames_in_time(tmp_path: Path) -> None:
    """As valve_landmarks of the model zoo is written: no keys, its own way to prepare a batch, one point per frame."""
    per_frame = """
import torch
from monai.inferers import Inferer

class Frames(Inferer):
    def __call__(self, inputs, network, *args, **kwargs):
        return torch.stack([network(inputs[..., at]) for at in range(inputs.shape[-1])], 1)

class Points(torch.nn.Module):
    def forward(self, x):
        order = x[0, 0].flatten().argsort(descending=True)[:3]
        return torch.stack(torch.unravel_index(order, x.shape[2:]), dim=0).float()[None]
"""
    frames = np.zeros((5, 8, 9))
    for frame in range(5):
        frames[frame, 2, frame], frames[frame, 5, 3], frames[frame, frame, 7] = 90, 80, 70
    evaluator = {
        **EVALUATOR,
        "decollate": False,
        "prepare_batch": "$lambda batch, device, non_blocking: (batch.to(device), ())",
    }
    content = config(
        network_def={"_target_": "scripts.net.Points"},
        inferer={"_target_": "scripts.net.Frames"},
        preprocessing=steps(
            {"_target_": "LoadImage", "image_only": "true"},
            {"_target_": "EnsureType", "device": "@device"},
            {"_target_": "Transpose", "indices": [2, 0, 1, 3]},
            {"_target_": "ScaleIntensity"},
        ),
        postprocessing=steps({"_target_": "SqueezeDimd", "keys": "pred", "dim": 0}),
        dataset={"_target_": "Dataset", "data": "$1 / 0", "transform": "@preprocessing"},
        evaluator=evaluator,
    )
    loaded = load(
        tmp_path,
        content,
        scripts={"net": per_frame},
        kind=ModelKind.LANDMARKS,
        frame=BoxFrame.VOXEL,
        feeds=(Feed(name="cine", key="image", kind=InputKind.CINE),),
    )
    found = loaded.predict({"cine": pictures(frames)}).landmarks
    assert len(found) == 15
    for point in found:
        frame = int(point.source[0].rpartition(".")[2])
        expected = {1: (2, frame), 2: (5, 3), 3: (frame, 7)}[point.label]
        assert point.position == pytest.approx(expected, abs=1e-4)


def test_the_terms_cross_to_the_child_unchanged() -> None:
    agreed = Terms(
        output="out",
        kind=ModelKind.DETECTION,
        feeds=(Feed(name="a", key="image", kind=InputKind.SLICES, extra={"prompt": [1]}),),
        segments=(1, 3),
        outputs=2,
        frame=BoxFrame.LPS,
        configs=("inference_trt.json",),
    )
    assert Terms.from_message(agreed.message()) == agreed


def test_the_own_evaluator_and_the_direct_way_agree(tmp_path: Path) -> None:
    volume = phantom(rotation(8))
    results = []
    for way in ("direct", "evaluator"):  # twice each: nothing of one study stays for the next
        evaluator = {**EVALUATOR, **({"_requires_": "@device"} if way == "evaluator" else {})}
        content = config(checkpointloader=LOADER, evaluator=evaluator)
        loaded = load(tmp_path / way, content, network=above_50(), segments=(1,))
        assert loaded.provenance["mode"] == way
        results.append(loaded.predict({"image": volume}).labels)
        prepared = loaded.prepare({"image": volume})
        loaded.predict({"image": make_volume(volume.voxels[::-1])})
        again = loaded.infer(prepared)
        assert np.array_equal(again.labels, results[-1])
        assert set(again.seconds) == {"preprocess", "infer", "postprocess"}
    assert np.array_equal(*results)
    assert results[0].any()
