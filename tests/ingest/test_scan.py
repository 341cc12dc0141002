import struct
import time
import tracemalloc
import zlib

import pytest
from encoded import SYNTAXES, Encoded, data_sets, deflated, encoded, explicit, item, written
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from meddaemon.ingest import scan
from meddaemon.ingest.deflate import MAXIMUM_INFLATED_BYTES, inflated
from meddaemon.ingest.header import IDENTITY, read_header

ITEM, ITEM_END, SEQUENCE_END = (struct.pack("<HHI", 0xFFFE, element, 0) for element in (0xE000, 0xE00D, 0xE0DD))
UNDEFINED = b"\xff\xff\xff\xff"
BEGIN = b"\x08\x00\x40\x11SQ\0\0" + UNDEFINED
"""(0008,1140) of undefined length in explicit VR little endian."""


def inflate(stream: bytes, *, limit: int = MAXIMUM_INFLATED_BYTES) -> bytes:
    with inflated(stream, DeflatedExplicitVRLittleEndian, limit=limit) as whole:
        return bytes(whole)


# --- laws --------------------------------------------------------------------------------------------------------


@given(encoded())
def test_what_pydicom_writes_is_whole(drawn: Encoded) -> None:
    scan.check(drawn.data, drawn.transfer_syntax_uid)


@pytest.mark.fault(48)
@given(encoded())
def test_every_cut_that_is_not_between_two_elements_is_refused(drawn: Encoded) -> None:
    for cut in range(len(drawn.data)):
        if cut in drawn.ends:
            scan.check(drawn.data[:cut], drawn.transfer_syntax_uid)
        else:
            with pytest.raises(scan.Malformed):
                scan.check(drawn.data[:cut], drawn.transfer_syntax_uid)


@pytest.mark.fault(65)
@given(encoded())
def test_every_cut_of_a_deflated_data_set_is_refused(drawn: Encoded) -> None:
    stream = deflated(drawn.data)
    assert inflate(stream) == drawn.data
    for cut in range(len(stream)):
        with pytest.raises(scan.Malformed):
            inflate(stream[:cut])


@given(st.binary(max_size=200), st.sampled_from(SYNTAXES))
def test_random_bytes_are_taken_or_malformed_and_nothing_else(data: bytes, syntax: str) -> None:
    _survives(data, syntax)


@given(encoded(), st.data())
def test_a_data_set_with_some_bytes_changed_is_taken_or_malformed_and_nothing_else(
    drawn: Encoded, data: st.DataObject
) -> None:
    changed = bytearray(drawn.data)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(changed) - 1))
        changed[position] = data.draw(st.sampled_from([0x00, 0xFF, 0xFE, 0x53, 0x51, changed[position] ^ 0x01]))
    _survives(bytes(changed), drawn.transfer_syntax_uid)


def _survives(data: bytes, syntax: str) -> None:
    try:
        scan.check(data, syntax)
    except scan.Malformed:
        return
    # What the scan lets through must be readable without an error, however odd it is.
    header = read_header(data, syntax)
    assert all(isinstance(component, str) for value in header.values() for component in value)
    assert set(IDENTITY) <= set(header)


@given(st.binary(max_size=300))
def test_random_bytes_are_inflated_or_malformed(data: bytes) -> None:
    try:
        inflate(data, limit=1000)
    except scan.Malformed:
        return


@given(data_sets(depth=2))
@settings(max_examples=30)
def test_the_other_byte_order_is_noticed(data_set: Dataset) -> None:
    data_set.Rows = 7
    with pytest.raises(scan.Malformed):
        scan.check(written(data_set, ExplicitVRBigEndian), ExplicitVRLittleEndian)
    with pytest.raises(scan.Malformed):
        scan.check(written(data_set, ExplicitVRLittleEndian), ExplicitVRBigEndian)


# --- what is refused, and why -------------------------------------------------------------------------------------

ROWS = explicit(0x0028, 0x0010, b"US", b"\x07\x00")
REFUSED = {
    "nothing": (b"", "empty"),
    "a header that is cut": (ROWS[:6], "cut"),
    "a value that is cut": (ROWS[:-1], "claims 2 bytes, 1 are there"),
    "a length beyond 2 GiB": (explicit(0x7FE0, 0x0010, b"OW", b"\0\0", length=0xFFFFFFF0), "claims 4294967280 bytes"),
    "elements in the wrong order": (ROWS + explicit(0x0008, 0x0060, b"CS", b"MR"), "(0008,0060) out of order"),
    "an element twice": (ROWS + ROWS, "out of order"),
    "a command element": (explicit(0x0000, 0x0100, b"US", b"\x01\0") + ROWS, "group 0000"),
    "file meta": (explicit(0x0002, 0x0010, b"UI", b"1.2\0") + ROWS, "group 0002"),
    "no VR": (struct.pack("<HHI", 0x0008, 0x0060, 2) + b"MR", "has no VR"),
    "an item at the top": (ITEM + ROWS, "where none belongs"),
    "an item delimiter at the top": (ITEM_END + ROWS, "an item delimiter where none belongs"),
    "a sequence delimiter at the top": (SEQUENCE_END + ROWS, "where none belongs"),
    "a sequence without its end": (BEGIN + item(ROWS), "cut"),
    "an item without its end": (BEGIN + item(ROWS, 0xFFFFFFFF) + SEQUENCE_END, "where none belongs"),
    "an element instead of an item": (BEGIN + ROWS + SEQUENCE_END, "(0028,0010) instead of an item"),
    "a delimiter with a length": (BEGIN + SEQUENCE_END[:4] + b"\x02\0\0\0", "instead of an item"),
    "an item longer than its sequence": (
        explicit(0x0008, 0x1140, b"SQ", item(ROWS, 12), length=18) + bytes(4),
        "claims 12 bytes, 10 are there",
    ),
    "an element longer than its item": (
        explicit(0x0008, 0x1140, b"SQ", item(ROWS[:8] + b"\x07", 9) + b"\0"),
        "claims 2 bytes, 1 are there",
    ),
    "an open item that leaves its sequence": (
        explicit(0x0008, 0x1140, b"SQ", item(ROWS, 0xFFFFFFFF)) + ITEM_END,
        "runs past",
    ),
    "undefined length on a short text": (explicit(0x0008, 0x103E, b"UT", b"", length=0xFFFFFFFF), "undefined length"),
    "fragments in a native syntax": (
        explicit(0x7FE0, 0x0010, b"OB", ITEM + SEQUENCE_END, length=0xFFFFFFFF),
        "encapsulated pixel data in a native",
    ),
}


@pytest.mark.fault(48, 50, 55, 57)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_well_formed_is_refused_with_its_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(scan.Malformed) as refused:
        scan.check(data, ExplicitVRLittleEndian)
    assert reason in str(refused.value)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, RLELossless])
def test_pixels_must_be_encapsulated_where_the_syntax_says_so(syntax: str) -> None:
    with pytest.raises(scan.Malformed, match="native pixel data"):
        scan.check(explicit(0x7FE0, 0x0010, b"OW", b"\0\0"), syntax)
    scan.check(explicit(0x7FE0, 0x0010, b"OB", ITEM + item(b"ab") + SEQUENCE_END, length=0xFFFFFFFF), syntax)
    with pytest.raises(scan.Malformed, match="fragment of undefined length"):
        scan.check(explicit(0x7FE0, 0x0010, b"OB", item(b"ab", 0xFFFFFFFF), length=0xFFFFFFFF), syntax)


ICON = explicit(
    0x0088,
    0x0200,
    b"SQ",
    item(explicit(0x0028, 0x0010, b"US", b"\x01\0") + explicit(0x7FE0, 0x0010, b"OB", b"\0\0")),
)
TAKEN = {
    "trailing padding": ROWS + explicit(0xFFFC, 0xFFFC, b"OB", bytes(10)),
    "a VR that is not known yet": struct.pack("<HH2sHI", 0x0028, 0x0010, b"ZZ", 0, 2) + b"\0\0",
    "private elements": explicit(0x0009, 0x0010, b"LO", b"US") + explicit(0x0009, 0x1001, b"UN", b"\1\2"),
    "UN of undefined length, implicit inside (PS3.5 6.2.2)": explicit(
        0x0009, 0x1001, b"UN", item(struct.pack("<HHI", 0x28, 0x10, 2) + b"\1\0") + SEQUENCE_END, length=0xFFFFFFFF
    ),
    "an icon with native pixels": ICON,
    "odd lengths": explicit(0x0008, 0x0060, b"CS", b"OPT"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_unusual_but_whole_is_taken(name: str) -> None:
    scan.check(TAKEN[name], ExplicitVRLittleEndian)


# --- what would hurt ----------------------------------------------------------------------------------------------


@pytest.mark.fault(52)
@pytest.mark.parametrize("depth", [10_000, 100_000])
def test_hostile_nesting_is_refused_at_once(depth: int) -> None:
    implicit_level = b"\x08\x00\x40\x11" + UNDEFINED + b"\xfe\xff\x00\xe0" + UNDEFINED
    explicit_level = BEGIN + b"\xfe\xff\x00\xe0" + UNDEFINED
    closed = (ITEM_END + SEQUENCE_END) * depth
    for data, syntax in (
        (explicit_level * depth + closed, ExplicitVRLittleEndian),
        (explicit_level * depth, ExplicitVRLittleEndian),
        (implicit_level * depth + closed, ImplicitVRLittleEndian),
    ):
        started = time.perf_counter()
        with pytest.raises(scan.Malformed, match="nested deeper than 64"):
            scan.check(data, syntax)
        assert time.perf_counter() - started < 0.5


@pytest.mark.fault(51)
def test_nesting_up_to_the_limit_is_taken_and_can_be_read() -> None:
    level = BEGIN + b"\xfe\xff\x00\xe0" + UNDEFINED
    data = level * scan.MAXIMUM_DEPTH + ROWS + (ITEM_END + SEQUENCE_END) * scan.MAXIMUM_DEPTH
    scan.check(data, ExplicitVRLittleEndian)
    assert read_header(data, ExplicitVRLittleEndian)["Rows"] == ()
    one_more = level * (scan.MAXIMUM_DEPTH + 1) + (ITEM_END + SEQUENCE_END) * (scan.MAXIMUM_DEPTH + 1)
    with pytest.raises(scan.Malformed, match="nested deeper"):
        scan.check(one_more, ExplicitVRLittleEndian)


@pytest.mark.fault(53)
def test_a_million_elements_are_walked_in_linear_time() -> None:
    content = item(explicit(0x0008, 0x0060, b"CS", b"MR") + explicit(0x0028, 0x0010, b"US", b"\1\0"))

    def seconds(items: int) -> float:
        data = explicit(0x0008, 0x1140, b"SQ", content * items)
        started = time.process_time()
        scan.check(data, ExplicitVRLittleEndian)
        return time.process_time() - started

    assert seconds(40_000) < 20 * max(seconds(10_000), 0.01)


def test_a_deflate_bomb_costs_no_more_than_its_limit() -> None:
    machine = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(machine.compress(bytes(2**20)) for _ in range(200)) + machine.flush()
    assert len(bomb) < 300_000
    tracemalloc.start()
    try:
        with pytest.raises(scan.Malformed, match="larger than 1000000 bytes"):
            inflate(bomb, limit=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_data_set_of_exactly_the_limit_is_inflated() -> None:
    data = bytes(range(256)) * 100
    assert inflate(deflated(data), limit=len(data)) == data
    with pytest.raises(scan.Malformed):
        inflate(deflated(data), limit=len(data) - 1)


@pytest.mark.fault(64, 65)
def test_what_follows_the_deflated_data_set_is_refused_unless_it_is_padding() -> None:
    stream = deflated(ROWS)
    assert inflate(stream + b"\0") == ROWS  # PS3.5 A.5: padded to even length
    assert inflate(stream + struct.pack("<II", zlib.crc32(ROWS), len(ROWS))) == ROWS  # as gzip ends
    for rest in (b"MZ\x90\x00", b"\0\0", struct.pack("<II", zlib.crc32(ROWS) ^ 1, len(ROWS))):
        with pytest.raises(scan.Malformed, match="follow after"):
            inflate(stream + rest)
