"""Letting the toy models of tests work, as an operator would."""

from pathlib import Path

from meddaemon.config.contracts import load_contract
from meddaemon.deploy import check

REASON = "a toy for tests"


def let_in(contract_file: Path) -> None:
    """Admit the model of a contract by force."""
    assert check.force(load_contract(contract_file), REASON).admission.forced == REASON
