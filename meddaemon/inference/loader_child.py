"""The loader: a process for one job, forked by the fork server, that decodes its files and ends. Nothing here is torch.

Decoders are the place where hostile bytes meet C code. So they run with limits of memory and time, without network,
and can read no file but those of their job; one that crashes or runs away takes nothing with it but that job.
"""

import math
import mmap
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from meddaemon.domain.errors import InputRefused
from meddaemon.inference import messages, sandbox
from meddaemon.inference.inputs import Header, Inputs
from meddaemon.inference.loading import BEGUN, DONE
from meddaemon.inference.messages import Sealed
from meddaemon.inference.values import Input, array_of, input_from_message, input_message, refusal_message

SPARE_BYTES = 2**30
"""What decoding may ask for beyond the volume: libraries, threads, fragments of memory."""
HEADER_SECONDS, HEADERS_PER_SECOND = 30.0, 20
DECODER_SECONDS, DECODER_BYTES_PER_SECOND = 60.0, 2**22
"""Processor time that an honest file never needs: the slowest decoder yields many times that many bytes."""


def main(connection: socket.socket) -> int:
    """Answer the one request that comes, and end."""
    request = messages.receive(connection)
    inputs = request.said["inputs"]
    files = [Path(path) for each in inputs for path in each["paths"]]
    sandbox.limit()
    _grant_seconds(HEADER_SECONDS + len(files) / HEADERS_PER_SECOND)
    started = time.perf_counter()
    if request.said["sandbox"] != "off":
        sandbox.confine(files, (), required=request.said["sandbox"] == "required")
    try:
        values = _read(
            inputs, request.said["memory_bytes"], lambda headers: _announced(connection, headers, request.files[0])
        )
    except InputRefused as refusal:
        messages.send(connection, refusal_message(refusal))
        return 0
    except Exception as error:  # noqa: BLE001 - a defect of ours; the worker is told and tries again
        memory = "host" if isinstance(error, MemoryError) else None
        text = f"{type(error).__name__} while the input was read: {error}"
        messages.send(connection, {"failed": text[:4096], "out_of_memory": memory})
        return 1
    said, arrays = [], {}
    for place, (name, (value, array)) in enumerate(values.items()):
        said.append({"name": name, **input_message(value)[0]})
        arrays[str(place)] = array
    messages.send(connection, {"loaded": said, "seconds": time.perf_counter() - started}, arrays)
    return 0


Announce = Callable[[Sequence[Header]], Callable[[Header], Any]]


def _read(
    inputs: Sequence[Mapping[str, Any]], memory_bytes: int, announce: Announce
) -> dict[str, tuple[Input, Sealed]]:
    """Return every input of the model, in the order of the request."""
    wanted = [input_from_message(each) for each in inputs]
    with _memory_limit(4 * SPARE_BYTES):
        reading = Inputs(wanted, {each["name"]: [Path(path) for path in each["paths"]] for each in inputs})
    watch = announce(reading.headers)
    needed = reading.decoding_bytes
    _grant_seconds(DECODER_SECONDS + needed / DECODER_BYTES_PER_SECOND)
    with _memory_limit(SPARE_BYTES + needed):
        found = reading.read(allocate=_allocate_within(memory_bytes), watch=watch)
        return {name: (value, Sealed.of(array_of(value))) for name, value in found.items()}


def _allocate_within(memory_bytes: int) -> Callable[[Sequence[int], DTypeLike], NDArray[Any]]:
    """Return what allocates arrays, none of them larger than this: a header may claim anything."""

    def allocate(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > memory_bytes:
            raise MemoryError(f"it needs {size} bytes of memory, and may have {memory_bytes}: see worker.memory_bytes")
        return messages.allocate(shape, dtype)

    return allocate


def _announced(connection: socket.socket, headers: Sequence[Header], progress: int) -> Callable[[Header], Any]:
    """Tell the worker which instances there are; return what notes in shared memory which are being decoded."""
    messages.send(connection, {"instances": [header.sop_instance_uid for header in headers]})
    os.ftruncate(progress, max(1, len(headers)))
    notes = mmap.mmap(progress, max(1, len(headers)))
    places = {id(header): place for place, header in enumerate(headers)}

    @contextmanager
    def watch(header: Header) -> Iterator[None]:
        notes[places[id(header)]] = BEGUN
        yield
        notes[places[id(header)]] = DONE

    return watch


def _grant_seconds(seconds: float) -> None:
    """Let so much more processor time be used before SIGXCPU ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = round(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


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
