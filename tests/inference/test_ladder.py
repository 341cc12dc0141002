"""Which way of running a model comes after which when memory runs out: laws of the pure part."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.ladder import (
    TOP,
    Bytes,
    Choices,
    Memory,
    Rung,
    Shapes,
    estimate,
    first,
    ladder,
    lower,
    spares_by_class,
)
from meddaemon.inference.ledger import Ledger
from meddaemon.inference.plan import RunPlan

CHOICES = st.builds(
    Choices,
    window_batch=st.integers(1, 70),
    on_gpu=st.booleans(),
    by_class=st.booleans(),
    others=st.booleans(),
    cpu=st.booleans(),
    planned=st.booleans(),
)
WHERE = st.sampled_from(Memory)
LENGTHS = st.tuples(*[st.integers(1, 300)] * 3)
SHAPES = st.builds(
    lambda channels, image, **others: Shapes(image=(channels, *image), **others),
    channels=st.integers(1, 4),
    image=LENGTHS,
    source=LENGTHS,
    window=st.just(()) | st.tuples(*[st.integers(1, 96)] * 3),
    window_batch=st.integers(1, 16),
    outputs=st.integers(0, 120),
    on_gpu=st.booleans(),
)


@pytest.mark.fault(131)
def test_the_ladder_of_a_gpu() -> None:
    every = Choices(window_batch=5, on_gpu=True, by_class=True, others=True, cpu=True)
    assert [str(rung) for rung in ladder(Memory.GPU, every)] == [
        "as the bundle says",
        "windows 2 at a time",
        "windows 1 at a time",
        "windows 1 at a time, outputs in the memory of the host",
        "windows 1 at a time, outputs in the memory of the host, class by class",
        "windows 1 at a time, outputs in the memory of the host, class by class, alone",
        "windows 1 at a time, class by class, alone, on the CPU",
    ]
    assert not any(rung.on_cpu for rung in ladder(Memory.GPU, replace(every, cpu=False)))


@pytest.mark.fault(130)
def test_the_ladder_of_the_host() -> None:
    every = Choices(window_batch=5, on_gpu=False, by_class=True, others=True, cpu=True)
    assert [str(rung) for rung in ladder(Memory.HOST, every)] == [
        "as the bundle says",
        "class by class",
        "windows 1 at a time, class by class",
        "windows 1 at a time, class by class, alone",
    ]
    # Beside a GPU, the windows and what the network makes of them are not in the host.
    assert [str(rung) for rung in ladder(Memory.HOST, replace(every, on_gpu=True))] == [
        "as the bundle says",
        "class by class",
        "class by class, alone",
    ]


def test_what_comes_before_the_network_knows_no_plan() -> None:
    every = Choices(window_batch=5, on_gpu=True, by_class=True, others=True, cpu=True, planned=False)
    assert [str(rung) for rung in ladder(Memory.GPU, every)] == ["as the bundle says", "alone", "alone, on the CPU"]
    assert [str(rung) for rung in ladder(Memory.HOST, every)] == ["as the bundle says", "alone"]


@given(failures=st.lists(WHERE, min_size=40, max_size=40), choices=CHOICES)
def test_whatever_runs_out_the_way_down_ends_and_never_repeats(failures: list[Memory], choices: Choices) -> None:
    rung: Rung | None = TOP
    seen: list[Rung] = []
    for where in failures:
        assert rung is not None
        assert rung not in seen
        seen.append(rung)
        below = lower(rung, where, choices)
        if below is None:
            break
        if where is Memory.HOST:
            assert below.plan.outputs_on_host == rung.plan.outputs_on_host
            assert below.on_cpu == rung.on_cpu, "the CPU has no more of the host than the GPU"
        if choices.planned and below.on_cpu == rung.on_cpu:
            assert (below.plan.window_batch or choices.window_batch) <= (rung.plan.window_batch or choices.window_batch)
        assert below.plan.window_batch is None or below.plan.window_batch >= 1
        assert below.alone >= rung.alone
        assert below.plan.class_by_class >= rung.plan.class_by_class
        assert choices.cpu or not below.on_cpu
        assert choices.others or not below.alone
        rung = below
    else:
        raise AssertionError("no end after 40 failures")


@settings(max_examples=1000)
@given(where=WHERE, choices=CHOICES, shapes=SHAPES)
def test_each_rung_is_expected_to_take_no_more_of_what_ran_out(where: Memory, choices: Choices, shapes: Shapes) -> None:
    by_class = choices.by_class and spares_by_class(shapes)
    choices = replace(choices, on_gpu=shapes.on_gpu, window_batch=shapes.window_batch, by_class=by_class)
    for above, below in pairwise(ladder(where, choices)):
        if above.on_cpu == below.on_cpu:
            before, after = estimate(shapes, above.plan), estimate(shapes, below.plan)
            assert (after.gpu <= before.gpu) if where is Memory.GPU else (after.host <= before.host)


@given(shapes=SHAPES, more=st.integers(1, 50))
def test_more_classes_and_more_voxels_take_more(shapes: Shapes, more: int) -> None:
    larger = (
        replace(shapes, outputs=max(1, shapes.outputs) + more),
        replace(shapes, source=(shapes.source[0] + more, *shapes.source[1:])),
    )
    for each in larger:
        assert sum(estimate(each, RunPlan())) >= sum(estimate(shapes, RunPlan()))
    assert sum(estimate(shapes, RunPlan())) >= 4 * prod(shapes.source)


@given(choices=CHOICES, shapes=SHAPES, host=st.integers(0, 2**34), gpu=st.integers(0, 2**34))
def test_the_first_rung_is_the_highest_that_fits(choices: Choices, shapes: Shapes, host: int, gpu: int) -> None:
    choices = replace(choices, on_gpu=shapes.on_gpu, window_batch=shapes.window_batch)
    room = Bytes(host=host, gpu=gpu)

    def fits(rung: Rung) -> bool:
        need = estimate(shapes, rung.plan)
        return need.host <= room.host and need.gpu <= room.gpu

    chosen = first(TOP, choices, lambda rung: estimate(shapes, rung.plan), lambda _: room)
    assert not chosen.on_cpu, "an estimate alone gives up no GPU"
    assert chosen == TOP or not fits(TOP)
    if not fits(chosen):
        need = estimate(shapes, chosen.plan)
        where = Memory.GPU if need.gpu > gpu else Memory.HOST
        below = lower(chosen, where, choices)
        assert below is None or below.on_cpu


@given(
    estimated=st.integers(1, 2**40),
    there=st.integers(1, 2**40),
    smaller=st.integers(1, 2**40),
)
def test_what_failed_is_expected_to_fail_again_with_no_more_memory(estimated: int, there: int, smaller: int) -> None:
    ledger = Ledger(2**40)
    ledger.learn("a", "way", estimated=estimated, measured=there + 1)
    assert ledger.expected("a", "way", estimated) > there
    assert ledger.expected("a", "way", min(smaller, estimated)) <= ledger.expected("a", "way", estimated)
    assert ledger.expected("a", "another way", estimated) == estimated
    assert ledger.expected("b", "way", estimated) == estimated


@given(runs=st.lists(st.tuples(st.integers(1, 2**30), st.integers(1, 2**40)), min_size=1, max_size=8))
def test_an_estimate_becomes_what_was_measured(runs: list[tuple[int, int]]) -> None:
    ledger = Ledger(2**40)
    for estimated, measured in runs:
        ledger.learn("a", "way", estimated=estimated, measured=measured)
        assert ledger.expected("a", "way", estimated) >= measured
    largest = max(measured / estimated for estimated, measured in runs)
    assert ledger.expected("a", "way", 10**6) == pytest.approx(largest * 10**6, abs=1)


def test_a_run_that_took_much_is_not_held_against_a_model_for_ever() -> None:
    ledger = Ledger(2**40)
    ledger.learn("a", "way", estimated=1, measured=1000)
    for _ in range(8):
        ledger.learn("a", "way", estimated=1, measured=2)
    assert ledger.expected("a", "way", 1) == 2


@given(shapes=SHAPES)
def test_shapes_cross_from_the_child_unchanged(shapes: Shapes) -> None:
    assert Shapes.from_message(shapes.message()) == shapes


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"image": "a cat"},
        {"image": [1, -2]},
        {"window": [1.5]},
        {"source": [2**40]},
        {"items": 0},
        {"outputs": True},
        {"on_gpu": 1},
        {"source": [1] * 9},
    ],
)
def test_shapes_of_a_child_that_can_be_none_are_its_failure(wrong: object) -> None:
    sound = Shapes(image=(1, 8, 8, 8), source=(8, 8, 8)).message()
    said = {**sound, **wrong} if isinstance(wrong, dict) and wrong else wrong
    with pytest.raises(ModelFailed, match="shapes"):
        Shapes.from_message(said)
