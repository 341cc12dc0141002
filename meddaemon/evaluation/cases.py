"""Which result answers which reference: by Study and Series Instance UID, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meddaemon.db.outcomes import FoundRow, Outcome
from meddaemon.domain.errors import ReferenceRefused
from meddaemon.domain.result import ResultStatus
from meddaemon.evaluation.masks import is_nifti
from meddaemon.evaluation.references import Case, Labels, Masks, Reference, Values


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A reference and the result that answers it."""

    reference: Reference
    outcome: Outcome

    @property
    def case(self) -> str:
        """What the pair is called in a report."""
        named = self.reference.case
        return case_of(self.outcome, (named.sop_instance_uid, named.frame_number))

    @property
    def study(self) -> str:
        """The study that it belongs to: pairs of one study, or of one patient, are not independent."""
        return self.outcome.study_instance_uid


def case_of(outcome: Outcome, image: tuple[str, int]) -> str:
    """Return what a result is called in a report: its series, and its image (UID and frame) where there is one."""
    uid, frame = image
    return f"{outcome.series_instance_uid or outcome.study_instance_uid}{f' {uid}#{frame}' if uid else ''}"


@dataclass(frozen=True, kw_only=True)
class Unmatched:
    """A reference that is compared with nothing, and why."""

    reference: Reference
    reason: str


@dataclass(frozen=True, kw_only=True)
class Matches:
    """References and results brought together."""

    pairs: tuple[Pair, ...]
    missing: tuple[Unmatched, ...]
    unreferenced: tuple[Outcome, ...]
    """Results of which no reference says anything."""


def match(references: Sequence[Reference], outcomes: Sequence[Outcome], unanswered: Mapping[str, str]) -> Matches:
    """Bring references and results together; `unanswered` says of studies why they may have no result.

    Raises ReferenceRefused where two references speak of the same thing.
    """
    of_study: dict[str, list[Outcome]] = {}
    of_series: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        of_study.setdefault(outcome.study_instance_uid, []).append(outcome)
        of_series.setdefault(outcome.series_instance_uid, []).append(outcome)
    pairs: list[Pair] = []
    missing: list[Unmatched] = []
    named: set[int] = set()
    for reference in references:
        case = reference.case
        there = of_study.get(case.study_instance_uid, [])
        found = [each for each in there if case.series_instance_uid in {"", each.series_instance_uid}]
        if not there and isinstance(reference.says, Masks) and is_nifti(reference.says.path):
            # A label map is named after its study or its series.
            found = of_series.get(case.study_instance_uid, [])
        named.update(each.result_id for each in found)
        if len(found) == 1 and found[0].status is not ResultStatus.NOT_EVALUABLE:
            pairs.append(Pair(reference=reference, outcome=found[0]))
        else:
            reason = _why(found, there, unanswered.get(case.study_instance_uid))
            missing.append(Unmatched(reference=reference, reason=reason))
    _refuse_repetition(pairs)
    return Matches(
        pairs=tuple(pairs),
        missing=tuple(missing),
        unreferenced=tuple(each for each in outcomes if each.result_id not in named),
    )


def _why(found: Sequence[Outcome], of_study: Sequence[Outcome], state: str | None) -> str:
    if len(found) > 1:
        numbers = ", ".join(str(each.result_id) for each in found)
        return f"{len(found)} current results answer it ({numbers}): name the series, or withdraw one"
    if found:
        return f"result {found[0].result_id} is not evaluable: {found[0].reason}"
    if of_study:
        others = ", ".join(each.series_instance_uid for each in of_study)
        return f"the result of this study is of another series: {others}"
    return "no study of this UID is here" if state is None else f"no current result: {state}"


def _refuse_repetition(pairs: Sequence[Pair]) -> None:
    """Refuse a reference that speaks of the result, or the image, that another one of its kind has spoken of."""
    seen: dict[tuple[type, int, str, int], str] = {}
    for pair in pairs:
        case, says, origin = pair.reference.case, pair.reference.says, pair.reference.origin
        if isinstance(says, Masks | Values):
            continue  # each may be of another segment or number, which is looked at when they are compared
        other = seen.setdefault((type(says), pair.outcome.result_id, case.sop_instance_uid, case.frame_number), origin)
        if other != origin:
            raise ReferenceRefused(f"{origin}: {other} speaks of {case} already: leave one of them out")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a result says of one finding: whether it is there, and how sure that is (0 to 1), if that is known."""

    present: bool
    score: float | None


@dataclass(frozen=True)
class Vocabulary:
    """The findings that results speak of: their codes, in order, and what they are called."""

    names: Mapping[str, str]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Vocabulary":
        """Collect what results speak of."""
        names: dict[str, str] = {}
        for outcome in outcomes:
            for finding in outcome.findings:
                names.setdefault(key_of(finding), finding.code_meaning)
        return cls(names)

    def find(self, said: str, origin: str) -> str:
        """Return the code of what a reference calls a finding: `scheme:value`, its value or its meaning.

        Raises ReferenceRefused where no result speaks of it, or two findings are called so.
        """
        found = self._called(said)
        if len(found) == 1:
            return found[0]
        if found:
            raise ReferenceRefused(f"{origin}: {said!r} may be any of {', '.join(found)}: name one by its code")
        known = ", ".join(f"{meaning} ({code})" for code, meaning in self.names.items()) or "none"
        raise ReferenceRefused(f"{origin}: no result speaks of {said!r}; the findings of the results are: {known}")

    def knows(self, said: str) -> bool:
        """Return whether any result speaks of what a reference calls so."""
        return bool(self._called(said))

    def _called(self, said: str) -> list[str]:
        wanted = said.casefold()
        for called in (
            lambda code, _: code.casefold(),
            lambda code, _: code.partition(":")[2].casefold(),
            lambda _, meaning: meaning.casefold(),
        ):
            found = [code for code, meaning in self.names.items() if called(code, meaning) == wanted]
            if found:
                return found
        return []


def key_of(finding: FoundRow) -> str:
    """Return the code of a finding as `scheme:value`."""
    return f"{finding.code_scheme}:{finding.code_value}"


def findings_of(outcome: Outcome, case: Case) -> tuple[FoundRow, ...] | str:
    """Return the findings of a result that are about a case; where they are about other images only, the reason."""
    if not case.sop_instance_uid:
        images = {
            (each.sop_instance_uid, each.frame_number)
            for each in outcome.findings
            if each.sop_instance_uid and not each.low
        }
        if len(images) > 1:
            return f"result {outcome.result_id} answers for {len(images)} images: name the image (sop_instance_uid)"
        return outcome.findings
    wanted = (case.sop_instance_uid, case.frame_number)
    chosen = tuple(each for each in outcome.findings if (each.sop_instance_uid, each.frame_number) == wanted)
    if not chosen:
        return f"result {outcome.result_id} says nothing of this image by itself: name the study or series only"
    return chosen


def answers_of(outcome: Outcome, case: Case) -> dict[str, Answer] | str:
    """Return what a result says of a case, by finding; where it says it of other images only, the reason.

    Several findings of one code are one answer: there if any is, and as sure as the surest.
    """
    chosen = findings_of(outcome, case)
    if isinstance(chosen, str):
        return chosen
    answers: dict[str, Answer] = {}
    for each in chosen:
        before = answers.get(key_of(each), Answer(present=False, score=None))
        scores = [score for score in (before.score, each.certainty) if score is not None]
        answers[key_of(each)] = Answer(present=before.present or each.present, score=max(scores) if scores else None)
    return answers


def truth_of(says: Labels, vocabulary: Vocabulary, origin: str) -> dict[str, bool]:
    """Return what a reference says of findings, by their code; a closed one says of all others that none is there.

    Raises ReferenceRefused where it calls one finding by two names, and says different things of it.
    """
    named: dict[str, bool] = {}
    for said, present in says.present.items():
        if named.setdefault(vocabulary.find(said, origin), present) != present:
            raise ReferenceRefused(f"{origin}: {said!r} is present and absent in one case, under two names")
    return {**dict.fromkeys(vocabulary.names, False), **named} if says.closed else named
