"""What a bundle cannot do: tried by a bundle that tries."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from toy_bundle import write_toy

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference import sandbox
from meddaemon.inference.runtime import Limits, ModelProcess

NEEDED = pytest.mark.skipif(bool(sandbox.missing()), reason=f"this kernel has no {sandbox.missing()}")

PROBES = """
import errno, json, os, signal, socket, subprocess, sys, threading
import torch

def read(path):
    open(path, "rb").read(1)

def write(path):
    open(path, "ab").write(b"x")

def connect(port):
    with socket.create_connection(("127.0.0.1", port), timeout=2):
        pass

def pair(kind):
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.close(), theirs.close()

def fill(path):
    try:
        with open(path, "wb") as file:
            for _ in range(64):
                file.write(bytes(2**20))
                file.flush()
    finally:
        os.remove(path)

def fork_bomb():
    for _ in range(50):
        if os.fork() == 0:
            os._exit(0)

def fine(path):
    import scipy.ndimage, tempfile
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    open("in-scratch", "w").write("x")
    os.chmod("in-scratch", 0o600)
    os.makedirs("a/b")
    assert os.listdir(path)
    assert open("configs/metadata.json").read(1) == "{"
    assert torch.mm(torch.ones(300, 300), torch.ones(300, 300)).sum() == 300**3
    done = []
    thread = threading.Thread(target=done.append, args=(1,))
    thread.start()
    thread.join()
    assert done == [1]
    pair(socket.SOCK_STREAM)

class Toy(torch.nn.Module):
    def forward(self, x):
        here = PLACES
        probes = {
            "what it needs": lambda: fine(here["bundle"]),
            "another study": lambda: read(here["study"]),
            "the folder of studies": lambda: os.listdir(os.path.dirname(here["study"])),
            "the settings": lambda: read(here["settings"]),
            "by a link": lambda: (os.symlink(here["study"], "link"), read("link")),
            "by a way round": lambda: read("/proc/self/root" + here["study"]),
            "the worker's environment": lambda: read(f"/proc/{here['worker']}/environ"),
            "the worker's memory": lambda: read(f"/proc/{here['worker']}/mem"),
            "into the bundle": lambda: write(here["bundle"] + "/scripts/toy.py"),
            "through the scratch folder": lambda: write("scripts/toy.py"),
            "a new file in the bundle": lambda: write(here["bundle"] + "/new"),
            "cut a study": lambda: os.truncate(here["study"], 0),
            "into /tmp": lambda: write("/tmp/meddaemon-sandbox-test"),
            "shared memory": lambda: write("/dev/shm/meddaemon-sandbox-test"),
            "a connection": lambda: connect(here["port"]),
            "a name on the network": lambda: socket.getaddrinfo("example.org", 80),
            "a socket": lambda: socket.socket(socket.AF_UNIX),
            "datagrams": lambda: pair(socket.SOCK_DGRAM),
            "a signal to the worker": lambda: os.kill(here["worker"], 0),
            "a signal to its group": lambda: os.kill(0, 0),
            "a program": lambda: subprocess.run(["/bin/true"]),
            "be a program": lambda: os.execv("/bin/true", ["true"]),
            "a process": fork_bomb,
            "a disk full": lambda: fill("big"),
            "a session of its own": os.setsid,
        }
        told = {}
        for name, probe in probes.items():
            try:
                probe()
            except OSError as error:
                told[name] = errno.errorcode.get(error.errno, str(error))
            except BaseException as error:
                told[name] = f"{type(error).__name__}: {error}"
            else:
                told[name] = "done"
        raise RuntimeError(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each attempt of a hostile bundle in the real child."""
    folder = tmp_path_factory.mktemp("hospital")
    other = make_series(folder / "store" / "other", seed="other")
    own = make_series(folder / "store" / "own", voxels=np.full((3, 8, 8), 5, np.int16))
    (folder / "meddaemon.toml").write_text("[database]\n")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        places = {
            "bundle": str(folder / "toy"),
            "study": str(other[0]),
            "settings": str(folder / "meddaemon.toml"),
            "port": listening.getsockname()[1],
            "worker": os.getpid(),
        }
        contract = write_toy(folder / "toy", PROBES.replace("PLACES", repr(places)))
        limits = Limits(sandbox="required", scratch_bytes=2**24)
        with (
            ModelProcess(contract, scratch=folder / "scratch", limits=limits) as model,
            pytest.raises(ModelFailed) as failure,
        ):
            model.predict({"image": own}, time_limit=90)
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()
    assert other[0].stat().st_size > 0
    found = re.search(r"\{.*\}", str(failure.value))
    assert found, failure.value
    outcomes: dict[str, str] = json.loads(found[0])
    return outcomes


@NEEDED
@pytest.mark.fault(175)
def test_a_bundle_neither_phones_home_nor_reads_other_studies(told: dict[str, str]) -> None:
    assert told.pop("what it needs") == "done"
    # A name that cannot be looked up is no OSError with a number of the kernel's.
    assert told.pop("a name on the network") != "done"
    assert set(told.values()) <= {"EPERM", "EACCES", "EFBIG"}, told
    assert told["a disk full"] == "EFBIG"
    assert told["another study"] == told["by a link"] == told["by a way round"] == "EACCES"
    assert told["a connection"] == told["a process"] == told["a program"] == "EPERM"


CONFINED = """
import os, sys
from pathlib import Path
from meddaemon.inference import sandbox
{before}
sandbox.confine([Path(sys.argv[1])], [], required={required})
{after}
"""


def confined(path: Path, after: str, *, before: str = "", required: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CONFINED.format(before=before, after=after, required=required), path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )
    return (done.stdout + done.stderr).strip()


@NEEDED
def test_only_what_is_named_may_be_read(tmp_path: Path) -> None:
    for name in ("allowed", "other"):
        (tmp_path / name).write_text(name)
    said = confined(tmp_path / "allowed", f"print(open(sys.argv[1]).read()); open({str(tmp_path / 'other')!r})")
    assert said.startswith("allowed\n")
    assert "PermissionError" in said


@NEEDED
def test_nothing_lifts_it(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    said = confined(
        tmp_path / "nothing",
        f"""
import ctypes
sandbox.confine([Path("/")], [Path("/")])
print(ctypes.CDLL(None).prctl(1, 0, 0, 0, 0), open("/proc/self/status").read())
open({str(tmp_path / "other")!r})
""",
    )
    assert said.startswith("-1"), "it ends with its parent"
    assert re.search(r"CapEff:\s0+\n", said)
    assert "PermissionError" in said


WITHOUT = """
sandbox.landlock_abi = lambda: 0
"""


@NEEDED
def test_a_kernel_without_it_is_said_and_what_it_has_is_used_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    said = confined(tmp_path, "", before=WITHOUT)
    assert "SandboxUnavailable: this kernel has no Landlock" in said
    assert "worker.sandbox" in said
    after = f"import socket\nprint(open({str(tmp_path / 'file')!r}).read())\nsocket.socket()"
    said = confined(tmp_path / "nothing", after, before=WITHOUT, required=False)
    assert said.startswith("x\n")
    assert "PermissionError" in said, "the filter is there all the same"


def test_the_filter_is_well_formed_on_every_architecture() -> None:
    for machine in ("x86_64", "aarch64"):
        steps = sandbox._filter(machine, 7)
        assert len(steps) < 4096, "the kernel takes no more (BPF_MAXINSNS)"
        for place, step in enumerate(steps):
            if step.code & 0x07 == 0x05:
                assert place + 1 + max(step.when_true, step.when_false) < len(steps), "a jump beyond the end"
