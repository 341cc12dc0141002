"""Where the real files are that tests use and the repository does not have."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("MEDDAEMON_SHARED", Path(__file__).resolve().parents[2] / "shared"))
"""The folder beside the checkout; it need not be there."""
