"""Letting the toy models of tests work, as an operator would."""

from pathlib import Path

from meddaemon.config.contracts import load_contract
from meddaemon.config.digest import RECORDS_NAME
from meddaemon.deploy import check
from meddaemon.domain.contract import ModelContract

REASON = "a toy for tests"


def let_in(contract_file: Path) -> None:
    """Admit the model of a contract by force."""
    assert check.force(loaded(contract_file), REASON).admission.forced == REASON


def loaded(contract_file: Path) -> ModelContract:
    """Return the contract, whose record lies in the store of the home that its folder of models is in."""
    models = contract_file.parents[1]
    in_home = models.name == "models"
    records = models.parent / "store" / RECORDS_NAME if in_home else models / f"{contract_file.parent.name}-records"
    return load_contract(contract_file, records)
