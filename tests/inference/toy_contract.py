"""A contract that names no bundle, for what only asks what a model promises."""

from pathlib import Path
from typing import Any

from meddaemon.domain.contract import ModelContract


def toy_contract(**parts: Any) -> ModelContract:
    """Return a contract with these parts."""
    return ModelContract(
        **{
            "name": "toy",
            "title": "Toy",
            "version": "1",
            "manufacturer": "nobody",
            "bundle": Path(),
            "contract_file": Path(),
            "digest": "d",
            "inputs": (),
            "output": "pred",
            **parts,
        }
    )
