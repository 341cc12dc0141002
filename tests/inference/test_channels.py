"""Laws: classes in pieces are, to the bit, the classes at once."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
channels = pytest.importorskip("meddaemon.inference.bundles.channels")

SEEDS = st.integers(0, 2**32 - 1)
EACH_THREADS = [HealthCheck.function_scoped_fixture]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def logits(seed: int, *shape: int, scale: float = 5.0) -> object:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32))


@settings(max_examples=60, deadline=None, suppress_health_check=EACH_THREADS)
@given(
    seed=SEEDS,
    classes=st.integers(2, 40),
    voxels=st.integers(2, 5000),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_law_softmax_of_pieces_is_that_of_the_whole(
    threads: int, seed: int, classes: int, voxels: int, cuts: list[float], scale: float
) -> None:
    values = logits(seed, classes, voxels, scale=scale)
    ends = sorted({0, voxels, *(int(cut * voxels) for cut in cuts)})
    parts = [channels.SOFTMAX.part(values[:, a:b], a, voxels) for a, b in pairwise(ends)]
    assert torch.equal(torch.cat(parts, dim=1), torch.softmax(values, dim=0))
    assert torch.get_num_threads() == threads


@settings(max_examples=60, deadline=None, suppress_health_check=EACH_THREADS)
@given(seed=SEEDS, total=st.integers(1, 200_000), cuts=st.lists(st.floats(0, 1), max_size=4))
def test_law_sigmoid_of_pieces_is_that_of_the_whole(threads: int, seed: int, total: int, cuts: list[float]) -> None:
    values = logits(seed, 1, total)
    ends = sorted({0, total, *(int(cut * total) for cut in cuts)})
    parts = [channels.SIGMOID.part(values[:, a:b], a, total) for a, b in pairwise(ends)]
    assert torch.equal(torch.cat(parts, dim=1), torch.sigmoid(values))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("activation", [channels.SOFTMAX, channels.SIGMOID], ids=["softmax", "sigmoid"])
def test_logits_that_are_ours_are_overwritten_and_others_never(threads: int, activation: object) -> None:
    values = logits(2, 7, 13, 17, 19)
    kept = values.clone()
    expected = activation.whole(kept.clone(), owned=False)
    assert torch.equal(activation.whole(values, owned=False), expected)
    assert torch.equal(values, kept)
    made = activation.whole(values, owned=True)
    assert made.data_ptr() == values.data_ptr()
    assert torch.equal(made, expected)


@settings(max_examples=80, deadline=None)
@given(
    seed=SEEDS,
    classes=st.integers(1, 12),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    levels=st.integers(1, 6),
    strange=st.lists(st.sampled_from([float("nan"), float("inf"), float("-inf")]), max_size=3),
    group=st.integers(1, 12),
)
def test_law_the_highest_of_classes_one_by_one_is_argmax(
    seed: int, classes: int, shape: list[int], levels: int, strange: list[float], group: int
) -> None:
    generator = np.random.default_rng(seed)
    # Few levels: ties everywhere.
    values = generator.integers(0, levels, (classes, *shape)).astype(np.float32)
    for each in strange:
        values[generator.random(values.shape) < 0.2] = each
    tensor = torch.from_numpy(values)
    best = channels.Highest(classes)
    for first in range(0, classes, group):
        best.add(tensor[first : first + group])
    assert torch.equal(best.labels.long(), tensor.argmax(dim=0))
    assert torch.equal(channels.highest(tensor).long(), tensor.argmax(dim=0))


def test_more_classes_than_a_byte_tells_apart_keep_their_numbers() -> None:
    values = torch.zeros(300, 4)
    values[[0, 255, 256, 299], range(4)] = 1
    assert channels.highest(values).tolist() == [0, 255, 256, 299]


def test_labels_are_there_once_all_classes_were_seen() -> None:
    best = channels.Highest(3)
    best.add(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="2 of 3 classes"):
        _ = best.labels


def test_slabs_are_small_and_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PIECE_BYTES", 3 * 4 * 7 * 2)
    values = torch.zeros(3, 11, 7)
    seen = [values[:, at] for at in channels.slabs(values)]
    assert [each.shape[1] for each in seen] == [2, 2, 2, 2, 2, 1]
    assert not list(channels.slabs(torch.zeros(3, 0, 7)))
