"""The model child: forked by the fork server for one bundle, started by `runtime.ModelProcess` and nobody else.

It confines itself, loads the bundle, says `ready`, and answers one request after another until the connection ends.
It may die at any moment, by its own fault or another's; nothing is lost with it. It is given volumes, never files.
"""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddaemon.config.digest import bundle_digest
from meddaemon.domain.errors import InputRefused, ModelFailed
from meddaemon.inference import heap, messages, sandbox
from meddaemon.inference.bundles.terms import Terms
from meddaemon.inference.messages import Received
from meddaemon.inference.values import input_from, prediction_message, refusal_message

if TYPE_CHECKING:
    from meddaemon.inference.bundles.session import Session

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
    most = heap.resident_bytes() + heap.KEPT_BYTES
    messages.send(connection, {"ready": {"load": time.perf_counter() - started}, "gpu": _gpu_bytes()})
    while True:
        request = messages.receive(connection)
        try:
            said, arrays = prediction_message(session.predict(_inputs(request)))
            heap.give_back(most)
            messages.send(connection, {**said, "gpu": _gpu_bytes()}, arrays)
        except InputRefused as refusal:
            messages.send(connection, refusal_message(refusal))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001 - as above; the worker replaces this process afterwards
            messages.send(connection, _failure(error))
        finally:
            # Nothing of a study is kept beyond its run.
            request = Received({}, {})


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


def _gpu_bytes() -> list[int]:
    """Return how much memory of its GPU this process holds, held at most, and how much there is; 0 without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return [0, 0, 0]
    _, total = torch.cuda.mem_get_info()
    return [int(torch.cuda.memory_reserved()), int(torch.cuda.max_memory_reserved()), int(total)]


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
