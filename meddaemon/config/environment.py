"""Settings from environment variables: `MEDDAEMON_LISTENER__PORT=11113` stands for `port` in `[listener]`."""

import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from meddaemon.config.problems import Problems, did_you_mean
from meddaemon.config.toml_file import Keys

PREFIX = "MEDDAEMON_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
"""Names the configuration file where the command line does not."""


def variables(environ: Mapping[str, str], model: type[BaseModel], problems: Problems) -> dict[Keys, str]:
    """Return the path in `model` -> the variable that sets it.

    Variables of ours that set nothing are added to `problems`; an empty variable counts as one that is not set.
    """
    found: dict[Keys, str] = {}
    for name, text in sorted(environ.items()):
        keys = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if not name.startswith(PREFIX) or not text:
            continue
        complaint = _complaint_about(keys, model)
        if complaint:
            problems.add_at(name, complaint)
        elif _annotation(keys, model) is not None:
            found[keys] = name
    return found


def overlay(
    data: dict[str, Any], model: type[BaseModel], found: Mapping[Keys, str], environ: Mapping[str, str]
) -> None:
    """Put the values of the variables over the values of the file, in place."""
    for keys, name in found.items():
        *sections, key = keys
        table = data
        for section in sections:
            table = table.setdefault(str(section), {})
            if not isinstance(table, dict):
                # Misshapen in the file, which is reported with its line.
                break
        else:
            table[str(key)] = _value(environ[name], _annotation(keys, model))


def _complaint_about(keys: tuple[str, ...], model: type[BaseModel]) -> str | None:
    """Return why a variable sets nothing although it looks like a setting, or None."""
    if len(keys) == 1:
        # A single underscore between section and key would otherwise be overlooked in silence.
        section = next((each for each in model.model_fields if keys[0].startswith(f"{each}_")), None)
        if section is None:
            return None
        return f"unknown; did you mean '{_name((section, keys[0].removeprefix(f'{section}_')))}'?"
    if _annotation(keys, model) is not None:
        return None
    known = [
        _name((section, key)) for section, field in model.model_fields.items() for key in _fields(field.annotation)
    ]
    return f"unknown setting{did_you_mean(_name(keys), known)}"


def _name(keys: tuple[str, ...]) -> str:
    return PREFIX + "__".join(keys).upper()


def _fields(annotation: object) -> Mapping[str, Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields
    return {}


def _annotation(keys: Keys, model: type[BaseModel]) -> object:
    """Return the type of the setting at `keys`, or None when there is none."""
    annotation: object = model
    for key in keys:
        field = _fields(annotation).get(str(key))
        if field is None:
            return None
        annotation = field.annotation
    return None if _fields(annotation) else annotation


def _value(text: str, annotation: object) -> object:
    """Return the text itself for settings that are text, otherwise the TOML (or JSON) literal that it is."""
    if _is_text(annotation):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _is_text(annotation: object) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_is_text(each) for each in typing.get_args(annotation))
    return annotation in (str, Path) or origin is Literal
