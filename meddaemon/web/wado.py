"""The Retrieve Transaction of DICOMweb (WADO-RS, PS3.18 section 10.4), over what was received and current results.

Objects leave as they are stored, or in Explicit VR Little Endian where that takes no decoder: what came compressed is
never decompressed here, because a decoder is no thing to give a stranger's bytes to in a process that holds tokens.
Nothing is read to memory as a whole but the elements of one object's header.
"""

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from meddaemon.db.catalogue import SeenObject, seen_objects
from meddaemon.ingest.receive import is_uid
from meddaemon.ingest.store import meta_of
from meddaemon.telemetry import log
from meddaemon.web import dicom_json
from meddaemon.web.authentication import reader_of
from meddaemon.web.elements import Element, as_explicit, in_little_endian, read_elements
from meddaemon.web.media_types import MediaType, accepted, preferred
from meddaemon.web.pixel_frames import OCTETS, Frames, NoFrames
from meddaemon.web.reads import Archive, Reads, opened
from meddaemon.web.refusals import refusal
from meddaemon.web.settings import ReadSettings
from meddaemon.web.urls import root_of

DICOM = "application/dicom"
METADATA = (dicom_json.MEDIA_TYPE, "application/json")
MAXIMUM_FRAMES = 1000
"""Of one request."""
MAXIMUM_DEPTH = 64
_EXPLICIT = str(ExplicitVRLittleEndian)
_NATIVE = frozenset(
    map(str, (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian))
)
_PIECE = 2**20
_FRAME_NUMBER = re.compile(r"[0-9]{1,9}")
_INSTANCE = "studies/{study}/series/{series}/instances/{instance}"
_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_log = log(__name__)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One part of a multipart answer: what it is, and its bytes as they are read."""

    media_type: str
    pieces: Callable[[], Iterator[bytes | memoryview]]


class RetrieveTransaction:
    """Serves Retrieve Transactions."""

    def __init__(self, archive: Archive, reads: Reads, settings: ReadSettings) -> None:
        self._archive = archive
        self._reads = reads
        self._settings = settings

    @property
    def routes(self) -> list[BaseRoute]:
        """The resources of the transaction (PS3.18 Tables 10.4.1-1 to -4), but for rendered ones."""
        served: dict[str, Callable[[Request], Awaitable[Response]]] = {}
        for path in ("studies/{study}", "studies/{study}/series/{series}", _INSTANCE):
            served |= {path: self._objects, f"{path}/metadata": self._metadata}
        served |= {f"{_INSTANCE}/frames/{{frames}}": self._frames, f"{_INSTANCE}/bulkdata/{{place:path}}": self._bulk}
        return [
            Route(f"/dicom-web/{path}", self._reads.limited(serve), methods=["GET"]) for path, serve in served.items()
        ]

    async def _objects(self, request: Request) -> Response:
        ranges = accepted(_accept(request))
        seen = await self._seen(request)
        single = "instance" in request.path_params and _prefers_single(ranges)
        syntaxes = _syntaxes(ranges, single=single)
        usable = [each for each in seen if _written_in(each, syntaxes)]
        if not usable:
            raise refusal(
                HTTPStatus.NOT_ACCEPTABLE,
                "objects leave as they are stored (transfer-syntax=*), and in explicit VR little endian where that "
                "takes no decoder",
            )
        there = await self._reads.run(lambda: self._there(usable))
        self._tell(request, "objects", len(there))
        parts = [self._part(each, _written_in(each, syntaxes)) for each in there]
        if single:
            headers = {**_SAFE, "Content-Type": parts[0].media_type}
            return StreamingResponse(_gathered(parts[0].pieces()), HTTPStatus.OK, headers)
        return _multipart(parts, DICOM, _status(there, seen))

    async def _metadata(self, request: Request) -> Response:
        media_type = preferred(_accept(request), METADATA)
        if media_type is None:
            raise refusal(HTTPStatus.NOT_ACCEPTABLE, f"metadata can be {', '.join(METADATA)}")
        root = root_of(request, self._settings.public_url)
        seen = await self._seen(request)
        there = await self._reads.run(lambda: self._there(seen))
        self._tell(request, "metadata", len(there))
        # The first before the answer begins: what fails then can still be said.
        first = await self._reads.run(lambda: self._described(there[0], root))

        def pieces() -> Iterator[bytes]:
            yield b"[" + first
            for each in there[1:]:
                yield b"," + self._described(each, root)
            yield b"]"

        return StreamingResponse(pieces(), _status(there, seen), _SAFE, media_type)

    async def _frames(self, request: Request) -> Response:
        written = request.path_params["frames"].split(",")
        if len(written) > MAXIMUM_FRAMES or not all(_FRAME_NUMBER.fullmatch(each) for each in written):
            reason = f"frames are a list of at most {MAXIMUM_FRAMES} numbers that begin with 1"
            raise refusal(HTTPStatus.BAD_REQUEST, reason)
        numbers = list(map(int, written))
        ranges = accepted(_accept(request))
        (seen,) = await self._one(request)

        def cut() -> Response:
            with opened(self._archive.path(seen)) as stored:
                elements = read_elements(stored.data, stored.transfer_syntax_uid)
                frames = Frames(elements, stored.transfer_syntax_uid)
                return _answer(frames, frames.cut(numbers), ranges, stored.transfer_syntax_uid)

        self._tell(request, "frames", len(numbers))
        return await self._cut(cut)

    async def _bulk(self, request: Request) -> Response:
        place = request.path_params["place"].split("/")
        ranges = accepted(_accept(request))
        (seen,) = await self._one(request)

        def cut() -> Response:
            with opened(self._archive.path(seen)) as stored:
                elements = read_elements(stored.data, stored.transfer_syntax_uid)
                element = _at(elements, place)
                if element.fragments is not None:
                    frames = Frames(elements, stored.transfer_syntax_uid)
                    numbers = range(1, min(frames.count, MAXIMUM_FRAMES) + 1)
                    return _answer(frames, frames.cut(numbers), ranges, stored.transfer_syntax_uid)
                return _octets([[in_little_endian(element)]], ranges)

        self._tell(request, "bulk data", 1)
        return await self._cut(cut)

    async def _cut(self, cut: Callable[[], Response]) -> Response:
        try:
            return await self._reads.run(cut)
        except NoFrames as none:
            raise refusal(HTTPStatus.NOT_FOUND, str(none)) from none

    async def _one(self, request: Request) -> list[SeenObject]:
        seen = await self._seen(request)
        await self._reads.run(lambda: self._there(seen))
        return seen[:1]

    async def _seen(self, request: Request) -> list[SeenObject]:
        """Return the objects that the path names."""
        named: Mapping[str, str] = request.path_params
        uids = {level: named.get(level, "") for level in ("study", "series", "instance")}
        if not all(is_uid(uid) for level, uid in uids.items() if level in named):
            raise refusal(HTTPStatus.BAD_REQUEST, "what the path names is no UID")

        def find() -> list[SeenObject]:
            with self._archive.database.read() as connection:
                return seen_objects(
                    connection,
                    uids["study"],
                    series_instance_uid=uids["series"],
                    sop_instance_uid=uids["instance"],
                )

        seen = await self._reads.run(find)
        if not seen:
            raise refusal(HTTPStatus.NOT_FOUND, "there is no such object here")
        return seen

    def _there(self, seen: Sequence[SeenObject]) -> list[SeenObject]:
        """Return those whose files are there, which must be one at least."""
        self._archive.require_there()
        there = [each for each in seen if self._archive.path(each).is_file()]
        if not there:
            raise refusal(HTTPStatus.NOT_FOUND, "the stored files are gone")
        return there

    def _part(self, seen: SeenObject, syntax: str) -> _Part:
        path = self._archive.path(seen)
        media_type = f"{DICOM}; transfer-syntax={syntax}"
        if syntax == seen.transfer_syntax_uid:
            return _Part(media_type=media_type, pieces=lambda: _file(path))
        return _Part(media_type=media_type, pieces=lambda: _explicit(path, seen))

    def _described(self, seen: SeenObject, root: str) -> bytes:
        url = (
            f"{root}/studies/{seen.study_instance_uid}/series/{seen.series_instance_uid}"
            f"/instances/{seen.sop_instance_uid}/bulkdata"
        )
        with opened(self._archive.path(seen)) as stored:
            elements = read_elements(stored.data, stored.transfer_syntax_uid)
            data_set = dicom_json.data_set(elements, lambda place: f"{url}/{place}")
        return json.dumps(data_set, separators=(",", ":")).encode()

    @staticmethod
    def _tell(request: Request, what: str, number: int) -> None:
        study = request.path_params["study"]
        _log.info("read by DICOMweb", reader=reader_of(request), what=what, number=number, study_instance_uid=study)


def _accept(request: Request) -> str:
    return request.query_params.get("accept") or request.headers.get("accept", "")


def _status(given: Sequence[SeenObject], asked: Sequence[SeenObject]) -> HTTPStatus:
    """Return whether this is all, or some of what was asked for (PS3.18 10.4.3)."""
    return HTTPStatus.OK if len(given) == len(asked) else HTTPStatus.PARTIAL_CONTENT


def _type_of(media_range: MediaType) -> str:
    """Return what the parts of an answer in this range are; `*/*` for anything."""
    if media_range.name in {"multipart/related", "multipart/*"}:
        return media_range.parameters.get("type", "*/*").lower()
    return media_range.name


def _prefers_single(ranges: Sequence[MediaType]) -> bool:
    """Return whether the object itself is wanted rather than a multipart body with it."""
    fitting = [each for each in ranges if _type_of(each) in {DICOM, "*/*"}]
    return bool(fitting) and fitting[0].name == DICOM


def _syntaxes(ranges: Sequence[MediaType], *, single: bool) -> list[str]:
    """Return the transfer syntaxes that are welcome; "" stands for no word about it."""
    wanted = [
        each.parameters.get("transfer-syntax", "")
        for each in ranges
        if _type_of(each) in {DICOM, "*/*"} and (single or each.name != DICOM)
    ]
    if not wanted:
        raise refusal(HTTPStatus.NOT_ACCEPTABLE, f'objects are multipart/related; type="{DICOM}"')
    return wanted


def _written_in(seen: SeenObject, wanted: Sequence[str]) -> str:
    """Return the transfer syntax that an object leaves in, "" where none that is welcome can be had.

    Whoever says none gets Explicit VR Little Endian (PS3.18 8.7.3.5.2), and what is compressed as it is, named so.
    """
    stored = seen.transfer_syntax_uid
    if "*" in wanted or stored in wanted:
        return stored
    if stored in _NATIVE and (_EXPLICIT in wanted or "" in wanted):
        return _EXPLICIT
    return stored if "" in wanted else ""


def _file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _explicit(path: Path, seen: SeenObject) -> Iterator[bytes | memoryview]:
    """Yield an object in Explicit VR Little Endian as a Part 10 file (PS3.10 7.1)."""
    with opened(path) as stored:
        yield meta_of(
            sop_class_uid=seen.sop_class_uid,
            sop_instance_uid=seen.sop_instance_uid,
            transfer_syntax_uid=_EXPLICIT,
        )
        if stored.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            yield from _pieces(stored.data)
        else:
            for value in as_explicit(read_elements(stored.data, stored.transfer_syntax_uid)):
                yield from _pieces(value)


def _pieces(value: bytes | memoryview) -> Iterator[bytes | memoryview]:
    for begin in range(0, len(value), _PIECE):
        yield value[begin : begin + _PIECE]


def _gathered(pieces: Iterator[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the same bytes in pieces that are worth a step each."""
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) >= _PIECE:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _multipart(parts: Sequence[_Part], kind: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    boundary = secrets.token_hex(16)

    def pieces() -> Iterator[bytes | memoryview]:
        for part in parts:
            yield f"--{boundary}\r\nContent-Type: {part.media_type}\r\n\r\n".encode()
            yield from part.pieces()
            yield b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    headers = {**_SAFE, "Content-Type": f'multipart/related; type="{kind}"; boundary={boundary}'}
    return StreamingResponse(_gathered(pieces()), status, headers)


def _answer(
    frames: Frames, cut: Sequence[Sequence[memoryview]], ranges: Sequence[MediaType], transfer_syntax_uid: str
) -> Response:
    """Return frames in the form that is asked for: octets, or as they are encapsulated."""
    if not frames.is_encapsulated:
        return _octets(cut, ranges)
    for each in ranges:
        kind, syntax = _type_of(each), each.parameters.get("transfer-syntax", "")
        own = kind in {frames.media_type, "*/*"} and syntax in {"", "*", transfer_syntax_uid}
        if own or (kind == OCTETS and syntax in {"*", transfer_syntax_uid}):
            media_type = frames.media_type if own else OCTETS
            return _values(cut, media_type, f"{media_type}; transfer-syntax={transfer_syntax_uid}", each)
    raise refusal(
        HTTPStatus.NOT_ACCEPTABLE,
        f"the frames are compressed and leave as they are: {frames.media_type}; transfer-syntax={transfer_syntax_uid}",
    )


def _octets(values: Sequence[Sequence[memoryview]], ranges: Sequence[MediaType]) -> Response:
    for each in ranges:
        if _type_of(each) in {OCTETS, "*/*"} and each.parameters.get("transfer-syntax", "*") in {"*", _EXPLICIT}:
            return _values(values, OCTETS, f"{OCTETS}; transfer-syntax={_EXPLICIT}", each)
    raise refusal(HTTPStatus.NOT_ACCEPTABLE, f"these values are {OCTETS}; transfer-syntax={_EXPLICIT}")


def _values(values: Sequence[Sequence[memoryview]], kind: str, media_type: str, wanted: MediaType) -> Response:
    """Return values that are slices of a mapped file, which stays as long as they do."""

    def part(value: Sequence[memoryview]) -> _Part:
        return _Part(media_type=media_type, pieces=lambda: (piece for each in value for piece in _pieces(each)))

    parts = [part(value) for value in values]
    if len(parts) == 1 and wanted.name == kind:
        return StreamingResponse(_gathered(parts[0].pieces()), HTTPStatus.OK, {**_SAFE, "Content-Type": media_type})
    return _multipart(parts, kind)


def _at(elements: Sequence[Element], place: Sequence[str]) -> Element:
    """Return the element at a place: tag, or tag/item/tag, items counted from 0."""
    if len(place) > 2 * MAXIMUM_DEPTH or len(place) % 2 == 0:
        raise refusal(HTTPStatus.NOT_FOUND, "there is no such value")
    inside: Sequence[Element] = elements
    for tag, item in zip(place[:-1:2], place[1::2], strict=True):
        found = next((each for each in inside if dicom_json.tag_name(each.tag) == tag and each.items is not None), None)
        items = found.items or () if found is not None else ()
        if not (item.isascii() and item.isdigit() and len(item) < 7 and int(item) < len(items)):
            raise refusal(HTTPStatus.NOT_FOUND, "there is no such value")
        inside = items[int(item)]
    last = next((each for each in inside if dicom_json.tag_name(each.tag) == place[-1] and each.items is None), None)
    if last is None:
        raise refusal(HTTPStatus.NOT_FOUND, "there is no such value")
    return last
