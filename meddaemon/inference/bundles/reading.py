"""The configuration of a bundle as it is written: JSON or YAML, several files merged as MONAI does, and metadata.

Nothing is evaluated and nothing is imported from the bundle.
"""

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.bundles.pythonic import configuration, find_workflow

CONFIGS = Path("configs")
NAMES = ("inference.json", "inference.yaml", "inference.yml")
METADATA = CONFIGS / "metadata.json"
MAXIMUM_BYTES = 2**24
"""No configuration file is larger; data lists of thousands of files are not."""
MAXIMUM_CODE_BYTES = 2**20
"""No file of code that anyone wrote is larger."""


class Metadata(BaseModel):
    """What `metadata.json` says.

    MONAI's schema lies on the network, and its own zoo does not follow it: nothing is required here, and nothing
    believed without the contract.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = ""
    version: str = ""
    monai_version: str = ""
    required_packages_version: dict[str, str] = {}
    optional_packages_version: dict[str, str] = {}
    network_data_format: dict[str, Any] = {}

    def made_before(self, *version: int) -> bool:
        """Say whether the bundle was made with a MONAI older than this; a bundle that does not say, was not."""
        parts = self.monai_version.split(".")[: len(version)]
        return all(part.isdigit() for part in parts) and bool(parts) and tuple(map(int, parts)) < version


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A bundle as it is written. `files` are the configuration files, in the order in which they were merged."""

    root: Path
    config: dict[str, Any]
    metadata: Metadata
    files: tuple[str, ...]


def read_bundle(bundle: Path, configs: Sequence[str] = ()) -> Reading:
    """Read the bundle in the folder `bundle`, with the files `configs` of its folder `configs` merged over the first.

    Without such a first file, the class of its code that is a workflow gives the parts (see `pythonic`).
    Raises `ModelFailed` when a file is missing, outside the bundle, too large, or not what its name says.
    """
    first = next((name for name in NAMES if (bundle / CONFIGS / name).is_file()), None)
    config: dict[str, Any] = {}
    if first is None:
        try:
            workflow = find_workflow(bundle)
        except ValueError as error:
            raise ModelFailed(str(error)) from error
        if workflow is None:
            raise ModelFailed(
                f"the bundle has none of {', '.join(NAMES)} in its folder {CONFIGS}, and no workflow in its code"
            )
        config, source = configuration(workflow[0]), workflow[1]
    for name in (*([first] if first else []), *configs):
        for key, value in _mapping(bundle, CONFIGS / name).items():
            _merge(config, str(key), value)
    raw = _mapping(bundle, METADATA) if (bundle / METADATA).is_file() else {}
    try:
        metadata = Metadata.model_validate({key: value for key, value in raw.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        raise ModelFailed(f"{METADATA}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    return Reading(root=bundle, config=config, metadata=metadata, files=(first or source, *configs))


def components(config: object, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every part that names a `_target_`, with its id as `ConfigParser` has it (`handlers::0`)."""
    if isinstance(config, dict):
        if isinstance(config.get("_target_"), str):
            yield at, config
        for key, value in config.items():
            yield from components(value, f"{at}::{key}" if at else str(key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from components(value, f"{at}::{index}")


def target(component: Mapping[str, Any]) -> str:
    """Return the last part of the name of what a component makes (`LoadImaged` of `monai.transforms.LoadImaged`)."""
    return str(component.get("_target_", "")).rpartition(".")[2]


def texts(config: object) -> Iterator[str]:
    """Yield every string value of a configuration, expressions among them."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping):
        for value in config.values():
            yield from texts(value)
    elif isinstance(config, list):
        for value in config:
            yield from texts(value)


def code(reading: Reading) -> list[str]:
    """Return the expressions of the configuration and the text of the bundle's own code."""
    files = sorted((reading.root / "scripts").rglob("*.py"))
    small = (file for file in files if file.is_file() and file.stat().st_size <= MAXIMUM_CODE_BYTES)
    return [*texts(reading.config), *(file.read_text(encoding="utf-8", errors="replace") for file in small)]


def look_up(config: object, reference: object) -> object:
    """Return what a reference (`@a::b`, `@a#b`) names, and anything else as it is; None where there is nothing."""
    if not isinstance(reference, str) or not reference.startswith("@"):
        return reference
    found: object = config
    for part in _parts(reference[1:]):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def _mapping(bundle: Path, name: Path) -> dict[str, Any]:
    path = (bundle / name).resolve()
    if not path.is_relative_to(bundle.resolve()):
        raise ModelFailed(f"{name} lies outside the bundle")
    try:
        size = path.stat().st_size
        if size > MAXIMUM_BYTES:
            raise ModelFailed(f"{name} has {size} bytes, more than {MAXIMUM_BYTES}")
        content = _yaml(path) if path.suffix in {".yaml", ".yml"} else _json(path)
    except FileNotFoundError as error:
        raise ModelFailed(f"the bundle has no {name}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFailed(f"{name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelFailed(f"{name} is not a mapping")
    return content


def _json(path: Path) -> object:
    with path.open(encoding="utf-8") as file:
        return json.load(file, object_pairs_hook=_unique)


def _yaml(path: Path) -> object:
    try:
        # Only bundles that are written in YAML need it, and only their makers know.
        import yaml  # type: ignore[import-untyped] # noqa: PLC0415
    except ImportError as error:
        raise ModelFailed(f"{path.name} is YAML, which needs the package PyYAML") from error
    try:
        content: object = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        raise ValueError(f"the key {twice[0]!r} stands twice")
    return content


def _parts(key: str) -> list[str]:
    return key.replace("#", "::").split("::")


def _merge(config: dict[str, Any], key: str, value: object) -> None:
    """Put one entry of a file into `config`: `a#b` goes into `a`, `+a` is added to what is there."""
    adds, parts = key.startswith("+"), _parts(key.removeprefix("+"))
    *path, last = parts
    place: object = config
    for part in path:
        place = _within(place, part, key)
    if isinstance(place, MutableMapping):
        there = place.get(last)
        if adds and isinstance(there, dict) and isinstance(value, dict):
            there.update(value)
        elif adds and isinstance(there, list) and isinstance(value, list):
            there.extend(value)
        else:
            place[last] = value
    elif isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    else:
        raise ModelFailed(f"the entry {key!r} names nothing in the configuration that it is merged into")


def _within(place: object, part: str, key: str) -> object:
    if isinstance(place, dict) and part in place:
        return place[part]
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return place[int(part)]
    raise ModelFailed(f"the entry {key!r} names nothing in the configuration that it is merged into")
