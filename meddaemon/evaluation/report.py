"""The report of an evaluation as values and as JSON; `report.schema.json` beside this file is its schema.

It names studies, series, instances and results by their UIDs and numbers, and never a patient.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from meddaemon import __version__
from meddaemon.db.outcomes import Outcome
from meddaemon.evaluation.cases import Matches, Pair, Unmatched
from meddaemon.evaluation.classification import Classification
from meddaemon.evaluation.detection import Detection
from meddaemon.evaluation.estimates import CONFIDENCE
from meddaemon.evaluation.evaluate import Comparison, Options
from meddaemon.evaluation.references import Reference
from meddaemon.evaluation.regression import Regression
from meddaemon.evaluation.segmentation import Segmentation

FORMAT: Literal["meddaemon-evaluation"] = "meddaemon-evaluation"
FORMAT_VERSION: Literal[1] = 1
"""Changes whenever a report of before would not satisfy the schema any more."""
SCHEMA = Path(__file__).with_name("report.schema.json")


@dataclass(frozen=True, kw_only=True)
class Software:
    """What made the report."""

    name: str
    version: str


@dataclass(frozen=True, kw_only=True)
class ModelShown:
    """What was evaluated: the versions and digests of the results that were compared."""

    name: str
    versions: tuple[str, ...]
    digests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What makes the numbers the same again."""

    confidence: float
    resamples: int
    seed: int
    hit_distance_mm: float
    hit_iou: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class CaseShown:
    """One reference, the result that it was held against (None for none), and what there is to say of it."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    frame_number: int | None
    reference: str
    kind: str
    result_id: int | None
    status: str | None
    remark: str


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Every reference and every result, in one of these lists; `superseded` results are only counted."""

    compared: tuple[CaseShown, ...]
    missing: tuple[CaseShown, ...]
    refused: tuple[CaseShown, ...]
    unreferenced: tuple[CaseShown, ...]
    superseded: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole evaluation. A section is None where the reference had nothing of its kind."""

    format: Literal["meddaemon-evaluation"]
    format_version: Literal[1]
    software: Software
    model: ModelShown
    method: Method
    notes: tuple[str, ...]
    cases: Cases
    classification: Classification | None
    segmentation: Segmentation | None
    detection: Detection | None
    regression: Regression | None


def report_of(
    model: str,
    matches: Matches,
    comparison: Comparison,
    options: Options,
    *,
    superseded: int,
    notes: Sequence[str] = (),
) -> Report:
    """Put together what came of an evaluation."""
    outcomes = {each.outcome.result_id: each.outcome for each in comparison.compared}.values()
    versions = tuple(sorted({each.model_version for each in outcomes}))
    digests = tuple(sorted({each.model_digest for each in outcomes}))
    mixed = [f"the results are of {len(digests)} different models of this name: their numbers are mixed"]
    implausible = sum(each.status.value == "implausible" for each in outcomes)
    doubted = [f"{implausible} of the compared results are marked implausible: they are counted like the others"]
    absent = len(comparison.missing)
    partly = len({id(each.reference) for each in comparison.refused})
    left_out = [
        f"{absent} references have no result to be compared with and {partly} were refused, whole or in part: all "
        "numbers are of the others only, and say nothing of these"
    ]
    remarks: dict[str, list[str]] = {}
    for case, remark in comparison.remarks:
        remarks.setdefault(case, []).append(remark)
    answered = {id(each.reference): each.outcome for each in matches.pairs}
    return Report(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        software=Software(name="meddaemon", version=__version__),
        model=ModelShown(name=model, versions=versions, digests=digests),
        method=Method(
            confidence=CONFIDENCE,
            resamples=options.bootstrap.resamples,
            seed=options.bootstrap.seed,
            hit_distance_mm=options.hit_distance_mm,
            hit_iou=options.hit_iou,
        ),
        notes=(
            *notes,
            *(left_out if absent or partly else ()),
            *(mixed if len(digests) > 1 else ()),
            *(doubted if implausible else ()),
        ),
        cases=Cases(
            compared=tuple(_compared(each, "; ".join(remarks.get(each.case, ()))) for each in comparison.compared),
            missing=tuple(_unmatched(each, None) for each in comparison.missing),
            refused=tuple(_unmatched(each, answered.get(id(each.reference))) for each in comparison.refused),
            unreferenced=tuple(_unreferenced(each) for each in matches.unreferenced),
            superseded=superseded,
        ),
        classification=comparison.classification,
        segmentation=comparison.segmentation,
        detection=comparison.detection,
        regression=comparison.regression,
    )


def as_json(report: Report) -> str:
    """Return the report as JSON; equal reports are equal texts."""
    return json.dumps(asdict(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _compared(pair: Pair, remark: str) -> CaseShown:
    return _shown(pair.reference, pair.outcome, remark)


def _unmatched(unmatched: Unmatched, outcome: Outcome | None) -> CaseShown:
    return _shown(unmatched.reference, outcome, unmatched.reason)


def _shown(reference: Reference, outcome: Outcome | None, remark: str) -> CaseShown:
    case = reference.case
    return CaseShown(
        study_instance_uid=outcome.study_instance_uid if outcome else case.study_instance_uid,
        series_instance_uid=outcome.series_instance_uid if outcome else case.series_instance_uid,
        sop_instance_uid=case.sop_instance_uid,
        frame_number=case.frame_number or None,
        reference=Path(reference.origin).name,
        kind=type(reference.says).__name__.lower(),
        result_id=outcome.result_id if outcome else None,
        status=outcome.status.value if outcome else None,
        remark=remark,
    )


def _unreferenced(outcome: Outcome) -> CaseShown:
    return CaseShown(
        study_instance_uid=outcome.study_instance_uid,
        series_instance_uid=outcome.series_instance_uid,
        sop_instance_uid="",
        frame_number=None,
        reference="",
        kind="",
        result_id=outcome.result_id,
        status=outcome.status.value,
        remark="no reference says anything of it",
    )
