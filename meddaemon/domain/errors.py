"""Every error this project raises on purpose.

    MeddaemonError
    ├── InvalidConfiguration    settings, rules or a model contract are wrong: exit code 2
    ├── RefusedInstance         a received object is not taken: carries the DIMSE status
    ├── StoreUnavailable        the store cannot take an object now: full, gone or another volume
    ├── IdentityTaken           its SOP Instance UID names an object of another study or patient
    ├── InputRefused            a job's input cannot give a right answer: the job is discarded, never retried
    │   ├── UnsoundVolume       the series is not a sound volume
    │   ├── UndecodablePixels   the pixel data cannot be decoded
    │   ├── ContradictoryIdentity   the inputs name more than one patient or study
    │   └── NotEvaluable        the input is sound, but not what the model was made for: a result says so
    ├── ModelFailed             the model itself failed: the job is retried
    │   └── OutOfMemory         it asked for more memory than there is, on the GPU or in the host
    ├── NotAdmitted             a model without a green check was asked for: it gets no work
    ├── BundleRefused           a bundle is not taken: damaged, hostile or changed
    ├── ObjectRefusedByGate     an encoded result contradicts its source: never delivered
    ├── LeaseLost               somebody else holds the job now: write nothing
    ├── ReferenceRefused        what results are to be held against cannot be read, or contradicts itself
    ├── StudyHeld               a study contradicts itself: nothing runs on it before an operator releases it
    └── NotFound                the operator named something that is not there

Third-party errors are translated at the edge where they happen, so that nothing above needs to know them.
Messages are for operators: they name what, where and what to do, and never a patient.
"""

import re
from collections.abc import Mapping

LAST_OUTPUT = "; last output:\n"
"""After this, the reason of a failure repeats what a process has printed."""
_PATH = re.compile(r"(?<![\w.:/])(?:/[^\s/:;,'\"()]+)+/(?=[^\s/:;,'\"()])")


class MeddaemonError(Exception):
    """Root of all errors of this project."""


class InvalidConfiguration(MeddaemonError):
    """One or more settings are wrong; each problem is a line `file:line: what is wrong`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RefusedInstance(MeddaemonError):
    """A received object is refused with a DIMSE status (PS3.4 B.2.3, PS3.7 Annex C)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class StoreUnavailable(MeddaemonError):
    """The store cannot take an object now: full, gone or not the volume it was at start."""


class IdentityTaken(MeddaemonError):
    """A SOP Instance UID is that of an object of another study or patient, and names one object (PS3.5 chapter 9)."""

    ALARM = "the SOP Instance UID is that of an object of another"
    """How each of these reasons begins."""

    def __init__(self, other: str, study_id: int | None) -> None:
        """`other` is what differs; `study_id` where the first object is, None as long as it is being stored."""
        super().__init__(f"{self.ALARM} {other} ({'being stored' if study_id is None else f'study {study_id} here'})")


class InputRefused(MeddaemonError):
    """The input cannot give a right answer, and trying again would not help.

    `reason` is a stable identifier such as `gap`; `numbers` holds the values that were seen.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        sop_instance_uid: str | None = None,
        numbers: Mapping[str, object] | None = None,
    ) -> None:
        where = f" (instance {sop_instance_uid})" if sop_instance_uid else ""
        super().__init__(f"{reason}: {message}{where}")
        self.reason = reason
        self.sop_instance_uid = sop_instance_uid
        self.numbers = dict(numbers or {})

    def __reduce__(self) -> tuple[object, ...]:
        # Crosses the process boundary between model child and worker: rebuild from parts, not from args.
        return (_rebuild, (type(self), str(self), self.reason, self.sop_instance_uid, self.numbers))


class UnsoundVolume(InputRefused):
    """The series is not one sound volume (gap, duplicate, tilt, mixed orientation...)."""


class UndecodablePixels(InputRefused):
    """The pixel data cannot be decoded: no decoder for the transfer syntax, or damaged."""


class ContradictoryIdentity(InputRefused):
    """The input instances name more than one patient or study."""


class NotEvaluable(InputRefused):
    """The input lies beyond what the contract says that the model was made for; `numbers` names its series."""


class ModelFailed(MeddaemonError):
    """The model raised, crashed or ran out of time."""


class OutOfMemory(ModelFailed):
    """The model asked for more memory than there is; `where` is "gpu" or "host"."""

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.where))


class NotAdmitted(MeddaemonError):
    """The model has no green check of what it is now; the message says why, and what to do."""


class BundleRefused(MeddaemonError):
    """A bundle, or what was to become one, is not taken; the message names the file and what is wrong with it."""


class ObjectRefusedByGate(MeddaemonError):
    """An encoded result object fails the checks that precede delivery."""


class LeaseLost(MeddaemonError):
    """The lease of a job ended while it was worked on; its fencing token is no longer valid."""


class StudyHeld(MeddaemonError):
    """A study contradicts itself; an operator must look at it and release it before anything is run on it."""


class ReferenceRefused(MeddaemonError):
    """A reference for an evaluation is not taken; the message names the file, what is wrong and what to do."""


class NotFound(MeddaemonError):
    """The operator named a study, job or file that is not there."""


def told_outside(reason: str) -> str:
    """Return what others are told of the reason of a failure, on one line; the database has it in full.

    Nothing of what a process has printed, and of paths of this machine no more than the name of the file.
    """
    said = _PATH.sub("", reason.partition(LAST_OUTPUT)[0])
    return " ".join("".join(each if each.isprintable() else " " for each in said).split())


def _rebuild(
    kind: type[InputRefused],
    text: str,
    reason: str,
    sop_instance_uid: str | None,
    numbers: Mapping[str, object],
) -> InputRefused:
    error = kind(reason, "", sop_instance_uid=sop_instance_uid, numbers=numbers)
    error.args = (text,)
    return error
