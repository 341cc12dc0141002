"""The model child: forked by the fork server for one bundle, started by `runtime.ModelProcess` and nobody else.

It confines itself, loads the bundle, says `ready`, and answers requests until the connection ends: one after another
or, where that gains something, with the next input preprocessed while one is inferred.
It may die at any moment, by its own fault or another's; nothing is lost with it. It is given volumes, never files.
"""

import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from meddaemon.config.digest import bundle_digest
from meddaemon.domain.errors import InputRefused, ModelFailed
from meddaemon.inference import heap, messages, sandbox
from meddaemon.inference.bundles.terms import Terms
from meddaemon.inference.messages import Received, Sealed
from meddaemon.inference.plan import AS_SHIPPED, RunPlan
from meddaemon.inference.values import input_from, prediction_message, refusal_message

if TYPE_CHECKING:
    from meddaemon.inference.bundles.session import Prepared, Session

# How those that we meet say that they got no memory; torch and CUDA raise RuntimeError for many things.
_OUT_OF_GPU_MEMORY = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_OUT_OF_HOST_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried to allocate")


def main(connection: socket.socket) -> int:
    """Serve the connection."""
    try:
        _serve(connection)
    except (messages.Ended, BrokenPipeError, ConnectionResetError):
        return 0
    return 0


def _serve(connection: socket.socket) -> None:
    """Load what the first message names, then answer requests; raises `messages.Ended` when the worker hangs up."""
    settings = messages.receive(connection).said
    started = time.perf_counter()
    try:
        _settle_in(settings)
        session = _load(settings)
    except Exception as error:  # noqa: BLE001 - whatever a bundle raises is the worker's to judge, and it is told
        messages.send(connection, _failure(error))
        return
    # A GPU leaves the cores idle that preprocess; without one, they are those that infer.
    beside = {"gpu": session.device.type == "cuda", "always": True}.get(settings["prepare_beside"], False)
    ready = {"load": time.perf_counter() - started}
    messages.send(connection, {"ready": ready, "prepares_beside": beside, "gpu": _gpu_bytes()})
    desk = _Desk(connection, session, most=heap.resident_bytes() + heap.KEPT_BYTES)
    if beside:
        desk.serve_beside()
    while not beside:
        desk.answer(messages.receive(connection))


class _Desk:
    """Answers the worker, each answer naming what it is `of`.

    `{"prepare": key, "inputs": [...]}` with the arrays has an answer with `shapes`, `{"infer": key, "plan": {...}}` one
    with `prediction`, or either with `refused` or `failed`; `{"drop": key}` lets go of what was prepared.
    """

    def __init__(self, connection: socket.socket, session: "Session", *, most: int) -> None:
        """`most` is how many bytes of memory are kept after a run, for the next one."""
        self._connection = connection
        self._session = session
        self._most = most
        self._prepared: dict[str, Prepared] = {}
        self._sending = threading.Lock()

    def serve_beside(self) -> None:
        """Answer until the worker hangs up: infer in this thread, prepare in another one, listen in a third."""
        runs, preparations = SimpleQueue[Received | None](), SimpleQueue[Received | None]()

        def listen() -> None:
            try:
                with suppress(messages.Ended, OSError):
                    while True:
                        request = messages.receive(self._connection)
                        (runs if "infer" in request.said else preparations).put(request)
            finally:
                runs.put(None)

        # A thread that first computes while another one limits its own threads would have as few.
        torch = sys.modules["torch"]
        threads = torch.get_num_threads()

        def prepare() -> None:
            torch.set_num_threads(threads)
            try:
                while (request := preparations.get()) is not None:
                    self.answer(request)
            except (BrokenPipeError, ConnectionResetError):
                runs.put(None)
            except BaseException:  # noqa: BLE001 - a process that only listens would be waited for until its time is over
                traceback.print_exc()
                os._exit(1)

        for each in (listen, prepare):
            threading.Thread(target=each, name=each.__name__, daemon=True).start()
        while (request := runs.get()) is not None:
            self.answer(request)

    def answer(self, request: Received) -> None:
        """Do what was asked for, and tell what came of it. Raises OSError when nobody listens any more."""
        said = request.said
        if "drop" in said:
            self._prepared.pop(str(said["drop"]), None)
            return
        of = {step: str(said[step]) for step in ("prepare", "infer") if step in said}
        answer: dict[str, Any] = {}
        sealed: dict[str, Sealed] = {}
        try:
            if "prepare" in of:
                self._prepared[of["prepare"]] = prepared = self._session.prepare(_inputs(request))
                answer = {"shapes": self._session.shapes(prepared).message()}
            else:
                _begin_gpu_peak()
                plan = RunPlan.from_message(said["plan"])
                if plan == AS_SHIPPED:
                    heap.keep_freed_memory()
                else:
                    heap.spare_memory()
                found = self._session.infer(self._prepared.pop(of["infer"]), plan)
                told, arrays = prediction_message(found)
                answer = {**told, "outputs": self._session.seen.get("outputs", 0)}
                sealed = {name: Sealed.of(each) for name, each in arrays.items()}
                del found, told, arrays
                heap.give_back(self._most)
        except InputRefused as refusal:
            answer, sealed = refusal_message(refusal), {}
        except Exception as error:  # noqa: BLE001 - as above; the worker replaces this process afterwards
            answer, sealed = _failure(error), {}
        for array in request.arrays.values():
            array.close()
        with self._sending:
            messages.send(self._connection, {"of": of, **answer, "gpu": _gpu_bytes()}, sealed)


def _settle_in(settings: Mapping[str, Any]) -> None:
    """Become a process that has its scratch folder and the bundle, and nothing else of this machine."""
    scratch, bundle = Path(settings["scratch"]), Path(settings["bundle"])
    os.chdir(scratch)
    os.environ.update({"HOME": str(scratch), "TMPDIR": str(scratch), **settings["environment"]})
    tempfile.tempdir = None
    heap.keep_freed_memory()
    sandbox.limit(data_bytes=settings["data_bytes"], file_bytes=settings["file_bytes"])
    if settings["sandbox"] != "off":
        read = [bundle, Path(settings["contract_file"]), *map(Path, settings["weights"]), *_links_below(bundle)]
        sandbox.confine(read, [scratch], required=settings["sandbox"] == "required")


def _links_below(bundle: Path) -> Iterator[Path]:
    """Yield the files of the bundle that lie elsewhere; the digest names their content like that of the others."""
    for parent, _, names in os.walk(bundle):
        yield from (path for path in (Path(parent, name) for name in names) if path.is_symlink())


def _load(settings: Mapping[str, Any]) -> "Session":
    """Load the bundle after checking that it still is what the contract was read with."""
    bundle, weights = Path(settings["bundle"]), [Path(each) for each in settings["weights"]]
    found = bundle_digest(bundle, Path(settings["contract_file"]), weights)
    if found != settings["digest"]:
        raise ModelFailed(
            f"bundle, weights or contract of {settings['name']} changed since they were read:"
            f" SHA-256 {found}, not {settings['digest']}; restart to accept them"
        )
    # Torch is nobody else's: it is named only here, and only once the digest is right.
    from meddaemon.inference.bundles.session import load  # noqa: PLC0415

    session = load(
        bundle,
        weights=weights,
        scratch=Path.cwd(),
        device=settings["device"],
        terms=Terms.from_message(settings["terms"]),
    )
    torch = sys.modules["torch"]
    if torch.cuda.is_initialized() and settings["gpu_fraction"] < 1:
        torch.cuda.set_per_process_memory_fraction(settings["gpu_fraction"])
    return session


def _inputs(request: Received) -> dict[str, Any]:
    return {
        str(each["name"]): input_from(each, request.arrays[str(place)])
        for place, each in enumerate(request.said["inputs"])
    }


def _begin_gpu_peak() -> None:
    """Measure from now on what is taken of the GPU."""
    torch = sys.modules["torch"]
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _gpu_bytes() -> list[int]:
    """Return what this process holds of the GPU, held at most, how much there is, what was in use at most and is now.

    At most: since it was measured from; all 0 without a GPU.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return [0, 0, 0, 0, 0]
    _, total = torch.cuda.mem_get_info()
    held, in_use = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    at_most = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    return [int(each) for each in (held, at_most[0], total, at_most[1], in_use)]


def _failure(error: Exception) -> dict[str, Any]:
    """Return what went wrong and, since MONAI wraps errors, what first did."""
    text = str(error) if isinstance(error, ModelFailed) else f"{type(error).__name__}: {error}"
    *_, first = causes = list(_causes(error))
    if first is not error:
        text = f"{text[:2048]}\nbecause of {type(first).__name__}: {first}"
    return {"failed": text[:4096], "out_of_memory": next(filter(None, map(_out_of_memory, causes)), None)}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it was raised from, back to the first."""
    yield error
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


def _out_of_memory(error: BaseException) -> str | None:
    """Return where memory ran out, if that is what the error says."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(each in text for each in _OUT_OF_GPU_MEMORY):
        return "gpu"
    if isinstance(error, MemoryError) or any(each in text for each in _OUT_OF_HOST_MEMORY):
        return "host"
    return None
