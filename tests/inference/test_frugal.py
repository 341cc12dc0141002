"""Whatever the plan, the same result: bundles on volumes, class by class and as shipped."""

from collections.abc import Mapping, Sequence
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
    config,
    make_volume,
    phantom,
    rotation,
    saved,
    steps,
    write_bundle,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference import plan as plans
from meddaemon.inference.plan import AS_SHIPPED, RunPlan

torch = pytest.importorskip("torch")
inferers = pytest.importorskip("monai.inferers")
transforms = pytest.importorskip("monai.transforms")
MetaTensor = pytest.importorskip("monai.data").MetaTensor
channels = pytest.importorskip("meddaemon.inference.bundles.channels")
frugal = pytest.importorskip("meddaemon.inference.bundles.frugal")
images = pytest.importorskip("meddaemon.inference.bundles.images")
outputs = pytest.importorskip("meddaemon.inference.bundles.outputs")
session = pytest.importorskip("meddaemon.inference.bundles.session")
Terms = pytest.importorskip("meddaemon.inference.bundles.terms").Terms

BY_CLASS = RunPlan(class_by_class=True)
PLANS = [
    RunPlan(window_batch=1),
    RunPlan(window_batch=3, outputs_on_host=True),
    BY_CLASS,
    RunPlan(window_batch=3, outputs_on_host=True, class_by_class=True),
]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small volumes are gone through in as many pieces as large ones."""
    monkeypatch.setattr(channels, "PIECE_BYTES", 2000)
    monkeypatch.setattr(frugal, "PIECE_BYTES", 2000)
    monkeypatch.setattr(plans, "GROUP_BYTES", 1)


# --- one pipeline after the other, drawn at random -------------------------------------------------------------------

BEFORE: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "as it is": ({"name": "EnsureTyped"},),
    "turned": ({"name": "Orientationd", "axcodes": "SPL"},),
    "spacing": ({"name": "Orientationd", "axcodes": "RAS"}, {"name": "Spacingd", "pixdim": [1.7, 1.3, 2.1]}),
    "size": ({"name": "Resized", "spatial_size": [19, 14, 17], "mode": "trilinear"},),
    "crop": (
        {"name": "CropForegroundd", "source_key": "image", "margin": 1, "allow_smaller": True},
        {"name": "SpatialPadd", "spatial_size": [20, 20, 20]},
    ),
}
AFTER = {
    "softmax, invert, argmax": "SIA",
    "softmax, argmax, invert": "SAN",
    "argmax, invert": "AN",
    "invert, argmax": "IA",
    "sigmoid, invert, threshold": "GIT",
    "invert, sigmoid, threshold": "IGT",
    "sigmoid, invert, argmax": "GIA",
    "sigmoid, threshold, invert": "GTN",
    "sigmoid, argmax, invert": "GAN",
    "invert, softmax, argmax": "ISA",
    "softmax, invert": "SI",
    "softmax, invert, one-hot": "SIO",
    "softmax, argmax": "SA",
    "nothing": "",
}


def before(name: str) -> Any:
    made = []
    for each in BEFORE[name]:
        arguments = {key: value for key, value in each.items() if key != "name"}
        made.append(getattr(transforms, str(each["name"]))(keys="image", **arguments))
    return transforms.Compose(made)


def after(letters: str, inverted: Any, classes: int) -> Any:
    def invert(nearest: bool) -> Any:
        return transforms.Invertd(keys="pred", transform=inverted, orig_keys="image", nearest_interp=nearest)

    made = {
        "S": lambda: transforms.Activationsd(keys="pred", softmax=True),
        "G": lambda: transforms.Activationsd(keys="pred", sigmoid=True),
        "A": lambda: transforms.AsDiscreted(keys="pred", argmax=True),
        "O": lambda: transforms.AsDiscreted(keys="pred", argmax=True, to_onehot=classes),
        "T": lambda: transforms.AsDiscreted(keys="pred", threshold=0.5),
        "I": lambda: invert(False),
        "N": lambda: invert(True),
    }
    return transforms.Compose([made[each]() for each in letters])


def network(classes: int, seed: int, levels: int) -> Any:
    """Return a convolution of seeded weights; of few levels, so that classes tie, where there are `levels`."""
    torch.manual_seed(seed)
    made = torch.nn.Conv3d(1, classes, 3, padding=1).eval()
    with torch.no_grad():
        if levels:
            made.weight.zero_()
            made.weight[:, :, 1, 1, 1] = torch.randint(0, levels, (classes, 1)).float() / 8
            made.bias.copy_(torch.randint(0, levels, (classes,)).float())
    return made


def ran(plan: RunPlan, inferer: Any, preprocessing: Any, postprocessing: Any, image: Any, made: Any) -> tuple[Any, Any]:
    data = preprocessing({"image": image.clone()})
    way = frugal.Way(inferer, postprocessing, plan)
    with torch.no_grad():
        raw = way.infer(data["image"].unsqueeze(0), made)
        data["pred"] = MetaTensor(torch.as_tensor(raw[0]), meta=dict(data["image"].meta))
        return way.finish(data), way


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(5, 14)] * 3),
    first=st.sampled_from(list(BEFORE)),
    last=st.sampled_from(list(AFTER)),
    classes=st.integers(1, 7),
    window=st.one_of(st.none(), st.tuples(*[st.sampled_from([4, 7, 12, 20])] * 3)),
    batch=st.integers(1, 4),
    overlap=st.sampled_from([0.0, 0.25, 0.6]),
    mode=st.sampled_from(["constant", "gaussian"]),
    levels=st.sampled_from([0, 0, 2]),
    threads=st.integers(1, 2),
    adapts=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.filterwarnings("ignore")
def test_law_class_by_class_is_what_all_at_once_is(
    shape: tuple[int, ...], first: str, last: str, classes: int, window: tuple[int, ...] | None, batch: int,
    overlap: float, mode: str, levels: int, threads: int, adapts: bool, seed: int,
) -> None:  # fmt: skip
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = network(classes, seed, levels)
        generator = np.random.default_rng(seed)
        voxels = generator.normal(0, 2, (1, *shape)) * (generator.random((1, *shape)) < 0.7)
        if levels:
            voxels = np.rint(voxels)
        affine = np.diag([1.0, 1.5, 2.0, 1.0])
        affine[:3, :3] = rotation(seed % 1000) @ affine[:3, :3]
        image = MetaTensor(torch.from_numpy(voxels.astype(np.float32)), affine=torch.from_numpy(affine))
        kind = inferers.SlidingWindowInfererAdapt if adapts else inferers.SlidingWindowInferer
        inferer = inferers.SimpleInferer() if window is None else kind(window, batch, overlap=overlap, mode=mode)
        preprocessing = before(first)
        postprocessing = after(AFTER[last], preprocessing, classes)
        whole, _ = ran(AS_SHIPPED, inferer, preprocessing, postprocessing, image, made)
        parts, way = ran(BY_CLASS, inferer, preprocessing, postprocessing, image, made)
    finally:
        torch.set_num_threads(kept)
    assert torch.equal(parts["pred"].as_tensor().float(), whole["pred"].as_tensor().float()), way.told
    assert torch.equal(parts["pred"].affine, whole["pred"].affine)
    assert torch.equal(parts["image"].as_tensor(), whole["image"].as_tensor())
    assert set(parts) == set(whole)
    assert way.outputs == classes
    assert way.told


# --- what a plan changes, and what it leaves ------------------------------------------------------------------------


class Watched(torch.nn.Module):
    """A network that remembers how many windows came at once."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made = made
        self.batches: list[int] = []

    def forward(self, x: Any) -> Any:
        self.batches.append(len(x))
        return self.made(x)


@pytest.mark.parametrize("letters", ["SAN", "SIA"])
@pytest.mark.parametrize("class_by_class", [False, True])
def test_so_many_windows_at_once_and_the_inferer_as_it_was(letters: str, class_by_class: bool) -> None:
    inferer = inferers.SlidingWindowInferer((6, 6, 6), 2, overlap=0.5)
    was = dict(vars(inferer))
    preprocessing = before("turned")
    postprocessing = after(letters, preprocessing, 3)
    image = MetaTensor(torch.randn(1, 12, 12, 12), affine=torch.eye(4))
    plan = RunPlan(window_batch=5, outputs_on_host=True, class_by_class=class_by_class)
    watched = Watched(network(3, 1, 0))
    ran(plan, inferer, preprocessing, postprocessing, image, watched)
    assert watched.batches == [5, 5, 5, 5, 5, 2]
    assert vars(inferer) == was
    assert frugal.Way(inferer, postprocessing, AS_SHIPPED).adapted(inferer) is inferer
    simple = inferers.SimpleInferer()
    assert frugal.Way(simple, postprocessing, plan).adapted(simple) is simple
    adapted = frugal.Way(inferer, postprocessing, plan).adapted(inferer)
    assert adapted.device == torch.device("cpu")
    assert adapted.sw_device is None, "windows stay where the image is"


def test_what_is_not_ours_is_never_written_to() -> None:
    """A network that returns what it was given, or what it keeps, finds it as it was."""
    kept = torch.randn(1, 4, 6, 6, 6)
    before_it = kept.clone()
    preprocessing = before("as it is")
    image = MetaTensor(torch.randn(1, 6, 6, 6), affine=torch.eye(4))
    found, _ = ran(
        BY_CLASS, inferers.SimpleInferer(), preprocessing, after("SIA", preprocessing, 4), image, lambda _: kept
    )
    assert torch.equal(kept, before_it)
    assert torch.equal(found["pred"].as_tensor()[0].long(), kept[0].softmax(0).argmax(0))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda x: {"a": x.repeat(1, 3, 1, 1, 1)}, "no tensor"),
        (lambda x: (x.repeat(1, 3, 1, 1, 1), x), "no tensor"),
        (lambda x: torch.nn.functional.avg_pool3d(x.repeat(1, 3, 1, 1, 1), 2), "another size"),
    ],
)
def test_windows_of_another_kind_are_stitched_as_monai_does(made: Any, why: str) -> None:
    image = torch.randn(1, 1, 12, 12, 12)
    inferer = inferers.SlidingWindowInferer((6, 6, 6), 2, overlap=0.5)
    way = frugal.Way(inferer, after("SA", None, 3), BY_CLASS)
    found, expected = way.infer(image, made), inferer(image, made)
    assert type(found) is type(expected), why
    for one, other in zip(
        *(each.values() if isinstance(each, dict) else each for each in (found, expected)), strict=True
    ):
        assert torch.equal(one, other)


def test_a_step_that_may_mix_classes_gets_them_all_and_that_is_said() -> None:
    class Mixing(transforms.MapTransform, transforms.InvertibleTransform):  # type: ignore[misc, name-defined]
        def __call__(self, data: Any) -> Any:
            return data

        def inverse(self, data: Any) -> Any:
            return {**data, "image": data["image"].flip(0)}

    mixing = transforms.Compose([Mixing(keys="image")])
    image = MetaTensor(torch.randn(1, 6, 6, 6), affine=torch.eye(4))
    found, way = ran(
        BY_CLASS, inferers.SimpleInferer(), mixing, after("SIA", mixing, 4), image, made := network(4, 1, 0)
    )
    assert way.told == "the classes at once: Mixing is not known to take them one by one"
    expected = made(image.as_tensor()[None])[0].softmax(0).flip(0).argmax(0)
    assert torch.equal(found["pred"].as_tensor()[0].long(), expected)


def test_boxes_and_scores_go_their_way() -> None:
    way = frugal.Way(inferers.SimpleInferer(), transforms.Compose([]), BY_CLASS)
    scores = {"pred": torch.tensor([0.1, 0.9])}
    assert way.finish(dict(scores)).keys() == scores.keys()
    assert way.told == "the classes at once: no step after the network takes them one by one"
    chosen = transforms.Compose([transforms.AsDiscreted(keys="pred", argmax=True)])
    way = frugal.Way(inferers.SimpleInferer(), chosen, BY_CLASS)
    assert way.finish(scores)["pred"].tolist() == [1.0]
    assert way.told == "the classes at once: they are no image"


# --- bundles --------------------------------------------------------------------------------------------------------

SPACING = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.3, 1.3, 1.7], "mode": "bilinear"}
SLIDING = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 2, "overlap": 0.4}
SLICES = {"_target_": "SliceInferer", "roi_size": [24, 24], "sw_batch_size": 2, "spatial_dim": 2}
LARGEST = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]}
CHAINS = {
    "probabilities, inverted": (SOFTMAX, INVERT, ARGMAX),
    "labels, inverted": (SOFTMAX, ARGMAX, {**INVERT, "nearest_interp": True}),
    "largest component": (ARGMAX, LARGEST, {**INVERT, "nearest_interp": True}),
    "probabilities, not inverted": (SOFTMAX,),
    "nothing done": (),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("inferer", [SLIDING, {"_target_": "SimpleInferer"}], ids=["windows", "whole"])
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.filterwarnings("ignore")
def test_a_bundle_gives_the_same_labels_by_every_plan(chain: str, inferer: Any, tmp_path: Path) -> None:
    if chain == "largest component":
        pytest.importorskip("skimage")
    content = config(
        preprocessing=steps(LOAD, CHANNEL, RAS, SPACING), postprocessing=steps(*CHAINS[chain]), inferer=inferer
    )
    loaded = session.load(
        write_bundle(tmp_path / "b", content, weights=saved), scratch=tmp_path, terms=Terms(segments=(1,))
    )
    volume = phantom(rotation(3))
    expected = loaded.predict({"image": volume})
    assert "memory" not in expected.provenance
    assert np.count_nonzero(expected.labels)
    for plan in PLANS:
        found = loaded.predict({"image": volume}, plan)
        assert np.array_equal(found.labels, expected.labels), plan
        assert found.labels.dtype == expected.labels.dtype
        assert bool(found.provenance.get("memory")) == plan.class_by_class


@pytest.mark.usefixtures("own_code_of_one_bundle")
@pytest.mark.filterwarnings("ignore")
def test_the_inferer_of_a_bundles_own_evaluator_follows_the_plan_for_one_run(tmp_path: Path) -> None:
    pytest.importorskip("ignite")
    own = """
from monai.engines import SupervisedEvaluator
class Own(SupervisedEvaluator):
    pass
"""
    watched = """
import torch
batches = []
class Net(torch.nn.Conv3d):
    def forward(self, x):
        batches.append(len(x))
        return super().forward(x)
"""
    evaluator = {
        "_target_": "scripts.own.Own",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "amp": False,
    }
    content = config(
        network_def={"_target_": "scripts.net.Net", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        preprocessing=steps(LOAD, CHANNEL, RAS),
        postprocessing=steps(SOFTMAX, INVERT, ARGMAX),
        inferer=SLIDING,
        evaluator=evaluator,
    )
    loaded = session.load(
        write_bundle(tmp_path / "b", content, weights=saved, scripts={"own": own, "net": watched}), scratch=tmp_path
    )
    assert loaded.provenance["mode"] == "evaluator"
    batches = __import__("scripts.net", fromlist=["batches"]).batches
    volume = phantom()
    expected = loaded.predict({"image": volume}).labels
    assert max(batches) == 2
    batches.clear()
    assert np.array_equal(loaded.predict({"image": volume}, RunPlan(window_batch=3)).labels, expected)
    assert max(batches) == 3
    batches.clear()
    told = loaded.predict({"image": volume}, BY_CLASS).provenance["memory"]
    assert told == "the classes at once: the bundle's own evaluator runs them"
    assert max(batches) == 2


# --- what is drawn --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    classes=st.integers(2, 6),
    exclusive=st.booleans(),
    background=st.booleans(),
    holes=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@pytest.mark.usefixtures("small_pieces")
def test_law_what_is_drawn_is_what_the_channels_say(
    shape: tuple[int, ...], classes: int, exclusive: bool, background: bool, holes: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    values = generator.random((classes, *shape)).astype(np.float32)
    values[0, 0, 0, 0] = 1
    if exclusive:
        values = np.exp(4 * values) / np.exp(4 * values).sum(axis=0)
    if holes:
        values[generator.random(values.shape) < 0.1] = np.nan
    volume = make_volume(np.zeros(shape[::-1]))
    grid = images.Grid(shape=shape, affine=images.image_affine(volume))
    segments = tuple(range(1, classes)) if background else tuple(range(1, classes + 1))
    image = MetaTensor(torch.from_numpy(values.copy()), affine=torch.from_numpy(grid.affine))
    finite = np.nan_to_num(values, nan=0.0)
    sums = finite.sum(axis=0, dtype=np.float64)
    overlapping = bool(((np.abs(sums - 1) > outputs.SUM_TOLERANCE) & (sums > 0)).any())
    found = outputs.drawn(image, grid, segments)
    assert bool(found.doubts) == bool(np.isnan(values).any())
    if background and not overlapping:
        assert np.array_equal(found.labels, finite.argmax(axis=0).transpose())
    else:
        chosen = finite[list(segments)] if background else finite
        assert np.array_equal(found.masks, chosen.transpose(0, 3, 2, 1) >= 0.5)
        assert found.masks.flags.c_contiguous


@pytest.mark.usefixtures("small_pieces")
def test_channels_on_another_grid_are_moved_a_few_at_a_time_to_the_same_voxels() -> None:
    volume = make_volume(np.zeros((9, 10, 11)))
    grid = images.Grid(shape=(11, 10, 9), affine=images.image_affine(volume))
    seen_affine = grid.affine @ np.diag([1.5, 1.3, 0.8, 1.0])
    values = torch.softmax(torch.randn(5, 7, 8, 11, generator=torch.Generator().manual_seed(5)) * 3, dim=0)
    image = MetaTensor(values, affine=torch.from_numpy(seen_affine))
    seen = images.grid_of(image)
    expected = images.resampled(image, grid, nearest=False).argmax(dim=0).numpy().transpose()
    assert np.array_equal(outputs.drawn(image, grid, (1, 2, 3, 4), seen=seen).labels, expected)
    with pytest.raises(ModelFailed, match="lies on another grid"):
        outputs.drawn(image, grid, (1, 2, 3, 4), seen=grid)


def test_signals_and_batches_are_stitched_as_monai_does() -> None:
    inferer = inferers.SlidingWindowInferer((6,), 2, overlap=0.5)
    chosen = after("A", None, 3)
    signal = torch.randn(1, 2, 20)
    assert torch.equal(frugal.Way(inferer, chosen, BY_CLASS).infer(signal, torch.sin), inferer(signal, torch.sin))
    pair = torch.randn(2, 2, 9, 9)
    inferer = inferers.SlidingWindowInferer((6, 6), 2, overlap=0.5)
    assert torch.equal(frugal.Way(inferer, chosen, BY_CLASS).infer(pair, torch.sin), inferer(pair, torch.sin))


@pytest.mark.parametrize("shape", [(23, 17), (5, 30)])
def test_pictures_are_stitched_line_by_line(shape: tuple[int, int]) -> None:
    inferer = inferers.SlidingWindowInferer((8, 8), 3, overlap=0.5, mode="gaussian")
    image = torch.randn(1, 1, *shape)
    made = torch.nn.Conv2d(1, 4, 3, padding=1)
    way = frugal.Way(inferer, after("SA", None, 4), BY_CLASS)
    with torch.no_grad():
        found, expected = way.infer(image, made), inferer(image, made)[0].softmax(0).argmax(0)
    assert found.shape == (1, 1, *shape)
    assert torch.equal(found[0, 0].long(), expected)


def test_where_to_look_is_computed_once_for_all_groups_and_again_for_another_place() -> None:
    asked = torch.nn.functional.affine_grid
    one = torch.eye(3, 4, dtype=torch.float64)[None]
    expected = asked(one, [1, 1, 4, 5, 6], False)
    with frugal._Places():
        first = asked(one, [1, 1, 4, 5, 6], align_corners=False)
        assert torch.equal(first, expected)
        assert asked(theta=one.clone(), size=[1, 7, 4, 5, 6], align_corners=False) is first
        for other in (
            asked(one * 0.5, [1, 1, 4, 5, 6], False),
            asked(one, [1, 1, 4, 5, 7], False),
            asked(one, [1, 1, 4, 5, 6], True),
            asked(one.float(), [1, 1, 4, 5, 6], False),
        ):
            assert other is not first
    assert asked(one, [1, 1, 4, 5, 6], False) is not first
