"""The Search Transaction of DICOMweb (QIDO-RS, PS3.18 section 10.6), over what was received and current results.

Everything is answered from the index: no file is opened. Keys are matched as `matching` says; what certainly holds of
them narrows what the database gives. A search that would look at too much is refused with a reason, not cut.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from itertools import islice

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from meddaemon.db.catalogue import (
    Extent,
    Narrowing,
    SeenObject,
    SeenStudy,
    extents,
    seen_objects,
    seen_studies,
)
from meddaemon.db.engine import Connection
from meddaemon.ingest.header import DESCRIBING
from meddaemon.telemetry import log
from meddaemon.web.authentication import reader_of
from meddaemon.web.dicom_json import MEDIA_TYPE, Json, attribute, described
from meddaemon.web.matching import Header, InvalidQuery, Key, keyword_of, parse_key
from meddaemon.web.media_types import preferred
from meddaemon.web.reads import Archive, Reads
from meddaemon.web.refusals import refusal
from meddaemon.web.settings import ReadSettings
from meddaemon.web.urls import root_of

OFFERED = (MEDIA_TYPE, "application/json")
MAXIMUM_KEYS = 32
MAXIMUM_OFFSET = 100_000
MAXIMUM_STUDIES = 20_000
MAXIMUM_OBJECTS = 200_000
"""How many one search looks at; one that needs more is to be narrower."""
_log = log(__name__)
_DECIMAL = re.compile(r"[0-9]{1,9}")
_PRIVATE = re.compile(r"[0-9A-Fa-f]{3}[13579BDFbdf][0-9A-Fa-f]{4}")
# What is asked for by a switch and not done, in the words of PS3.18 8.3.4.2, 8.3.4.5 and 8.3.4.6.
_UNSUPPORTED = {
    "fuzzymatching": "Only literal matching has been performed.",
    "emptyvaluematching": "Empty Value Matching has not been performed.",
    "multiplevaluematching": "Multiple Value Matching has not been performed.",
}
_CONTROLS = ("limit", "offset", "includefield", "accept", *_UNSUPPORTED)


class Level(IntEnum):
    """What is searched for (PS3.18 10.6.1)."""

    STUDY = 0
    SERIES = 1
    INSTANCE = 2


_COMPUTED = {
    "ModalitiesInStudy": Level.STUDY,
    "NumberOfStudyRelatedSeries": Level.STUDY,
    "NumberOfStudyRelatedInstances": Level.STUDY,
    "NumberOfSeriesRelatedInstances": Level.SERIES,
}
_COUNTS = frozenset(_COMPUTED) - {"ModalitiesInStudy"}
_RETURNED: Mapping[Level, tuple[str, ...]] = {
    Level.STUDY: (
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "TimezoneOffsetFromUTC",
        "StudyDescription",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
    ),
    Level.SERIES: (
        "Modality",
        "SeriesDescription",
        "SeriesInstanceUID",
        "SeriesNumber",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
    ),
    Level.INSTANCE: (
        "SOPClassUID",
        "SOPInstanceUID",
        "InstanceNumber",
        "Rows",
        "Columns",
        "BitsAllocated",
        "NumberOfFrames",
    ),
}
"""What every answer has of a level, as far as it is known (PS3.18 Tables 10.6.3-3 to -5)."""
_REQUIRED = frozenset(
    {"StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID"}
    | {"PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "Modality", "SeriesInstanceUID", "SeriesNumber"}
)
"""What it has without a value where nothing is known (type R there)."""
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_MORE: Mapping[Level, tuple[str, ...]] = {
    Level.STUDY: ("IssuerOfPatientID", "PatientAge"),
    Level.SERIES: (
        "BodyPartExamined",
        "FrameOfReferenceUID",
        "Laterality",
        "Manufacturer",
        "ManufacturerModelName",
        "PatientPosition",
        "ProtocolName",
        "StationName",
    ),
    Level.INSTANCE: (),
}
_LEVEL_OF: Mapping[str, Level] = {
    **dict.fromkeys(DESCRIBING, Level.INSTANCE),
    **{name: level for level in Level for name in (*_RETURNED[level], *_MORE[level])},
    **_COMPUTED,
}
"""Every attribute that can be asked for, and what it is an attribute of."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search: keys by level, what is returned beyond the usual, and which page of the matches."""

    level: Level
    keys: Mapping[str, Key]
    included: frozenset[str]
    limit: int
    offset: int
    given: frozenset[Level] = frozenset()
    """The levels that the path names: whoever asks knows what they are."""
    warnings: tuple[str, ...] = ()

    def met_by(self, level: Level, header: Header) -> bool:
        """Return whether all keys of one level are met."""
        return all(
            key.met_by(header.get(keyword, ())) for keyword, key in self.keys.items() if _LEVEL_OF[keyword] is level
        )

    def attributes(self, level: Level, header: Header) -> Json:
        """Return what an answer says of one level."""
        asked = [name for name in (*self.keys, *sorted(self.included)) if _LEVEL_OF[name] is level]
        usual = _UIDS if level in self.given else _RETURNED[level]
        known = [
            name for name in usual if _LEVEL_OF[name] is level and (name in _REQUIRED or any(header.get(name, ())))
        ]
        names = dict.fromkeys(name for name in (*known, *asked) if name not in _COMPUTED)
        return described(header, tuple(names))

    @property
    def narrowing(self) -> Narrowing:
        """What the database may leave out, because it cannot match."""

        def exact(keyword: str) -> tuple[str, ...]:
            key = self.keys.get(keyword)
            return key.exact or () if key is not None else ()

        dates = self.keys.get("StudyDate")
        first, last = dates.bounds if dates is not None and dates.bounds is not None else ("", "")
        modalities = exact("ModalitiesInStudy") or exact("Modality")
        return Narrowing(
            studies=exact("StudyInstanceUID"),
            series=exact("SeriesInstanceUID"),
            instances=exact("SOPInstanceUID"),
            patient_ids=exact("PatientID"),
            accession_numbers=exact("AccessionNumber"),
            modalities=modalities,
            first_date=first,
            last_date=last,
        )


class SearchTransaction:
    """Serves Search Transactions."""

    def __init__(self, archive: Archive, reads: Reads, settings: ReadSettings) -> None:
        self._archive = archive
        self._reads = reads
        self._settings = settings

    @property
    def routes(self) -> list[BaseRoute]:
        """The resources of the transaction (PS3.18 Table 10.6.1-1)."""
        resources = (
            ("studies", Level.STUDY),
            ("series", Level.SERIES),
            ("instances", Level.INSTANCE),
            ("studies/{study}/series", Level.SERIES),
            ("studies/{study}/instances", Level.INSTANCE),
            ("studies/{study}/series/{series}/instances", Level.INSTANCE),
        )
        return [
            Route(f"/dicom-web/{path}", self._reads.limited(self._serving(level)), methods=["GET"])
            for path, level in resources
        ]

    def _serving(self, level: Level) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            return await self._serve(request, level)

        return serve

    async def _serve(self, request: Request, level: Level) -> Response:
        media_type = preferred(request.query_params.get("accept") or request.headers.get("accept", ""), OFFERED)
        if media_type is None:
            raise refusal(HTTPStatus.NOT_ACCEPTABLE, f"the answer can be {', '.join(OFFERED)}")
        try:
            wanted = parse_search(
                level, request.query_params.multi_items(), request.path_params, self._settings.maximum_matches
            )
        except InvalidQuery as invalid:
            raise refusal(HTTPStatus.BAD_REQUEST, str(invalid)) from invalid
        root = root_of(request, self._settings.public_url)

        def find() -> tuple[list[Json], bool]:
            with self._archive.database.read() as connection:
                found = list(islice(_found(connection, wanted, root), wanted.offset, wanted.offset + wanted.limit + 1))
            return found[: wanted.limit], len(found) > wanted.limit

        found, more = await self._reads.run(find)
        _log.info("answered a search", reader=reader_of(request), what=level.name.lower(), matches=len(found))
        warnings = [*wanted.warnings, *(["There are additional results that can be requested"] if more else [])]
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        if warnings:
            headers["Warning"] = ", ".join(f'299 meddaemon "{each}"' for each in warnings)
        if not found:
            return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)
        return Response(json.dumps(found, separators=(",", ":")).encode(), HTTPStatus.OK, headers, media_type)


def parse_search(
    level: Level, parameters: Sequence[tuple[str, str]], path: Mapping[str, str], maximum_matches: int
) -> Search:
    """Return what a query asks (PS3.18 8.3.4); `path` names study and series by UID. Raises InvalidQuery."""
    keys = _given(path)
    given = frozenset(_LEVEL_OF[keyword] for keyword in keys)
    controls: dict[str, list[str]] = {name: [] for name in _CONTROLS}
    for name, value in parameters:
        if name in controls:
            controls[name].append(value)
            continue
        keyword = _key_of(name, level)
        if keyword in keys:
            raise InvalidQuery(f"{keyword} is asked twice")
        keys[keyword] = parse_key(keyword, value)
    if len(keys) > MAXIMUM_KEYS:
        raise InvalidQuery(f"more than {MAXIMUM_KEYS} keys")
    offset = _number("offset", controls["offset"], 0)
    if offset > MAXIMUM_OFFSET:
        raise InvalidQuery(f"offset is beyond {MAXIMUM_OFFSET}: narrow the search instead")
    return Search(
        level=level,
        keys=keys,
        included=frozenset(name for value in controls["includefield"] for name in _included(value, level)),
        limit=min(_number("limit", controls["limit"], maximum_matches), maximum_matches),
        offset=offset,
        given=given,
        warnings=tuple(warning for name in _UNSUPPORTED for warning in _warnings(name, controls[name])),
    )


def _given(path: Mapping[str, str]) -> dict[str, Key]:
    """Return the keys that a path says."""
    keys: dict[str, Key] = {}
    for part, keyword in (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID")):
        if part in path:
            keys[keyword] = parse_key(keyword, path[part])
            if len(keys[keyword].exact or ()) != 1:
                raise InvalidQuery(f"the {part} in the path is not a UID")
    return keys


def _key_of(name: str, level: Level) -> str:
    keyword = keyword_of(name)
    of = _LEVEL_OF.get(keyword)
    if of is None or of > level or keyword in _COUNTS:
        raise InvalidQuery(f"{keyword} is no key of a search for {level.name.lower()} resources here")
    return keyword


def _number(name: str, written: Sequence[str], default: int) -> int:
    if not written:
        return default
    if len(written) > 1 or not _DECIMAL.fullmatch(written[0]):
        raise InvalidQuery(f"{name} must be one number")
    return int(written[0])


def _warnings(name: str, written: Sequence[str]) -> Iterator[str]:
    if not set(written) <= {"true", "false"}:
        raise InvalidQuery(f"{name} must be true or false")
    if "true" in written:
        yield f"The {name} parameter is not supported. {_UNSUPPORTED[name]}"


def _included(value: str, level: Level) -> set[str]:
    """Return what is to be returned as well; what is not kept in the index is not (PS3.18 8.3.4.3)."""
    if value == "all":
        return {name for name, of in _LEVEL_OF.items() if of <= level}
    included = set()
    for name in filter(None, value.split(",")):
        # A place within a sequence, a private attribute, or one of a newer dictionary, is nothing that is kept.
        keyword = keyword_of(name) if "." not in name and not _PRIVATE.fullmatch(name) else ""
        if _LEVEL_OF.get(keyword, Level.INSTANCE) <= level and keyword in _LEVEL_OF:
            included.add(keyword)
    return included


def _found(connection: Connection, wanted: Search, root: str) -> Iterator[Json]:
    looked_at = objects = 0
    for page in seen_studies(connection, wanted.narrowing):
        looked_at += len(page)
        if looked_at > MAXIMUM_STUDIES:
            raise _too_much()
        named = [(study, _header(study)) for study in page]
        candidates = [(study, header) for study, header in named if _met_without_modalities(wanted, header)]
        extent_of = extents(connection, [study.id for study, _ in candidates]) if _needs_extent(wanted) else {}
        for study, header in candidates:
            if study.id in extent_of:
                header = {**header, "ModalitiesInStudy": extent_of[study.id].modalities}  # noqa: PLW2901
            if not wanted.met_by(Level.STUDY, header):
                continue
            if wanted.level is Level.STUDY:
                yield _study(wanted, study, header, extent_of[study.id], root)
                continue
            of_study = seen_objects(connection, study.study_instance_uid)
            objects += len(of_study)
            if objects > MAXIMUM_OBJECTS:
                raise _too_much()
            yield from _within(wanted, header, of_study, root)


def _too_much() -> Exception:
    return refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too much would have to be looked at: narrow the search")


def _header(study: SeenStudy) -> Header:
    return {**study.header, "StudyInstanceUID": (study.study_instance_uid,)}


def _needs_extent(wanted: Search) -> bool:
    return wanted.level is Level.STUDY or "ModalitiesInStudy" in wanted.keys


def _met_without_modalities(wanted: Search, header: Header) -> bool:
    return all(
        key.met_by(header.get(keyword, ()))
        for keyword, key in wanted.keys.items()
        if _LEVEL_OF[keyword] is Level.STUDY and keyword != "ModalitiesInStudy"
    )


def _study(wanted: Search, study: SeenStudy, header: Header, extent: Extent, root: str) -> Json:
    return _sorted(
        {
            **wanted.attributes(Level.STUDY, header),
            **_extent(extent),
            "00080056": attribute("InstanceAvailability", ("ONLINE",)),
            "00081190": attribute("RetrieveURL", (f"{root}/studies/{study.study_instance_uid}",)),
        }
    )


def _extent(extent: Extent) -> Json:
    return {
        "00080061": attribute("ModalitiesInStudy", extent.modalities),
        "00201206": attribute("NumberOfStudyRelatedSeries", (extent.series,)),
        "00201208": attribute("NumberOfStudyRelatedInstances", (extent.instances,)),
    }


def _extent_of(by_series: Mapping[str, Sequence[SeenObject]]) -> Extent:
    modalities = {"\\".join(each[0].header.get("Modality", ())) for each in by_series.values()}
    return Extent(
        modalities=tuple(sorted(filter(None, modalities))),
        series=len(by_series),
        instances=sum(map(len, by_series.values())),
    )


def _within(wanted: Search, study: Header, objects: Sequence[SeenObject], root: str) -> Iterator[Json]:
    """Yield what matches within one study: its series, or their instances."""
    by_series: dict[str, list[SeenObject]] = {}
    for each in objects:
        by_series.setdefault(each.series_instance_uid, []).append(each)
    said = wanted.attributes(Level.STUDY, study)
    asked = {*wanted.keys, *wanted.included}
    if Level.STUDY not in wanted.given or any(_COMPUTED.get(name) is Level.STUDY for name in asked):
        said |= _extent(_extent_of(by_series))
    for uid, of_series in by_series.items():
        header = {**of_series[0].header, "SeriesInstanceUID": (uid,)}
        if not wanted.met_by(Level.SERIES, header):
            continue
        series = {
            **said,
            **wanted.attributes(Level.SERIES, header),
            "00201209": attribute("NumberOfSeriesRelatedInstances", (len(of_series),)),
            "00080056": attribute("InstanceAvailability", ("ONLINE",)),
        }
        url = f"{root}/studies/{study['StudyInstanceUID'][0]}/series/{uid}"
        if wanted.level is Level.SERIES:
            yield _sorted({**series, "00081190": attribute("RetrieveURL", (url,))})
            continue
        for each in of_series:
            named = {"SOPInstanceUID": (each.sop_instance_uid,), "SOPClassUID": (each.sop_class_uid,)}
            own = {**each.header, **named}
            if wanted.met_by(Level.INSTANCE, own):
                retrieve = attribute("RetrieveURL", (f"{url}/instances/{each.sop_instance_uid}",))
                yield _sorted({**series, **wanted.attributes(Level.INSTANCE, own), "00081190": retrieve})


def _sorted(data_set: Json) -> Json:
    return dict(sorted(data_set.items()))
