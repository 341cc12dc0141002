"""Bundles onto disk: from a zip archive or a folder, and nothing but files that stay where they belong.

Everything in an archive is hostile until checked (CVE-2025-58755, CVE-2026-21851: MONAI's own unpackers followed
names out of the folder). All names are checked before the first byte is written, and sizes are counted as they come:
what a header claims is only ever a reason to refuse.
"""

import os
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from meddaemon.domain.errors import BundleRefused

_CHUNK = 2**20
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED, _UTF_8 = 0x1, 0x800
_SKIPPED = {"__pycache__", "__MACOSX", ".git", ".DS_Store"}
"""What systems leave in folders on their own and no bundle means."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a bundle may be at most. `ratio` is how much larger than packed a file may become that is not small."""

    files: int = 10_000
    file_bytes: int = 8 * 2**30
    total_bytes: int = 16 * 2**30
    ratio: int = 200
    small_bytes: int = 10 * 2**20
    depth: int = 16


LIMITS = Limits()


def unpack(archive: Path, folder: Path, limits: Limits = LIMITS) -> None:
    """Unpack a zip archive into `folder`, which must not exist; all files are read-only afterwards.

    An archive whose files all lie in one folder is unpacked without that folder. Raises BundleRefused; what was
    written until then is for the caller to remove.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, limits)
            _check_names(((each.orig_filename, each.file_size) for each in members), limits)
            _Writer(folder, limits).write_all(
                (name, member.file_size, opened.open(member)) for name, member in _without_common_folder(members)
            )
    except zipfile.BadZipFile as error:
        raise BundleRefused(f"{archive.name} is not a sound zip archive: {error}") from error
    except (zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, ValueError) as error:
        raise BundleRefused(f"{archive.name} cannot be unpacked: {error}") from error


def copy(source: Path, folder: Path, limits: Limits = LIMITS) -> None:
    """Copy a bundle's folder to `folder`, which must not exist; all files are read-only afterwards.

    Raises BundleRefused when it holds anything but files and folders.
    """
    files = list(_files_of(source, source, limits))
    sizes = {name: path.lstat().st_size for name, path in files}
    _check_names(sizes.items(), limits)
    _Writer(folder, limits).write_all((name, sizes[name], _opened(path, name)) for name, path in files)


def make_removable(folder: Path) -> None:
    """Let the owner remove what was unpacked."""
    for parent, _, _ in os.walk(folder):
        Path(parent).chmod(0o700)


def _members(opened: zipfile.ZipFile, limits: Limits) -> list[zipfile.ZipInfo]:
    """Return the files of an archive, everything that its directory says of them checked."""
    infos = opened.infolist()
    if len(infos) > limits.files:
        raise BundleRefused(f"it has {len(infos)} entries, a bundle has at most {limits.files}")
    end = 0
    for info in sorted(infos, key=lambda each: each.header_offset):
        if info.header_offset < end:
            _refuse(info.filename, "lies over another entry of the archive")
        end = info.header_offset + info.compress_size
    for info in infos:
        _check_member(info, limits)
    return [each for each in infos if not each.is_dir() and not _SKIPPED.intersection(each.filename.split("/"))]


def _check_member(info: zipfile.ZipInfo, limits: Limits) -> None:
    # zipfile cuts a name at a null character and lets the rest pass unseen.
    name = info.orig_filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    if stat.S_ISLNK(kind):
        _refuse(name, "is a link")
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        _refuse(name, "is a device, a pipe or a socket")
    if (kind == stat.S_IFDIR) is not info.is_dir() and kind:
        _refuse(name, "is a folder by its mode and not by its name, or the other way round")
    if info.flag_bits & _ENCRYPTED:
        _refuse(name, "is encrypted")
    if info.compress_type not in _METHODS:
        _refuse(name, f"is packed by method {info.compress_type}; stored (0) and deflated (8) are taken")
    if not info.flag_bits & _UTF_8 and not name.isascii():
        _refuse(name, "has a name in an unknown character set")
    if info.is_dir():
        _check_name(name.removesuffix("/"), limits)
    if info.file_size > limits.small_bytes and info.file_size > limits.ratio * max(info.compress_size, 1):
        _refuse(name, f"would grow from {info.compress_size} to {info.file_size} bytes")


def _without_common_folder(members: list[zipfile.ZipInfo]) -> list[tuple[str, zipfile.ZipInfo]]:
    tops = {each.filename.partition("/")[0] for each in members}
    common = f"{tops.pop()}/" if len(tops) == 1 else ""
    if not all(each.filename.startswith(common) for each in members) or common == "configs/":
        common = ""
    return [(each.filename.removeprefix(common), each) for each in members]


def _files_of(folder: Path, root: Path, limits: Limits) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as found:
        for each in sorted(found, key=lambda entry: entry.name):
            if each.name in _SKIPPED:
                continue
            path = Path(each.path)
            name = path.relative_to(root).as_posix()
            if each.is_symlink():
                _refuse(name, "is a link")
            if each.is_dir(follow_symlinks=False):
                _check_name(name, limits)
                yield from _files_of(path, root, limits)
            elif each.is_file(follow_symlinks=False):
                yield name, path
            else:
                _refuse(name, "is a device, a pipe or a socket")


def _opened(path: Path, name: str) -> IO[bytes]:
    """Open a file that must still be one, whatever took its place since it was listed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BundleRefused(f"{name!a} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        _refuse(name, "is not a file any more")
    return os.fdopen(descriptor, "rb")


def _check_names(files: Iterable[tuple[str, int]], limits: Limits) -> None:
    """Check the names of all files against the rules and against each other, and what is claimed of their sizes."""
    taken: dict[str, str] = {}
    folders: dict[str, str] = {}
    count = total = 0
    for name, size in files:
        count, total = count + 1, total + size
        _check_name(name, limits)
        if size > limits.file_bytes:
            _refuse(name, f"has {size} bytes, a file may have {limits.file_bytes}")
        key = _folded(name)
        if key in taken:
            _refuse(name, f"has the name of {taken[key]!a}, or differs from it only by case or accents")
        taken[key] = name
        for parent in map(str, PurePosixPath(name).parents):
            if folders.setdefault(_folded(parent), parent) != parent:
                _refuse(name, f"lies in a folder that differs from {folders[_folded(parent)]!a} only by case")
    if clash := taken.keys() & folders.keys():
        _refuse(taken[min(clash)], "is a file and a folder")
    if not count:
        raise BundleRefused("it is empty")
    if count > limits.files:
        raise BundleRefused(f"it has {count} files, a bundle has at most {limits.files}")
    if total > limits.total_bytes:
        raise BundleRefused(f"it has {total} bytes, a bundle has at most {limits.total_bytes}")


def _check_name(name: str, limits: Limits) -> None:
    parts = name.split("/")
    if name.startswith("/") or (len(parts[0]) > 1 and parts[0][1] == ":"):
        _refuse(name, "is an absolute path")
    if ".." in parts:
        _refuse(name, "leads out of its folder")
    if "" in parts or "." in parts:
        _refuse(name, "has an empty part")
    if "\\" in name or not name.isprintable():
        _refuse(name, "has a backslash or a control character in its name")
    if len(parts) > limits.depth or any(len(part.encode()) > 200 for part in parts):
        _refuse(name, "has too long a name or too many folders")


def _folded(name: str) -> str:
    """Return what is the same for names that some file system holds for the same."""
    return unicodedata.normalize("NFKC", name).casefold()


def _refuse(name: str, why: str) -> NoReturn:
    shown = name if len(name) <= 200 else f"{name[:200]}…"
    raise BundleRefused(f"{shown!a} {why}")


class _Writer:
    """Writes files below a new folder, counting what comes."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._total = 0

    def write_all(self, files: Iterable[tuple[str, int, IO[bytes]]]) -> None:
        self._folder.mkdir(parents=True)
        for name, claimed, source in files:
            with source:
                written = self._write(name, source)
            if written != claimed:
                _refuse(name, f"has {written} bytes and not the {claimed} that it claims")
        for parent, _, _ in os.walk(self._folder, topdown=False):
            Path(parent).chmod(0o555)

    def _write(self, name: str, source: IO[bytes]) -> int:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
        size = 0
        with os.fdopen(descriptor, "wb") as file:
            # Whatever our umask is: the daemon may run as somebody else.
            os.fchmod(descriptor, 0o444)
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                self._total += len(chunk)
                if size > self._limits.file_bytes or self._total > self._limits.total_bytes:
                    _refuse(name, f"goes beyond what a bundle may have: {self._total} bytes until here")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return size
