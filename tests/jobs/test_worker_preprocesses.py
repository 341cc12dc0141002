"""A worker with a real model: the next study is preprocessed while one is inferred, told by the order of events."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from queue_samples import enqueue, finish, get, received, register, wait_until

from meddaemon.db.engine import Database
from meddaemon.db.jobs import Job
from meddaemon.domain.result import Prediction
from meddaemon.domain.states import JobState
from meddaemon.inference.loading import Prepared
from meddaemon.inference.runtime import Limits
from meddaemon.inference.warm import WarmModels
from meddaemon.jobs.worker import Worker, WorkerSettings
from tests.inference.telling_bundle import SOUND, WAITS, Site

SETTINGS = WorkerSettings(lease_seconds=30, heartbeat_seconds=1, backoff_seconds=0, poll_seconds=0.05, drain_seconds=30)


class Stages:
    """Those of the pipeline around the model; each job has the study that its number among the jobs says."""

    def __init__(self, database: Database, site: Site, studies: dict[int, int]) -> None:
        self._database = database
        self._site = site
        self._studies = studies

    def prepare(self, job: Job) -> Prepared:
        return self._site.prepare(self._studies[job.id])

    def infer(self, job: Job, prepared: Prepared) -> Prediction:
        return self._site.predict(prepared)

    def discard(self, prepared: Prepared) -> None:
        prepared.close()

    def publish(self, job: Job, inferred: Prediction) -> None:
        with self._database.write() as connection:
            finish(connection, job)

    def interrupt(self) -> None:
        self._site.models.interrupt()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with WarmModels(tmp_path / "scratch", Limits(sandbox="off", prepare_beside="always")) as models:
        yield Site(tmp_path, models)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_second_study_is_preprocessed_before_the_first_one_is_inferred(database: Database, site: Site) -> None:
    study = register(database, received("an instance")).study_id
    first, second, third = (enqueue(database, study) for _ in range(3))
    stages = Stages(database, site, {first: WAITS, second: SOUND, third: WAITS})
    stop = threading.Event()
    thread = threading.Thread(target=Worker(database, "worker", SETTINGS, stages).run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: f"preprocess {SOUND}" in site.told, what="the second to be preprocessed")
        assert f"inferred {WAITS}" not in site.told
        site.go()
        for job_id in (first, second, third):
            wait_until(lambda job_id=job_id: get(database, job_id).state is JobState.COMPLETED, what=f"job {job_id}")
    finally:
        site.go()
        stop.set()
        thread.join(60)
    told = site.told
    assert told.index(f"preprocess {SOUND}") < told.index(f"inferred {WAITS}") < told.index(f"infer {SOUND}")
    assert [each for each in told if each.startswith("preprocess")] == [
        f"preprocess {WAITS}", f"preprocess {SOUND}", f"preprocess {WAITS}",
    ], "each once"  # fmt: skip
