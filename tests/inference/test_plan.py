"""Plans, and what runs are expected to take."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.inference.plan import AS_SHIPPED, RunPlan, group, peak_bytes

PLANS = st.builds(
    RunPlan,
    window_batch=st.none() | st.integers(1, 64),
    outputs_on_host=st.booleans(),
    class_by_class=st.booleans(),
)
SHAPES = st.tuples(*[st.integers(1, 600)] * 3)


@given(PLANS)
def test_law_a_plan_survives_its_way_to_the_child(plan: RunPlan) -> None:
    assert RunPlan.from_message(json.loads(json.dumps(plan.message()))) == plan


@given(PLANS, SHAPES, SHAPES, st.integers(1, 200), st.integers(0, 3), st.integers(0, 2), st.integers(1, 50))
def test_law_nothing_more_takes_less(
    plan: RunPlan,
    source: tuple[int, ...],
    image: tuple[int, ...],
    classes: int,
    more_classes: int,
    axis: int,
    longer: int,
) -> None:
    def longer_by(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(size + longer * (at == axis) for at, size in enumerate(shape))

    least = peak_bytes(source, image, classes, plan=plan)
    # Fewer classes at a time fit where each is larger: less than one of them is what that may spare.
    one = 12 * source[0] * source[1] * source[2] + 8 * image[0] * image[1] * image[2]
    assert peak_bytes(source, image, classes + more_classes, plan=plan) >= least
    assert peak_bytes(longer_by(source), image, classes, plan=plan) >= least - one
    assert peak_bytes(source, longer_by(image), classes, plan=plan) >= least - one
    assert peak_bytes(source, image, classes, window=(32, 32, 32), window_batch=2, plan=plan) >= least


@given(SHAPES, SHAPES, st.integers(20, 200))
def test_law_class_by_class_spares_memory_where_there_are_many(
    source: tuple[int, ...], image: tuple[int, ...], classes: int
) -> None:
    # Small groups of classes would spare nothing that is worth it.
    frugal = peak_bytes(source, image, classes, plan=replace(AS_SHIPPED, class_by_class=True)) - 2**28
    assert frugal <= peak_bytes(source, image, classes)


@given(st.integers(1, 2**30), st.integers(1, 2**30))
def test_law_a_group_has_one_class_at_least_and_no_more_than_fit(voxels: int, seen: int) -> None:
    together = group(voxels, seen)
    assert together >= 1
    assert together == 1 or together * (12 * voxels + 8 * seen) <= max(2**28, 40 * voxels)


def test_the_promise_for_a_whole_body() -> None:
    """105 classes on 512x512x300, of which the network sees 1.5 mm: 16 GiB are enough, as shipped by far not."""
    source, image, window = (300, 512, 512), (300, 257, 257), (96, 96, 96)
    assert peak_bytes(source, image, 105, window=window, plan=RunPlan(class_by_class=True)) < 16 * 2**30
    assert peak_bytes(source, image, 105, window=window) > 100 * 2**30


@pytest.mark.parametrize("missing", ["window_batch", "outputs_on_host", "class_by_class"])
def test_a_message_that_is_no_plan_is_refused(missing: str) -> None:
    message = AS_SHIPPED.message()
    del message[missing]
    with pytest.raises(KeyError):
        RunPlan.from_message(message)
