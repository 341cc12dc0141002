"""What messages of every form say of a result, and how they name it."""

from meddaemon.db.reported import ReportedFinding, ReportedResult
from meddaemon.domain.codes import ABSENT, PRESENT, UNDETERMINED, Code
from meddaemon.domain.result import Measurement, ResultStatus

ANY_PROCEDURE = Code(value="18748-4", scheme="LN", meaning="Diagnostic imaging study")
"""What was done where neither request nor study say it."""
MARK = "Preliminary result of software, NOT FOR DIAGNOSTIC USE"
STATUSES = {
    ResultStatus.PLAUSIBLE: "Plausible",
    ResultStatus.IMPLAUSIBLE: "Implausible",
    ResultStatus.NOT_EVALUABLE: "Not evaluable",
    ResultStatus.FAILED: "Failed",
}


def doubt_of(result: ReportedResult) -> str:
    """Return what must be read with every number of a result, "" where it may be believed."""
    return "" if result.status is ResultStatus.PLAUSIBLE else f"{STATUSES[result.status]}: {result.reason}"


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
