"""Filters of the results language as SQL; values are bound, never written into it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, and_, cast, exists, false, func, not_, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from meddaemon.db import tables
from meddaemon.domain import filters
from meddaemon.domain.filters import COMPARISONS, Filter, folded

_finding, _measurement, _segment = tables.finding, tables.measurement, tables.segment
_result, _study = tables.result, tables.study

_COMPARE: Mapping[str, Callable[..., Any]] = COMPARISONS
_COLUMNS: Mapping[str, tuple[ColumnElement[Any], ...]] = MappingProxyType(
    {
        "finding": (_finding.c.code_value, _finding.c.code_meaning),
        "segment": (_segment.c.label, _segment.c.type_value, _segment.c.type_meaning),
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
    """Return whether any measurement of a result satisfies a filter; no filter is satisfied by every result."""
    if wanted is None:
        return True
    found = (
        select(_measurement.c.id)
        .join(_finding, _finding.c.id == _measurement.c.finding_id)
        .join(_result, _result.c.id == _finding.c.result_id)
        .join(_study, _study.c.id == _result.c.study_id)
        .outerjoin(_segment, _segment.c.id == _finding.c.segment_id)
        .where(_result.c.id == result_id, condition(wanted))
        .limit(1)
    )
    return connection.execute(found).first() is not None


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
    if test.factors:
        values = or_(
            *(
                and_(measured.c.unit_value == unit, compare(measured.c.value * factor, test.value))
                for unit, factor in test.factors
            )
        )
    # What is derived of several, a spread for one, shares the code of what it is derived of, and has a key of its own.
    by_code = or_(*(_Folded(column) == name for column in (measured.c.code_value, measured.c.code_meaning)))
    named = or_(measured.c.key == name, and_(measured.c.derivation_value == "", by_code))
    return exists(select(measured.c.id).where(measured.c.finding_id == _finding.c.id, named, values))
