"""The model child: `python -m meddaemon.inference.child FD`, started by `runtime.ModelProcess` and nobody else.

It loads one bundle, says `ready`, and answers one request after another until the connection ends. It may die at any
moment, by its own fault or another's; nothing is lost with it.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddaemon.config.digest import bundle_digest
from meddaemon.domain.errors import InputRefused, ModelFailed
from meddaemon.inference import messages
from meddaemon.inference.volume import assemble_read, decoding_bytes, read_inputs

if TYPE_CHECKING:
    from meddaemon.inference.monai_bundle import Session

PR_SET_PDEATHSIG = 1

SPARE_BYTES = 2**30
"""What decoding may ask for beyond the volume: libraries, threads, fragments of memory."""


def main() -> int:
    """Serve the connection whose file descriptor is the one argument."""
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    connection = socket.socket(fileno=int(sys.argv[1]))
    try:
        serve(connection)
    except (messages.Ended, BrokenPipeError, ConnectionResetError):
        return 0
    return 0


def serve(connection: socket.socket) -> None:
    """Load what the first message names, then answer requests; raises `messages.Ended` when the worker hangs up."""
    settings, _ = messages.receive(connection)
    started = time.perf_counter()
    try:
        session = _load(settings)
    except Exception as error:  # noqa: BLE001 - whatever a bundle raises is the worker's to judge, and it is told
        messages.send(connection, _failure(error))
        return
    messages.send(connection, {"ready": {"load": time.perf_counter() - started}})
    while True:
        request, _ = messages.receive(connection)
        try:
            message, content = _answer(session, request["inputs"])
        except InputRefused as refusal:
            messages.send(connection, messages.refusal_message(refusal))
        except Exception as error:  # noqa: BLE001 - as above; the worker replaces this process afterwards
            messages.send(connection, _failure(error))
        else:
            messages.send(connection, message, content)


def _load(settings: Mapping[str, Any]) -> "Session":
    """Load the bundle after checking that it still is what the contract was read with."""
    bundle, weights = Path(settings["bundle"]), [Path(each) for each in settings["weights"]]
    found = bundle_digest(bundle, Path(settings["contract_file"]), weights)
    if found != settings["digest"]:
        raise ModelFailed(
            f"bundle, weights or contract of {settings['name']} changed since they were read:"
            f" SHA-256 {found}, not {settings['digest']}; restart to accept them"
        )
    # Torch costs seconds and is nobody else's: it comes in here, in the child, and only once the digest is right.
    from meddaemon.inference import monai_bundle  # noqa: PLC0415

    return monai_bundle.load(
        bundle, output=settings["output"], weights=weights, scratch=Path.cwd(), device=settings["device"]
    )


def _answer(session: "Session", inputs: Mapping[str, list[str]]) -> tuple[dict[str, Any], memoryview]:
    started = time.perf_counter()
    with _memory_limit(4 * SPARE_BYTES):
        headers = read_inputs({key: [Path(each) for each in paths] for key, paths in inputs.items()})
    with _memory_limit(SPARE_BYTES + sum(map(decoding_bytes, headers.values()))):
        volumes = {key: assemble_read(each) for key, each in headers.items()}
    assembled = time.perf_counter() - started
    prediction = session.predict(volumes)
    message, labels = messages.prediction_message(prediction)
    message["prediction"]["seconds"] = {"assemble": assembled, **prediction.seconds}
    return message, labels


@contextmanager
def _memory_limit(allowed: int) -> Iterator[None]:
    """Bound what decoders may ask for: a code stream of a few bytes can claim a plane of many gigabytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + allowed
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _failure(error: Exception) -> dict[str, Any]:
    """Return what went wrong and, since MONAI wraps errors, what first did."""
    text = str(error) if isinstance(error, ModelFailed) else f"{type(error).__name__}: {error}"
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    if first is not error:
        text = f"{text[:2048]}\nbecause of {type(first).__name__}: {first}"
    return {"failed": text[:4096]}


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends, however it ends (prctl(2)); Linux only, elsewhere EOF does."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or parent == 1:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
