"""One SOP Instance UID names one object (PS3.5 chapter 9): what becomes of a second one."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from queue_samples import received, register
from sqlalchemy import func, select

from meddaemon.db import instances, studies, tables
from meddaemon.db.engine import Database
from meddaemon.db.instances import Registration
from meddaemon.domain.errors import IdentityTaken

UID = "1.2.3.1.1"


def _patient(patient_id: str = "", issuer: str = "") -> dict[str, tuple[str, ...]]:
    return {"Modality": ("CT",), "PatientID": (patient_id,), "IssuerOfPatientID": (issuer,) if issuer else ()}


def _count(database: Database) -> tuple[int, int]:
    with database.read() as connection:
        return tuple(  # type: ignore[return-value]
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (tables.study, tables.instance)
        )


def test_the_uid_of_an_object_of_another_study_is_refused(database: Database) -> None:
    """Fault 78: and no study is made for it."""
    register(database, received("a", sop_instance_uid=UID))
    with pytest.raises(IdentityTaken, match="another study"):
        register(database, received("b", sop_instance_uid=UID, study="9.9", series="9.9.1"))
    assert _count(database) == (1, 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (_patient("4711"), _patient("4712")),
        (_patient("4711", "Clinic A"), _patient("4711", "Clinic B")),
    ],
)
def test_the_uid_of_an_object_of_another_patient_is_refused(
    database: Database, first: dict[str, tuple[str, ...]], second: dict[str, tuple[str, ...]]
) -> None:
    """Fault 78: and the reason names no patient."""
    register(database, received("a", sop_instance_uid=UID, header=first))
    with pytest.raises(IdentityTaken, match="another patient") as refused:
        register(database, received("b", sop_instance_uid=UID, header=second))
    assert "471" not in str(refused.value)
    assert _count(database) == (1, 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (_patient("4711"), _patient("4711 ")),
        (_patient("ab  1"), _patient("AB 1")),
        (_patient("4711", "Clinic A"), _patient("4711")),
        (_patient("4711"), _patient("")),
        ({}, _patient("4711")),
    ],
)
def test_another_version_for_the_same_patient_is_kept_and_told(
    database: Database, first: dict[str, tuple[str, ...]], second: dict[str, tuple[str, ...]]
) -> None:
    """Fault 76: what is padded, written otherwise or not said at all is no other patient."""
    study = register(database, received("a", sop_instance_uid=UID, header=first)).study_id
    assert register(database, received("b", sop_instance_uid=UID, header=second)) == Registration(
        study_id=study, new=True, conflict=True
    )
    with database.read() as connection:
        assert studies.in_conflict(connection) == [study]
        (summary,) = studies.summaries(connection)
    assert (summary.instances, summary.conflicts) == (2, 1)


def test_an_identical_resend_is_never_an_alarm(database: Database) -> None:
    """Fault 75, also of a version that is in conflict."""
    for content in ("a", "b", "b", "a"):
        register(database, received(content, sop_instance_uid=UID))
    assert _count(database) == (1, 2)


def test_of_two_studies_that_claim_one_uid_at_the_same_moment_one_gets_it(database: Database) -> None:
    """Fault 78, in parallel: the studies have no row in common that could be locked."""
    for number in range(10):
        uid, together = f"1.2.{number}", threading.Barrier(4)

        def send(sender: int, uid: str = uid, together: threading.Barrier = together) -> bool:
            study = f"9.{uid}.{sender}"
            together.wait(30)
            try:
                register(database, received(study, sop_instance_uid=uid, study=study, series=f"{study}.1"))
            except IdentityTaken:
                return False
            return True

        with ThreadPoolExecutor(4) as threads:
            assert sorted(threads.map(send, range(4))) == [False, False, False, True]
    assert _count(database) == (10, 10)


def test_alarms_are_counted_apart_from_other_refusals(database: Database) -> None:
    with database.write() as connection:
        instances.refuse(connection, status=0xA900, reason=str(IdentityTaken("patient", 7)))
        instances.refuse(connection, status=0xA900, reason="something else")
    with database.read() as connection:
        assert instances.alarms(connection) == 1
