"""Where workers run, and what memory each may have."""

import os
from pathlib import Path

import pytest

from meddaemon.config.settings import WorkerSettings
from meddaemon.inference import sandbox
from meddaemon.roles import slots
from meddaemon.roles.slots import GPUS, MEMORY, memory_bytes, memory_share, worker_environments
from tests.system.site import make_site


def test_each_gpu_has_its_own_worker_and_workers_share_the_memory() -> None:
    settings = WorkerSettings(gpus=("0", "GPU-5f1"), concurrency=2)
    workers = worker_environments(settings, {})
    assert [each[GPUS] for each in workers] == ["0", "GPU-5f1", "0", "GPU-5f1"]
    assert {each[MEMORY] for each in workers} == {str(memory_share(4))}
    assert 4 * memory_share(4) <= memory_bytes()


@pytest.mark.parametrize(
    ("gpus", "environ", "expected"),
    [
        (("all",), {GPUS: "1,MIG-7"}, ["1", "MIG-7"]),
        (("all",), {GPUS: ""}, [""]),
        ((), {GPUS: "1"}, [""]),
    ],
)
def test_gpus_are_those_that_are_named(gpus: tuple[str, ...], environ: dict[str, str], expected: list[str]) -> None:
    workers = worker_environments(WorkerSettings(gpus=gpus), environ)
    assert [each[GPUS] for each in workers] == expected


def test_without_a_gpu_one_worker_leaves_it_to_torch() -> None:
    if list(Path("/proc/driver/nvidia/gpus").glob("*")):
        pytest.skip("this machine has a GPU")
    (worker,) = worker_environments(WorkerSettings(memory_bytes=5), {})
    assert worker == {MEMORY: "5"}


def test_the_memory_is_no_more_than_the_machine_has() -> None:
    assert 0 < memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_share(1) == int(slots.PART_OF_MEMORY * memory_bytes())


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("required", "ok  sandbox: models run confined (Landlock"),
        ("off", 'worker.sandbox = "off"'),
    ],
)
def test_the_doctor_says_whether_models_run_confined(tmp_path: Path, wanted: str, said: str) -> None:
    if sandbox.missing():
        pytest.skip(f"this kernel has no {sandbox.missing()}")
    home = make_site(tmp_path / "home", {})
    file = home.folder / "meddaemon.toml"
    file.write_text(file.read_text().replace('sandbox = "preferred"', f'sandbox = "{wanted}"'))
    assert said in home.cli("doctor", "--no-network").stdout
