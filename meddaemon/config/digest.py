"""Digests that name exactly what ran: SHA-256 over the files of a model, independent of where they lie."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

MANIFEST_NAME, CHECK_NAME = "manifest.json", "check.json"
"""Beside a contract: where its bundle came from and, of a built-in model, what its check found; no part of either."""
RECORDS_NAME = "admissions"
"""The folder in the store's directory that holds what the checks of all other models found here."""


def record_file(contract_file: Path, name: str) -> Path:
    """Return where the record of that name lies: beside `contract.toml`, or `MODEL.NAME` beside `MODEL.toml`."""
    own_folder = contract_file.name == "contract.toml"
    return contract_file.with_name(name if own_folder else f"{contract_file.stem}.{name}")


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

    Raises what `model_files` raises.
    """
    return files_digest(model_files(bundle, contract_file, weights))


def model_files(bundle: Path, contract_file: Path, weights: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return every file of a deployed model with the name under which it goes into the digest.

    Byte code caches are left out: Python writes them on its own; and what we record of the model beside its contract.
    Raises OSError when a folder cannot be read and ValueError when the bundle holds a link to a directory, whose
    content the digest would not name, or what is no file at all.
    """
    ours = {os.path.realpath(record_file(contract_file, name)) for name in (MANIFEST_NAME, CHECK_NAME)}
    named = [
        (f"bundle/{path.relative_to(bundle).as_posix()}", path)
        for path in _files_below(bundle)
        if os.path.realpath(path) not in ours
    ]
    return [*named, ("contract", contract_file), *_named_weights(weights)]


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
        for name in files:
            path = Path(parent) / name
            # A pipe would keep whoever reads it waiting for ever. A link that leads nowhere fails when it is read.
            if path.exists() and not stat.S_ISREG(path.stat().st_mode):
                raise ValueError(f"{path} is not a file; a bundle holds nothing else")
            yield path


def _raise(error: OSError) -> None:
    raise error
