"""The clock on the wall is set while the whole daemon runs, and SQLite goes by it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from meddaemon.db import tables
from meddaemon.domain.states import JobState
from tests.running import wait_until
from tests.system.site import Pacs, head, make_site, send

HOUR = 3600
WINDOW = """
[[windows]]
name = "always"
times = ["00:00-24:00"]
time_zone = "Europe/Berlin"
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no compiler for the shim that shifts the clock")
    made = tmp_path_factory.mktemp("shim") / "shifted_clock.so"
    source = Path(__file__).with_name("shifted_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, source], check=True, timeout=60)
    return made


@pytest.mark.fault(129)
def test_studies_come_and_go_whichever_way_the_clock_is_set(tmp_path: Path, shim: Path) -> None:
    """Two hours back, then four forward: no task waits for the time it was before, and none is done twice."""
    pacs, shift = Pacs(), tmp_path / "shift"
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        config = home.config.read_text().replace('name = "toy"\nmodels', 'name = "toy"\nwindow = "always"\nmodels')
        home.config.write_text(config + WINDOW)
        with home.running("serve", prefix=["env", f"LD_PRELOAD={shim}", f"SHIFTED_CLOCK={shift}"]) as daemon:
            listener = daemon.port()
            for number, hours in enumerate([0, -2, 2]):
                shift.write_text(str(hours * HOUR))
                send(head(tmp_path / f"scanner {number}", study=str(number)), listener)
                wait_until(lambda number=number: len(pacs.of("SR")) == number + 1, what=f"the SR at {hours:+} h")
            log = daemon.log_text()
    rows = home.rows(tables.job)
    assert [(row.state, row.attempt) for row in rows] == [(JobState.COMPLETED, 1)] * 3
    received = [row.first_received_at for row in home.rows(tables.study)]
    assert [round((at - received[0]).total_seconds() / HOUR) for at in received] == [0, -2, 2], "the shim does not work"
    assert len(home.rows(tables.result)) == 3
    assert len(pacs.received) == 6
    assert "the clock was set back" in log
