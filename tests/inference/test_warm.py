"""Which models stay warm, by the memory that they take, and what becomes of a run that finds none."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from hypothesis import given
from hypothesis import strategies as st
from toy_bundle import write_toy

from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import ModelFailed, OutOfMemory
from meddaemon.inference.ledger import Ledger, Use
from meddaemon.inference.processes import Interrupted
from meddaemon.inference.runtime import Limits, ModelProcess
from meddaemon.inference.warm import WarmModels

SOUND, HOST, NUMPY, GPU, CUDA_ERROR, WAITS, GPU_ALWAYS, FILLS = range(101, 109)
MB = 2**20
HELD = 150 * MB
BUDGET = 500 * MB

NETWORK = """
import os, time
import numpy, torch

class Toy(torch.nn.Module):
    # Weights of {name}: memory that a warm model holds.
    held = torch.ones({held} // 4)
    open("made-while-loading", "w").close()

    def forward(self, x):
        order = int(x.max())
        if order == 102:
            torch.ones(2**31, dtype=torch.uint8)
        if order == 103:
            numpy.ones(2**31, dtype=numpy.uint8)
        if order == 107 or order == 104 and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if order == 105:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if order == 106:
            open("begun", "w").close()
            time.sleep(600)
        for number in range(10**6 if order == 108 else 1):
            with open(f"of-a-patient-{{number}}", "wb") as file:
                file.write(bytes(2**18))
        os.symlink("of-a-patient-0", "a-link")
        return (x > 50).float()
"""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelContract]:
    folder = tmp_path_factory.mktemp("toys")
    return {name: write_toy(folder / name, NETWORK.format(name=name, held=HELD)) for name in "abc"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmModels]:
    with WarmModels(tmp_path_factory.mktemp("scratch"), Limits(memory_bytes=BUDGET)) as models:
        yield models


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Path]]:
    folder = tmp_path_factory.mktemp("series")

    def make(order: int) -> list[Path]:
        voxels = np.zeros((3, 8, 8), np.int16)
        voxels[1, 2:5, 3:6] = 60
        voxels[1, 2, 3] = order
        return make_series(folder / str(order), voxels=voxels)

    return make


def pid_of(models: WarmModels, contract: ModelContract) -> int | None:
    process = models._processes.get(contract.digest)
    return process.pid if process else None


def answers(models: WarmModels, contract: ModelContract, paths: list[Path]) -> int:
    """Run the model, and return the process that did."""
    prediction = models.predict(contract, {"image": paths})
    assert prediction.labels is not None
    assert prediction.labels.sum() == 9
    pid = pid_of(models, contract)
    assert pid
    return pid


# --- bookkeeping ----------------------------------------------------------------------------------------------------

RUNS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 60), st.integers(0, 60)), max_size=30)


@given(runs=RUNS, stated=st.none() | st.integers(1, 100))
def test_what_is_warm_fits_and_who_rested_longest_goes_first(
    runs: list[tuple[str, int, int]], stated: int | None
) -> None:
    ledger = Ledger(100)
    last_used: list[str] = []
    for model, host, more in runs:
        before = [each for each in ledger.warm if each != model]
        ending = ledger.making_room(model, stated)
        assert ending == before[: len(ending)]
        assert before == [each for each in last_used if each in before]
        for each in ending:
            ledger.forget(each)
        others = [each for each in ledger.warm if each != model]
        assert not others or ledger.need(model, stated) <= ledger.allowance(model)
        ledger.note(model, Use(host=host, peak=host + more))
        last_used = [*(each for each in last_used if each != model), model]
        assert ledger.need(model, None) >= min(1, host + more)
        assert 0 <= ledger.allowance(model) <= 100


def test_no_model_goes_without_need() -> None:
    ledger = Ledger(100)
    for model, host in (("a", 30), ("b", 30), ("c", 30)):
        assert ledger.making_room(model, host) == []
        ledger.note(model, Use(host=host, peak=host))
    assert ledger.making_room("a", None) == [], "what it holds itself is not in its way"
    assert ledger.making_room("d", 40) == ["a"]
    assert ledger.making_room("d", 41) == ["a", "b"]
    assert ledger.making_room("d", 1000) == ["a", "b", "c"]
    ledger.note("a", Use(host=30, peak=95))
    assert ledger.making_room("a", None) == ["b", "c"], "measured once, known for good"


def test_models_on_a_gpu_share_its_memory() -> None:
    ledger = Ledger(1000, gpu_fraction=0.5)
    for model in "abc":
        assert ledger.making_room(model, 1) == [], "nothing is known of it yet"
        ledger.note(model, Use(host=1, peak=1, gpu=10, gpu_peak=35, gpu_total=100))
    assert ledger.making_room("c", 1) == ["a"], "20 held and 35 at most are more than half of 100"
    ledger.forget("a")
    assert ledger.making_room("c", 1) == []
    assert ledger.making_room("a", 1) == ["b"], "what it needed stays known"


# --- real processes -------------------------------------------------------------------------------------------------


def test_models_stay_warm_as_long_as_they_fit(
    models: WarmModels, toys: dict[str, ModelContract], series: Callable[[int], list[Path]]
) -> None:
    a, b, c = (replace(toys[name], memory_bytes=HELD) for name in "abc")
    first = answers(models, a, series(SOUND))
    second = answers(models, b, series(SOUND))
    assert pid_of(models, a) == first, "both fit"
    use = models._processes[a.digest].use()
    assert use
    assert HELD < use.host < HELD + 100 * MB, "what is shared with the fork server is not counted"
    answers(models, a, series(SOUND))
    answers(models, c, series(SOUND))
    assert pid_of(models, b) is None, "the one that rested longest made room"
    assert not Path(f"/proc/{second}").exists()
    assert pid_of(models, a) == first


@pytest.mark.parametrize("order", [HOST, NUMPY])
def test_a_run_that_finds_no_memory_is_tried_alone_and_the_model_is_replaced(
    models: WarmModels, toys: dict[str, ModelContract], series: Callable[[int], list[Path]], order: int
) -> None:
    a, b = toys["a"], toys["b"]
    before, other = answers(models, a, series(SOUND)), answers(models, replace(b, memory_bytes=MB), series(SOUND))
    assert pid_of(models, a) == before
    with pytest.raises(OutOfMemory) as failure:
        models.predict(a, {"image": series(order)})
    assert failure.value.where == "host"
    assert pid_of(models, a) is None
    assert pid_of(models, b) is None, "the second try had all the memory there is"
    assert not Path(f"/proc/{other}").exists()
    assert answers(models, a, series(SOUND)) != before


def test_a_model_that_never_fits_is_refused_by_name(
    models: WarmModels, toys: dict[str, ModelContract], series: Callable[[int], list[Path]]
) -> None:
    with pytest.raises(OutOfMemory, match=f"toy needs {BUDGET + 1} bytes"):
        models.predict(replace(toys["a"], memory_bytes=BUDGET + 1), {"image": series(SOUND)})


def test_what_a_run_wrote_is_gone_before_the_next_one(
    models: WarmModels, toys: dict[str, ModelContract], series: Callable[[int], list[Path]]
) -> None:
    pid = answers(models, toys["a"], series(SOUND))
    process = models._processes[toys["a"].digest]
    assert process._warm
    left = {path.name for path in process._warm.scratch.iterdir()}
    assert left == {"lock", "made-while-loading", "configs", "scripts", "contract.toml"}
    assert answers(models, toys["a"], series(SOUND)) == pid


def test_a_run_that_writes_without_end_is_ended(
    models: WarmModels, toys: dict[str, ModelContract], series: Callable[[int], list[Path]]
) -> None:
    limits = Limits(scratch_bytes=2**24)
    with (
        ModelProcess(toys["a"], limits=limits, server=models._server, loader=models._loader) as process,
        pytest.raises(ModelFailed, match="it wrote more than 16777216 bytes"),
    ):
        process.predict({"image": series(FILLS)}, time_limit=60)


@pytest.mark.fault(131)
def test_a_gpu_without_memory_is_left_for_the_cpu_where_the_contract_allows_it(
    models: WarmModels, toys: dict[str, ModelContract], series: Callable[[int], list[Path]]
) -> None:
    a = toys["a"]
    warm = answers(models, a, series(SOUND))
    prediction = models.predict(a, {"image": series(GPU)})
    assert prediction.labels is not None
    assert prediction.labels.sum() == 9
    assert "CPU" in prediction.provenance["fallback"]
    assert prediction.provenance["plan"].endswith("on the CPU")
    assert list(models._processes) == [], "neither the process whose GPU was full, nor the one on the CPU"
    assert answers(models, a, series(SOUND)) != warm
    with pytest.raises(OutOfMemory) as failure:
        models.predict(replace(a, cpu_fallback=False), {"image": series(GPU)})
    assert failure.value.where == "gpu"
    with pytest.raises(OutOfMemory, match=r"outputs in the memory of the host.*on the CPU.*CUDA out of memory"):
        models.predict(a, {"image": series(GPU_ALWAYS)})
    answers(models, a, series(SOUND))


@pytest.mark.fault(132)
def test_a_process_that_met_a_cuda_error_never_runs_again(
    models: WarmModels, toys: dict[str, ModelContract], series: Callable[[int], list[Path]]
) -> None:
    a = toys["a"]
    before = answers(models, a, series(SOUND))
    with pytest.raises(ModelFailed, match="CUDA error") as failure:
        models.predict(a, {"image": series(CUDA_ERROR)})
    assert not isinstance(failure.value, OutOfMemory)
    assert not Path(f"/proc/{before}").exists()
    assert answers(models, a, series(SOUND)) != before


@contextlib.contextmanager
def while_it_runs(models: WarmModels, contract: ModelContract, act: Callable[[int], object]) -> Iterator[None]:
    """Do something once the run of the model has begun."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pid = pid_of(models, contract)
            if pid is not None and list(models._scratch.glob("*/begun")):
                act(pid)
                return
            threading.Event().wait(0.01)
        models.interrupt()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


@pytest.mark.fault(130)
def test_a_model_that_the_system_kills_for_its_memory_is_told_and_replaced(
    models: WarmModels, toys: dict[str, ModelContract], series: Callable[[int], list[Path]]
) -> None:
    a = toys["a"]
    answers(models, a, series(SOUND))
    scores: list[str] = []

    def kill(pid: int) -> None:
        scores.append(Path(f"/proc/{pid}/oom_score_adj").read_text().strip())
        os.kill(pid, signal.SIGKILL)

    with (
        while_it_runs(models, a, kill),
        pytest.raises(OutOfMemory, match="memory seems to have run out"),
    ):
        models.predict(a, {"image": series(WAITS)})
    assert scores == ["1000"], "it is the one that the kernel takes first"
    answers(models, a, series(SOUND))


def test_the_next_study_is_prepared_while_a_model_runs_and_an_interrupt_ends_both(
    models: WarmModels, toys: dict[str, ModelContract], series: Callable[[int], list[Path]]
) -> None:
    a = toys["a"]
    prepared = []

    def prepare(_: int) -> None:
        prepared.append(models.prepare(a, {"image": series(SOUND)}))
        models.interrupt()

    with while_it_runs(models, a, prepare), pytest.raises(Interrupted):
        models.predict(a, {"image": series(WAITS)})
    with prepared[0] as ready:
        prediction = models.predict(a, ready)
    assert prediction.labels is not None
    assert prediction.labels.sum() == 9
    assert {"start", "assemble", "infer"} <= set(prediction.seconds)
