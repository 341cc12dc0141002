"""Warm model processes as the worker sees them. Nothing here imports torch.

    worker ── ModelProcess ──socket──> child: bundle loaded once, then volume, preprocessing, network, postprocessing

The child is disposable. It is ended and replaced after anything but a result or a refused input: an exception in the
bundle (a CUDA error stays in its process), a crash, a time limit. It ends with its parent.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Protocol, Self

import meddaemon
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import Prediction
from meddaemon.durable import Staging
from meddaemon.inference import messages

TAIL_BYTES = 4096
"""So much of what the bundle printed last is kept for the error."""

# Only this of our environment reaches a bundle: no credentials, no proxies, no settings of the daemon.
_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


class Runtime(Protocol):
    """What runs one deployed model."""

    def predict(self, inputs: Mapping[str, Sequence[Path]], *, time_limit: float) -> Prediction:
        """Return the prediction for one set of instances per input key, within `time_limit` seconds.

        Raises `InputRefused` when the input cannot give a right answer, `ModelFailed` when the model did not.
        """
        ...

    def close(self) -> None:
        """End the model and free what it holds."""
        ...


class ModelProcess:
    """A `Runtime`: one child process with one bundle, started at the first prediction and kept warm.

    One thread predicts and closes; another may `kill` at any time. The kernel ends the child when the thread that
    started it ends (PR_SET_PDEATHSIG), so predict from a thread that lives as long as the worker.
    """

    def __init__(self, contract: ModelContract, *, device: str = "", scratch: Path | None = None) -> None:
        """Prepare to run the model of `contract` on a torch `device` (default: the first GPU, else the CPU).

        Each child has a folder of its own in `scratch`, where those that dead processes left behind are removed;
        without `scratch` it lies in the system's folder for temporary files.
        """
        self._contract = contract
        self._device = device
        self._scratch = scratch
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return self._child.process.pid if self._child else None

    def predict(self, inputs: Mapping[str, Sequence[Path]], *, time_limit: float) -> Prediction:
        """Return the prediction; `time_limit` bounds loading, when the child is cold, and the run together.

        `seconds` of the result has `assemble`, `preprocess`, `infer`, `postprocess`, and `start` when it was cold.
        `inputs` is in the order of the contract: the labels lie on the grid of its first entry.
        """
        deadline = time.monotonic() + time_limit
        seconds: dict[str, float] = {}
        if self._child is None or self._child.process.poll() is not None:
            self.close()
            seconds["start"] = self._start(deadline, time_limit)
        request = {"inputs": {key: [str(path.resolve()) for path in paths] for key, paths in inputs.items()}}
        message, content = self._ask(request, deadline, time_limit)
        if "refused" in message:
            raise messages.refusal_from(message["refused"])
        prediction = messages.prediction_from(message.get("prediction") or {}, content)
        contract = self._contract
        provenance = {**prediction.provenance, "bundle_digest": contract.digest}
        if contract.weights_digest:
            provenance["weights_digest"] = contract.weights_digest
        return replace(prediction, provenance=provenance, seconds={**seconds, **prediction.seconds})

    def kill(self) -> None:
        """Make the prediction that is running fail at once, from any thread; the next one starts a fresh child."""
        child = self._child
        if child is not None:
            child.kill()

    def close(self) -> None:
        """End the child, if there is one, and remove its scratch folder."""
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, deadline: float, time_limit: float) -> float:
        """Start a child, have it load the bundle, and return how many seconds that took."""
        started = time.monotonic()
        contract = self._contract
        self._child = _Child(self._scratch)
        settings = {
            "name": contract.name,
            "bundle": str(contract.bundle.resolve()),
            "contract_file": str(contract.contract_file.resolve()),
            "weights": [str(path.resolve()) for path in contract.weights],
            "digest": contract.digest,
            "output": contract.output,
            "device": self._device,
        }
        self._ask(settings, deadline, time_limit)
        return time.monotonic() - started

    def _ask(self, request: Mapping[str, Any], deadline: float, time_limit: float) -> tuple[dict[str, Any], bytearray]:
        """Send one message and return the answer; ends the child and raises `ModelFailed` when there is none."""
        child = self._child
        if child is None:
            raise ModelFailed("the model process was closed")
        try:
            messages.send(child.connection, request)
            message, content = messages.receive(child.connection, deadline=deadline)
        except TimeoutError:
            self._fail(child, f"no answer within the time limit of {time_limit:g} s")
        except (messages.Ended, OSError):
            self._fail(child, "the model process ended")
        except ModelFailed as error:
            self._fail(child, str(error))
        if "failed" in message:
            self._fail(child, str(message["failed"]))
        return message, content

    def _fail(self, child: "_Child", message: str) -> NoReturn:
        """End the child and raise `ModelFailed` with how it ended and what it printed last."""
        self.close()
        returncode = child.end()
        died = f" ({_cause(returncode)})" if returncode not in {0, -signal.SIGKILL} or "ended" in message else ""
        printed = child.tail()
        raise ModelFailed(f"{message}{died}" + (f"; last output:\n{printed}" if printed else ""))


class _Child:
    """One child process, its connection, its scratch folder, and the end of what it prints."""

    def __init__(self, scratch: Path | None) -> None:
        self._staging = Staging(scratch or Path(tempfile.gettempdir()))
        if scratch is not None:
            self._staging.sweep()
        self._ending = threading.Lock()
        self._tail = bytearray()
        self.connection, theirs = socket.socketpair()
        with theirs:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-P", "-m", "meddaemon.inference.child", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self._staging.folder,
                env=_environment(self._staging.folder),
                # Its own process group, so that what the bundle starts can be ended with it.
                start_new_session=True,
            )
        output = self.process.stdout
        if output is None:  # pragma: no cover - Popen was asked for a pipe
            raise ModelFailed("the model process has no output")
        # Somebody must read, or a talkative bundle would block on a full pipe.
        self._reader = threading.Thread(target=self._keep_tail, args=(output,), name="model-output", daemon=True)
        self._reader.start()

    def end(self) -> int:
        """Kill the process group, wait for it, remove the scratch folder; returns the exit status. Idempotent."""
        with self._ending:
            if self.process.poll() is None:
                # A child that hung up by itself is given the moment it needs to end with its own status.
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=0.2 if self._hung_up() else 0)
            self.kill()
            returncode = self.process.wait()
            self._reader.join(timeout=5)
            self.connection.close()
            self._staging.close()
            return returncode

    def kill(self) -> None:
        """Kill the process group: the child and whatever its bundle started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def tail(self) -> str:
        """Return the end of what the child printed."""
        return bytes(self._tail).decode(errors="replace").strip()

    def _hung_up(self) -> bool:
        if self.connection.fileno() < 0:
            return True
        self.connection.settimeout(0)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _keep_tail(self, output: IO[bytes]) -> None:
        with output:
            while chunk := os.read(output.fileno(), 2**16):
                self._tail += chunk
                del self._tail[:-TAIL_BYTES]


def _environment(scratch: Path) -> dict[str, str]:
    """Return the child's environment: what it needs and nothing that is ours to keep."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        # OpenMP would take every core of the machine, also those that this process may not use.
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        **passed_on,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONPATH": str(Path(meddaemon.__file__).resolve().parents[1]),
        # A bundle's folder stays as it was digested, and hashing is the same in every run.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _cause(returncode: int) -> str:
    """Return how a process ended, in words."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"
