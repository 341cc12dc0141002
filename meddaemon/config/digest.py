"""Digests that name exactly what ran: SHA-256 over the files of a model, independent of where they lie."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def files_digest(files: Iterable[tuple[str, Path]]) -> str:
    """Return the SHA-256 hex digest over the sorted names and the contents of `files`.

    Each name and each content goes in as its own digest, so that no two sets of files run together.
    """
    whole = hashlib.sha256()
    for name, path in sorted(files):
        whole.update(hashlib.sha256(name.encode()).digest())
        whole.update(bytes.fromhex(file_digest(path)))
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 hex digest of one file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundle_digest(bundle: Path, contract_file: Path, weights: Sequence[Path]) -> str:
    """Return the digest of a deployed model: every file of its bundle, its contract and its weights.

    Byte code caches are left out: Python writes them on its own. Raises OSError when a file cannot be read and
    ValueError when the bundle holds a link to a directory, whose content the digest would not name.
    """
    named = [(f"bundle/{path.relative_to(bundle).as_posix()}", path) for path in _files_below(bundle)]
    return files_digest([*named, ("contract", contract_file), *_named_weights(weights)])


def weights_digest(weights: Sequence[Path]) -> str:
    """Return the digest of the weights alone; empty when the model has none outside its bundle."""
    return files_digest(_named_weights(weights)) if weights else ""


def _named_weights(weights: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    # The order is part of the meaning: a bundle refers to its weights by their place in the list.
    for index, path in enumerate(weights):
        yield f"weights/{index:04}/{path.name}", path


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise ValueError(f"{Path(parent) / name} is a link to a directory; a bundle holds its own files")
        yield from (Path(parent) / name for name in files)


def _raise(error: OSError) -> None:
    raise error
