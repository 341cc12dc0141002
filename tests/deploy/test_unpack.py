"""Whatever an archive or a folder holds, only plain files come out of it, and only where they belong."""

import os
import socket
import stat
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddaemon.deploy.unpack import LIMITS, Limits, copy, make_removable, unpack
from meddaemon.domain.errors import BundleRefused

SMALL = Limits(files=5, file_bytes=1000, total_bytes=2000)


def zipped(folder: Path, *members: tuple[str | zipfile.ZipInfo, bytes], packed: int = zipfile.ZIP_STORED) -> Path:
    archive = folder / "bundle.zip"
    with zipfile.ZipFile(archive, "w", packed) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return archive


def member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refusal(archive: Path, folder: Path, limits: Limits = LIMITS) -> str:
    """Why an archive is refused; not one byte may have been written outside of the folder, nor anything followed."""
    outside = folder / "outside"
    outside.mkdir()
    with pytest.raises(BundleRefused) as refused:
        unpack(archive, outside / "models" / "target", limits)
    left = [each for each in everything_below(outside) if not each.startswith("models/target/")]
    assert left == []
    return str(refused.value)


def test_a_bundle_comes_out_as_it_is_and_cannot_be_written(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path, ("configs/inference.json", b"{}"), ("models/model.pt", b"\x00" * 5000), ("läber.txt", b"")
    )
    before = os.umask(0o077)
    try:
        unpack(archive, tmp_path / "out")
    finally:
        os.umask(before)
    assert everything_below(tmp_path / "out") == ["configs/inference.json", "läber.txt", "models/model.pt"]
    assert (tmp_path / "out/models/model.pt").read_bytes() == b"\x00" * 5000
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")}
    assert modes == {0o444, 0o555}, "whoever runs the daemon reads it, and nobody changes it"
    make_removable(tmp_path / "out")


def test_a_folder_that_holds_everything_is_left_out(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path, ("spleen/configs/inference.json", b"{}"), ("spleen/LICENSE", b"x"), ("__MACOSX/spleen/x", b"junk")
    )
    unpack(archive, tmp_path / "out")
    assert everything_below(tmp_path / "out") == ["LICENSE", "configs/inference.json"]
    alone = zipped(tmp_path, ("configs/inference.json", b"{}"))
    unpack(alone, tmp_path / "alone")
    assert everything_below(tmp_path / "alone") == ["configs/inference.json"], "its own folder is not taken for it"


NAMES: list[tuple[str, str]] = [
    ("../evil", "leads out of its folder"),
    ("configs/../../evil", "leads out of its folder"),
    ("a/..", "leads out of its folder"),
    ("/etc/evil", "is an absolute path"),
    ("C:/evil", "is an absolute path"),
    ("configs\\..\\..\\evil", "has a backslash"),
    ("configs//evil", "has an empty part"),
    ("./evil", "has an empty part"),
    ("a\nb", "control character"),
    ("a" * 201, "too long a name"),
    ("/".join("a" * 30), "too many folders"),
]


@pytest.mark.fault(168)
@pytest.mark.parametrize(("name", "why"), NAMES)
def test_a_name_that_leads_anywhere_else_is_refused(tmp_path: Path, name: str, why: str) -> None:
    assert why in refusal(zipped(tmp_path, ("configs/x", b""), (name, b"evil")), tmp_path)


@pytest.mark.fault(168)
def test_a_name_that_goes_on_behind_a_null_character_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path, ("configs/x#/../../evil", b"evil"))
    archive.write_bytes(archive.read_bytes().replace(b"x#/", b"x\x00/"))
    assert "leads out" in refusal(archive, tmp_path)


@pytest.mark.fault(168)
@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (stat.S_IFLNK | 0o777, "is a link"),
        (stat.S_IFCHR | 0o666, "is a device"),
        (stat.S_IFBLK | 0o666, "is a device"),
        (stat.S_IFIFO | 0o666, "is a device, a pipe"),
        (stat.S_IFSOCK | 0o666, "is a device, a pipe or a socket"),
        (stat.S_IFDIR | 0o777, "is a folder by its mode"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, mode: int, why: str) -> None:
    archive = zipped(tmp_path, ("configs/x", b""), (member("evil", mode), b"/etc/passwd"))
    assert why in refusal(archive, tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("model.pt", "model.pt"),
        ("model.pt", "MODEL.pt"),
        ("a/x", "A/y"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"),
        ("a", "a/b"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_some_file_system_takes_for_one_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    said = refusal(zipped(tmp_path, *((name, b"") for name in names)), tmp_path)
    assert "has the name of" in said or "differs from" in said or "is a file and a folder" in said


def test_a_file_that_would_grow_a_thousandfold_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    archive = zipped(tmp_path, ("models/model.pt", b"\x00" * 11 * 2**20), packed=zipfile.ZIP_DEFLATED)
    assert "would grow from" in refusal(archive, tmp_path)


@pytest.mark.fault(168)
def test_a_file_that_claims_ten_gigabytes_is_refused_at_its_word(tmp_path: Path) -> None:
    archive = zipped(tmp_path, ("models/model.pt", b"\x00" * 100))
    content = bytearray(archive.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    struct.pack_into("<I", content, directory + 24, 0xFFFFFFFE)
    archive.write_bytes(content)
    assert "would grow from 100 to 4294967294 bytes" in refusal(archive, tmp_path)
    large = Limits(ratio=2**40)
    other = tmp_path / "other"
    other.mkdir()
    assert "bytes" in refusal(archive, other, Limits(ratio=2**40, file_bytes=2**20))
    assert large.file_bytes > 0xFFFFFFFE, "and by the limits that hold, it would be too short for its claim:"
    third = tmp_path / "third"
    third.mkdir()
    assert "has 100 bytes and not the 4294967294 that it claims" in refusal(archive, third, large)


@pytest.mark.fault(168)
def test_a_file_that_has_more_than_it_claims_ends_where_its_claim_does(tmp_path: Path) -> None:
    archive = zipped(tmp_path, ("models/model.pt", b"\x00" * 900_000), packed=zipfile.ZIP_DEFLATED)
    content = bytearray(archive.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    struct.pack_into("<I", content, directory + 24, 10)
    archive.write_bytes(content)
    assert "not a sound zip archive" in refusal(archive, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("model.pt")) <= 10


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """The bomb that needs no ratio: many names for the same packed bytes."""
    archive = zipped(tmp_path, ("a", b"x" * 500), ("b", b"y" * 500))
    content = bytearray(archive.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    struct.pack_into("<I", content, directory + 42, 0)
    archive.write_bytes(content)
    assert "over another entry" in refusal(archive, tmp_path)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([(str(index), b"") for index in range(6)], "6 entries"),
        ([("a", b"x" * 1001)], "has 1001 bytes"),
        ([("a", b"x" * 900), ("b", b"x" * 900), ("c", b"x" * 900)], "has 2700 bytes"),
        ([], "is empty"),
    ],
)
def test_a_bundle_that_is_too_large_is_refused(tmp_path: Path, members: list[tuple[str, bytes]], why: str) -> None:
    assert why in refusal(zipped(tmp_path, *members), tmp_path, SMALL)
    source = tmp_path / "folder"
    source.mkdir()
    for name, content in members:
        (source / name).write_bytes(content)
    with pytest.raises(BundleRefused, match=why.replace("entries", "files")):
        copy(source, tmp_path / "copied", SMALL)


def test_what_is_encrypted_oddly_packed_or_no_archive_is_refused(tmp_path: Path) -> None:
    assert "packed by method 12" in refusal(zipped(tmp_path, ("a", b"x" * 99), packed=zipfile.ZIP_BZIP2), tmp_path)
    archive = zipped(tmp_path, ("a", b"x"))
    content = bytearray(archive.read_bytes())
    struct.pack_into("<H", content, content.rindex(b"PK\x01\x02") + 8, 1)
    archive.write_bytes(content)
    other = tmp_path / "2"
    other.mkdir()
    assert "is encrypted" in refusal(archive, other)
    archive.write_bytes(b"nothing of the kind")
    third = tmp_path / "3"
    third.mkdir()
    assert "not a sound zip archive" in refusal(archive, third)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_mutated_archive_does_more_than_be_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    archive = zipped(folder, ("configs/x.json", b"{}"), ("models/model.pt", b"abc" * 50), packed=zipfile.ZIP_DEFLATED)
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    archive.write_bytes(content)
    place = folder / "place"
    place.mkdir()
    with suppress(BundleRefused):
        unpack(archive, place / "target")
    assert all(each.startswith("target/") for each in everything_below(place))
    assert everything_below(folder)[0] == "bundle.zip"


def _link(folder: Path) -> None:
    (folder / "evil").symlink_to("/etc/passwd")


def _link_to_folder(folder: Path) -> None:
    (folder / "evil").symlink_to("/etc")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "evil")


def _socket(folder: Path) -> None:
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(folder / "evil"))
    bound.close()


@pytest.mark.fault(168)
@pytest.mark.parametrize("make", [_link, _link_to_folder, _pipe, _socket])
def test_a_folder_with_anything_but_files_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    source = tmp_path / "source"
    (source / "configs").mkdir(parents=True)
    (source / "configs/inference.json").write_text("{}")
    make(source)
    with pytest.raises(BundleRefused, match="'evil' is a"):
        copy(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_folder_is_copied_without_what_systems_leave_in_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("configs/inference.json", "scripts/__pycache__/x.pyc", ".git/config", "scripts/x.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    copy(source, tmp_path / "target")
    assert everything_below(tmp_path / "target") == ["configs/inference.json", "scripts/x.py"]
    assert (tmp_path / "target/scripts/x.py").read_text() == "scripts/x.py"
