"""Fixtures that every test may use."""

from pathlib import Path

import copies
import pytest
from databases import (  # noqa: F401  fixtures
    database,
    database_url,
    dialect,
    empty_database_url,
    migrated,
    postgresql_server,
)
from hypothesis import HealthCheck, settings
from shared_files import SHARED

# No test has a time of its own: on a busy machine a file that is written takes what it takes. Examples are the same
# each time, so that a change fails for what it changes; `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("the same", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("the same")

# Torch and MONAI take five seconds to load, and hardly a test here is about that.
copies.copy_model_servers()


@pytest.fixture(scope="session")
def shared_dicom() -> Path:
    """The folder of real DICOM files beside the checkout; tests that need it skip where it is absent."""
    folder = SHARED / "dicom"
    if not folder.is_dir():
        pytest.skip("no real DICOM files beside this checkout")
    return folder


LONGEST = (
    "test_kill.py",
    "test_validators.py",
    "test_main_job.py",
    "test_kill_points.py",
    "test_real_studies.py",
    "test_queue.py",
    "test_store_commands.py",
    "test_receive.py",
    "test_database_faults.py",
    "test_brain_volume.py",
    "test_real_files.py",
    "test_command_line.py",
    "test_worker_stages.py",
    "test_stow_durable.py",
    "test_crash.py",
    "test_outbox.py",
    "test_many_classes.py",
    "test_explanation.py",
    "test_finders.py",
    "test_kinds.py",
    "test_peers.py",
    "test_parity.py",
    "test_commitment.py",
    "test_worker.py",
    "test_check.py",
    "test_memory_ladder.py",
    "test_evaluate.py",
)
"""The files that take longest, which begin first where several run at the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring forward the tests of the files that take longest; the others keep their order."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))
