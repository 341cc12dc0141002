"""docs/contract.md: its examples are contracts, and it names every key that a contract may have."""

import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from meddaemon.config import contracts
from meddaemon.config.contracts import load_contract

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "contract.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
NAMED = {part for code in re.findall(r"`([^`\n]+)`", TEXT) for part in re.findall(r"[a-z][a-z_]*", code)}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.findall(r'name = "(\w+)"', text)[0])
def test_the_examples_are_contracts(example: str, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    file = tmp_path / "contract.toml"
    file.write_text(example)
    assert load_contract(file).contract_file == file


def test_every_key_is_named() -> None:
    keys = set(keys_of(contracts._Contract))
    assert {"measure", "plausible_volume_ml", "connectivity", "parity", "irregular"} <= keys
    assert sorted(keys - NAMED) == []


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for inner in models_in(field.annotation):
            yield from keys_of(inner)


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_in(inner)
