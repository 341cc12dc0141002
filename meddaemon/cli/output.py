"""Printing rows as a table for people, or as CSV, JSON or JSON Lines for programs."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


WIDTH = 2000
"""Columns that a table may take; a terminal wraps what it cannot show."""


_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


class Format(StrEnum):
    """How to print rows."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    """JSON Lines: one object a line."""


def print_rows(
    rows: Sequence["DataclassInstance"],
    columns: Mapping[str, str],
    output: Format,
    *,
    kind: "type[DataclassInstance] | None" = None,
    headed: bool = True,
) -> None:
    """Print dataclass rows; `columns` maps a heading to the attribute it shows.

    A table shows the given columns, everything else every attribute of the row. With the `kind` of rows, CSV has its
    heading even where there is no row; `headed` is False for a page that goes on.
    """
    if output is Format.TABLE:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in columns:
            table.add_column(heading, no_wrap=True)
        for row in rows:
            # Text, not markup: what came from the wire must not style the terminal.
            table.add_row(*(Text(shown(getattr(row, attribute))) for attribute in columns.values()))
        # Never cut a value to fit a window: a UID that is cut is of no use.
        Console(width=WIDTH, highlight=False).print(table, soft_wrap=True)
        return
    plain = [_plain(row) for row in rows]
    if output is Format.JSONL:
        for each in plain:
            typer.echo(json.dumps(each, ensure_ascii=False))
        return
    if output is Format.JSON:
        typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    buffer = io.StringIO()
    names = list(plain[0]) if plain else [field.name for field in dataclasses.fields(kind)] if kind else []
    if names:
        writer = csv.DictWriter(buffer, fieldnames=names)
        if headed:
            writer.writeheader()
        writer.writerows([{key: _spreadsheet_safe(value) for key, value in row.items()} for row in plain])
    typer.echo(buffer.getvalue(), nl=False)


def shown(value: object) -> str:
    """Return a value as a person reads it: local time to the second, numbers without noise, no control characters."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))


def _plain(row: "DataclassInstance") -> dict[str, object]:
    # Not `asdict`, which copies every value: a million rows would take a minute more.
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in vars(row).items()}


def _spreadsheet_safe(value: object) -> object:
    """Defuse text that a spreadsheet would run as a formula, in full width too, as Japanese editions do."""
    return f"'{value}" if isinstance(value, str) and value[:1] in _FORMULA else value
