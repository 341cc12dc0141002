"""Warm model processes as the worker sees them. Nothing here imports torch.

    files ──> Loader: a process for each job ──volumes──> ModelProcess: bundle loaded once, then
              headers, decoding, geometry                 preprocessing, network, postprocessing

A model's child is asked twice for each job: to preprocess what was decoded, which tells the shapes by which a plan is
chosen, and to infer it by that plan. The first may be asked while another job is inferred.
Both are disposable (see `processes`). The model's is ended and replaced after anything but a result or a refused
input: an exception in the bundle (a CUDA error stays in its process), a crash, a time limit, memory that ran out.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from resource import RLIMIT_DATA, prlimit
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self

from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import ModelFailed, OutOfMemory
from meddaemon.domain.result import Prediction
from meddaemon.durable import Staging
from meddaemon.failpoints import reach
from meddaemon.inference import messages
from meddaemon.inference.bundles.terms import Terms
from meddaemon.inference.ladder import Bytes, Shapes
from meddaemon.inference.ledger import Use
from meddaemon.inference.loading import Loader, Prepared
from meddaemon.inference.messages import Received
from meddaemon.inference.plan import AS_SHIPPED, RunPlan
from meddaemon.inference.processes import Child, ForkServer, Interrupted, cause, is_readable
from meddaemon.inference.values import failure_from, prediction_from, refusal_from, remarks_of

_LOOK_SECONDS = 1.0
"""How often it is looked at what a model writes while it runs."""
_HAND_SECONDS = 10.0
"""So long may it take to hand the input of the next run to a child, which only has to listen."""
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
    it writes and for all that it writes in a run, `gpu_fraction` for the memory of its GPU. `prepare_beside` says when
    it may preprocess one study while it infers another: "gpu" (only a model that runs on one), "always" or "never".
    """

    sandbox: str = "preferred"
    memory_bytes: int = 2**40
    scratch_bytes: int = 2**33
    gpu_fraction: float = 1.0
    prepare_beside: str = "gpu"


def model_server() -> ForkServer:
    """Return a fork server whose children have torch and MONAI loaded."""
    return ForkServer("meddaemon.inference.child", ("torch", "monai.bundle", "meddaemon.inference.bundles.session"))


class ModelProcess:
    """A `Runtime`: one child process with one bundle, started at the first prediction and kept warm.

    One thread predicts and closes; another may hand over what comes next (`prepare_beside`, `drop`), and any may
    `kill` at any time.
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
        self._starting = threading.Lock()
        self._kills = 0
        self.had_company = False
        """Whether the child that failed last had something else in hand than the run that failed."""

    @property
    def pid(self) -> int | None:
        """Process id of the child, while there is one."""
        return self._warm.child.pid if self._warm else None

    def predict(self, inputs: Mapping[str, Sequence[Path]], *, time_limit: float) -> Prediction:
        """Return the prediction; `time_limit` bounds reading, loading, when the child is cold, and the run together.

        `seconds` of the result has `assemble`, `preprocess`, `infer`, `postprocess`, and `start` when it was cold.
        `inputs` is in the order of the contract: the labels lie on the grid of its first entry.
        """
        terms = _Terms.of(self, time_limit)
        # The bundle is loaded while the files are read.
        self._start(terms)
        with self._loader.load(self._contract, inputs, time_limit=terms.deadline - time.monotonic()) as prepared:
            return self._infer(prepared, terms, AS_SHIPPED)

    def prepare(
        self,
        prepared: Prepared,
        *,
        time_limit: float,
        deadline: float | None = None,
        memory_bytes: int | None = None,
    ) -> Shapes:
        """Have inputs preprocessed, if they are not yet, and return what is known of their run; see `infer`."""
        return self._prepare(prepared, _Terms.of(self, time_limit, deadline, memory_bytes))[2]

    def infer(
        self,
        prepared: Prepared,
        *,
        time_limit: float,
        deadline: float | None = None,
        memory_bytes: int | None = None,
        plan: RunPlan = AS_SHIPPED,
    ) -> Prediction:
        """Return the prediction for inputs that were decoded, and perhaps preprocessed; see `predict`.

        `deadline` (of `time.monotonic`) is when `time_limit` is over, if it began before. `memory_bytes` is what this
        run may have, within what the limits of the process say.
        Raises `OutOfMemory` where that was it, any other `ModelFailed`, and `InputRefused`.
        """
        return self._infer(prepared, _Terms.of(self, time_limit, deadline, memory_bytes), plan)

    def prepare_beside(self, prepared: Prepared) -> bool:
        """Have inputs preprocessed while the child infers others, from any thread; return whether they are.

        A child that cannot, or should not (`Limits.prepare_beside`), does not. Whatever comes of it is told to the
        thread that infers them; if the child ends before, the next one begins anew.
        """
        warm = self._warm
        if warm is None or not warm.prepares_beside:
            return False
        try:
            warm.hand(prepared, deadline=time.monotonic() + _HAND_SECONDS)
        except OSError:  # it ends, which the thread that infers notices
            return False
        return True

    def drop(self, prepared: Prepared) -> None:
        """Let the child forget inputs that will not be inferred, from any thread."""
        warm = self._warm
        if warm is not None:
            with suppress(OSError):
                warm.drop(prepared, deadline=time.monotonic() + _HAND_SECONDS)

    @property
    def loaded(self) -> Bytes:
        """What the child held when its bundle was loaded: what it keeps since is there for the next run."""
        return self._warm.loaded if self._warm else Bytes(host=0)

    @property
    def measured(self) -> Bytes:
        """What the last run took at most, beyond that."""
        return self._warm.measured if self._warm else Bytes(host=0)

    @property
    def outputs(self) -> int:
        """How many channels came out of the network in the last run; 0 where that is not known."""
        return self._warm.outputs if self._warm else 0

    def begin(self, *, deadline: float, memory_bytes: int | None = None) -> None:
        """Have the bundle loaded from now on, if it is not, while something else is done; `infer` waits for it.

        Raises `ModelFailed` when no process can be made by `deadline`.
        """
        self._start(_Terms.of(self, max(0.0, deadline - time.monotonic()), deadline, memory_bytes))

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

    def _prepare(self, prepared: Prepared, terms: "_Terms") -> tuple["_Warm", "_Handed", Shapes]:
        """Return the child, what it has of the inputs, and what it told of them."""
        warm = self._start(terms)
        seconds = self._await_ready(warm, terms)
        warm.allow(terms.memory_bytes)
        try:
            handed = warm.hand(prepared, deadline=terms.deadline)
        except TimeoutError:
            self._fail(warm, terms.timed_out())
        except OSError:
            self._fail(warm, None)
        handed.seconds.update(seconds)
        received = handed.answer or self._receive(warm, terms, {"prepare": handed.key})
        handed.answer = received
        if "refused" in received.said:
            warm.forget(handed)
            raise refusal_from(received.said["refused"])
        try:
            return warm, handed, Shapes.from_message(received.said.get("shapes"))
        except ModelFailed as failure:
            self._fail(warm, failure)

    def _infer(self, prepared: Prepared, terms: "_Terms", plan: RunPlan) -> Prediction:
        warm, handed, _ = self._prepare(prepared, terms)
        warm.begin_peak()
        received = self._ask(warm, {"infer": handed.key, "plan": plan.message()}, terms, {"infer": handed.key})
        warm.forget(handed)
        warm.tidy()
        warm.end_peak()
        outputs = received.said.get("outputs")
        warm.outputs = outputs if type(outputs) is int and outputs > 0 else 0
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
        seconds = {**handed.seconds, **prepared.seconds, **prediction.seconds}
        return replace(prediction, provenance=provenance, seconds=seconds)

    def _start(self, terms: "_Terms") -> "_Warm":
        """Return the child, a fresh one that begins to load the bundle when there is none that is sound."""
        with self._starting:
            if self._warm is not None and not self._warm.is_spoilt and self._warm.child.poll() is None:
                return self._warm
            self._end()
            return self._started(terms)

    def _started(self, terms: "_Terms") -> "_Warm":
        self.had_company = False
        contract = self._contract
        try:
            self._warm = warm = _Warm(self._server, self._scratch, contract.bundle, terms.deadline)
        except TimeoutError:
            raise ModelFailed(f"no model process within the time limit of {terms.time_limit:g} s") from None
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
            "prepare_beside": self._limits.prepare_beside,
        }
        with suppress(OSError, TimeoutError):  # whoever asks for the answer sees that there is none
            warm.send(settings, deadline=terms.deadline)
        warm.allow(terms.memory_bytes)
        return warm

    def _await_ready(self, warm: "_Warm", terms: "_Terms") -> dict[str, float]:
        """Return how many seconds the child took to be ready; nothing when it was before."""
        if warm.is_ready:
            return {}
        received = self._receive(warm, terms, {})
        warm.is_ready = True
        warm.prepares_beside = received.said.get("prepares_beside") is True
        warm.keep()
        return {"start": time.monotonic() - warm.started}

    def _ask(self, warm: "_Warm", request: Mapping[str, Any], terms: "_Terms", of: Mapping[str, str]) -> Received:
        """Send one message and return the answer; ends the child and raises `ModelFailed` when there is none."""
        try:
            warm.send(request, deadline=terms.deadline)
            reach("inferring")
        except TimeoutError:
            self._fail(warm, terms.timed_out())
        except OSError:
            self._fail(warm, None)
        return self._receive(warm, terms, of)

    def _receive(self, warm: "_Warm", terms: "_Terms", of: Mapping[str, str]) -> Received:
        """Return the answer that is `of` this; what was told of other inputs meanwhile is kept for their turn."""
        while True:
            received = self._next(warm, terms)
            if received.said.get("of", {}) == of or "of" not in received.said:
                break
            warm.note(received)
        if "failed" in received.said:
            self._fail(warm, failure_from(received.said))
        warm.gpu = _counts(received.said.get("gpu"))
        return received

    def _next(self, warm: "_Warm", terms: "_Terms") -> Received:
        """Return what the child says next; ends it and raises `ModelFailed` when it says nothing."""
        deadline = terms.deadline
        try:
            if self._kills != terms.kills:
                warm.child.kill()
            while not is_readable(warm.child.connection.fileno(), min(_LOOK_SECONDS, deadline - time.monotonic())):
                if time.monotonic() > deadline:
                    raise TimeoutError
                if warm.written_bytes() > self._limits.scratch_bytes:
                    self._fail(warm, ModelFailed(f"it wrote more than {self._limits.scratch_bytes} bytes of files"))
            return messages.receive(warm.child.connection, deadline=deadline)
        except TimeoutError:
            self._fail(warm, terms.timed_out())
        except (messages.Ended, OSError):
            self._fail(warm, None)
        except ModelFailed as failure:
            self._fail(warm, failure)

    def _fail(self, warm: "_Warm", failure: ModelFailed | None) -> NoReturn:
        """End the child and raise `failure` with what it printed last, or, without one, with how it ended."""
        if self._warm is warm:
            self._warm = None
        self.had_company = warm.has_company
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


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What one run may take, and `kills`: how often its process had been killed when it was asked for."""

    time_limit: float
    deadline: float
    memory_bytes: int
    kills: int

    @classmethod
    def of(
        cls, process: ModelProcess, time_limit: float, deadline: float | None = None, memory_bytes: int | None = None
    ) -> Self:
        return cls(
            time_limit=time_limit,
            deadline=time.monotonic() + time_limit if deadline is None else deadline,
            memory_bytes=process._limits.memory_bytes if memory_bytes is None else memory_bytes,
            kills=process._kills,
        )

    def timed_out(self) -> ModelFailed:
        return ModelFailed(f"no answer within the time limit of {self.time_limit:g} s")


@dataclass(eq=False, kw_only=True)
class _Handed:
    """Inputs that a child was given, and what it told of them.

    `found` are the files in its scratch folder before, `seconds` what was waited for it to be ready.
    """

    key: str
    prepared: Prepared
    found: frozenset[Path] = frozenset()
    answer: Received | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class _Warm:
    """One child and its scratch folder, in which the bundle is seen, so that relative paths of a bundle are right."""

    def __init__(self, server: ForkServer, scratch: Path | None, bundle: Path, deadline: float) -> None:
        self.started = time.monotonic()
        self.is_ready = False
        self.prepares_beside = False
        self.is_spoilt = False
        """Whether something failed in it: it finishes what it does, and is replaced."""
        self.gpu = (0, 0, 0, 0, 0)
        self.outputs = 0
        self.loaded = self.measured = Bytes(host=0)
        self._peak = 0
        self._keys = count()
        self._handed: list[_Handed] = []
        # Held while one thread says something to the child.
        self._talking = threading.Lock()
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
        # Two threads speak and one listens, each with a time-out of its own.
        self._speech = self.child.connection.dup()
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

    @property
    def has_company(self) -> bool:
        """Whether it has more in hand than one run."""
        return len(self._handed) > 1

    def hand(self, prepared: Prepared, *, deadline: float) -> "_Handed":
        """Give the child inputs to preprocess, unless it has them. Raises OSError."""
        with self._talking:
            for handed in self._handed:
                if handed.prepared is prepared:
                    return handed
            handed = _Handed(key=str(next(self._keys)), prepared=prepared, found=frozenset(self._files()))
            self._handed.append(handed)
            said = [{**part, "name": name} for name, (part, _) in prepared.inputs.items()]
            arrays = {str(place): array for place, (_, array) in enumerate(prepared.inputs.values())}
            try:
                messages.send(self._speech, {"prepare": handed.key, "inputs": said}, arrays, deadline=deadline)
            except OSError:
                # It may have been said in part.
                self._handed.remove(handed)
                self.is_spoilt = True
                raise
            return handed

    def send(self, request: Mapping[str, Any], *, deadline: float) -> None:
        """Say something to the child. Raises OSError."""
        with self._talking:
            messages.send(self._speech, request, deadline=deadline)

    def drop(self, prepared: Prepared, *, deadline: float) -> None:
        """Let the child forget inputs, if it has them. Raises OSError."""
        with self._talking:
            for handed in [each for each in self._handed if each.prepared is prepared]:
                self._handed.remove(handed)
                messages.send(self._speech, {"drop": handed.key}, deadline=deadline)

    def note(self, received: Received) -> None:
        """Keep what the child told of inputs whose turn has not come; a failure was not the one of who runs."""
        of = received.said.get("of")
        key = of.get("prepare") if isinstance(of, dict) else None
        with self._talking:
            for handed in self._handed:
                if handed.key == key:
                    handed.answer = received
        self.is_spoilt = self.is_spoilt or "failed" in received.said

    def forget(self, handed: "_Handed") -> None:
        """Note that the child has nothing of these inputs any more."""
        with self._talking:
            if handed in self._handed:
                self._handed.remove(handed)

    def use(self) -> Use:
        """Return what memory the child has for itself: now, and at most since it was born."""
        now, peak = self._private()
        gpu, gpu_peak, gpu_total, _, _ = self.gpu
        return Use(host=now, peak=max(peak, self._peak), gpu=gpu, gpu_peak=gpu_peak, gpu_total=gpu_total)

    def begin_peak(self) -> None:
        """Measure from now on what is taken at most."""
        self._peak = max(self._peak, self._private()[1])
        with suppress(OSError):  # without it, what was taken at most since the child was born counts
            Path(f"/proc/{self.child.pid}/clear_refs").write_text("5")

    def end_peak(self) -> None:
        """Note what was taken at most since then."""
        _, peak = self._private()
        self.measured = Bytes(host=max(0, peak - self.loaded.host), gpu=max(0, self.gpu[3] - self.loaded.gpu))

    def _private(self) -> tuple[int, int]:
        """Return what memory the child has for itself: now, and at most since that was measured."""
        status = _status(self.child.pid)
        now = _private_bytes(self.child.pid)
        return now, now + max(0, status.get("VmHWM", 0) - status.get("VmRSS", 0))

    def keep(self) -> None:
        """Note that the bundle is loaded: what it made in the scratch folder stays there, what it holds is its own."""
        self._kept = set(self._files())
        self.loaded = Bytes(host=self._private()[0], gpu=self.gpu[4])

    def tidy(self) -> None:
        """Remove what a run left behind: it is of a patient, and would be there for the next one.

        What came since other inputs were handed over may be theirs, and goes after their run.
        """
        with self._talking:
            others = [handed.found for handed in self._handed]
        for path in self._files():
            if path not in self._kept and all(path in found for found in others):
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
        with self._talking:
            self._speech.close()
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


def _counts(value: object) -> tuple[int, int, int, int, int]:
    """Return the five numbers of bytes that a child told; what is none is 0."""
    each = value if isinstance(value, list) and len(value) == 5 else [0] * 5
    held, held_peak, total, used_peak, used = (size if type(size) is int and size >= 0 else 0 for size in each)
    return held, held_peak, total, used_peak, used
