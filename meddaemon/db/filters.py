"""Filters of the results language as SQL; values are bound, never written into it."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, and_, cast, exists, false, func, not_, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from meddaemon.db import tables
from meddaemon.domain import filters
from meddaemon.domain.filters import COMPARISONS, Filter, folded, names_of, parts_of

_finding, _measurement, _segment = tables.finding, tables.measurement, tables.segment
_result, _study = tables.result, tables.study

_COMPARE: Mapping[str, Callable[..., Any]] = COMPARISONS
_COLUMNS: Mapping[str, tuple[ColumnElement[Any], ...]] = MappingProxyType(
    {
        "finding": (_finding.c.code_value, _finding.c.code_meaning),
        "segment": (_segment.c.label, _finding.c.label, _segment.c.type_value, _segment.c.type_meaning),
        "measurement": (_measurement.c.code_value, _measurement.c.code_meaning, _measurement.c.key),
        "model": (_result.c.model,),
        "version": (_result.c.model_version,),
        "status": (_result.c.status,),
        "study": (cast(_study.c.id, String), _study.c.study_instance_uid),
        "series": (_result.c.series_instance_uid,),
        "accession": (_study.c.accession_number,),
    }
)


class _Folded(FunctionElement[str]):
    """Text without regard to the case of its ASCII letters, whatever letters the database's locale knows of."""

    type = String()
    inherit_cache = True


@compiles(_Folded)
def _sqlite(element: _Folded, compiler: SQLCompiler, **kw: Any) -> str:
    return f"lower({compiler.process(element.clauses, **kw)})"


@compiles(_Folded, "postgresql")
def _postgresql(element: _Folded, compiler: SQLCompiler, **kw: Any) -> str:
    return f'lower({compiler.process(element.clauses, **kw)} COLLATE "C")'


def is_satisfied(connection: Connection, result_id: int, wanted: Filter | None) -> bool:
    """Return whether any measurement of a result satisfies a filter; no filter is satisfied by every result.

    One without any finding, that of a failure, is asked as a whole: what it is of, and when it was made.
    """
    if wanted is None:
        return True
    found = (
        select(_result.c.id)
        .join(_study, _study.c.id == _result.c.study_id)
        .outerjoin(_finding, _finding.c.result_id == _result.c.id)
        .outerjoin(_measurement, _measurement.c.finding_id == _finding.c.id)
        .outerjoin(_segment, _segment.c.id == _finding.c.segment_id)
        .where(_result.c.id == result_id, or_(_measurement.c.id.is_not(None), _finding.c.id.is_(None)))
        .where(condition(wanted))
        .limit(1)
    )
    return connection.execute(found).first() is not None


def lacks(connection: Connection, result_id: int, wanted: Filter | None) -> list[str]:
    """Return the measurements that a filter asks for and a result does not have, or in no unit that compares."""
    if wanted is None:
        return []
    rows = connection.execute(select(_measurement).join(_finding).where(_finding.c.result_id == result_id))
    measured = [
        filters.Measured(
            names=names_of(row.key, row.code_value, row.code_meaning, derived=bool(row.derivation_value)),
            value=row.value,
            unit=row.unit_value,
        )
        for row in rows
    ]
    return filters.unmeasured(wanted, measured)


def condition(wanted: Filter) -> ColumnElement[bool]:
    """Return the filter over a join of result, study, finding, measurement and (outer) segment."""
    match wanted:
        case filters.AllOf(parts) | filters.AnyOf(parts):
            together = and_ if isinstance(wanted, filters.AllOf) else or_
            return together(*map(condition, parts))
        case filters.Not(part):
            # What is not known, such as the segment of a finding that has none, does not satisfy the filter.
            return not_(func.coalesce(condition(part), false()))
        case filters.Text(field, values, contained):
            return or_(*(_says(column, value, contained) for column in _COLUMNS[field] for value in values))
        case filters.Number():
            return _measures(wanted)
        case filters.Made(since, moment):
            return _result.c.created_at >= moment if since else _result.c.created_at < moment
        case filters.Present():
            return _finding.c.present


def _says(column: ColumnElement[Any], value: str, contained: bool) -> ColumnElement[bool]:
    said, wanted = _Folded(column), folded(value)
    return said.contains(wanted, autoescape=True) if contained else said == wanted


def _measures(test: filters.Number) -> ColumnElement[bool]:
    measured = _measurement.alias()
    name = folded(test.measurement)
    compare = _COMPARE[test.comparison]
    values: ColumnElement[bool] = compare(measured.c.value, test.value)
    if test.bounds:
        # Values stand alone on their side: so the database knows how many there are, and may go by an index.
        values = or_(*(and_(measured.c.unit_value == unit, compare(measured.c.value, at)) for unit, at in test.bounds))
    # What is derived of several, a spread for one, shares the code of what it is derived of, and has a key of its own.
    by_code = or_(*(_Folded(column) == name for column in (measured.c.code_value, measured.c.code_meaning)))
    named = or_(measured.c.key == name, and_(measured.c.derivation_value == "", by_code))
    return exists(select(measured.c.id).where(measured.c.finding_id == _finding.c.id, named, values))


def doubts(connection: Connection, wanted: Filter) -> list[str]:
    """Return what a filter asks for that no result has: names that nobody uses, and units that measure other things.

    It reads all names that there are: for who got no answer and wonders why.
    """
    said = [
        doubt
        for part in parts_of(wanted)
        for doubt in (
            _unused_names(connection, part)
            if isinstance(part, filters.Text)
            else _unused_numbers(connection, part)
            if isinstance(part, filters.Number)
            else ()
        )
    ]
    return list(dict.fromkeys(said))


_NAMED = ("finding", "segment", "measurement", "model", "version")
_SHOWN = 20


def _unused_names(connection: Connection, test: filters.Text) -> Iterator[str]:
    if test.field not in _NAMED:
        return
    columns = _COLUMNS[test.field]
    known = [row for row in connection.execute(select(*columns).distinct()) if any(row)]
    names = [str(name) for row in known for name in row if name]
    for value in test.values:
        alike = (folded(value) in folded(name) if test.contained else folded(value) == folded(name) for name in names)
        if not any(alike):
            yield f"no result has the {test.field} {value!r}; {_instead(value, names, [str(row[-1]) for row in known])}"


def _unused_numbers(connection: Connection, test: filters.Number) -> Iterator[str]:
    columns = [_measurement.c[name] for name in ("key", "code_value", "code_meaning", "derivation_value", "unit_value")]
    known = connection.execute(select(*columns).distinct()).all()
    wanted = folded(test.measurement)
    units = {
        row.unit_value: None
        for row in known
        if wanted
        in map(folded, names_of(row.key, row.code_value, row.code_meaning, derived=bool(row.derivation_value)))
    }
    if not units:
        names = [name for row in known for name in (row.key, row.code_value, row.code_meaning) if name]
        yield f"no result has the measurement {test.measurement!r}; " + _instead(
            test.measurement, names, [row.key for row in known]
        )
    elif test.bounds and not units.keys() & {unit for unit, _ in test.bounds}:
        yield f"{test.measurement} is in {', '.join(units)}, and the filter asks for a unit of something else"


def _instead(value: str, names: list[str], usual: list[str]) -> str:
    close = difflib.get_close_matches(folded(value), [folded(name) for name in names], 1)
    if close:
        return f"did you mean {next(name for name in names if folded(name) == close[0])!r}?"
    there = sorted({name for name in usual if name})
    more = ", ..." if len(there) > _SHOWN else ""
    return f"there are {', '.join(map(repr, there[:_SHOWN]))}{more}" if there else "there is none"
