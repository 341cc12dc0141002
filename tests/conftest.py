"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
from databases import (  # noqa: F401  fixtures
    database,
    database_url,
    dialect,
    empty_database_url,
    migrated,
    postgresql_server,
)

SHARED = Path(os.environ.get("MEDDAEMON_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_dicom() -> Path:
    """The folder of real DICOM files beside the checkout; tests that need it skip where it is absent."""
    folder = SHARED / "dicom"
    if not folder.is_dir():
        pytest.skip("no real DICOM files beside this checkout")
    return folder
