"""What we do faster than MONAI gives the same, bit for bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from monai.data import MetaTensor  # noqa: E402
from monai.transforms import (  # noqa: E402
    AsDiscrete,
    Compose,
    Invertd,
    KeepLargestConnectedComponent,
    Orientationd,
    Spacingd,
    SpatialResample,
)

from meddaemon.inference.bundles import faster  # noqa: E402

SIZES = st.tuples(*[st.integers(1, 24)] * 3)
SPACINGS = st.tuples(*[st.floats(0.3, 4.0)] * 3)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _in_place() -> Any:
    faster.install()
    yield
    faster.install()


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same, the sign of zero and what is not a number included."""
    first, second = (each.as_tensor() if isinstance(each, MetaTensor) else each for each in (one, other))
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.numpy().tobytes() == second.numpy().tobytes()
    )


def image(size: tuple[int, ...], seed: int, affine: Any, channels: int = 1) -> MetaTensor:
    values = np.random.default_rng(seed).normal(0, 300, (channels, *size)).astype(np.float32)
    return MetaTensor(torch.from_numpy(values), affine=torch.as_tensor(affine, dtype=torch.float64))


def aligned(spacing: tuple[float, ...], seed: int) -> Any:
    """An affine along the axes of the patient, in any order and direction."""
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(np.array(spacing) * random.choice([-1, 1], 3))[random.permutation(3)]
    affine[:3, 3] = random.uniform(-200, 200, 3)
    return affine


@settings(max_examples=60, deadline=None)
@given(SIZES, SPACINGS, SPACINGS, SEEDS, st.sampled_from(["bilinear", "nearest"]), st.booleans())
def test_resampling_there_and_back_is_that_of_monai(
    size: tuple[int, ...],
    spacing: tuple[float, ...],
    wanted: tuple[float, ...],
    seed: int,
    mode: str,
    align_corners: bool,
) -> None:
    before = Compose(
        [
            Orientationd("image", axcodes="RAS"),
            Spacingd("image", pixdim=wanted, mode=mode, align_corners=align_corners),
        ]
    )
    back = Invertd("pred", transform=before, orig_keys="image", nearest_interp=False)

    def there_and_back() -> tuple[torch.Tensor, torch.Tensor]:
        data = before({"image": image(size, seed, aligned(spacing, seed))})
        values = data["image"].as_tensor()
        data["pred"] = MetaTensor(torch.cat([values, values.flip(1) * 0.01]), meta=data["image"].meta)
        return values, back(data)["pred"]

    found = there_and_back()
    with faster.as_shipped():
        wanted = there_and_back()
    assert all(same_bits(one, other) for one, other in zip(found, wanted, strict=True))
    assert tuple(found[1].shape) == (2, *size)


@settings(max_examples=60, deadline=None)
@given(
    SIZES,
    SIZES,
    SPACINGS,
    SPACINGS,
    SEEDS,
    st.sampled_from(["bilinear", "nearest"]),
    st.sampled_from(["zeros", "border"]),
)
def test_resampling_onto_any_grid_along_the_same_axes_is_that_of_monai(
    size: tuple[int, ...],
    onto: tuple[int, ...],
    spacing: tuple[float, ...],
    wanted: tuple[float, ...],
    seed: int,
    mode: str,
    padding: str,
) -> None:
    """Where the grids lie beside each other, hardly touch, or one ends within the other."""
    random = np.random.default_rng(seed)
    source, target = np.diag([*spacing, 1.0]), np.diag([*wanted, 1.0])
    target[:3, 3] = random.uniform(-30, 30, 3) * random.integers(0, 2)
    resample = SpatialResample(mode=mode, padding_mode=padding, dtype=torch.float64)
    moving = image(size, seed, source, channels=2)
    moving[0, 0, 0, 0] = -0.0
    found = resample(moving, dst_affine=torch.from_numpy(target), spatial_size=onto)
    with faster.as_shipped():
        assert same_bits(found, resample(moving, dst_affine=torch.from_numpy(target), spatial_size=onto))


def test_what_is_larger_than_a_block_or_holds_no_numbers_is_resampled_the_same() -> None:
    moving = image((9, 40, 700), 5, np.diag([2.0, 1.5, 0.7, 1.0]))
    moving[0, 3, 5, 7:11] = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e38])
    resample = Spacingd("image", pixdim=(1.3, 1.3, 1.3))
    found = resample({"image": moving})["image"]
    assert found.isnan().any()
    with faster.as_shipped():
        assert same_bits(found, resample({"image": moving})["image"])


def test_an_oblique_source_is_left_to_monai() -> None:
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    resample = SpatialResample(dtype=torch.float64)
    arguments: Any = {"dst_affine": torch.from_numpy(turned), "spatial_size": (7, 6, 5)}
    found = resample(image((6, 7, 8), 1, np.eye(4)), **arguments)
    with faster.as_shipped():
        assert same_bits(found, resample(image((6, 7, 8), 1, np.eye(4)), **arguments))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 6),
    st.tuples(*[st.integers(1, 6)] * 3),
    SEEDS,
    st.sampled_from([None, 7]),
    st.sampled_from([None, torch.int32, torch.uint8]),
)
def test_the_greatest_channel_is_that_of_monai(
    channels: int, size: tuple[int, ...], seed: int, onehot: int | None, dtype: Any
) -> None:
    random = np.random.default_rng(seed)
    chosen = random.choice([0.0, -0.0, 0.25, 0.5, np.inf, -np.inf, np.nan], (channels, *size))
    values = MetaTensor(torch.from_numpy(chosen.astype(np.float32)), affine=torch.eye(4) * 2, meta={"a": "b"})
    discrete = AsDiscrete(argmax=True, to_onehot=onehot, **({} if dtype is None else {"dtype": dtype}))
    found = discrete(values)
    with faster.as_shipped():
        wanted = discrete(values)
    assert same_bits(found, wanted)
    assert (type(found), found.meta["a"], found.affine.tolist()) == (type(wanted), "b", wanted.affine.tolist())


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.floats(0, 1),
    SEEDS,
    st.sampled_from([None, 1]),
    st.integers(1, 3),
    st.booleans(),
)
def test_the_largest_component_is_that_of_monai(
    size: tuple[int, ...], filled: float, seed: int, connectivity: int | None, components: int, independent: bool
) -> None:
    pytest.importorskip("skimage")
    random = np.random.default_rng(seed)
    labels = np.zeros((1, *size), np.float32)
    corner = tuple(slice(int(random.integers(0, each)), None) for each in size)
    labels[(0, *corner)] = random.integers(1, 3, labels[(0, *corner)].shape) * (
        random.random(labels[(0, *corner)].shape) < filled
    )
    keep = KeepLargestConnectedComponent(
        applied_labels=[1, 2], independent=independent, connectivity=connectivity, num_components=components
    )
    found = keep(MetaTensor(torch.from_numpy(labels.copy())))
    with faster.as_shipped():
        assert same_bits(found, keep(MetaTensor(torch.from_numpy(labels.copy()))))
