"""Real roles of the daemon as processes, for tests: started, waited for with a deadline, and always ended.

home = Home.make(tmp_path)
with home.running("listen") as listener:
    port = listener.port()
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import copies
from copies import Copy
from sqlalchemy import Row, Table, select

from meddaemon import failpoints
from meddaemon.config.settings import Settings, load
from meddaemon.db import processes, tables
from meddaemon.db.engine import Database
from meddaemon.durable import try_lock
from meddaemon.ingest.journal import waiting_in
from meddaemon.ingest.store import PREAMBLE

Value = TypeVar("Value")

REPOSITORY = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
"""How long a role may take to come up: this machine may be busy with other tests."""
SETTINGS = """
[store]
directory = "store"
minimum_free_bytes = {minimum_free_bytes}
journal_bytes = {journal_bytes}

[listener]
port = 0

[completeness]
quiet_seconds = {quiet_seconds}
hold_unidentified = {hold_unidentified}
"""


def wait_until(
    ask: Callable[[], Value | None], seconds: float = START_SECONDS, *, what: str, every: float = 0.02
) -> Value:
    """Return the first answer that is true; fail the test when none has come in time."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        pause.wait(every)
    return answer


def _is_locked(path: Path) -> bool:
    lock = try_lock(path)
    if lock is not None:
        lock.close()
    return lock is None


@dataclass(frozen=True)
class Home:
    """A folder with a settings file, a store and a database of its own."""

    folder: Path

    @classmethod
    def make(
        cls,
        folder: Path,
        extra: str = "",
        *,
        quiet_seconds: float = 3600.0,
        minimum_free_bytes: int = 1_000_000,
        journal_bytes: int = 67_108_864,
        hold_unidentified: bool = True,
    ) -> "Home":
        """Write the settings and make the schema; `extra` is TOML that follows the settings we set."""
        folder.mkdir(parents=True, exist_ok=True)
        home = cls(folder)
        said = SETTINGS.format(
            quiet_seconds=quiet_seconds,
            minimum_free_bytes=minimum_free_bytes,
            journal_bytes=journal_bytes,
            hold_unidentified=str(hold_unidentified).lower(),
        )
        home.config.write_text(said + extra)
        with home.database() as database:
            database.upgrade()
        return home

    @property
    def config(self) -> Path:
        return self.folder / "meddaemon.toml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def settings(self) -> Settings:
        return load(self.config, {})

    @contextmanager
    def database(self) -> Iterator[Database]:
        database = Database(self.settings.database.url)
        try:
            yield database
        finally:
            database.close()

    def rows(self, table: Table) -> Sequence[Row[tuple[object, ...]]]:
        """Return every row of a table in order of insertion."""
        self.await_filed()
        with self.database() as database, database.read() as connection:
            return connection.execute(select(table).order_by(table.c.id)).all()

    def instances(self) -> Sequence[Row[tuple[object, ...]]]:
        return self.rows(tables.instance)

    def await_filed(self) -> None:
        """Wait until all that was acknowledged has become files and rows."""
        wait_until(lambda: not self._being_filed(), what="the journal to be filed", every=0.02)

    def _being_filed(self) -> int:
        """Return how many records stand in journals of processes that are alive."""
        folders = (self.store / "journal").glob("*/")
        return sum(len(waiting_in(folder)) for folder in folders if _is_locked(folder / "lock"))

    def refusals(self) -> Sequence[Row[tuple[object, ...]]]:
        return self.rows(tables.refusal)

    def files(self) -> dict[str, Path]:
        """Return every file below the store's instances, by its name without the ending."""
        self.await_filed()
        return {path.stem: path for path in (self.store / "instances").rglob("*") if path.is_file()}

    def half_received(self) -> list[Path]:
        """Return what lies in the staging folders, apart from their locks."""
        return [path for path in (self.store / "incoming").rglob("*") if path.is_file() and path.name != "lock"]

    def cli(
        self, *arguments: str | Path, timeout: float = 120.0, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of `meddaemon` on this home to its end."""
        return run_cli(*arguments, "--config", self.config, timeout=timeout, environ=environ)

    @contextmanager
    def running(self, role: str, *, prefix: Sequence[str] = (), failpoint: str = "") -> Iterator["Role"]:
        """Run a role until the block ends; then it must end within 15 s of SIGTERM.

        `failpoint` is where it is to die or to fail, as `meddaemon.failpoints` has it.
        """
        log = self.folder / f"{role}-{time.monotonic_ns()}.log"
        arguments = [role, "--config", str(self.config)]
        environ = environment() | ({failpoints.VARIABLE: failpoint} if failpoint else {})
        process: subprocess.Popen[bytes] | Copy
        with log.open("wb") as stderr:
            if prefix:
                process = subprocess.Popen(
                    [*prefix, sys.executable, "-m", "meddaemon", *arguments],
                    cwd=self.folder,
                    env=environ,
                    stdout=stderr,
                    stderr=stderr,
                    start_new_session=True,
                )
            else:
                process = copies.start(arguments, folder=self.folder, environment=environ, output=stderr)
        started = Role(home=self, name=role, process=process, log=log)
        try:
            yield started
            started.stop()
        finally:
            started.kill_all()


@dataclass(frozen=True)
class Role:
    """A role that runs, or `serve` with all of them."""

    home: Home
    name: str
    process: "subprocess.Popen[bytes] | Copy"
    log: Path

    def announced(self, role: str) -> processes.Process | None:
        """Return the living process of this role that has announced itself since we started."""
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log_text()}")
        with self.home.database() as database, database.read() as connection:
            return next(
                (
                    each
                    for each in processes.listing(connection)
                    if each.role == role and _in_session(each.pid, self.process.pid)
                ),
                None,
            )

    def port(self) -> int:
        """Return the port that the listener took, as soon as it listens."""
        listener = wait_until(lambda: self.announced("listen"), what="the listener to announce itself", every=0.1)
        return int(listener.address.rpartition(":")[2])

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """End in good order."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(15)
            assert code == 0, f"{self.name} ended with {code}:\n{self.log_text()}"

    def kill_all(self) -> None:
        """End the process and its children at once, as nobody who could tidy up would."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(15)


def run_cli(
    *arguments: str | Path, timeout: float = 120.0, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `meddaemon` with these arguments to its end."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = copies.start(
            [*map(str, arguments)],
            folder=Path.cwd(),
            environment={**environment(), **(environ or {})},
            output=output,
            errors=errors,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(process.args, code, *said)


def environment() -> dict[str, str]:
    """Return our environment without settings of meddaemon, and this checkout first in the path of modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEDDAEMON_")}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}


def data_set_of(stored: Path) -> bytes:
    """Return the data set of a file that our store wrote, bit for bit, without asking pydicom or our own reader."""
    content = stored.read_bytes()
    assert content.startswith(PREAMBLE)
    # Group length first (PS3.10 7.1): (0002,0000) UL 4, then so many bytes of file meta.
    assert content[132:140] == b"\x02\x00\x00\x00UL\x04\x00"
    return content[144 + int.from_bytes(content[140:144], "little") :]


def run_together(*commands: Sequence[str]) -> list[str]:
    """Run Python programs that say "ready" and wait for a line; let all go at once; return what each wrote then."""
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), said
    return [written for written, _ in said]


def _in_session(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False
