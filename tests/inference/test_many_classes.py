"""As many classes as a body has, in little memory: the private memory of a real child, by proportion and in full.

In full, which takes a quarter of an hour:

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
CLASSES, FEWER = 48, 24
WINDOW = 24


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = model_server()
    yield server
    server.close()


class Peaks:
    """What runs took beyond what their child held before, each of them made once."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._made: dict[tuple[object, ...], tuple[int, Prediction]] = {}

    def of(
        self, classes: int, after: str, plan: RunPlan, shape: tuple[int, int, int] = SHAPE
    ) -> tuple[int, Prediction]:
        key = (classes, after, plan, shape)
        if key not in self._made:
            contract = write_many(self._folder / str(len(self._made)), classes, after, WINDOW)
            self._made[key] = self._measured(contract, plan, shape)
        return self._made[key]

    def _measured(self, contract: ModelContract, plan: RunPlan, shape: tuple[int, int, int]) -> tuple[int, Prediction]:
        with ModelProcess(contract, server=self._server) as process:
            # What a first run loads and keeps is no matter of the classes.
            process.infer(decoded(contract, body((8, 12, 12), (1.5, 1.5, 1.5))), time_limit=100, plan=plan)
            before = process.use()
            prediction = process.infer(decoded(contract, body(shape, SPACING)), time_limit=200, plan=plan)
            after = process.use()
        assert before is not None
        assert after is not None
        return after.peak - before.host, prediction


@pytest.fixture(scope="module")
def peaks(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Peaks:
    return Peaks(server, tmp_path_factory.mktemp("many"))


def seen_by(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the lengths of the axes of the image that a volume becomes at 1.5 mm."""
    return tuple(round((size - 1) * each / 1.5) + 1 for size, each in zip(shape, SPACING, strict=True))


@pytest.mark.parametrize("after", AFTER)
def test_class_by_class_needs_a_fraction_and_finds_the_same(after: str, peaks: Peaks) -> None:
    whole, expected = peaks.of(CLASSES, after, AS_SHIPPED)
    parts, found = peaks.of(CLASSES, after, BY_CLASS)
    assert np.array_equal(found.labels, expected.labels)
    assert len(np.unique(found.labels)) > CLASSES / 2
    assert "memory" not in expected.provenance
    assert found.provenance["memory"]
    assert parts < 0.6 * whole


def test_each_further_class_takes_one_number_for_each_voxel_that_the_network_sees(peaks: Peaks) -> None:
    """The promise for 105 classes by proportion: the slope over the classes, without what any run takes."""
    few, many = (peaks.of(classes, "probabilities, inverted", BY_CLASS)[0] for classes in (FEWER, CLASSES))
    slope = (many - few) / (CLASSES - FEWER)
    assert slope < 1.25 * 4 * int(np.prod(seen_by(SHAPE)))


def test_where_the_class_is_chosen_at_once_more_planes_take_no_more_classes(peaks: Peaks) -> None:
    """Stitched slab by slab: all classes of the volume would take ten times what is allowed here."""
    # Columns become the first axis, along which windows come in order.
    long = (24, 24, 3600)
    fewer, more = (peaks.of(classes, "labels, inverted", BY_CLASS, long)[0] for classes in (2, CLASSES))
    assert more - fewer < 4 * CLASSES * int(np.prod(seen_by(long))) / 10


@pytest.mark.parametrize("classes", [FEWER, CLASSES])
@pytest.mark.parametrize("plan", [AS_SHIPPED, BY_CLASS], ids=["as shipped", "class by class"])
def test_the_formula_is_an_upper_bound_and_not_far_off(classes: int, plan: RunPlan, peaks: Peaks) -> None:
    taken, _ = peaks.of(classes, "probabilities, inverted", plan)
    expected = peak_bytes(SHAPE, seen_by(SHAPE), classes, window=(WINDOW,) * 3, plan=plan)
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
