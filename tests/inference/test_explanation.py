"""What a classifier looked at, on the voxels of the source: networks that learnt to find an object show where it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import CHANNEL, LOAD, RAS, config, make_volume, pictures, rotation, steps, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from monai.data import MetaTensor  # noqa: E402
from monai.networks.nets import DenseNet, ViT  # noqa: E402

from meddaemon.domain.contract import Combine, Explanation, InputKind, ModelKind, Occasion, Saliency  # noqa: E402
from meddaemon.domain.errors import ModelFailed  # noqa: E402
from meddaemon.domain.picture import Pictures  # noqa: E402
from meddaemon.domain.result import MAX_ARTEFACTS, Artefact, ArtefactKind, Prediction  # noqa: E402
from meddaemon.domain.volume import Volume  # noqa: E402
from meddaemon.inference.bundles.artefacts import bounded, placed  # noqa: E402
from meddaemon.inference.bundles.asked import Answer, Asked  # noqa: E402
from meddaemon.inference.bundles.explain import explained, token_grid  # noqa: E402
from meddaemon.inference.bundles.images import Grid, as_image, grid_of  # noqa: E402
from meddaemon.inference.bundles.session import Session, load  # noqa: E402
from meddaemon.inference.bundles.terms import Feed, Terms  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_code_of_one_bundle")

SIDE = 32
DENSE = {
    "in_channels": 1,
    "out_channels": 2,
    "init_features": 8,
    "growth_rate": 4,
    "block_config": (2, 2),
    "bn_size": 2,
}
TOKENS = {"in_channels": 1, "hidden_size": 24, "mlp_dim": 48, "num_layers": 2, "num_heads": 2, "num_classes": 2}
SCRIPTS = """
import torch
from monai.networks.nets import ViT

class Tokens(ViT):
    def forward(self, x):
        return super().forward(x)[0]

class Plain(torch.nn.Sequential):
    def __init__(self, channels=1):
        super().__init__(
            torch.nn.Conv2d(channels, 8, 3, padding=1), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU(inplace=True),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 2),
        )
"""
ANSWERS = (Answer(name="nothing", group="g"), Answer(name="there", group="g"))
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
RESIZED = {"_target_": "Resized", "keys": "image", "spatial_size": [SIDE] * 3, "mode": "trilinear"}


def learnt(network: Any, dimensions: int, *, steps_: int, channels: int = 1) -> Any:
    """Teach the network to tell images with a bright box from those without."""
    draw = np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    network.train()
    for _ in range(steps_):
        images = draw.normal(0, 0.05, (8, channels, *[SIDE] * dimensions)).astype(np.float32)
        for image in images[1::2]:
            at = draw.integers(0, SIDE - 8, dimensions)
            image[(slice(None), *(slice(each, each + draw.integers(5, 9)) for each in at))] += 1
        raw = network(torch.from_numpy(images))
        loss = torch.nn.functional.cross_entropy(raw[0] if isinstance(raw, tuple) else raw, torch.arange(8) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def _dense() -> tuple[dict[str, Any], Any]:
    network = learnt(DenseNet(spatial_dims=3, **DENSE), 3, steps_=40)
    return {"_target_": "DenseNet", "spatial_dims": 3, **DENSE}, network


def _tokens() -> tuple[dict[str, Any], Any]:
    parts = {**TOKENS, "img_size": [SIDE] * 3, "patch_size": [8] * 3, "classification": True, "post_activation": None}
    return {"_target_": "scripts.nets.Tokens", **parts}, learnt(ViT(**parts), 3, steps_=60)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that writes the bundle of a network that has learnt, once for each kind."""
    written: dict[str, Path] = {}

    def written_once(kind: str) -> Path:
        if kind not in written:
            torch.manual_seed(0)
            described, network = {"dense": _dense, "tokens": _tokens}[kind]()
            written[kind] = write_bundle(
                tmp_path_factory.mktemp("bundles") / kind,
                config(
                    network_def=described,
                    preprocessing=steps(LOAD, CHANNEL, RAS, RESIZED),
                    postprocessing=steps(SOFTMAX),
                ),
                weights=lambda models: torch.save(network.state_dict(), models / "model.pt"),
                scripts={"nets": SCRIPTS},
            )
        return written[kind]

    return written_once


def asked(method: str, **more: Any) -> Asked:
    return Asked(explanation=Explanation(method=Saliency(method), **more), answers=ANSWERS)


def session(
    folder: Path,
    scratch: Path,
    wish: Asked | None,
    kind: InputKind = InputKind.VOLUME,
    combine: Combine = Combine.MEAN,
) -> Session:
    terms = Terms(
        kind=ModelKind.CLASSIFICATION,
        outputs=2,
        combine=combine,
        feeds=(Feed(name="image", key="image", kind=kind),),
        **({"asked": wish} if wish else {}),
    )
    return load(folder, scratch=scratch, device="cpu", terms=terms)


OBJECT = (slice(5, 9), slice(11, 19), slice(23, 32))


def planted(turn: np.ndarray | None = None) -> Volume:
    """An oblique volume with voxels of 2.5 x 1 x 1 mm, and a box off centre."""
    voxels = np.random.default_rng(1).normal(0, 0.05, (18, 40, 44))
    voxels[OBJECT] += 1
    return make_volume(voxels, turn=rotation(3) if turn is None else turn)


def peak(values: np.ndarray) -> np.ndarray:
    """Return the voxel of the highest value."""
    return np.array(np.unravel_index(values.argmax(), values.shape))


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("dense", "gradcam"),
        ("dense", "gradcam++"),
        ("dense", "occlusion"),
        ("tokens", "gradcam"),
        ("tokens", "occlusion"),
    ],
)
def test_saliency_peaks_on_the_object_in_the_source(
    bundle: Callable[[str], Path], tmp_path: Path, kind: str, method: str
) -> None:
    found = session(bundle(kind), tmp_path, asked(method)).predict({"image": planted()})
    assert found.scores[1] > 0.5
    (artefact,) = found.artefacts
    assert artefact.name == "saliency: there"
    assert artefact.values.dtype == (np.float32 if method == "occlusion" else np.float16)
    assert artefact.values.shape == (18, 40, 44)
    at = peak(np.maximum(artefact.values, 0))
    assert all(each.start <= where < each.stop for where, each in zip(at, OBJECT, strict=True)), at
    if method != "occlusion":
        assert 0 <= artefact.values.min() <= artefact.values.max() <= 1


@pytest.mark.parametrize(("kind", "method"), [("dense", "gradcam++"), ("tokens", "gradcam"), ("dense", "occlusion")])
def test_an_explanation_leaves_nothing_behind_and_changes_nothing(
    bundle: Callable[[str], Path], tmp_path: Path, kind: str, method: str
) -> None:
    plain = session(bundle(kind), tmp_path, None)
    explaining = session(bundle(kind), tmp_path, asked(method))
    before = state(explaining)
    expected = plain.predict({"image": planted()})
    first = explaining.predict({"image": planted()})
    second = explaining.predict({"image": planted()})
    assert expected.scores == first.scores == second.scores
    assert expected.artefacts == ()
    np.testing.assert_array_equal(first.artefacts[0].values, second.artefacts[0].values)
    assert state(explaining) == before


def state(of: Session) -> list[object]:
    """Return what hooks, gradients and modes the modules have, and a sum of the weights."""
    network = of.network
    return [
        *(
            (len(each._forward_hooks), len(each._backward_hooks), each._is_full_backward_hook, each.training)
            for each in network.modules()
        ),
        *(getattr(each, "inplace", None) for each in network.modules()),
        *((each.requires_grad, each.grad, float(each.detach().double().sum())) for each in network.parameters()),
        torch.is_grad_enabled(),
    ]


@pytest.fixture
def colour_network() -> Any:
    """A network for RGB pictures of any size, which has learnt on small ones."""
    namespace: dict[str, Any] = {}
    exec(SCRIPTS, namespace)
    torch.manual_seed(0)
    return learnt(namespace["Plain"](3), 2, steps_=60, channels=3)


@pytest.fixture
def colour_bundle(tmp_path: Path, colour_network: Any) -> Path:
    return write_bundle(
        tmp_path / "colour",
        config(
            network_def={"_target_": "scripts.nets.Plain", "channels": 3},
            preprocessing=steps(
                LOAD,
                CHANNEL,
                {"_target_": "Resized", "keys": "image", "spatial_size": [SIDE, SIDE], "mode": "bilinear"},
            ),
            postprocessing=steps(SOFTMAX),
        ),
        weights=lambda models: torch.save(colour_network.state_dict(), models / "model.pt"),
        scripts={"nets": SCRIPTS},
    )


def coloured() -> Pictures:
    frames = np.zeros((2, 40, 60, 3), np.float32)
    frames[0, 6:16, 40:52] = 1
    frames[1, 24:34, 8:20] = 1
    return pictures(frames)


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_each_colour_picture_has_a_map_of_its_own(colour_bundle: Path, tmp_path: Path, method: str) -> None:
    given_ = coloured()
    found = session(colour_bundle, tmp_path, asked(method, classes=("there",)), InputKind.PICTURES).predict(
        {"image": given_}
    )
    assert [each.source for each in found.artefacts] == list(given_.sources)
    for artefact, (rows, columns) in zip(found.artefacts, [((6, 16), (40, 52)), ((24, 34), (8, 20))], strict=True):
        assert artefact.values.shape == (40, 60)
        row, column = np.unravel_index(artefact.values.argmax(), artefact.values.shape)
        assert rows[0] - 4 <= row < rows[1] + 4
        assert columns[0] - 6 <= column < columns[1] + 6


def test_where_each_picture_keeps_its_scores_its_own_answer_is_explained(colour_bundle: Path, tmp_path: Path) -> None:
    frames = np.concatenate([coloured().frames[:1], np.zeros((1, 40, 60, 3), np.float32)])
    given_ = pictures(frames)
    found = session(colour_bundle, tmp_path, asked("gradcam"), InputKind.PICTURES, Combine.EACH).predict(
        {"image": given_}
    )
    assert [(each.of, each.source) for each in found.artefacts] == [
        ("there", given_.sources[0]),
        ("nothing", given_.sources[1]),
    ]


def test_slices_make_a_map_of_the_volume(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(SCRIPTS, namespace)
    torch.manual_seed(0)
    network = learnt(namespace["Plain"](1), 2, steps_=60)
    folder = write_bundle(
        tmp_path / "slices",
        config(
            network_def={"_target_": "scripts.nets.Plain"},
            preprocessing=steps(LOAD, CHANNEL),
            postprocessing=steps(SOFTMAX),
        ),
        weights=lambda models: torch.save(network.state_dict(), models / "model.pt"),
        scripts={"nets": SCRIPTS},
    )
    found = session(folder, tmp_path, asked("gradcam", classes=("there",)), InputKind.SLICES).predict(
        {"image": planted()}
    )
    (artefact,) = found.artefacts
    at = peak(artefact.values)
    assert all(each.start <= where < each.stop for where, each in zip(at, OBJECT, strict=True))


def test_torchscript_can_be_hidden_from_but_not_looked_into(tmp_path: Path, colour_network: Any) -> None:
    network = torch.jit.trace(colour_network, torch.zeros(1, 3, 40, 60))
    folder = write_bundle(
        tmp_path / "script",
        config(
            network_def="$torch.jit.load(@bundle_root + '/models/model.ts')",
            imports=["$import torch"],
            preprocessing=steps(LOAD, CHANNEL),
            postprocessing=steps(SOFTMAX),
            dataset=None,
            dataloader=None,
            evaluator=None,
        ),
        weights=lambda models: network.save(models / "model.ts"),
    )
    with pytest.raises(ModelFailed, match=r'TorchScript network cannot be looked into: .* "occlusion"'):
        session(folder, tmp_path, asked("gradcam"), InputKind.PICTURES)
    found = session(folder, tmp_path, asked("occlusion", classes=("there",)), InputKind.PICTURES).predict(
        {"image": coloured()}
    )
    row, column = np.unravel_index(found.artefacts[0].values.argmax(), (40, 60))
    assert 4 <= row < 18
    assert 36 <= column < 56


@pytest.mark.parametrize(
    ("kind", "wish", "problem"),
    [
        ("dense", asked("gradcam", layer="features.norm9"), "'features.norm9', which the network does not have"),
        ("dense", asked("gradcam", layer="class_layers.out"), "cannot look at the layer class_layers.out: it gives"),
        ("dense", replace(asked("gradcam"), answers=(*ANSWERS, ANSWERS[0])), "not the 3 numbers of the contract"),
        ("tokens", asked("gradcam++"), "not for networks of tokens"),
    ],
)
def test_what_cannot_be_explained_says_so(
    bundle: Callable[[str], Path], tmp_path: Path, kind: str, wish: Asked, problem: str
) -> None:
    def explain() -> None:
        loaded = session(bundle(kind), tmp_path, wish)
        prepared = loaded.prepare({"image": planted()})
        scores = (0.4, 0.6, 0.0)[: len(wish.answers)]
        loaded._with_artefacts(Prediction(series_instance_uid="1", scores=scores), prepared, [])

    with pytest.raises(ModelFailed, match=problem):
        explain()


def test_a_network_that_sees_windows_cannot_be_explained(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    described, network = {"_target_": "DenseNet", "spatial_dims": 3, **DENSE}, DenseNet(spatial_dims=3, **DENSE)
    folder = write_bundle(
        tmp_path / "windows",
        config(
            network_def=described,
            inferer={"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]},
            postprocessing=steps(SOFTMAX),
        ),
        weights=lambda models: torch.save(network.state_dict(), models / "model.pt"),
    )
    with pytest.raises(ModelFailed, match="SlidingWindowInferer cuts it"):
        session(folder, tmp_path, asked("gradcam"))


def test_numbers_that_are_none_are_marked_and_not_explained(bundle: Callable[[str], Path], tmp_path: Path) -> None:
    volume = planted()
    volume.voxels[...] = np.nan
    found = session(bundle("dense"), tmp_path, asked("gradcam")).predict({"image": volume})
    assert found.doubts == ("2 of 2 numbers of the prediction are not finite",)
    assert found.artefacts == ()


THREE = (Answer(name="a", group="g"), Answer(name="b", group="g"), Answer(name="c", threshold=0.5))


@pytest.mark.parametrize(
    ("scores", "more", "expected"),
    [
        ((0.7, 0.3, 0.1), {}, [0]),
        ((0.2, 0.8, 0.9), {}, [1, 2]),
        ((0.2, 0.8, 0.9), {"classes": ("a", "c")}, [0, 2]),
        ((0.2, 0.8, 0.1), {"classes": ("a", "c"), "when": Occasion.POSITIVE}, []),
        ((0.2, 0.8, 0.9), {"classes": ("a", "c"), "when": Occasion.POSITIVE}, [2]),
    ],
)
def test_the_class_that_is_answered_is_explained(
    scores: tuple[float, ...], more: dict[str, Any], expected: list[int]
) -> None:
    wish = Asked(explanation=Explanation(method=Saliency.GRADCAM, **more), answers=THREE)
    assert explained(scores, wish) == expected


def test_where_nothing_is_there_the_likeliest_is_explained_or_nothing() -> None:
    alone = (Answer(name="a", threshold=0.5), Answer(name="b", threshold=0.5))
    wish = Asked(explanation=Explanation(method=Saliency.GRADCAM), answers=alone)
    assert explained((0.1, 0.2), wish) == [1]
    assert explained((0.1, 0.2), replace(wish, explanation=replace(wish.explanation, when=Occasion.POSITIVE))) == []
    numbers = Asked(explanation=Explanation(method=Saliency.GRADCAM), answers=(Answer(name="x"), Answer(name="y")))
    assert explained((17.0, 3.0), numbers) == [0, 1]


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [
        (64, (24, 24, 24), (4, 4, 4)),
        (65, (24, 24, 24), (4, 4, 4)),
        (12, (48, 64), (3, 4)),
        (7, (24, 24), None),
        (1, (24, 24), None),
    ],
)
def test_tokens_lie_in_the_image(count: int, size: tuple[int, ...], grid: tuple[int, ...] | None) -> None:
    assert token_grid(count, size) == grid


@settings(max_examples=40, deadline=None)
@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    voxel=st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 5)),
    seed=st.integers(0, 5),
)
def test_values_land_on_their_voxels_however_the_network_saw_the_image(
    axes: list[int], signs: tuple[int, int, int], voxel: tuple[int, int, int], seed: int
) -> None:
    volume = make_volume(np.zeros((5, 7, 6)), turn=rotation(seed))
    volume.voxels[voxel] = 0.75
    image = as_image(volume, channel_first=True)
    grid = grid_of(image)
    # What Orientationd and its like do: another order of axes, another sense of each.
    turned = (
        image.as_tensor()
        .permute(0, *(1 + axis for axis in axes))
        .flip([1 + at for at, sign in enumerate(signs) if sign < 0])
    )
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for at, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        change[axis, at] = sign
        change[axis, 3] = grid.shape[axis] - 1 if sign < 0 else 0
    moved = MetaTensor(turned, affine=torch.from_numpy(grid.affine @ change))
    found = placed(moved, grid, Grid(shape=tuple(turned.shape[1:]), affine=grid.affine @ change))
    np.testing.assert_allclose(found, volume.voxels, atol=1e-3)


def test_numbers_stay_on_their_side_of_one_half() -> None:
    volume = make_volume(np.full((1, 1, 3), 0.5))
    volume.voxels[0, 0] = (np.nextafter(np.float32(0.5), np.float32(0)), 0.5, 0.50001)
    image = as_image(volume, channel_first=True)
    assert ((placed(image, grid_of(image), None) >= 0.5) == [False, True, True]).all()


def test_a_number_falls_as_far_as_it_does_in_its_own_unit(tmp_path: Path) -> None:
    """A regression may be of any size, beyond that of a half."""
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten(), torch.nn.Linear(1, 1))
    with torch.no_grad():
        network[2].weight.fill_(1e9)
        network[2].bias.zero_()
    parts = [f"torch.nn.{each}" for each in ("AdaptiveAvgPool3d(1)", "Flatten()", "Linear(1, 1)")]
    folder = write_bundle(
        tmp_path / "large",
        config(
            network_def=f"$torch.nn.Sequential({', '.join(parts)})",
            imports=["$import torch"],
            preprocessing=steps(LOAD, CHANNEL, RAS),
            postprocessing=steps(),
        ),
        weights=lambda models: torch.save(network.state_dict(), models / "model.pt"),
    )
    wish = Asked(explanation=Explanation(method=Saliency.OCCLUSION), answers=(Answer(name="count"),))
    terms = Terms(kind=ModelKind.REGRESSION, outputs=1, asked=wish)
    (artefact,) = load(folder, scratch=tmp_path, device="cpu", terms=terms).predict({"image": planted()}).artefacts
    assert np.isfinite(artefact.values).all()
    assert artefact.values.max() > 1e6
    at = peak(artefact.values)
    assert all(each.start - 2 <= where < each.stop + 2 for where, each in zip(at, OBJECT, strict=True)), at


def test_what_is_too_much_is_left_out_and_named() -> None:
    many = [
        Artefact(kind=ArtefactKind.SALIENCY, of=f"class {index}", values=np.zeros((1, 1, 1), np.float16))
        for index in range(MAX_ARTEFACTS + 2)
    ]
    kept, said = bounded(many)
    assert len(kept) == MAX_ARTEFACTS
    assert said.startswith(f"2 left out, saliency: class {MAX_ARTEFACTS} for one")
    assert bounded(many[:3]) == (tuple(many[:3]), "")
