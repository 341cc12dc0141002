"""As many classes as a body has, in little memory: the private memory of a real child, by proportion and in full.

Figures of the machine it was written on (2 cores, one of them used; OMP_NUM_THREADS=1) stand in README.md. In full:

    pytest -m soak tests/inference/test_many_classes.py
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from many_classes import AFTER, body, decoded, write_many

from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import OutOfMemory
from meddaemon.domain.result import Prediction
from meddaemon.inference.plan import AS_SHIPPED, RunPlan, peak_bytes
from meddaemon.inference.processes import ForkServer
from meddaemon.inference.runtime import Limits, ModelProcess, model_server

pytest.importorskip("torch")

BY_CLASS = RunPlan(class_by_class=True)
GIB = 2**30
SPACING = (1.5, 1.0, 1.0)
SHAPE = (72, 112, 112)
CLASSES = 60
WINDOW = 24


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = model_server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], ModelContract]:
    made: dict[tuple[int, str], ModelContract] = {}

    def get(classes: int, after: str) -> ModelContract:
        if (classes, after) not in made:
            made[classes, after] = write_many(tmp_path_factory.mktemp("many") / "b", classes, after, WINDOW)
        return made[classes, after]

    return get


def seen_by(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Return the lengths of the axes of the image that a volume becomes at 1.5 mm."""
    return tuple(round((size - 1) * each / 1.5) + 1 for size, each in zip(shape, spacing, strict=True))


def peak(
    server: ForkServer, contract: ModelContract, shape: tuple[int, int, int], plan: RunPlan
) -> tuple[int, Prediction]:
    """Return what a run took beyond what the child held before it, and its prediction."""
    with ModelProcess(contract, server=server) as process:
        # What a first run loads and keeps is no matter of the classes.
        process.infer(decoded(contract, body((8, 12, 12), (1.5, 1.5, 1.5))), time_limit=100, plan=plan)
        before = process.use()
        prediction = process.infer(decoded(contract, body(shape, SPACING)), time_limit=200, plan=plan)
        after = process.use()
    assert before is not None
    assert after is not None
    return after.peak - before.host, prediction


@pytest.mark.parametrize("after", AFTER)
def test_class_by_class_needs_a_fraction_and_finds_the_same(
    after: str, server: ForkServer, bundles: Callable[[int, str], ModelContract]
) -> None:
    many = bundles(CLASSES, after)
    whole, expected = peak(server, many, SHAPE, AS_SHIPPED)
    parts, found = peak(server, many, SHAPE, BY_CLASS)
    assert np.array_equal(found.labels, expected.labels)
    assert len(np.unique(found.labels)) > CLASSES / 2
    assert "memory" not in expected.provenance
    image = seen_by(SHAPE, SPACING)
    window = (WINDOW,) * 3
    assert parts <= peak_bytes(SHAPE, image, CLASSES, window=window, plan=BY_CLASS)
    assert whole <= peak_bytes(SHAPE, image, CLASSES, window=window)
    assert parts < whole / 2


def test_each_further_class_takes_one_number_for_each_voxel_that_the_network_sees(
    server: ForkServer, bundles: Callable[[int, str], ModelContract]
) -> None:
    """The promise for 105 classes by proportion: the slope over the classes, without what any run takes."""
    seen = int(np.prod(seen_by(SHAPE, SPACING)))
    after = "probabilities, inverted"
    few, many = (peak(server, bundles(classes, after), SHAPE, BY_CLASS)[0] for classes in (CLASSES // 3, CLASSES))
    slope = (many - few) / (CLASSES - CLASSES // 3)
    assert slope < 1.25 * 4 * seen


def test_where_the_class_is_chosen_at_once_more_planes_take_no_more_classes(
    server: ForkServer, bundles: Callable[[int, str], ModelContract]
) -> None:
    """Stitched slab by slab: all classes of a volume would take ten times what is allowed here."""
    contract = bundles(CLASSES, "labels, inverted")
    # Columns become the first axis, along which windows come in order.
    taken, _ = peak(server, contract, (24, 24, 3600), BY_CLASS)
    fewer, _ = peak(server, bundles(2, "labels, inverted"), (24, 24, 3600), BY_CLASS)
    seen = int(np.prod(seen_by((24, 24, 3600), SPACING)))
    assert taken - fewer < 4 * CLASSES * seen / 10


@pytest.mark.parametrize("plan", [AS_SHIPPED, BY_CLASS], ids=["as shipped", "class by class"])
def test_a_formula_is_an_upper_bound_and_not_far_off(
    plan: RunPlan, server: ForkServer, bundles: Callable[[int, str], ModelContract]
) -> None:
    for classes in (2, 20):
        taken, _ = peak(server, bundles(classes, "probabilities, inverted"), SHAPE, plan)
        expected = peak_bytes(SHAPE, seen_by(SHAPE, SPACING), classes, window=(WINDOW,) * 3, plan=plan)
        assert taken <= expected <= 2 * taken + 2**26


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("after", AFTER)
def test_105_classes_on_a_whole_ct_fit_in_16_gib(
    after: str, server: ForkServer, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """512x512x300 at 0.75 mm x 1.5 mm, of which the network sees 257x257x300 at 1.5 mm, within a limit of 16 GiB."""
    contract = write_many(tmp_path / "b", 105, after)
    volume = body((300, 512, 512), (1.5, 0.75, 0.75))
    with ModelProcess(contract, server=server, limits=Limits(memory_bytes=16 * GIB)) as process:
        prediction = process.infer(decoded(contract, volume), time_limit=3000, plan=BY_CLASS)
        use = process.use()
        assert use is not None
        record_property("peak_bytes", use.peak)
        record_property("seconds", dict(prediction.seconds))
        assert use.peak < 16 * GIB
    assert prediction.labels is not None
    assert prediction.labels.shape == volume.voxels.shape
    if after == "probabilities, inverted":
        with (
            ModelProcess(contract, server=server, limits=Limits(memory_bytes=16 * GIB)) as process,
            pytest.raises(OutOfMemory),
        ):
            process.infer(decoded(contract, volume), time_limit=3000)
