"""What messages of every form say of a result, and how they name it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from meddaemon.db.engine import Database
from meddaemon.db.notices import Notice
from meddaemon.db.reported import ReportedFinding, ReportedResult, reported_result
from meddaemon.domain.codes import ABSENT, MILLIMETRE, PIXELS, PRESENT, UNDETERMINED, Code
from meddaemon.domain.errors import told_outside
from meddaemon.domain.result import Measurement, ResultStatus, reported
from meddaemon.results.notices.header import Header, header_of
from meddaemon.results.notices.outbox import NOT_CONFIGURED, Reply

ANY_PROCEDURE = Code(value="18748-4", scheme="LN", meaning="Diagnostic imaging study")
"""What was done where neither request nor study say it."""
MARK = "Preliminary result of software, NOT FOR DIAGNOSTIC USE"
STATUSES = {
    ResultStatus.PLAUSIBLE: "Plausible",
    ResultStatus.IMPLAUSIBLE: "Implausible",
    ResultStatus.NOT_EVALUABLE: "Not evaluable",
    ResultStatus.FAILED: "Failed",
}
SITE = Code(value="363698007", scheme="SCT", meaning="Finding Site")
LATERALITY = Code(value="272741003", scheme="SCT", meaning="Laterality")
IMAGE = Code(value="121112", scheme="DCM", meaning="Source of Measurement")
FRAME = Code(value="FRAME", scheme="99MEDDAEMON", meaning="Frame of that image")
_ON_IMAGE = (
    Code(value="COLUMNS", scheme="99MEDDAEMON", meaning="Columns on that image, from its left edge"),
    Code(value="ROWS", scheme="99MEDDAEMON", meaning="Rows on that image, from its top edge"),
)
_IN_PATIENT = tuple(
    Code(value=f"CENTRE_{axis}", scheme="99MEDDAEMON", meaning=f"Centre in the patient, towards {towards}")
    for axis, towards in (("L", "left"), ("P", "posterior"), ("S", "superior"))
)
_Way = TypeVar("_Way")


@dataclass(frozen=True, kw_only=True)
class Subject(Generic[_Way]):
    """What a notice tells of, and the way to whom it tells it; `detects`: the model looks for objects."""

    way: _Way
    header: Header
    result: ReportedResult
    detects: bool


def subject_of(
    ways: Mapping[str, _Way], database: Database, results: Path, detects: Collection[str], notice: Notice
) -> Subject[_Way] | Reply:
    """Return what a notice tells of, by one of `ways`, or why nobody can be told.

    `results` is the folder of result files; models in `detects` say of what they did not find that it is not there.
    """
    way = ways.get(notice.target)
    if way is None:
        return NOT_CONFIGURED
    header = header_of(results, notice.objects)
    if isinstance(header, Reply):
        return header
    with database.read() as connection:
        result = reported_result(connection, notice.result_id)
    return Subject(way=way, header=header, result=result, detects=result.model in detects)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """From where to where something reaches, or where it is: `low` is then `high`."""

    name: Code
    low: float
    high: float
    unit: Code


def extents_of(finding: ReportedFinding) -> Iterator[Extent]:
    """Yield where a finding lies: on its image, as the report has it, and its centre in the patient (LPS)."""
    if finding.low is not None and finding.high is not None:
        for name, low, high in zip(_ON_IMAGE, reversed(finding.low), reversed(finding.high), strict=True):
            yield Extent(name=name, low=reported(low), high=reported(high), unit=PIXELS)
    if finding.place is not None and finding.place.centre_lps is not None:
        for name, value in zip(_IN_PATIENT, finding.place.centre_lps, strict=True):
            yield Extent(name=name, low=reported(value), high=reported(value), unit=MILLIMETRE)


def doubt_of(result: ReportedResult) -> str:
    """Return what must be read with every number of a result, "" where it may be believed."""
    believed = result.status is ResultStatus.PLAUSIBLE
    return "" if believed else f"{STATUSES[result.status]}: {told_outside(result.reason)}"


def presence_of(finding: ReportedFinding, status: ResultStatus, *, detects: bool) -> Code:
    """Return whether something is there, as the report says it; `detects` of a model that looks for objects."""
    if not status.is_answer:
        return UNDETERMINED
    if finding.present:
        return PRESENT
    unmeasured = bool(finding.measurements) and all(each.value is None for each in finding.measurements)
    return UNDETERMINED if unmeasured and not detects else ABSENT


def name_of(measurement: Measurement) -> Code:
    """Return what a measurement is called.

    A derived one has a name of its own: under the code of the thing itself, whoever does not look at the method would
    take a spread for it.
    """
    name, derivation = measurement.name, measurement.derivation
    if derivation is None:
        return name
    return Code(
        value=f"{name.value}-{derivation.value}",
        scheme="99MEDDAEMON",
        meaning=f"{name.meaning}, {derivation.meaning}",
    )
