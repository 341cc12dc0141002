"""The model child: warm, disposable, and never able to take the worker with it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless
from toy_bundle import (
    CRASHES,
    HANGS,
    LOOKS_ROUND,
    NOT_LABELS,
    OTHER_GRID,
    RAISES,
    SOUND,
    TALKS,
    write_toy,
)

from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import ContradictoryIdentity, ModelFailed, UndecodablePixels, UnsoundVolume
from meddaemon.domain.result import Prediction
from meddaemon.inference.runtime import ModelProcess
from meddaemon.inference.volume import assemble

LIMIT = 90.0


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ModelContract:
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def model(toy: ModelContract) -> Iterator[ModelProcess]:
    with ModelProcess(toy) as process:
        yield process


def ordering(folder: Path, order: int) -> list[Path]:
    """A series whose brightest pixel is `order`, with a lopsided object so that a flip would be seen."""
    voxels = np.zeros((5, 12, 10), np.int16)
    voxels[1:3, 2:9, 1:4] = 60
    voxels[1, 2, 1] = order
    return make_series(folder / str(order), voxels=voxels, orientation="oblique")


def predict(model: ModelProcess, paths: list[Path], limit: float = LIMIT) -> Prediction:
    return model.predict({"image": paths}, time_limit=limit)


def alive(pid: int) -> bool:
    """Whether any thread of the process still runs; a zombie nobody has waited for is dead."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states.append(stat.read_text().rpartition(")")[2].split()[0])
    return any(state not in "ZX" for state in states)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still lives"
        os.sched_yield()


def test_a_warm_child_answers_on_the_grid_of_the_source(model: ModelProcess, tmp_path: Path) -> None:
    paths = ordering(tmp_path, SOUND)
    first = predict(model, paths)
    pid = model.pid
    again = predict(model, list(reversed(paths)))
    assert model.pid == pid
    volume = assemble(paths)
    assert np.array_equal(first.labels, (volume.voxels > 50).astype(np.uint8))
    assert np.array_equal(again.labels, first.labels)
    assert np.array_equal(first.geometry.affine_lps, volume.geometry.affine_lps)
    assert first.geometry.sop_instance_uids == volume.geometry.sop_instance_uids
    assert first.series_instance_uid == volume.series_instance_uid
    assert list(again.seconds) == ["assemble", "preprocess", "infer", "postprocess"]
    assert first.provenance["runtime"].startswith("MONAI ")
    assert first.provenance["bundle_digest"]


def test_a_refused_input_arrives_whole_and_leaves_the_child_warm(model: ModelProcess, tmp_path: Path) -> None:
    paths = ordering(tmp_path, SOUND)
    predict(model, paths)
    pid = model.pid
    with pytest.raises(UnsoundVolume) as here:
        assemble(paths[:2] + paths[3:])
    with pytest.raises(UnsoundVolume) as there:
        predict(model, paths[:2] + paths[3:])
    assert str(there.value) == str(here.value)
    assert (there.value.reason, there.value.sop_instance_uid) == ("gap", here.value.sop_instance_uid)
    assert there.value.numbers == here.value.numbers
    other = make_series(tmp_path / "other", patient_id="P-2", seed="2")
    with pytest.raises(ContradictoryIdentity):
        model.predict({"image": paths, "second": other}, time_limit=LIMIT)
    assert model.pid == pid


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (RAISES, "ValueError: the toy does not like this"),
        (CRASHES, "killed by SIGSEGV"),
        (OTHER_GRID, "shape"),
        (NOT_LABELS, "not labels"),
    ],
)
def test_a_failing_model_is_replaced(model: ModelProcess, tmp_path: Path, order: int, message: str) -> None:
    sound = ordering(tmp_path, SOUND)
    predict(model, sound)
    pid = model.pid
    assert pid
    with pytest.raises(ModelFailed, match=re.escape(message)):
        predict(model, ordering(tmp_path, order))
    wait_until_gone(pid)
    assert predict(model, sound).labels.any()
    assert model.pid != pid


@pytest.mark.fault(133)
def test_a_hanging_model_is_ended_at_its_time_limit(model: ModelProcess, tmp_path: Path) -> None:
    predict(model, ordering(tmp_path, SOUND))
    pid = model.pid
    assert pid
    started = time.monotonic()
    with pytest.raises(ModelFailed, match="time limit of 2 s"):
        predict(model, ordering(tmp_path, HANGS), 2)
    assert time.monotonic() - started < 10
    wait_until_gone(pid)


def test_what_a_bundle_prints_is_bounded(model: ModelProcess, tmp_path: Path) -> None:
    with pytest.raises(ModelFailed, match="talked enough") as failure:
        predict(model, ordering(tmp_path, TALKS))
    assert "last words" in str(failure.value)
    assert len(str(failure.value)) < 5000


def test_a_bundle_sees_no_secrets_and_leaves_nothing_behind(
    toy: ModelContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDDAEMON_DATABASE__URL", "postgresql://me:secret@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with ModelProcess(toy) as model, pytest.raises(ModelFailed) as failure:
        predict(model, ordering(tmp_path, LOOKS_ROUND))
    told = str(failure.value)
    assert "secrets=[] core=0" in told
    found = re.search(r"cwd=(\S+) home=([^\s;]+)", told)
    assert found
    assert found[1] == found[2]
    assert not Path(found[1]).exists()


def test_a_child_killed_between_jobs_is_replaced(model: ModelProcess, tmp_path: Path) -> None:
    paths = ordering(tmp_path, SOUND)
    predict(model, paths)
    pid = model.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    assert predict(model, paths).labels.any()


def test_kill_ends_the_running_prediction_from_another_thread(model: ModelProcess, tmp_path: Path) -> None:
    predict(model, ordering(tmp_path, SOUND))
    pid = model.pid
    assert pid
    hanging = ordering(tmp_path, HANGS)
    killer = threading.Timer(1.0, model.kill)
    killer.start()
    with pytest.raises(ModelFailed, match="ended"):
        predict(model, hanging)
    killer.join()
    wait_until_gone(pid)


def test_a_code_stream_that_claims_gigabytes_is_refused_and_the_child_lives(
    model: ModelProcess, tmp_path: Path
) -> None:
    pytest.importorskip("openjpeg")
    predict(model, ordering(tmp_path, SOUND))
    pid = model.pid

    def inflate(dataset: Dataset) -> None:
        # Only the code stream lies: SIZ holds the size of image and tile as 4-byte numbers (ISO/IEC 15444-1 A.5.1).
        stream = dataset.PixelData
        size = stream.index(b"\xff\x4f\xff\x51") + 8
        claim = (60_000).to_bytes(4, "big")
        for offset in (0, 4, 16, 20):
            stream = stream[: size + offset] + claim + stream[size + offset + 4 :]
        dataset.PixelData = stream

    paths = make_series(tmp_path / "bomb", transfer_syntax=JPEG2000Lossless, rows=64, columns=64)
    for path in paths:
        dataset = dcmread(path)
        inflate(dataset)
        dataset.save_as(path)
    with pytest.raises(UndecodablePixels) as refused:
        predict(model, paths)
    assert refused.value.reason == "damaged_pixel_data"
    assert model.pid == pid


def test_a_bundle_that_changed_is_not_run(tmp_path: Path) -> None:
    contract = write_toy(tmp_path / "toy")
    script = contract.bundle / "scripts/toy.py"
    script.write_text(script.read_text() + "\n# changed\n")
    with ModelProcess(contract) as model, pytest.raises(ModelFailed, match="changed since they were read"):
        predict(model, ordering(tmp_path, SOUND))


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    paths = ordering(tmp_path, HANGS)
    worker = f"""
import sys, threading
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toy_bundle import write_toy
from meddaemon.inference.runtime import ModelProcess
model = ModelProcess(write_toy(Path({str(tmp_path / "toy")!r})))
def tell():
    while model.pid is None:
        pass
    print(model.pid, flush=True)
threading.Thread(target=tell, daemon=True).start()
model.predict({{"image": [Path(each) for each in {[str(path) for path in paths]!r}]}}, time_limit=600)
"""
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", worker], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_until_gone(pid)


def test_the_worker_side_never_imports_torch() -> None:
    code = (
        "import sys, meddaemon.inference.runtime, meddaemon.inference.volume, meddaemon.inference.analysis,"
        " meddaemon.inference.messages, meddaemon.inference.child, meddaemon.inference.warm,"
        " meddaemon.inference.loader_child, meddaemon.inference.forkserver;"
        "print([name for name in ('torch', 'monai', 'scipy', 'multiprocessing') if name in sys.modules])"
    )
    root = str(Path(__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert found.stdout.strip() == "[]"
