"""Studies, jobs and results as rows, for tests of whatever works on the database; and waiting with a deadline."""

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection

from meddaemon.db import jobs, registration, requests, results
from meddaemon.db.engine import Database
from meddaemon.db.instances import Received, Registration
from meddaemon.db.jobs import Job, NewJob
from meddaemon.db.results import StoredObject
from meddaemon.domain.codes import MILLILITRE, VOLUME, Code
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.result import Analysis, EncodedObject, Finding, Measurement, ResultStatus, Segment
from meddaemon.domain.schedule import patience
from meddaemon.domain.volume import Geometry

BRAIN = Code(value="12738006", scheme="SCT", meaning="Brain")
_TISSUE = Code(value="85756007", scheme="SCT", meaning="Tissue")
_serial = itertools.count(1)

OVER = -1.0
"""A lease of this many seconds is over as soon as it is given: no test needs to wait for one."""


def received(content: str, *, study: str = "1.2.3", series: str = "1.2.3.1", **values: Any) -> Received:
    """Return an instance named by its content; `sop_instance_uid` and any other value can be said."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    told: dict[str, Any] = {
        "sop_instance_uid": f"1.2.3.1.{int(digest[:8], 16)}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "sha256": digest,
        "size": len(content),
        "header": {"Modality": ("CT",), "PatientID": ("4711",), "Rows": ("64",), "Columns": ("64",)},
        "calling_ae_title": "SCANNER",
        "called_ae_title": "MEDDAEMON",
    }
    return Received(study_instance_uid=study, series_instance_uid=series, **{**told, **values})


def register(database: Database, instance: Received, *, quiet_seconds: float = 0.0) -> Registration:
    with database.write() as connection:
        return registration.register(connection, instance, quiet_seconds=quiet_seconds)


def new_job(study_id: int, **values: Any) -> NewJob:
    """Return work for the queue; whatever is not said gets a plain value, and the key is another one each time."""
    told: dict[str, Any] = {
        "key": f"key {next(_serial)}",
        "generation": 1,
        "rule": "rule",
        "model": "model",
        "model_digest": "d" * 64,
        "inputs": {"image": ("a" * 64, "b" * 64)},
        "priority": 5,
        "maximum_attempts": 3,
    }
    told |= values
    return NewJob(
        study_id=study_id, **{"patience": patience(told["priority"], 600, told.get("deadline_seconds")), **told}
    )


OUTLETS = dict.fromkeys(("pacs", "research", "early", "late"), Outlet(kinds=("SEG", "SR")))
"""The destinations there are, and what each takes."""


def enqueue(database: Database, study_id: int, *, destinations: Sequence[str] = ("pacs",), **values: Any) -> int:
    """Ask for work as a rule does and return the job's id; where no rule is said, each time by another one."""
    new = new_job(study_id, **{"rule": f"rule {next(_serial)}", **values})
    with database.write() as connection:
        requests.lock(connection, study_id)
        job_id, _ = requests.ask(connection, new, destinations)
        requests.settle(connection, study_id, new.generation, OUTLETS)
    return job_id


def claim(database: Database, *, lease_seconds: float = 60.0, worker: str = "worker") -> Job:
    """Claim the next job, which must be there."""
    with database.write() as connection:
        job = jobs.claim(connection, worker=worker, lease_seconds=lease_seconds)
    assert job is not None
    return job


def get(database: Database, job_id: int) -> Job:
    with database.read() as connection:
        return jobs.get(connection, job_id)


def analysis(value: float = 1400.0) -> Analysis:
    """Return a small plausible analysis: one segment, one finding, one volume."""
    geometry = Geometry(
        shape=(1, 2, 2),
        affine_lps=np.eye(4),
        frame_of_reference_uid="1.2.3.9",
        sop_instance_uids=("1.2.3.1.1",),
        frame_numbers=(1,),
    )
    segment = Segment(
        number=1,
        label="Brain",
        category=_TISSUE,
        type=BRAIN,
        colour=(1, 2, 3),
        laterality=None,
        voxel_count=4,
        tracking_id="brain",
        tracking_uid="1.2.3.8",
    )
    measured = Measurement(name=VOLUME, value=value, unit=MILLILITRE)
    return Analysis(
        status=ResultStatus.PLAUSIBLE,
        reason="",
        segments=(segment,),
        findings=(Finding(code=BRAIN, segment_number=1, measurements=(measured,)),),
        labels=np.ones((1, 2, 2), np.uint8),
        geometry=geometry,
    )


def stored_objects(job: Job, kinds: Sequence[str] = ("SEG", "SR")) -> list[StoredObject]:
    return [
        StoredObject.of(
            EncodedObject(
                kind=kind,
                sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4",
                sop_instance_uid=f"1.2.9.{job.id}.{number}",
                series_instance_uid=f"1.2.9.{job.id}",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                content=f"{job.key} {kind}".encode(),
            )
        )
        for number, kind in enumerate(kinds, 1)
    ]


def finish(
    connection: Connection, job: Job, *, outlets: Mapping[str, Outlet] | None = None, value: float = 1400.0
) -> int:
    """Complete a job with a result in the caller's transaction, as `JobStages` does; return the result's id."""
    return record(connection, jobs.complete(connection, job), outlets=outlets, value=value)


def record(
    connection: Connection, job: Job, *, outlets: Mapping[str, Outlet] | None = None, value: float = 1400.0
) -> int:
    return results.record(
        connection,
        job,
        analysis(value),
        stored_objects(job),
        model_version="1",
        series_instance_uid="1.2.3.1",
        provenance={"device": "cpu"},
        seconds={"predict": 1.0},
        outlets={**OUTLETS, **(outlets or {})},
    )


class OneStage:
    """Stages for a worker that do everything where the model would run; what is prepared, and when, is noted."""

    def __init__(self, process: Callable[[Job], None], interrupt: Callable[[], None] = lambda: None) -> None:
        self.prepared: list[int] = []
        self._process = process
        self._interrupt = interrupt

    def prepare(self, job: Job) -> None:
        self.prepared.append(job.id)

    def infer(self, job: Job, prepared: None) -> None:
        self._process(job)

    def discard(self, prepared: None) -> None:
        pass

    def publish(self, job: Job, inferred: None) -> None:
        pass

    def interrupt(self) -> None:
        self._interrupt()


def wait_until(condition: Callable[[], bool], *, seconds: float = 60.0, what: str = "it") -> None:
    """Return as soon as the condition holds; fail once `seconds` are over."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)


def somebody_waits(database: Database) -> bool:
    """Return whether a transaction on PostgreSQL waits for another one."""
    with database.read() as connection:
        return bool(connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").scalar_one())
