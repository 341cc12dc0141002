"""Warm model processes as the worker sees them. Nothing here imports torch.

    files ──> Loader: a process for each job ──volumes──> ModelProcess: bundle loaded once, then
              headers, decoding, geometry                 preprocessing, network, postprocessing

Both are disposable (see `processes`). The model's is ended and replaced after anything but a result or a refused
input: an exception in the bundle (a CUDA error stays in its process), a crash, a time limit, memory that ran out.
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from resource import RLIMIT_DATA, prlimit
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import ModelFailed, OutOfMemory
from meddaemon.domain.result import Prediction
from meddaemon.durable import Staging
from meddaemon.inference import messages
from meddaemon.inference.bundles.terms import Terms
from meddaemon.inference.ledger import Use
from meddaemon.inference.loading import Loader, Prepared
from meddaemon.inference.messages import Received
from meddaemon.inference.plan import AS_SHIPPED, RunPlan
from meddaemon.inference.processes import Child, ForkServer, Interrupted, cause, is_readable
from meddaemon.inference.values import failure_from, prediction_from, refusal_from, remarks_of

_LOOK_SECONDS = 1.0
"""How often it is looked at what a model writes while it runs."""
_SLACK_BYTES = 2**28
"""Stacks of threads and the like: asked for, hardly ever touched."""
# How the C and C++ libraries say that they got no memory before they end the process.
_LAST_WORDS = ("std::bad_alloc", "libgomp: Out of memory")


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


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a model process may have.

    `sandbox` is what `worker.sandbox` says. `memory_bytes` is for memory of its own, `scratch_bytes` for a file that
    it writes and for all that it writes in a run, `gpu_fraction` for the memory of its GPU.
    """

    sandbox: str = "preferred"
    memory_bytes: int = 2**40
    scratch_bytes: int = 2**33
    gpu_fraction: float = 1.0


def model_server() -> ForkServer:
    """Return a fork server whose children have torch and MONAI loaded."""
    return ForkServer("meddaemon.inference.child", ("torch", "monai.bundle", "meddaemon.inference.bundles.session"))


class ModelProcess:
    """A `Runtime`: one child process with one bundle, started at the first prediction and kept warm.

    One thread predicts and closes; another may `kill` at any time.
    """

    def __init__(
        self,
        contract: ModelContract,
        *,
        device: str = "",
        scratch: Path | None = None,
        limits: Limits | None = None,
        server: ForkServer | None = None,
        loader: Loader | None = None,
    ) -> None:
        """Prepare to run the model of `contract` on a torch `device` (default: the first GPU, else the CPU).

        Each child has a folder of its own in `scratch`, where those that dead processes left behind are removed;
        without `scratch` it lies in the system's folder for temporary files. `server` and `loader` are shared with
        others, and theirs to close; without them it has its own.
        """
        self._contract = contract
        self._device = device
        self._scratch = scratch
        self._limits = limits or Limits()
        self._server = server or model_server()
        self._loader = loader or Loader(sandbox=self._limits.sandbox, memory_bytes=self._limits.memory_bytes)
        self._owned = [each for each, given in ((self._server, server), (self._loader, loader)) if given is None]
        self._warm: _Warm | None = None
        self._kills = 0

    @property
    def pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return self._warm.child.pid if self._warm else None

    def predict(self, inputs: Mapping[str, Sequence[Path]], *, time_limit: float) -> Prediction:
        """Return the prediction; `time_limit` bounds reading, loading, when the child is cold, and the run together.

        `seconds` of the result has `assemble`, `preprocess`, `infer`, `postprocess`, and `start` when it was cold.
        `inputs` is in the order of the contract: the labels lie on the grid of its first entry.
        """
        deadline = time.monotonic() + time_limit
        kills = self._kills
        # The bundle is loaded while the files are read.
        self._start(deadline, time_limit, self._limits.memory_bytes)
        with self._loader.load(self._contract, inputs, time_limit=deadline - time.monotonic()) as prepared:
            return self._infer(prepared, deadline, time_limit, self._limits.memory_bytes, kills)

    def infer(
        self,
        prepared: Prepared,
        *,
        time_limit: float,
        deadline: float | None = None,
        memory_bytes: int | None = None,
        plan: RunPlan = AS_SHIPPED,
    ) -> Prediction:
        """Return the prediction for inputs that were prepared; see `predict`.

        `deadline` (of `time.monotonic`) is when `time_limit` is over, if it began before. `memory_bytes` is what this
        run may have, within what the limits of the process say.
        Raises `OutOfMemory` where that was it, any other `ModelFailed`, and `InputRefused`.
        """
        memory_bytes = self._limits.memory_bytes if memory_bytes is None else memory_bytes
        deadline = time.monotonic() + time_limit if deadline is None else deadline
        return self._infer(prepared, deadline, time_limit, memory_bytes, self._kills, plan)

    def begin(self, *, deadline: float, memory_bytes: int | None = None) -> None:
        """Have the bundle loaded from now on, if it is not, while something else is done; `infer` waits for it.

        Raises `ModelFailed` when no process can be made by `deadline`.
        """
        limit = self._limits.memory_bytes if memory_bytes is None else memory_bytes
        self._start(deadline, max(0.0, deadline - time.monotonic()), limit)

    def use(self) -> Use | None:
        """Return what memory the child holds now, and held at most; None when there is no child."""
        return self._warm.use() if self._warm else None

    def kill(self) -> None:
        """Make the prediction that is running fail at once, from any thread; the next one starts a fresh child."""
        self._kills += 1
        warm = self._warm
        if warm is not None:
            warm.child.kill()
        if self._loader in self._owned:
            self._loader.kill()

    def close(self) -> None:
        """End the child, if there is one, and remove its scratch folder; ends also what was not shared."""
        self._end()
        for each in self._owned:
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _infer(
        self,
        prepared: Prepared,
        deadline: float,
        time_limit: float,
        memory_bytes: int,
        kills: int,
        plan: RunPlan = AS_SHIPPED,
    ) -> Prediction:
        warm = self._start(deadline, time_limit, memory_bytes)
        seconds = self._await_ready(warm, deadline, time_limit, kills)
        warm.allow(memory_bytes)
        said = [{**part, "name": name} for name, (part, _) in prepared.inputs.items()]
        arrays = {str(place): array for place, (_, array) in enumerate(prepared.inputs.values())}
        request = {"inputs": said, "plan": plan.message()}
        received = self._ask(warm, request, arrays, deadline, time_limit, kills)
        warm.tidy()
        if "refused" in received.said:
            raise refusal_from(received.said["refused"])
        try:
            prediction = prediction_from(received.said.get("prediction") or {}, received.arrays)
        except ModelFailed as failure:
            self._fail(warm, failure)
        contract = self._contract
        provenance = {**prediction.provenance, "bundle_digest": contract.digest}
        for name, (part, _) in prepared.inputs.items():
            provenance |= {f"input {name}: {what}": done for what, done in remarks_of(part).items()}
        if contract.weights_digest:
            provenance["weights_digest"] = contract.weights_digest
        seconds = {**seconds, **prepared.seconds, **prediction.seconds}
        return replace(prediction, provenance=provenance, seconds=seconds)

    def _start(self, deadline: float, time_limit: float, memory_bytes: int) -> "_Warm":
        """Return the child, a fresh one that begins to load the bundle when there is none that lives."""
        if self._warm is not None and self._warm.child.poll() is None:
            return self._warm
        self._end()
        contract = self._contract
        try:
            self._warm = warm = _Warm(self._server, self._scratch, contract.bundle, deadline)
        except TimeoutError:
            raise ModelFailed(f"no model process within the time limit of {time_limit:g} s") from None
        settings = {
            "name": contract.name,
            "bundle": str(contract.bundle.resolve()),
            "contract_file": str(contract.contract_file.resolve()),
            "weights": [str(path.resolve()) for path in contract.weights],
            "digest": contract.digest,
            "terms": Terms.of(contract).message(),
            "device": self._device,
            "environment": {"CUDA_VISIBLE_DEVICES": ""} if self._device == "cpu" else {},
            "scratch": str(warm.scratch),
            "sandbox": self._limits.sandbox,
            "data_bytes": warm.data_bytes(self._limits.memory_bytes),
            "file_bytes": self._limits.scratch_bytes,
            "gpu_fraction": self._limits.gpu_fraction,
        }
        with suppress(OSError, TimeoutError):  # whoever asks for the answer sees that there is none
            messages.send(warm.child.connection, settings, deadline=deadline)
        warm.allow(memory_bytes)
        return warm

    def _await_ready(self, warm: "_Warm", deadline: float, time_limit: float, kills: int) -> dict[str, float]:
        """Return how many seconds the child took to be ready; nothing when it was before."""
        if warm.is_ready:
            return {}
        self._receive(warm, deadline, time_limit, kills)
        warm.is_ready = True
        warm.keep()
        return {"start": time.monotonic() - warm.started}

    def _ask(
        self,
        warm: "_Warm",
        request: Mapping[str, Any],
        arrays: Mapping[str, Any],
        deadline: float,
        time_limit: float,
        kills: int,
    ) -> Received:
        """Send one message and return the answer; ends the child and raises `ModelFailed` when there is none."""
        try:
            messages.send(warm.child.connection, request, arrays, deadline=deadline)
        except TimeoutError:
            self._fail(warm, ModelFailed(f"no answer within the time limit of {time_limit:g} s"))
        except OSError:
            self._fail(warm, None)
        return self._receive(warm, deadline, time_limit, kills)

    def _receive(self, warm: "_Warm", deadline: float, time_limit: float, kills: int) -> Received:
        try:
            if self._kills != kills:
                warm.child.kill()
            while not is_readable(warm.child.connection.fileno(), min(_LOOK_SECONDS, deadline - time.monotonic())):
                if time.monotonic() > deadline:
                    raise TimeoutError
                if warm.written_bytes() > self._limits.scratch_bytes:
                    self._fail(warm, ModelFailed(f"it wrote more than {self._limits.scratch_bytes} bytes of files"))
            received = messages.receive(warm.child.connection, deadline=deadline)
        except TimeoutError:
            self._fail(warm, ModelFailed(f"no answer within the time limit of {time_limit:g} s"))
        except (messages.Ended, OSError):
            self._fail(warm, None)
        except ModelFailed as failure:
            self._fail(warm, failure)
        if "failed" in received.said:
            self._fail(warm, failure_from(received.said))
        warm.gpu = _counts(received.said.get("gpu"))
        return received

    def _fail(self, warm: "_Warm", failure: ModelFailed | None) -> NoReturn:
        """End the child and raise `failure` with what it printed last, or, without one, with how it ended."""
        if self._warm is warm:
            self._warm = None
        returncode = warm.end()
        printed = warm.child.told()
        if failure is None:
            message = f"the model process ended ({cause(returncode)}){printed}"
            if returncode == -signal.SIGKILL and warm.child.was_killed:
                raise Interrupted(message)
            if returncode == -signal.SIGKILL or any(each in printed for each in _LAST_WORDS):
                raise OutOfMemory(f"{message}\nmemory seems to have run out", "host")
            raise ModelFailed(message)
        died = f" ({cause(returncode)})" if returncode not in {0, -signal.SIGKILL} else ""
        failure.args = (f"{failure}{died}{printed}",)
        raise failure

    def _end(self) -> None:
        warm, self._warm = self._warm, None
        if warm is not None:
            warm.end()


class _Warm:
    """One child and its scratch folder, in which the bundle is seen, so that relative paths of a bundle are right."""

    def __init__(self, server: ForkServer, scratch: Path | None, bundle: Path, deadline: float) -> None:
        self.started = time.monotonic()
        self.is_ready = False
        self.gpu = (0, 0, 0)
        self._kept: set[Path] = set()
        self._staging = Staging(scratch or Path(tempfile.gettempdir()))
        if scratch is not None:
            self._staging.sweep()
        self.scratch = self._staging.folder.resolve()
        for entry in bundle.resolve().iterdir():
            with suppress(FileExistsError):
                (self.scratch / entry.name).symlink_to(entry)
        try:
            self.child: Child = server.fork(deadline=deadline)
        except BaseException:
            self._staging.close()
            raise
        self._shared = _status(self.child.pid).get("VmData", 0)

    def data_bytes(self, memory_bytes: int) -> int:
        """Return the limit (RLIMIT_DATA) that lets the child have so much beyond what it was born with."""
        return self._shared + memory_bytes + _SLACK_BYTES

    def allow(self, memory_bytes: int) -> None:
        """Let the child have so much memory of its own from now on, within what it may have at most."""
        with suppress(ProcessLookupError):
            _, hard = prlimit(self.child.pid, RLIMIT_DATA)
            asked = self.data_bytes(memory_bytes)
            prlimit(self.child.pid, RLIMIT_DATA, (asked if hard < 0 else min(asked, hard), hard))

    def use(self) -> Use:
        """Return what memory the child has for itself: now, and at most since it was born."""
        status = _status(self.child.pid)
        now = _private_bytes(self.child.pid)
        peak = now + max(0, status.get("VmHWM", 0) - status.get("VmRSS", 0))
        gpu, gpu_peak, gpu_total = self.gpu
        return Use(host=now, peak=peak, gpu=gpu, gpu_peak=gpu_peak, gpu_total=gpu_total)

    def keep(self) -> None:
        """Let what lies in the scratch folder now stay there: what a bundle made while it was loaded."""
        self._kept = set(self._files())

    def tidy(self) -> None:
        """Remove what a run left behind: it is of a patient, and would be there for the next one."""
        for path in self._files():
            if path not in self._kept:
                with suppress(FileNotFoundError):
                    path.unlink()

    def written_bytes(self) -> int:
        """Return the size of the files that the bundle has written."""
        total = 0
        for path in self._files():
            with suppress(FileNotFoundError):
                total += path.lstat().st_size
        return total

    def _files(self) -> Iterator[Path]:
        """Yield the files in the scratch folder; the bundle, which is linked there, is none of them."""
        for parent, folders, names in os.walk(self.scratch):
            links = [name for name in folders if Path(parent, name).is_symlink()]
            yield from (Path(parent, name) for name in (*names, *links))

    def end(self) -> int:
        """End the child and remove its folder; returns how it ended."""
        returncode = self.child.end()
        self._staging.close()
        return returncode


def _status(pid: int) -> dict[str, int]:
    """Return the sizes that the system tells of a process, in bytes; nothing when it is gone."""
    return _sizes(Path(f"/proc/{pid}/status"))


def _private_bytes(pid: int) -> int:
    """Return how much memory a process shares with nobody."""
    return _sizes(Path(f"/proc/{pid}/smaps_rollup")).get("Private_Dirty", 0)


def _sizes(path: Path) -> dict[str, int]:
    sizes = {}
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(":")
            if rest.endswith(" kB"):
                sizes[name] = int(rest.removesuffix(" kB")) * 1024
    return sizes


def _counts(value: object) -> tuple[int, int, int]:
    """Return the three numbers of bytes that a child told; what is none is 0."""
    each = value if isinstance(value, list) and len(value) == 3 else [0, 0, 0]
    now, peak, total = (count if type(count) is int and count >= 0 else 0 for count in each)
    return now, peak, total
