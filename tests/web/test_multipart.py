"""Reading multipart bodies: what was written is what is found, however it is cut; and what is doubtful is malformed."""

import random
import time
from collections.abc import Sequence
from email.parser import BytesParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.web.multipart import Malformed, MultipartReader, PartBegins, PartData, PartEnds, TooManyParts

HEADERS = {"content-type": "application/dicom", "content-location": "x"}


def body_of(parts: Sequence[tuple[dict[str, str], bytes]], boundary: str = "b0und") -> bytes:
    pieces = []
    for headers, data in parts:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        pieces.append(f"--{boundary}\r\n{lines}\r\n".encode() + data + b"\r\n")
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


def read(
    body: bytes, cuts: Sequence[int] = (), boundary: str = "b0und", maximum_parts: int = 1000
) -> list[tuple[dict[str, str], bytes]]:
    """Return the parts that were whole, feeding the body in pieces."""
    reader = MultipartReader(boundary, maximum_parts=maximum_parts)
    parts: list[tuple[dict[str, str], bytes]] = []
    edges = [0, *sorted(cuts), len(body)]
    headers: dict[str, str] = {}
    data = b""
    for start, end in pairwise(edges):
        for event in reader.feed(body[start:end]):
            match event:
                case PartBegins():
                    headers, data = dict(event.headers), b""
                case PartData():
                    data += event.data
                case PartEnds():
                    parts.append((headers, data))
    reader.finish()
    return parts


# Bytes that delimiters are made of, so that almost-delimiters are common.
_data = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"b0", b"und", b"\r\n--b0un", b"x", b"\0\xff"])).map(
    b"".join
)


@given(st.lists(st.tuples(st.sampled_from([{}, HEADERS]), _data), min_size=1, max_size=5), st.data())
def test_parts_are_found_wherever_the_body_is_cut(
    parts: list[tuple[dict[str, str], bytes]], data: st.DataObject
) -> None:
    if any(b"\r\n--b0und" in b"\r\n" + each for _, each in parts):
        return
    body = body_of(parts)
    cuts = data.draw(st.lists(st.integers(0, len(body))))
    assert read(body, cuts) == parts
    assert read(body, range(len(body))) == parts
    # One witness that is not ours, where its own rules are the same: it knows no part without a header.
    if all(headers for headers, _ in parts):
        message = BytesParser().parsebytes(b"Content-Type: multipart/related; boundary=b0und\r\n\r\n" + body)
        assert len(message.get_payload()) == len(parts)


@given(st.lists(st.tuples(st.just(HEADERS), st.binary(max_size=30)), min_size=1, max_size=4), st.data())
def test_a_body_that_is_cut_is_never_whole(parts: list[tuple[dict[str, str], bytes]], data: st.DataObject) -> None:
    body = body_of(parts).removesuffix(b"\r\n")
    end = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(Malformed):
        read(body[:end])


@given(st.binary(max_size=300))
def test_any_bytes_are_parts_or_malformed(junk: bytes) -> None:
    for body in (junk, b"--b0und\r\n" + junk, b"--b0und\r\n\r\n" + junk, body_of([(HEADERS, b"x")]) + junk):
        try:
            read(body)
        except Malformed:
            continue


def test_changed_bodies_are_parts_or_malformed() -> None:
    chance = random.Random(20)
    good = body_of([(HEADERS, b"12345"), ({}, b""), (HEADERS, b"\r\n--b0un" * 3)])
    for _ in range(5000):
        body = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(body))
            match chance.randrange(3):
                case 0:
                    body[at] = chance.randrange(256)
                case 1:
                    del body[at : at + chance.randint(1, 9)]
                case _:
                    body[at:at] = chance.choice([b"\r\n", b"--b0und", b"\r\n--b0und\r\n", b"\r\n--b0und--", b":", b" "])
            if not body:
                break
        try:
            one = read(bytes(body))
        except Malformed as malformed:
            assert "12345" not in str(malformed)  # noqa: PT017  there is not always one
        else:
            assert read(bytes(body), range(len(body))) == one


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "ends before its last boundary"),
        (b"x" * 20_000, "does not begin with its boundary"),
        (b"--b0und", "ends before its last boundary"),
        (b"--b0und\r\n\r\ndata\r\n--b0und", "ends before its last boundary"),
        (b"--b0und\n\ndata\n--b0und--", "other bytes follow on the line of a boundary"),
        (b"--b0undX\r\n\r\ndata\r\n--b0und--", "other bytes follow on the line of a boundary"),
        (b"--b0und" + b" " * 5000, "other bytes follow on the line of a boundary"),
        (b"--b0und\r\n\r\ndata\r\n--b0und-x", "other bytes follow on the line of a boundary"),
        (b"--b0und\r\n\r\ndata\r\n--b0und--\r\n--b0und\r\n\r\nmore\r\n--b0und--", "behind the last boundary"),
        (b"--b0und\r\nA: " + b"x" * 20_000 + b"\r\n\r\nd\r\n--b0und--", "more than 16384 bytes of header fields"),
        (b"--b0und\r\nA: 1\r\na: 2\r\n\r\nd\r\n--b0und--", "there twice"),
        (b"--b0und\r\nno field\r\n\r\nd\r\n--b0und--", "is no header field"),
        (b"--b0und\r\nA : 1\r\n\r\nd\r\n--b0und--", "is no header field"),
        (b"--b0und\r\nA: 1\nB: 2\r\n\r\nd\r\n--b0und--", "is no header field"),
    ],
)
def test_what_is_doubtful_is_malformed(body: bytes, complaint: str) -> None:
    for cuts in ((), range(len(body))):
        with pytest.raises(Malformed, match=complaint):
            read(body, cuts)


def test_liberties_that_the_rules_give() -> None:
    body = b"a preamble\r\n--b0und  \t\r\nA:1\r\nB: two\r\n three \r\n\r\ndata\r\n--b0und--  \r\n\r\n"
    assert read(body) == [({"a": "1", "b": "two three"}, b"data")]


@pytest.mark.parametrize("boundary", ["", "a" * 201, "a ", "a\r\nb", "a;b", "ä", '"'])
def test_a_boundary_that_is_none(boundary: str) -> None:
    with pytest.raises(Malformed, match="boundary"):
        MultipartReader(boundary, maximum_parts=1)


def test_parts_are_counted() -> None:
    body = body_of([(HEADERS, b"x")] * 4)
    assert len(read(body, maximum_parts=4)) == 4
    with pytest.raises(TooManyParts):
        read(body, maximum_parts=3)


@pytest.mark.parametrize("unit", [b"\r\n--b0un", b"\r", b"\r\n-", b"--b0und", b" "])
def test_hostile_data_costs_no_more_than_other_data(unit: bytes) -> None:
    size = 2**22
    data = b"x" + (unit * (size // len(unit) + 1))[:size].rstrip(b"\r")
    body = body_of([(HEADERS, data)])
    started = time.process_time()
    reader = MultipartReader("b0und", maximum_parts=1)
    longest = 0
    total = 0
    for start in range(0, len(body), 2**16):
        for event in reader.feed(body[start : start + 2**16]):
            if isinstance(event, PartData):
                total += len(event.data)
                longest = max(longest, len(event.data))
    reader.finish()
    assert total == len(data)
    assert longest <= 2**16 + 100
    assert time.process_time() - started < 2


def test_hostile_header_fields_cost_no_more_than_others() -> None:
    body = b"--b0und\r\nA: " + b" " * 16_000 + b"x\r\n\r\nd\r\n--b0und--"
    started = time.process_time()
    assert read(body, range(0, len(body), 10))[0][0] == {"a": "x"}
    assert time.process_time() - started < 2
