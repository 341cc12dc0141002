"""What the worker and its child processes say to each other, over one stream socket.

A message is a JSON object; arrays travel beside it as descriptors of sealed memory files (memfd_create(2)), which
the receiver maps: no voxel is copied on the way, and the sender cannot change what it has sent. Nothing is pickled:
a child runs code of bundles or decodes hostile files, so the worker takes values from it, never code.

    | length of the JSON, 8 bytes big-endian | number of descriptors, 8 bytes | JSON {"said": ..., "arrays": [...]} |

The descriptors come with the first byte (SCM_RIGHTS, unix(7)): those of the arrays first, in their order.
"""

import array
import ctypes
import fcntl
import json
import mmap
import os
import socket
import stat
import struct
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from meddaemon.domain.errors import ModelFailed

_HEAD = struct.Struct(">QQ")
_MAX_TEXT = 2**26
_MAX_BYTES = 2**40
_MAX_DESCRIPTORS = 64
_POPULATED_BYTES = 2**30
"""So much is taken from the system at once, which is quicker than page by page; more may be an idle claim."""
_MAX_AXES = 5
_MAX_LENGTH = 2**31
_INT_BYTES = array.array("i").itemsize
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_DTYPES = frozenset({"bool", "uint8", "uint16", "int16", "int32", "float16", "float32", "float64"})


class Ended(Exception):
    """The other side closed the connection."""


class Sealed:
    """An array in a sealed memory file: its content never changes again, and any process may map it."""

    def __init__(self, descriptor: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Take over a descriptor that was checked to hold exactly such an array."""
        self.descriptor = descriptor
        self.dtype = dtype
        self.shape = shape
        self._finalizer = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """Seal an array: itself when `allocate` made it, which must not be written to from now on, else a copy.

        Raises MemoryError.
        """
        memory = _memory_of(values)
        if memory is None:
            copy = allocate(values.shape, values.dtype)
            np.copyto(copy, values)
            return cls.of(copy)
        values.flags.writeable = False
        if memory.mapped:
            # The kernel seals only what nobody can write to: so the mapping under the array is exchanged for a
            # private, read-only one of the same file, at the same place.
            _map_read_only(values.__array_interface__["data"][0], values.nbytes, memory.descriptor)
        fcntl.fcntl(memory.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return cls(os.dup(memory.descriptor), values.dtype, values.shape)

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return _size(self.dtype, self.shape)

    def array(self) -> NDArray[Any]:
        """Return the array, mapped: what is written to it is private to this process (copy on write)."""
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)
        mapped = mmap.mmap(self.descriptor, self.nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        return np.frombuffer(mapped, self.dtype).reshape(self.shape)

    def close(self) -> None:
        """Give the descriptor back; what was mapped stays."""
        self._finalizer()


class _Memory:
    """The memory file of an array that `allocate` made; goes with it."""

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("meddaemon", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, size)
        self.mapped = size > 0


_memories: "weakref.WeakKeyDictionary[mmap.mmap, _Memory]" = weakref.WeakKeyDictionary()


def allocate(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return a zeroed array that can be sealed, and so sent, without a copy. Raises MemoryError, as NumPy does."""
    kind, lengths = np.dtype(dtype), tuple(map(int, shape))
    size = _size(kind, lengths)
    try:
        memory = _Memory(size)
        # An empty array needs some memory under it, too, to be known by.
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if size <= _POPULATED_BYTES else 0)
        mapped = mmap.mmap(memory.descriptor, size, flags=flags) if size else mmap.mmap(-1, 1)
    except OSError as error:
        raise MemoryError(f"no memory for {lengths} of {kind}") from error
    _memories[mapped] = memory
    return np.frombuffer(mapped, kind, count=size // kind.itemsize).reshape(lengths)


def _memory_of(values: NDArray[Any]) -> _Memory | None:
    """Return the memory file under an array that `allocate` returned, and that is all of it."""
    under: object = values
    while isinstance(under, np.ndarray):
        under = under.base
    if isinstance(under, memoryview):
        under = under.obj
    if not isinstance(under, mmap.mmap) or not values.flags.c_contiguous:
        return None
    memory = _memories.get(under)
    return memory if memory is not None and os.fstat(memory.descriptor).st_size == values.nbytes else None


def _map_read_only(address: int, length: int, descriptor: int) -> None:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    fixed = 0x10  # MAP_FIXED, which the mmap module does not name
    if function(address, length, mmap.PROT_READ, mmap.MAP_PRIVATE | fixed, descriptor, 0) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _size(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


class Received(NamedTuple):
    """One message: what was said, its arrays, and other descriptors, which are the receiver's to close."""

    said: dict[str, Any]
    arrays: dict[str, Sealed]
    files: tuple[int, ...] = ()


def send(
    connection: socket.socket,
    said: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any] | Sealed] | None = None,
    files: Sequence[int] = (),
    *,
    deadline: float | None = None,
) -> None:
    """Send one message with its arrays, sealing those that are not, and with descriptors of files.

    Raises `TimeoutError` when the other side has not taken it by `deadline` (of `time.monotonic`), and OSError.
    """
    sealed = {name: each if isinstance(each, Sealed) else Sealed.of(each) for name, each in (arrays or {}).items()}
    shapes = [
        {"name": name, "dtype": each.dtype.name, "shape": [int(length) for length in each.shape]}
        for name, each in sealed.items()
    ]
    text = json.dumps({"said": said, "arrays": shapes}, default=_plain).encode()
    descriptors = array.array("i", [*(each.descriptor for each in sealed.values()), *files])
    data = memoryview(_HEAD.pack(len(text), len(descriptors)) + text)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if descriptors else []
    _limit(connection, deadline)
    rest = data[connection.sendmsg([data], ancillary) :]
    if rest:
        _limit(connection, deadline)
        connection.sendall(rest)


def receive(connection: socket.socket, *, deadline: float | None = None) -> Received:
    """Return the next message.

    Raises `Ended` at the end of the connection, `TimeoutError` at `deadline` (of `time.monotonic`), and
    `ModelFailed` when what comes is not a message, or its arrays are not what it says.
    """
    descriptors: list[int] = []
    try:
        text_length, count = _HEAD.unpack(_read_head(connection, descriptors, deadline))
        if text_length > _MAX_TEXT or count != len(descriptors):
            raise ModelFailed(f"a child sent a message of {text_length} bytes with {len(descriptors)} of {count} files")
        text = _read(connection, text_length, deadline)
        try:
            message = json.loads(text)
            said, shapes = message["said"], message["arrays"]
            if not isinstance(said, dict) or not isinstance(shapes, list) or len(shapes) > count:
                raise ValueError
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ModelFailed("a child sent something that is not a message") from error
        arrays: dict[str, Sealed] = {}
        for shape in shapes:
            name, dtype, lengths = _array_head(shape)
            _check_memory(descriptors[0], _size(dtype, lengths))
            arrays[name] = Sealed(descriptors.pop(0), dtype, lengths)
        files, descriptors = tuple(descriptors), []
        return Received(said, arrays, files)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _array_head(shape: object) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """Return name, type and shape of an array as its sender describes it."""
    if isinstance(shape, dict):
        name, dtype, lengths = (shape.get(key) for key in ("name", "dtype", "shape"))
        if (
            isinstance(name, str)
            and isinstance(dtype, str)
            and dtype in _DTYPES
            and isinstance(lengths, list)
            and len(lengths) <= _MAX_AXES
            and all(type(each) is int and 0 <= each <= _MAX_LENGTH for each in lengths)
        ):
            return name, np.dtype(dtype), tuple(lengths)
    raise ModelFailed("a child sent an array without a type and a shape that we take")


def _check_memory(descriptor: int, size: int) -> None:
    """Refuse whatever is not memory of exactly this size that nobody can change any more."""
    status = os.fstat(descriptor)
    seals = 0
    with suppress(OSError):  # only memory files have seals
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    if not stat.S_ISREG(status.st_mode) or seals & _SEALS != _SEALS:
        raise ModelFailed("a child sent an array that is not sealed")
    if size > _MAX_BYTES or status.st_size != size:
        raise ModelFailed(f"a child sent {status.st_size} bytes for an array of {size}")


def _read_head(connection: socket.socket, descriptors: list[int], deadline: float | None) -> bytes:
    """Return the head of a message, and put the descriptors that come with it into `descriptors`."""
    head = b""
    space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * _INT_BYTES)
    while len(head) < _HEAD.size:
        _limit(connection, deadline)
        data, ancillary, flags, _ = connection.recvmsg(_HEAD.size - len(head), space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors += array.array("i", content[: len(content) // _INT_BYTES * _INT_BYTES])
        if flags & socket.MSG_CTRUNC or len(descriptors) > _MAX_DESCRIPTORS:
            raise ModelFailed(f"a child sent more than {_MAX_DESCRIPTORS} files with a message")
        if not data:
            raise Ended
        head += data
    return head


def _read(connection: socket.socket, length: int, deadline: float | None) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        _limit(connection, deadline)
        count = connection.recv_into(view)
        if count == 0:
            raise Ended
        view = view[count:]
    return data


def _limit(connection: socket.socket, deadline: float | None) -> None:
    """Let the next call on the connection last until `deadline`. Raises TimeoutError when that is over."""
    remaining = None if deadline is None else deadline - time.monotonic()
    if remaining is not None and remaining <= 0:
        raise TimeoutError
    connection.settimeout(remaining)


def _plain(value: object) -> object:
    """Return NumPy numbers and arrays as Python's; anything else as text."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else str(value)
