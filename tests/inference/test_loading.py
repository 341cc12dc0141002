"""The loader: decodes the files of one job in a process that a decoder may well take down."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless
from toy_bundle import write_toy

from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import InputRefused, ModelFailed, OutOfMemory, UndecodablePixels
from meddaemon.domain.volume import Volume
from meddaemon.inference import sandbox
from meddaemon.inference.loading import Loader
from meddaemon.inference.processes import Interrupted
from meddaemon.inference.volume import assemble

LIMIT = 60.0


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> ModelContract:
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    loader = Loader(sandbox="preferred" if sandbox.missing() else "required")
    yield loader
    loader.close()


@pytest.fixture(scope="module")
def long_work(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A series that takes a decoder some seconds: the same code stream many times."""
    paths = make_series(tmp_path_factory.mktemp("long"), planes=60, rows=512, columns=512)
    first = dcmread(paths[0])
    first.compress(JPEG2000Lossless)
    for path in paths:
        dataset = dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = first.PixelData
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    return paths


def child_of(loader: Loader) -> int | None:
    """The process that decodes now."""
    server = loader._server.pid
    if server is None:
        return None
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return int(children[0]) if children else None


def decoding(loader: Loader) -> int:
    """Wait until a child has decoded for a while, its headers read; return its pid."""
    deadline = time.monotonic() + 40
    before: dict[int, float] = {}
    while time.monotonic() < deadline:
        pid = child_of(loader)
        if pid is not None and "memfd:progress" in Path(f"/proc/{pid}/maps").read_text():
            ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
            seconds = ticks / os.sysconf("SC_CLK_TCK")
            if seconds - before.setdefault(pid, seconds) > 0.1:
                return pid
        threading.Event().wait(0.005)
    raise AssertionError("no loader decodes")


def test_the_voxels_are_those_of_the_files_and_the_memory_is_the_loaders(
    loader: Loader, contract: ModelContract, tmp_path: Path
) -> None:
    paths = make_series(tmp_path, modality="CT", orientation="oblique")
    expected = assemble(paths)
    with loader.load(contract, {"image": list(reversed(paths))}, time_limit=LIMIT) as prepared:
        volume = prepared.values()["image"]
        assert prepared.nbytes == expected.voxels.nbytes
    assert isinstance(volume, Volume)
    assert np.array_equal(volume.voxels, expected.voxels)
    assert np.array_equal(volume.geometry.affine_lps, expected.geometry.affine_lps)
    assert volume.geometry.sop_instance_uids == expected.geometry.sop_instance_uids
    assert volume.series_instance_uid == expected.series_instance_uid


@pytest.mark.fault(99)
@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (signal.SIGSEGV, UndecodablePixels, "decoder_crashed"),
        (signal.SIGABRT, UndecodablePixels, "decoder_crashed"),
        (signal.SIGXCPU, UndecodablePixels, "decoder_ran_away"),
        (signal.SIGKILL, OutOfMemory, "memory is short"),
    ],
)
def test_a_decoder_that_dies_costs_one_job_which_names_the_instance(
    loader: Loader,
    contract: ModelContract,
    long_work: list[Path],
    tmp_path: Path,
    number: signal.Signals,
    kind: type[Exception],
    said: str,
) -> None:
    killer = threading.Thread(target=lambda: os.kill(decoding(loader), number))
    killer.start()
    with pytest.raises(kind, match=said) as failure:
        loader.load(contract, {"image": long_work}, time_limit=LIMIT)
    killer.join()
    if isinstance(failure.value, InputRefused):
        uids = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in long_work}
        assert failure.value.sop_instance_uid in uids
        suspects = failure.value.numbers["instances"]
        assert isinstance(suspects, list)
        assert suspects[0] == failure.value.sop_instance_uid
        assert len(suspects) <= len(os.sched_getaffinity(0)), "no more than are decoded at a time"
    server = loader._server.pid
    assert loader.load(contract, {"image": make_series(tmp_path)}, time_limit=LIMIT).nbytes
    assert loader._server.pid == server


def test_a_loader_is_confined_and_limited_and_has_no_torch(
    loader: Loader, contract: ModelContract, long_work: list[Path]
) -> None:
    seen: dict[str, str] = {}

    def look() -> None:
        pid = decoding(loader)
        for name in ("status", "limits", "maps", "environ"):
            seen[name] = Path(f"/proc/{pid}/{name}").read_text()
        loader.kill()

    watcher = threading.Thread(target=look)
    watcher.start()
    with pytest.raises(Interrupted, match="interrupted"):
        loader.load(contract, {"image": long_work}, time_limit=LIMIT)
    watcher.join()
    status = dict(line.split(":\t") for line in seen["status"].splitlines() if ":\t" in line)
    if not sandbox.missing():
        assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")
    limits = {line[:26].strip(): line[26:].split()[0] for line in seen["limits"].splitlines()}
    assert limits["Max core file size"] == "0"
    assert 60 < int(limits["Max cpu time"]) < 400, "more than a decoder needs, less than for ever"
    assert int(limits["Max address space"]) < 2**33
    assert "libtorch" not in seen["maps"]
    assert "MEDDAEMON" not in seen["environ"]


def test_the_time_limit_ends_it(loader: Loader, contract: ModelContract, long_work: list[Path]) -> None:
    with pytest.raises(ModelFailed, match=r"not read within the time limit of 0\.3 s"):
        loader.load(contract, {"image": long_work}, time_limit=0.3)
    assert child_of(loader) is None


def test_an_input_that_never_fits_is_told_before_any_memory_is_taken(
    contract: ModelContract, long_work: list[Path]
) -> None:
    loader = Loader(memory_bytes=2**24)
    with pytest.raises(OutOfMemory, match=r"may have 16777216: see worker\.memory_bytes") as failure:
        loader.load(contract, {"image": long_work}, time_limit=LIMIT)
    assert failure.value.where == "host"
    loader.close()


def test_what_is_no_dicom_file_is_refused_by_the_loader(
    loader: Loader, contract: ModelContract, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"nothing")
    with pytest.raises(InputRefused, match="unreadable"):
        loader.load(contract, {"image": [file]}, time_limit=LIMIT)
