"""Problems of a configuration, collected: each says where it is, what is wrong and what was perhaps meant."""

import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from meddaemon.config.toml_file import Keys, TomlFile
from meddaemon.domain.errors import InvalidConfiguration

_UNQUOTED = {"url", "tokens", "readers"}
"""A database URL may carry a password, and what stands for the digest of a token may be the token: never quoted."""
_IN_TOML = {
    "dict_type": "should be a table",
    "model_type": "should be a table",
    "too_short": "should have at least one element",
    "tuple_type": "should be an array, in brackets",
}
"""What pydantic says in words of Python."""


@dataclass
class Problems:
    """Collects what is wrong in one file (or in no file: then the defaults and the environment speak).

    `variables` names the environment variable that a path was taken from, where one was.
    """

    file: TomlFile | None
    variables: Mapping[Keys, str] = field(default_factory=dict)
    _found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, keys: Keys, message: str) -> None:
        """Note one problem with the value at `keys`."""
        line = self.file.line_of(keys) if self.file else 0
        self._found.append((line, f"{self.where(keys)}: {message}"))

    def where(self, keys: Keys) -> str:
        """Return `file:line: section.key` of a value, or `VARIABLE` where the environment set it."""
        variable = self.variable_of(keys)
        if variable:
            return variable
        place = f"{self.file.path}:{self.file.line_of(keys)}" if self.file else "(defaults)"
        return f"{place}: {shown(keys)}" if keys else place

    def add_at(self, place: str, message: str) -> None:
        """Note one problem at a place that is not in the file."""
        self._found.append((0, f"{place}: {message}"))

    def variable_of(self, keys: Keys) -> str:
        """Return the environment variable that set the value at `keys`, or nothing."""
        return next((name for path, name in self.variables.items() if keys[: len(path)] == path), "")

    def add_all(self, texts: Iterable[str]) -> None:
        """Note problems of another file, which say themselves where they are."""
        self._found += [(2**31, text) for text in texts]

    def add_invalid(self, error: ValidationError, model: type[BaseModel], below: Keys = ()) -> None:
        """Note everything that pydantic found wrong in the values at `below`."""
        for each in error.errors(include_url=False, include_context=False):
            keys = each["loc"]
            if each["type"] == "too_short" and each["input"]:
                # pydantic counts the valid elements; what is wrong with the others is said on its own.
                continue
            if each["type"] == "extra_forbidden":
                known = _fields_at(model, keys[:-1])
                message = f"unknown key{did_you_mean(str(keys[-1]), known)}"
            elif each["type"] == "missing":
                message = "is missing"
            elif each["type"] == "value_error":
                message = each["msg"].removeprefix("Value error, ")
            else:
                message = _IN_TOML.get(each["type"]) or re.sub("^(Input|String) ", "", each["msg"])
                if each["type"] == "tuple_type" and isinstance(each["input"], Mapping):
                    message = f"is an array of tables: write [[{keys[-1]}]]"
                elif not _UNQUOTED.intersection(keys):
                    message += f", not {_bounded(each['input'])}"
            self.add(below + keys, message)

    @property
    def texts(self) -> list[str]:
        """What was found, in the order of the lines of the file."""
        return list(dict.fromkeys(text for _, text in sorted(self._found, key=lambda found: found[0])))

    @property
    def error(self) -> InvalidConfiguration:
        """All problems as the one error to raise."""
        return InvalidConfiguration(self.texts)

    def raise_if_any(self) -> None:
        """Raise InvalidConfiguration with every problem, if there is one."""
        if self._found:
            raise self.error


def shown(keys: Keys) -> str:
    """Return a path as a person writes it: `rules[0].study`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` when one of the known names is close, otherwise nothing."""
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def frozen(raw: object) -> object:
    """Return TOML values with every array as a tuple, which is what the frozen models hold."""
    if isinstance(raw, Mapping):
        return {key: frozen(value) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        return tuple(frozen(value) for value in raw)
    return raw


def tables(raw: object) -> list[tuple[int, Mapping[str, object]]]:
    """Return the tables, with their indices, of an array that nobody has checked yet."""
    return [(i, each) for i, each in enumerate(raw) if isinstance(each, Mapping)] if isinstance(raw, list) else []


def texts(raw: object) -> list[tuple[int, str]]:
    """Return the strings, with their indices, of an array that nobody has checked yet."""
    return [(i, each) for i, each in enumerate(raw) if isinstance(each, str)] if isinstance(raw, list) else []


def relative_to(file: Path, path: Path) -> Path:
    """Return a path that a file names, resolved against the folder of that file."""
    return (file.parent / path).resolve()


def _bounded(value: object, limit: int = 60) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _fields_at(model: type[BaseModel], keys: Keys) -> list[str]:
    """Return the field names of the model that stands at `keys` below `model`."""
    found: object = model
    for key in keys:
        if isinstance(key, str) and isinstance(found, type) and issubclass(found, BaseModel):
            found = found.model_fields[key].annotation
        found = _model_in(found)
    return list(found.model_fields) if isinstance(found, type) and issubclass(found, BaseModel) else []


def _model_in(annotation: object) -> object:
    """Return the model within `tuple[Model, ...]` or `Model | None`, or the annotation itself."""
    models = [each for each in typing.get_args(annotation) if isinstance(each, type) and issubclass(each, BaseModel)]
    return models[0] if models else annotation
