"""Asking a destination for objects by their UIDs: C-FIND at the level of images (PS3.4 C.4.1), QIDO-RS (PS3.18 10.6).

How many instances a study has there proves nothing of one of them: only its UID does.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from pydicom.dataset import Dataset
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from meddaemon.db.custody import Unconfirmed
from meddaemon.results.dicomweb import Service
from meddaemon.results.dimse import Problem, RemoteEntity, associate, release
from meddaemon.results.query import STUDY_ROOT_FIND, Unanswered, matches
from meddaemon.results.transport import Verdict

LIST_LENGTH = 64
"""UIDs of one question: all together well below 64 KiB."""
ANSWER_SECONDS = 60.0
"""How long the answers to one question may take to come to an end."""


def find(remote: RemoteEntity, sought: Sequence[Unconfirmed]) -> set[str] | Problem:
    """Return the SOP Instance UIDs that the peer has of these, or why it did not say.

    It is asked for lists of UIDs, and then, for what that did not find, for each UID alone: there are archives that
    refuse lists, and such that take one for a UID that they do not know.
    """
    association, problem = associate(remote, [build_context(STUDY_ROOT_FIND)])
    if association is None:
        more = ", C-FIND: allow us to ask there, or set custody otherwise" if problem.refuses_contexts else ""
        return replace(problem, reason=f"{problem.reason}{more}")
    try:
        return {uid for chunk in chunks(sought) for uid in _found(association, chunk)}
    except Unanswered as why:
        return Problem(verdict=Verdict.TRY_AGAIN, reason=str(why))
    except (OSError, ValueError, AttributeError, RuntimeError) as failure:
        return Problem(verdict=Verdict.TRY_AGAIN, reason=f"could not ask: {type(failure).__name__}")
    finally:
        release(association)


def find_on_the_web(service: Service, sought: Sequence[Unconfirmed]) -> set[str] | Problem:
    """Return the SOP Instance UIDs that a DICOMweb service has of these, asked for one by one; or why it did not."""
    there = set()
    for each in sought:
        said = service.has(each.study_instance_uid, each.series_instance_uid, each.sop_instance_uid)
        if isinstance(said, str):
            return Problem(verdict=Verdict.TRY_AGAIN, reason=said)
        if said:
            there.add(each.sop_instance_uid)
    return there


def chunks(sought: Iterable[Unconfirmed]) -> Iterator[list[Unconfirmed]]:
    """Yield what can be asked for at once: of one series, since the levels above must be named (PS3.4 C.4.1.2.1)."""

    def series(each: Unconfirmed) -> tuple[str, str]:
        return each.study_instance_uid, each.series_instance_uid

    for _, members in groupby(sorted(sought, key=series), key=series):
        rest = list(members)
        while rest:
            yield rest[:LIST_LENGTH]
            rest = rest[LIST_LENGTH:]


def _found(association: Association, chunk: Sequence[Unconfirmed]) -> set[str]:
    there: set[str] = set()
    if len(chunk) > 1:
        try:
            there = _asked(association, chunk)
        except Unanswered:
            if not association.is_established:
                raise
    for each in chunk:
        if each.sop_instance_uid not in there:
            there |= _asked(association, [each])
    return there


def _asked(association: Association, chunk: Sequence[Unconfirmed]) -> set[str]:
    wanted = [each.sop_instance_uid for each in chunk]
    question = Dataset()
    question.QueryRetrieveLevel = "IMAGE"
    question.StudyInstanceUID = chunk[0].study_instance_uid
    question.SeriesInstanceUID = chunk[0].series_instance_uid
    question.SOPInstanceUID = wanted if len(wanted) > 1 else wanted[0]
    said = {str(each.get("SOPInstanceUID") or "") for each in matches(association, question, _deadline())}
    # A peer that matches loosely is not believed to have what it does not name.
    return said.intersection(wanted)


def _deadline() -> float:
    return time.monotonic() + ANSWER_SECONDS
