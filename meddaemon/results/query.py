"""Asking a peer what it has of a study: C-FIND as a Service Class User (PS3.4 C.4.1), Study Root."""

import time
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from meddaemon.results.dimse import Problem, RemoteEntity, associate, release
from meddaemon.results.transport import Verdict

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model – FIND (PS3.4 C.6.2)."""
PENDING = frozenset({0xFF00, 0xFF01})
MAXIMUM_ANSWERS = 100_000
"""Matches of one question; a peer that has more to say is not believed."""
_MAXIMUM_COUNT = 2**31 - 1


class Unanswered(Exception):
    """The peer did not say, or nothing that could be true."""


def count_instances(remote: RemoteEntity, study_instance_uid: str, *, within_seconds: float) -> int | Problem:
    """Return how many instances of a study the peer has, or what went wrong.

    It is asked for Number of Study Related Instances, then for the number of each series, then for the instances
    themselves: which of these a peer can tell differs, and the first that it tells is taken. A study that it does not
    know has none.
    """
    association, problem = associate(remote, [build_context(STUDY_ROOT_FIND)])
    if association is None:
        return problem
    try:
        return _counted(association, study_instance_uid, time.monotonic() + within_seconds)
    except Unanswered as why:
        return Problem(verdict=Verdict.TRY_AGAIN, reason=str(why))
    except (OSError, ValueError, AttributeError, RuntimeError) as failure:
        return Problem(verdict=Verdict.TRY_AGAIN, reason=f"could not ask: {type(failure).__name__}")
    finally:
        release(association)


def _counted(association: Association, study_instance_uid: str, deadline: float) -> int:
    def ask(level: str, wanted: str, **keys: str) -> list[Dataset]:
        question = Dataset()
        question.QueryRetrieveLevel = level
        question.StudyInstanceUID = study_instance_uid
        for keyword, value in {wanted: "", **keys}.items():
            setattr(question, keyword, value)
        return list(matches(association, question, deadline))

    # A peer that matches loosely is not to add other studies to this one.
    studies = ask("STUDY", "NumberOfStudyRelatedInstances")
    mine = [each for each in studies if each.get("StudyInstanceUID") == study_instance_uid]
    if not mine:
        return 0
    if (whole := _number(mine[0], "NumberOfStudyRelatedInstances")) is not None:
        return whole
    series = ask("SERIES", "NumberOfSeriesRelatedInstances", SeriesInstanceUID="")
    uids = dict.fromkeys(str(each.get("SeriesInstanceUID") or "") for each in series)
    counts = [_number(each, "NumberOfSeriesRelatedInstances") for each in series]
    if all(count is not None for count in counts) and len(uids) == len(counts):
        return sum(count for count in counts if count is not None)
    instances: set[str] = set()
    for uid in filter(None, uids):
        found = ask("IMAGE", "SOPInstanceUID", SeriesInstanceUID=uid)
        instances.update(str(each.SOPInstanceUID) for each in found if each.get("SOPInstanceUID"))
    return len(instances)


def matches(association: Association, question: Dataset, deadline: float) -> Iterator[Dataset]:
    """Yield what a peer answers to a question, until `deadline` by the monotonic clock. Raises Unanswered."""
    if not association.is_established:
        raise Unanswered("the association ended before the answer")
    answers = association.send_c_find(question, STUDY_ROOT_FIND)
    for number, (status, found) in enumerate(answers):
        answered = status.get("Status")
        if answered is None:
            raise Unanswered("no answer: the association was aborted or timed out")
        if answered not in PENDING:
            if answered != 0x0000:
                raise Unanswered(f"the peer answered {answered:04X}H")
            return
        if number >= MAXIMUM_ANSWERS or time.monotonic() > deadline:
            association.abort()
            raise Unanswered("the peer does not come to an end")
        if found is None:
            raise Unanswered("the answer cannot be read")
        yield found


def _number(answer: Dataset, keyword: str) -> int | None:
    """Return the number in an answer; None where it has none that can be one (IS, VM 1)."""
    try:
        number = int(str(answer.get(keyword, "")).strip())
    except ValueError:
        return None
    return number if 0 <= number <= _MAXIMUM_COUNT else None
