"""One study is preprocessed while another one is inferred: what they share, and what becomes of both when one fails."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from bundle_factory import CHANNEL, LOAD, LOADER, RAS, SPACING, above_50, config, make_volume, steps, write_bundle
from queue_samples import wait_until
from telling_bundle import CRASHES_BEFORE, RAISES_BEFORE, SOUND, WAITS, Site

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.bundles.session import Session, load
from meddaemon.inference.bundles.terms import Terms
from meddaemon.inference.processes import Interrupted
from meddaemon.inference.runtime import Limits
from meddaemon.inference.warm import WarmModels

# --- real processes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmModels]:
    limits = Limits(sandbox="off", prepare_beside="always")
    with WarmModels(tmp_path_factory.mktemp("scratch"), limits) as models:
        yield models


@pytest.fixture
def site(tmp_path: Path, models: WarmModels) -> Iterator[Site]:
    site = Site(tmp_path, models)
    yield site
    models._end(site.contract.digest)


def test_the_next_study_is_preprocessed_while_one_is_inferred_and_then_only_inferred(site: Site) -> None:
    with site.running(beside=SOUND) as (run, prepared):
        assert not run.done()
        pid = site.pid
        site.go()
        run.result(60)
        left = site.written()
        prediction = site.predict(prepared)
    assert left == {f"before-{SOUND}"}, "nothing of the one before"
    assert site.written() == set()
    assert site.pid == pid
    assert site.told == [
        f"preprocess {WAITS}", f"infer {WAITS}", f"preprocess {SOUND}", f"inferred {WAITS}",
        f"infer {SOUND}", f"inferred {SOUND}",
    ]  # fmt: skip
    assert {"assemble", "preprocess", "infer", "postprocess"} <= set(prediction.seconds)
    assert "start" not in prediction.seconds


def test_without_a_gpu_one_comes_after_the_other_unless_it_is_asked_for(tmp_path: Path) -> None:
    with WarmModels(tmp_path / "scratch", Limits(sandbox="off")) as models, ThreadPoolExecutor(1) as pool:
        site = Site(tmp_path, models)
        run = pool.submit(site.predict, site.prepare(WAITS))
        wait_until(lambda: f"infer {WAITS}" in site.told)
        prepared = site.prepare(SOUND)
        site.go()
        run.result(60)
        site.predict(prepared)
    assert site.told.index(f"inferred {WAITS}") < site.told.index(f"preprocess {SOUND}")


def test_a_crash_while_two_are_in_hand_loses_neither(site: Site) -> None:
    with site.running(beside=SOUND) as (run, prepared):
        site.go()
        os.kill(site.pid, signal.SIGKILL)
        # It may have been the other one's fault: it is tried by itself, at once.
        run.result(60)
        site.predict(prepared)


@pytest.mark.parametrize(
    ("order", "message"), [(RAISES_BEFORE, "the toy does not like this"), (CRASHES_BEFORE, "killed by SIGSEGV")]
)
def test_a_study_that_cannot_be_preprocessed_costs_its_own_job_and_no_other(
    site: Site, order: int, message: str
) -> None:
    with site.running(beside=order) as (run, prepared):
        site.go()
        run.result(60)
        with pytest.raises(ModelFailed, match=message):
            site.predict(prepared)
    site.predict(site.prepare(SOUND))


def test_an_interrupt_ends_the_run_and_the_other_one_is_preprocessed_anew(site: Site) -> None:
    with site.running(beside=SOUND) as (run, prepared):
        site.models.interrupt()
        with pytest.raises(Interrupted):
            run.result(60)
        site.predict(prepared)
    assert site.told.count(f"preprocess {SOUND}") == 2


def test_what_will_not_be_inferred_is_forgotten(site: Site) -> None:
    with site.running(beside=SOUND) as (run, prepared):
        prepared.close()
        warm = site.models._processes[site.contract.digest]._warm
        assert warm
        assert [each.prepared is prepared for each in warm._handed] == [False]
        site.go()
        run.result(60)
    site.predict(site.prepare(SOUND))


def test_the_memory_that_an_input_came_in_goes_once_it_is_preprocessed(site: Site) -> None:
    def of_inputs(pid: int) -> list[str]:
        return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd" in line]

    with site.running(beside=SOUND) as (run, prepared):
        wait_until(lambda: not of_inputs(site.pid), what="the inputs to be given back")
        descriptors = [str(each.readlink()) for each in Path(f"/proc/{site.pid}/fd").iterdir()]
        assert not [each for each in descriptors if "memfd" in each]
        site.go()
        run.result(60)
        site.predict(prepared)


def test_a_cold_model_is_begun_while_its_first_study_is_read(site: Site) -> None:
    prepared = site.prepare(SOUND)
    assert site.pid, "it loads, or has loaded, its bundle"
    pid = site.pid
    site.predict(prepared)
    assert site.pid == pid


# --- one session, two threads ---------------------------------------------------------------------------------------

OWN = """
import threading
import numpy as np
from monai.transforms import InvertibleTransform, MapTransform

class Alone(MapTransform, InvertibleTransform):
    # Raises when a second thread comes in.
    def __init__(self, keys):
        super().__init__(keys)
        self.inside = threading.Lock()

    def within(self, data, invert):
        if not self.inside.acquire(blocking=False):
            raise RuntimeError("two at once")
        try:
            threading.Event().wait(0.002)
            for key in self.keys:
                self.pop_transform(data[key]) if invert else self.push_transform(data[key])
            return data
        finally:
            self.inside.release()

    def __call__(self, data):
        return self.within(dict(data), False)

    def inverse(self, data):
        return self.within(dict(data), True)

class Draws(MapTransform):
    def __call__(self, data):
        return {**data, "image": data["image"] + float(np.random.rand()) * 30}
"""


def _session(folder: Path, *more: dict[str, Any]) -> Session:
    """Return a bundle that resamples, and inverts that; its own code is in `scripts.own`."""
    content = config(checkpointloader=LOADER, preprocessing=steps(LOAD, CHANNEL, RAS, SPACING, *more))

    def weights(models: Path) -> None:
        torch.save(above_50().state_dict(), models / "model.pt")

    bundle = write_bundle(folder / "bundle", content, weights=weights, scripts={"own": OWN})
    return load(bundle, scratch=folder, terms=Terms(segments=(1,)))


def test_transforms_that_switch_themselves_are_used_by_one_thread_at_a_time(
    tmp_path: Path, own_code_of_one_bundle: None
) -> None:
    """Every study comes back to its own place, also when the next one is resampled while it is inverted."""
    session = _session(tmp_path, {"_target_": "scripts.own.Alone", "keys": "image"})
    volumes = []
    for index in range(12):
        voxels = np.zeros((12 + index, 14, 16), np.int16)
        voxels[2:8, 3 : 5 + index % 3, 4:12] = 100
        volumes.append(make_volume(voxels))
    wanted = [session.predict({"image": volume}).labels for volume in volumes]
    handed: SimpleQueue[Any] = SimpleQueue()

    def prepare() -> None:
        for volume in volumes:
            handed.put(session.prepare({"image": volume}))

    thread = threading.Thread(target=prepare)
    thread.start()
    found = [session.infer(handed.get(timeout=60)).labels for _ in volumes]
    thread.join()
    for each, expected in zip(found, wanted, strict=True):
        assert np.array_equal(each, expected)
    assert not session.turns.apart


@pytest.mark.parametrize(
    ("step", "apart"),
    [
        ({"_target_": "scripts.own.Draws", "keys": "image"}, True),
        # Its generator is its own.
        ({"_target_": "RandGaussianNoised", "keys": "image", "prob": 1.0, "std": 30.0}, False),
        ({"_target_": "ScaleIntensityd", "keys": "image", "minv": 0, "maxv": 100}, False),
    ],
)
def test_preprocessing_that_draws_numbers_gives_the_same_each_time_and_draws_no_one_elses(
    tmp_path: Path, own_code_of_one_bundle: None, step: dict[str, Any], apart: bool
) -> None:
    session = _session(tmp_path, step)
    voxels = np.random.default_rng(1).integers(20, 80, (9, 10, 11)).astype(np.int16)
    first = session.predict({"image": make_volume(voxels)}).labels
    assert session.turns.apart is apart
    assert first is not None
    assert 0 < first.sum() < first.size
    for _ in range(2):
        np.random.rand()
        assert np.array_equal(session.predict({"image": make_volume(voxels)}).labels, first)


def test_a_session_that_is_apart_infers_only_while_nothing_is_prepared(
    tmp_path: Path, own_code_of_one_bundle: None
) -> None:
    session = _session(tmp_path)
    session.turns.apart = True
    order: list[str] = []
    entered, let_go = threading.Event(), threading.Event()

    def prepare() -> None:
        with session.turns.preparing(None):
            entered.set()
            assert let_go.wait(60)
            order.append("prepared")

    def infer() -> None:
        with session.turns.inferring():
            order.append("inferred")

    threads = [threading.Thread(target=each) for each in (prepare, infer)]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    wait_until(lambda: session.turns._inferring == 1)
    let_go.set()
    for each in threads:
        each.join(60)
    assert order == ["prepared", "inferred"]
