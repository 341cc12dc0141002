"""Pickles in files of weights, disassembled and never loaded: which callables they would bring in.

`torch.load` with `weights_only` takes tensors and little else, and is what loads weights here; a pickle that asks for
more cannot be loaded at all, and one that asks for the system was made to do harm (CVE-2025-32434, CVE-2026-24747).
"""

import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

_SUFFIXES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib", ".ts", ".tar"}
_MAXIMUM_PICKLE_BYTES = 2**26
_MAXIMUM_OPCODES = 20_000_000
_LEGACY_PICKLES = 5
"""A file of torch before 1.6 is so many pickles, one after the other, and then the numbers."""

# What weights are made of; torch itself decides at load time, this is what nobody need be told of.
_PLAIN = re.compile(
    r"""^(?:
      collections\.(?:OrderedDict|defaultdict|Counter)
    | _codecs\.encode
    | copyreg\._reconstructor
    | argparse\.Namespace
    | builtins\.(?:set|frozenset|dict|list|tuple|int|float|complex|bool|str|bytes|bytearray|slice|object|range)
    | __builtin__\.(?:set|frozenset|dict|list|tuple|int|float|long|complex|bool|str|unicode|bytearray|slice|object)
    | torch\.(?:\w*Storage|\w*Tensor|Size|device|dtype|Tensor|float\w*|bfloat16|int\w*|uint8|bool|half|double|long
        |_utils\._rebuild\w+|_tensor\._rebuild_from_type_v2|nn\.parameter\.\w+|storage\.\w+|serialization\._get_layout
        |jit\._pickle\.\w+|torch_version\.TorchVersion|nn\.modules\.[\w.]+|optim\.[\w.]+|cuda\.\w+Storage)
    | numpy\.(?:_?core\.multiarray\.)?(?:scalar|_reconstruct|ndarray|dtype|bool_?|\w*int\d*|float\d+)
    | numpy\.dtypes\.\w+
    | monai\.(?:data\.meta_tensor|utils\.enums|networks)\.[\w.]+
    | __torch__\.[\w.]+
    )$""",
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class Unwanted:
    """What is wrong with a pickle; `hostile` when it names what no weights need."""

    what: str
    hostile: bool


def scan(path: Path) -> Iterator[Unwanted]:
    """Yield what is wrong with the pickles in a file; nothing for files that hold none. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        try:
            if start == b"PK\x03\x04":
                yield from _archive(file)
            elif (start[:1] == b"\x80" and start[1:2] <= b"\x05") or (path.suffix in _SUFFIXES and start):
                yield from _pickles(file, _LEGACY_PICKLES)
            elif start == b"\x93NUM":
                yield from _array(file)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            yield Unwanted(what=f"cannot be looked at: {error}", hostile=False)


def _archive(file: IO[bytes]) -> Iterator[Unwanted]:
    """Look into a file of torch since 1.6, a TorchScript or an .npz: a zip with pickles or arrays in it."""
    with zipfile.ZipFile(file) as opened:
        for member in opened.infolist():
            if member.filename.endswith((".pkl", ".pickle")):
                if member.file_size > _MAXIMUM_PICKLE_BYTES:
                    yield Unwanted(what=f"{member.filename!a} is a pickle of {member.file_size} bytes", hostile=True)
                    continue
                yield from _pickles(BytesIO(opened.read(member)), 1)
            elif member.filename.endswith(".npy"):
                with opened.open(member) as array:
                    yield from _array(array)


def _array(file: IO[bytes]) -> Iterator[Unwanted]:
    """Say of a NumPy file whether it holds Python objects, which are pickled."""
    head = file.read(512)
    if re.search(rb"'descr':\s*'\|?O", head):
        yield Unwanted(what="is a NumPy array of pickled Python objects", hostile=True)


def _pickles(file: IO[bytes], at_most: int) -> Iterator[Unwanted]:
    for index in range(at_most):
        try:
            names = list(dict.fromkeys(_callables(file)))
        except (ValueError, EOFError, UnicodeDecodeError, OverflowError, MemoryError, IndexError, KeyError) as error:
            if index == 0:
                yield Unwanted(what=f"is no pickle that can be looked at: {error}", hostile=False)
            return
        for name in names:
            if not _PLAIN.fullmatch(name):
                yield Unwanted(what=f"the pickle calls {name}, which no weights need", hostile=True)


def _callables(file: IO[bytes]) -> Iterator[str]:
    """Yield the dotted name of everything that one pickle would import.

    Names may come from the stack, put there as texts or taken from the memo: those are followed as far as texts go,
    and where it cannot be known which name it is, that is the answer.
    """
    texts: list[str | None] = []
    memo: dict[int, str | None] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > _MAXIMUM_OPCODES:
            raise ValueError("it is too long")
        name = opcode.name
        if name in {"GLOBAL", "INST"}:
            yield str(argument).replace(" ", ".", 1)
            texts.append(None)
        elif name == "STACK_GLOBAL":
            module, attribute = texts[-2:] if len(texts) > 1 else [None, None]
            yield f"{module}.{attribute}" if module and attribute else "(a name that is hidden)"
            texts = [*texts[:-2], None]
        elif name.startswith("EXT"):
            yield f"copyreg.extension_{argument}"
            texts.append(None)
        elif name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else None
        elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            memo[int(str(argument))] = texts[-1] if texts else None
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            texts.append(memo.get(int(str(argument))))
        elif name not in {"PROTO", "FRAME", "MARK", "STOP"}:
            # Whatever else it leaves on the stack is no text; what it takes off is not followed, so that an operation
            # can only hide a name, which is told, and never show another.
            texts.append(argument if isinstance(argument, str) and ("UNICODE" in name or "STRING" in name) else None)
        del texts[:-_DEPTH]


_DEPTH = 64
