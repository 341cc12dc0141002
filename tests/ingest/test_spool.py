"""Objects on their way in: whatever their size and however they come, what is read is what was taken."""

import tempfile
from pathlib import Path

import pytest
from encoded import Encoded, encoded, written
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from meddaemon.domain.errors import StoreUnavailable
from meddaemon.ingest import scan
from meddaemon.ingest.header import read_header
from meddaemon.ingest.part10 import parse_part10
from meddaemon.ingest.spool import Spool
from meddaemon.ingest.store import InstanceStore, as_part10


def spooled(content: bytes, memory_bytes: int = 0, size: int = 2**16) -> Spool:
    """Return a spool that took the content in pieces of a size."""
    spool = Spool(tempfile.TemporaryFile, lambda size: None, memory_bytes=memory_bytes)
    for start in range(0, len(content), size):
        if spool.add(content[start : start + size]):
            spool.flush()
    return spool


@given(st.binary(max_size=200), st.integers(1, 50), st.integers(0, 250), st.data())
def test_what_was_taken_is_what_is_read(content: bytes, size: int, memory_bytes: int, data: st.DataObject) -> None:
    spool = spooled(content, memory_bytes, size)
    read = spool.content()
    assert (len(read), read[:], spool.size) == (len(content), content, len(content))
    for _ in range(5):
        start, stop = data.draw(st.integers(0, 250)), data.draw(st.integers(0, 250))
        assert read[start:stop] == content[start:stop]
    assert isinstance(read, memoryview) or len(content) <= memory_bytes
    spool.close()


@given(encoded(), st.data())
def test_a_data_set_in_a_file_is_judged_as_one_in_memory(one: Encoded, data: st.DataObject) -> None:
    """Whole or cut: the same header, or the same complaint."""
    cut = one.data[: data.draw(st.integers(0, len(one.data)))]
    outcomes: list[object] = []
    spool = spooled(cut)
    for octets in (cut, spool.content()):
        try:
            outcomes.append(read_header(octets, one.transfer_syntax_uid))
        except scan.Malformed as malformed:
            outcomes.append(str(malformed))
    assert outcomes[0] == outcomes[1]
    spool.close()


def ct(size: int) -> bytes:
    data_set = Dataset()
    data_set.SOPClassUID, data_set.SOPInstanceUID = CTImageStorage, "2.25.1"
    data_set.add_new(0x7FE00010, "OW", b"\x12\x34" * (size // 2))
    return written(data_set, ExplicitVRLittleEndian)


def test_a_file_and_memory_are_stored_as_the_same_object(tmp_path: Path) -> None:
    named = {
        "sop_class_uid": CTImageStorage,
        "sop_instance_uid": "2.25.1",
        "transfer_syntax_uid": ExplicitVRLittleEndian,
    }
    content = as_part10(ct(3_000_000), **named)
    store = InstanceStore(tmp_path, minimum_free_bytes=0)
    digests = []
    for memory_bytes in (2**30, 2**16):
        spool = store.spool(memory_bytes=memory_bytes)
        for start in range(0, len(content), 50_000):
            if spool.add(content[start : start + 50_000]):
                spool.flush()
        incoming = parse_part10(spool.content())
        assert isinstance(incoming.data, bytes) is (memory_bytes == 2**30)
        stored = store.put(incoming.data, **named)
        assert store.path(stored.sha256).read_bytes() == content
        assert stored.size == len(content)
        digests.append(stored.sha256)
        spool.close()
    assert digests[0] == digests[1]
    assert [path.name for path in (tmp_path / "incoming").rglob("*") if path.is_file()] == ["lock"] * 2
    store.close()


def test_a_spool_asks_for_room_before_every_piece(tmp_path: Path) -> None:
    store = InstanceStore(tmp_path, minimum_free_bytes=2**62)
    spool = store.spool(memory_bytes=10)
    assert spool.add(b"0123456789")
    with pytest.raises(StoreUnavailable, match="must stay free"):
        spool.flush()
    store.close()
