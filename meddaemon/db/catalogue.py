"""What others may see of the archive: studies, series and objects, received ones and current results alike.

Of a SOP Instance UID one object is seen: the first that came. Results that came back from an archive are seen as the
results that they are, as long as somebody asks for them; superseded and withdrawn ones are not seen, and neither are
objects whose file is gone. Of a result that was made in several editions, the usual one is seen. What describes them is
what was read of their headers when they were stored: no file is opened here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, exists, func, not_, or_, select

from meddaemon.db import tables
from meddaemon.db.requests import is_current
from meddaemon.domain.outlet import Edition

Header = Mapping[str, Sequence[str]]
_study, _series, _instance = tables.study, tables.series, tables.instance
_result, _object = tables.result, tables.result_object
_shown = and_(is_current(), _object.c.edition.in_(sorted(Edition().parts)))
_usable = and_(not_(_instance.c.conflict), not_(_instance.c.own_result), not_(_instance.c.missing))
_PAGE = 200


@dataclass(frozen=True, kw_only=True)
class Narrowing:
    """What certainly holds for the studies that are looked for: each tuple lists all that may be, () says nothing.

    `first_date` and `last_date` are bounds of the study date; "" is none. `modalities` may also be those of results,
    which are not narrowed by.
    """

    studies: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    instances: tuple[str, ...] = ()
    patient_ids: tuple[str, ...] = ()
    accession_numbers: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    first_date: str = ""
    last_date: str = ""


@dataclass(frozen=True, kw_only=True)
class SeenStudy:
    """A study, described by the header of the instance that came first."""

    id: int
    study_instance_uid: str
    header: Header


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much there is of a study."""

    modalities: tuple[str, ...]
    series: int
    instances: int


@dataclass(frozen=True, kw_only=True)
class SeenObject:
    """One object: `is_result` says in which of the two folders its file lies."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    size: int
    header: Header
    is_result: bool


def seen_studies(connection: Connection, narrowing: Narrowing) -> Iterator[list[SeenStudy]]:
    """Yield the studies that the narrowing leaves, page by page, the one that came last first."""
    first = (
        select(func.min(_instance.c.id))
        .select_from(_instance)
        .join(_series, _series.c.id == _instance.c.series_id)
        .where(_series.c.study_id == _study.c.id)
        .correlate(_study)
        .scalar_subquery()
    )
    statement = (
        select(_study.c.id, _study.c.study_instance_uid, _instance.c.header)
        .select_from(_study)
        .join(_instance, _instance.c.id == first)
        .where(_has_something(), *_conditions(narrowing))
        .order_by(_study.c.id.desc())
        .limit(_PAGE)
    )
    before: int | None = None
    while True:
        page = statement if before is None else statement.where(_study.c.id < before)
        found = [
            SeenStudy(id=row.id, study_instance_uid=row.study_instance_uid, header=row.header)
            for row in connection.execute(page)
        ]
        yield found
        if len(found) < _PAGE:
            return
        before = found[-1].id


def extents(connection: Connection, study_ids: Sequence[int]) -> dict[int, Extent]:
    """Return how much there is of each of these studies."""
    received = connection.execute(
        select(_series.c.study_id, _series.c.series_instance_uid, _series.c.modality, func.count(_instance.c.id))
        .join(_instance, _instance.c.series_id == _series.c.id)
        .where(_series.c.study_id.in_(study_ids), _usable)
        .group_by(_series.c.study_id, _series.c.series_instance_uid, _series.c.modality)
    )
    counted: list[tuple[int, str, str, int]] = [tuple(row) for row in received]
    made = connection.execute(
        select(_result.c.study_id, _object.c.series_instance_uid, _object.c.header)
        .join(_result, _result.c.id == _object.c.result_id)
        .where(_result.c.study_id.in_(study_ids), _shown)
    )
    counted += [(study_id, uid, "\\".join(header.get("Modality", ())), 1) for study_id, uid, header in made]
    return {
        study_id: Extent(
            modalities=tuple(sorted({modality for of, _, modality, _ in counted if of == study_id and modality})),
            series=len({uid for of, uid, _, _ in counted if of == study_id}),
            instances=sum(number for of, _, _, number in counted if of == study_id),
        )
        for study_id in study_ids
    }


def seen_objects(
    connection: Connection,
    study_instance_uid: str,
    *,
    series_instance_uid: str = "",
    sop_instance_uid: str = "",
) -> list[SeenObject]:
    """Return the objects of a study, of one series of it or with one UID: those received, then the results."""
    received = (
        select(_instance, _series.c.series_instance_uid)
        .join(_series, _series.c.id == _instance.c.series_id)
        .join(_study, _study.c.id == _series.c.study_id)
        .where(_study.c.study_instance_uid == study_instance_uid, _usable)
        .order_by(_instance.c.id)
    )
    made = (
        select(_object)
        .join(_result, _result.c.id == _object.c.result_id)
        .join(_study, _study.c.id == _result.c.study_id)
        .where(_study.c.study_instance_uid == study_instance_uid, _shown)
        .order_by(_object.c.id)
    )
    if series_instance_uid:
        received = received.where(_series.c.series_instance_uid == series_instance_uid)
        made = made.where(_object.c.series_instance_uid == series_instance_uid)
    if sop_instance_uid:
        received = received.where(_instance.c.sop_instance_uid == sop_instance_uid)
        made = made.where(_object.c.sop_instance_uid == sop_instance_uid)
    return [
        SeenObject(
            study_instance_uid=study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            sop_instance_uid=row.sop_instance_uid,
            sop_class_uid=row.sop_class_uid,
            transfer_syntax_uid=row.transfer_syntax_uid,
            sha256=row.sha256,
            size=row.size,
            header=row.header,
            is_result=is_result,
        )
        for statement, is_result in ((received, False), (made, True))
        for row in connection.execute(statement)
    ]


def _has_something() -> ColumnElement[bool]:
    received = (
        select(_instance.c.id)
        .join(_series, _series.c.id == _instance.c.series_id)
        .where(_series.c.study_id == _study.c.id, _usable)
    )
    return exists(received)


def _conditions(narrowing: Narrowing) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for column, wanted in (
        (_study.c.study_instance_uid, narrowing.studies),
        (_study.c.patient_id, narrowing.patient_ids),
        (_study.c.accession_number, narrowing.accession_numbers),
    ):
        if wanted:
            conditions.append(column.in_(wanted))
    if narrowing.first_date:
        conditions.append(_study.c.study_date >= narrowing.first_date)
    if narrowing.last_date:
        conditions.append(_study.c.study_date <= narrowing.last_date)
    of_study = select(_series.c.id).where(_series.c.study_id == _study.c.id)
    results = select(_object.c.id).join(_result, _result.c.id == _object.c.result_id)
    results = results.where(_result.c.study_id == _study.c.id)
    if narrowing.series:
        conditions.append(
            or_(
                exists(of_study.where(_series.c.series_instance_uid.in_(narrowing.series))),
                exists(results.where(_object.c.series_instance_uid.in_(narrowing.series))),
            )
        )
    if narrowing.instances:
        holding = select(_series.c.study_id).join(_instance, _instance.c.series_id == _series.c.id)
        made = select(_result.c.study_id).join(_object, _object.c.result_id == _result.c.id)
        conditions.append(
            or_(
                _study.c.id.in_(holding.where(_instance.c.sop_instance_uid.in_(narrowing.instances))),
                _study.c.id.in_(made.where(_object.c.sop_instance_uid.in_(narrowing.instances))),
            )
        )
    if narrowing.modalities:
        conditions.append(or_(exists(of_study.where(_series.c.modality.in_(narrowing.modalities))), exists(results)))
    return conditions
