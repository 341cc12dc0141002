"""Writing rows as Apache Parquet, page by page, so that a year of results takes no more memory than a day's.

pyarrow is an extra: whoever never asks for Parquet does not need its 55 MB.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import ModuleType, UnionType
from typing import TYPE_CHECKING, Any

from meddaemon.domain.errors import MeddaemonError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROWS_OF_A_PAGE = 10_000
_CODED = frozenset(
    {"model", "model_version", "finding_value", "finding_scheme", "finding", "segment", "measurement_value"}
    | {"measurement", "derivation", "unit", "status"}
)
"""Columns of few different values: each is written once, and numbered."""


class ExportFormat(StrEnum):
    """How to give out rows: as `meddaemon.cli.output.Format`, or as Parquet."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"


class ExtraMissing(MeddaemonError):
    """A package that only this needs is not installed."""


def pages(
    ask: Callable[..., Sequence[typing.Any]], limit: int | None, before: int | None
) -> Iterator[Sequence[typing.Any]]:
    """Yield rows that `ask(limit=, before=)` gives, page by page, at most `limit` in all; `id` is the key of a page."""
    left = limit
    while left is None or left > 0:
        wanted = ROWS_OF_A_PAGE if left is None else min(left, ROWS_OF_A_PAGE)
        page = ask(limit=wanted, before=before)
        yield page
        if len(page) < wanted:
            return
        before = page[-1].id
        left = None if left is None else left - len(page)


def write_parquet(file: Path, kind: "type[DataclassInstance]", rows: Iterator[Sequence["DataclassInstance"]]) -> int:
    """Write dataclass rows of one kind to a file, which is there when all of it is; return how many there were.

    Every column has one type, whatever the rows hold: integers and floats of 64 bits, timestamps in UTC to the
    microsecond, text. Raises ExtraMissing, OSError.
    """
    arrow, parquet = _pyarrow()
    schema = arrow.schema([(name, _type_of(arrow, name, hint)) for name, hint in _hints(kind).items()])
    written = 0
    half = file.with_name(f"{file.name}.part")
    try:
        with parquet.ParquetWriter(half, schema, compression="zstd") as writer:
            for page in rows:
                columns = {name: [getattr(row, name) for row in page] for name in schema.names}
                writer.write_table(arrow.table(columns, schema=schema))
                written += len(page)
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)
    return written


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow  # noqa: PLC0415  an extra
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as missing:
        raise ExtraMissing("Parquet needs pyarrow: pip install 'meddaemon[parquet]'") from missing
    return pyarrow, pyarrow.parquet


def _hints(kind: "type[DataclassInstance]") -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _type_of(arrow: ModuleType, name: str, hint: Any) -> Any:
    """Return the type of a column by the annotation of its field; None beside another type may be null."""
    if isinstance(hint, UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    for known, of in (
        (bool, arrow.bool_()),
        (int, arrow.int64()),
        (float, arrow.float64()),
        (datetime, arrow.timestamp("us", tz="UTC")),
    ):
        if issubclass(hint, known):
            return of
    return arrow.dictionary(arrow.int32(), arrow.string()) if name in _CODED else arrow.string()
