"""TOML with line numbers: `tomllib` reads the values, a small scanner finds where each of them stands.

The scanner runs only over text that `tomllib` has accepted, so it needs to know where things end, not whether they
are right (TOML 1.0.0, https://toml.io/en/v1.0.0).
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from meddaemon.domain.errors import InvalidConfiguration

Keys: TypeAlias = tuple[str | int, ...]
"""Where a value stands: keys of tables and indices of arrays, from the root."""


@dataclass(frozen=True, kw_only=True)
class TomlFile:
    """A TOML document: its values, and the line of each of them."""

    path: Path
    data: dict[str, Any]
    lines: Mapping[Keys, int] = field(repr=False)

    def line_of(self, path: Keys) -> int:
        """Return the 1-based line where `path` stands, or the nearest parent of it that the file has."""
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return line
        return 1


def read(path: Path) -> TomlFile:
    """Read a TOML file.

    Raises InvalidConfiguration when it cannot be read or is not TOML (with the line).
    """
    try:
        # Line ends are normalised as tomllib does it.
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
        data = tomllib.loads(text)
    except OSError as error:
        raise InvalidConfiguration([f"{path}:1: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InvalidConfiguration([f"{path}:{line}: is not UTF-8 text"]) from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfiguration([f"{path}:{_line_in(str(error), text)}: not valid TOML: {error}"]) from error
    except RecursionError as error:
        raise InvalidConfiguration([f"{path}:1: is nested too deeply"]) from error
    return TomlFile(path=path, data=data, lines=_Scanner(text).scan())


def _line_in(message: str, text: str) -> int:
    found = re.search(r"at line (\d+)", message)
    return int(found[1]) if found else text.count("\n") + 1


_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")
_STRINGS = (
    # A multi-line string may end in up to two quotes of its own before the closing three.
    re.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}', re.DOTALL),
    re.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)


class _Scanner:
    """Walks over valid TOML and notes the line on which each key, table and array element begins."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._lines: dict[Keys, int] = {}
        self._elements: dict[Keys, int] = {}

    def scan(self) -> dict[Keys, int]:
        """Return the line of every path in the document."""
        table: Keys = ()
        self._take(_BLANK)
        while self._at < len(self._text):
            if self._sees("[["):
                table = self._array_of_tables_header()
            elif self._sees("["):
                table = self._table_header()
            else:
                self._key_and_value(table)
            self._take(_BLANK)
        return self._lines

    def _sees(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _skip(self, text: str) -> None:
        self._at += len(text)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        self._line += found[0].count("\n")
        return found[0]

    def _note(self, path: Keys) -> None:
        self._lines.setdefault(path, self._line)

    def _table_header(self) -> Keys:
        self._skip("[")
        table = self._enter(self._dotted_key())
        # A super-table may be opened after its sub-tables; its own header is the better place to point at.
        self._lines[table] = self._line
        self._skip("]")
        return table

    def _array_of_tables_header(self) -> Keys:
        self._skip("[[")
        *parents, name = self._dotted_key()
        array = (*self._enter(parents), name)
        self._note(array)
        index = self._elements.get(array, 0)
        self._elements[array] = index + 1
        self._note((*array, index))
        self._skip("]]")
        return (*array, index)

    def _enter(self, names: list[str]) -> Keys:
        """Return the path of a table header, where the name of an array of tables means its last element."""
        path: Keys = ()
        for name in names:
            path = (*path, name)
            self._note(path)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        return path

    def _key_and_value(self, table: Keys) -> None:
        path = table
        for name in self._dotted_key():
            path = (*path, name)
            self._note(path)
        self._skip("=")
        self._take(_SPACE)
        self._value(path)

    def _dotted_key(self) -> list[str]:
        names = []
        while True:
            self._take(_SPACE)
            names.append(self._key())
            self._take(_SPACE)
            if not self._sees("."):
                return names
            self._skip(".")

    def _key(self) -> str:
        bare = self._take(_BARE_KEY)
        if bare:
            return bare
        (key,) = tomllib.loads(f"{self._string()} = 0")
        return key

    def _string(self) -> str:
        return next((text for pattern in _STRINGS if (text := self._take(pattern))), "")

    def _value(self, path: Keys) -> None:
        if self._sees("["):
            self._array(path)
        elif self._sees("{"):
            self._inline_table(path)
        elif not self._string():
            self._take(_SCALAR)

    def _array(self, path: Keys) -> None:
        self._skip("[")
        self._take(_BLANK)
        index = 0
        while not self._sees("]"):
            self._note((*path, index))
            self._value((*path, index))
            self._take(_BLANK)
            if self._sees(","):
                self._skip(",")
                self._take(_BLANK)
            index += 1
        self._skip("]")

    def _inline_table(self, path: Keys) -> None:
        self._skip("{")
        self._take(_BLANK)
        while not self._sees("}"):
            self._key_and_value(path)
            self._take(_BLANK)
            if self._sees(","):
                self._skip(",")
                self._take(_BLANK)
        self._skip("}")
