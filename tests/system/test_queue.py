"""The queue of a whole daemon: held, let go and drained by commands, two jobs in hand, and processes that die."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from meddaemon.db import tables
from meddaemon.domain.states import JobEvent, JobState
from meddaemon.results.dimse import RemoteEntity, store
from meddaemon.results.transport import Verdict
from tests.running import Home, wait_until
from tests.system.site import Pacs, head, make_site, outgoing_of, send


def _times(home: Home, event: JobEvent) -> dict[int, object]:
    return {row.job_id: row.at for row in home.rows(tables.job_event) if row.event == event}


def test_a_queue_is_paused_resumed_and_drained_and_prepares_the_next_study_while_one_is_inferred(
    tmp_path: Path,
) -> None:
    pacs = Pacs()
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        with home.running("serve") as daemon:
            assert home.cli("jobs", "pause", "until all are here").returncode == 0
            for number in range(3):
                send(head(tmp_path / str(number), study=str(number)), daemon.port())
            wait_until(lambda: len(home.rows(tables.job)) == 3, what="three jobs")
            told = home.cli("jobs", "windows").stdout
            assert "(queue)" in told
            assert "until all are here" in told
            assert {row.state for row in home.rows(tables.job)} == {JobState.AVAILABLE}
            assert "waits: the queue is paused: until all are here" in home.cli("explain", "1").stdout
            assert "until all are here; `meddaemon jobs resume`" in home.cli("doctor").stdout
            assert home.cli("jobs", "hurry", "3").returncode == 0
            assert home.cli("jobs", "resume").returncode == 0
            wait_until(lambda: len(pacs.of("SR")) == 3, what="three SRs")
            drained = home.cli("jobs", "drain", "to be updated")
            (queue,) = json.loads(home.cli("jobs", "windows", "--format", "json").stdout)
    assert (drained.returncode, queue["open"], queue["reason"]) == (0, False, "to be updated")
    assert [row.state for row in home.rows(tables.job)] == [JobState.COMPLETED] * 3
    assert len(home.rows(tables.result)) == 3
    claimed, prepared, completed = (
        _times(home, each) for each in (JobEvent.CLAIM, JobEvent.PREPARE, JobEvent.COMPLETE)
    )
    assert sorted(claimed, key=claimed.__getitem__) == [3, 1, 2]
    # The first one starts its model, which takes long enough for the next one to be prepared meanwhile.
    assert prepared[1] < completed[3]


def test_a_drain_that_takes_too_long_says_so(tmp_path: Path) -> None:
    pacs = Pacs()
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        with home.running("serve") as daemon:
            send(head(tmp_path / "scanner", order=104), daemon.port())
            wait_until(lambda: [row.state for row in home.rows(tables.job)] == [JobState.EXECUTING], what="the job")
            drained = home.cli("jobs", "drain", "now", "--timeout", "0")
    assert drained.returncode == 1
    assert "1 jobs still run after 0 s" in drained.stderr


@pytest.mark.fault(136)
def test_a_role_that_dies_again_and_again_is_started_after_ever_longer_pauses_and_the_listener_goes_on(
    tmp_path: Path,
) -> None:
    home = make_site(tmp_path / "home", {})
    with home.running("serve") as daemon:
        port, listener = daemon.port(), daemon.announced("listen")
        killed: set[int] = set()
        for _ in range(3):
            worker = wait_until(
                lambda: next(
                    (row.pid for row in home.rows(tables.process) if row.role == "work" and row.pid not in killed), None
                ),
                what="the next worker",
            )
            killed.add(worker)
            os.kill(worker, signal.SIGKILL)
        send(head(tmp_path / "scanner"), port)
        wait_until(lambda: [row.state for row in home.rows(tables.job)] == [JobState.COMPLETED], what="the job")
        assert daemon.announced("listen") == listener or daemon.announced("listen").pid == listener.pid
        pauses = [json.loads(line)["again_in"] for line in daemon.log_text().splitlines() if '"again_in"' in line]
    assert pauses == [1, 2, 4]


@pytest.mark.fault(128)
def test_a_listener_that_is_stopped_within_a_transfer_goes_on_with_it(tmp_path: Path) -> None:
    home = make_site(tmp_path / "home", {})
    files = head(tmp_path / "scanner", planes=12)
    with home.running("listen") as listener:
        remote = RemoteEntity(ae_title="MEDDAEMON", host="127.0.0.1", port=listener.port(), calling_ae_title="SCANNER")
        going_on = threading.Timer(3, os.kill, (listener.process.pid, signal.SIGCONT))
        for number, answer in enumerate(store(remote, outgoing_of(files))):
            assert answer.verdict is Verdict.TAKEN, answer.reason
            if number == 3:
                os.kill(listener.process.pid, signal.SIGSTOP)
                going_on.start()
        going_on.join()
        wait_until(lambda: len(home.instances()) == 12, what="every instance")
