"""What a prediction says: segments, findings, measurements, and whether they may be believed. Pure NumPy.

Each kind of model has one function here that turns its output into findings; `guard` judges the prediction as such.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.codes import CERTAINTY_OF_FINDING, MILLILITRE, PERCENT, STANDARD_DEVIATION, VOLUME, Code
from meddaemon.domain.contract import (
    MeasurementKind,
    ModelContract,
    ModelKind,
    ObjectContract,
    ScoreContract,
    SegmentContract,
    present,
)
from meddaemon.domain.errors import ModelFailed, NotEvaluable
from meddaemon.domain.result import (
    Analysis,
    Box,
    Finding,
    Labels,
    Landmark,
    Measurement,
    Prediction,
    ResultStatus,
    Segment,
    reported,
)
from meddaemon.domain.uids import derived_uid
from meddaemon.inference.guard import check_output

MM3_PER_ML = 1000.0
MAX_OBJECTS = 1000
"""So many boxes or landmarks are kept, the surest first; no reader looks at more."""


_Size: TypeAlias = tuple[int, float]
"""Voxels, and mL."""


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What one kind of output says, and what speaks against it."""

    findings: tuple[Finding, ...]
    doubts: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    labels: Labels | None = None


def analyse(prediction: Prediction, contract: ModelContract, *, entropy: str) -> Analysis:
    """Put what the model said into findings with codes and judge it by the contract's limits.

    `entropy` names the run (the key of its job): tracking UIDs derive from it, the segment number and nothing else,
    so that the same run made again has the same UIDs. Everything that the contract names becomes a finding, also what
    was looked for and not found: every segment, every class, every score, every kind of object.

    Raises `ModelFailed` when the prediction holds what the contract does not name, or not what it promises: what
    cannot be coded is not delivered.
    """
    if prediction.beyond:
        return not_evaluable(contract, prediction.beyond)
    said = _READINGS[contract.kind](prediction, contract, entropy)
    doubts = dict.fromkeys((*prediction.doubts, *said.doubts, *check_output(prediction, contract)))
    return Analysis(
        status=ResultStatus.IMPLAUSIBLE if doubts else ResultStatus.PLAUSIBLE,
        reason="; ".join(doubts),
        segments=said.segments,
        findings=said.findings,
        labels=said.labels,
        geometry=prediction.geometry,
        artefacts=prediction.artefacts,
    )


def unasked(beyond: NotEvaluable) -> Prediction:
    """Return the prediction of a model that was not asked, because the input is not what it was made for."""
    return Prediction(series_instance_uid=str(beyond.numbers["series_instance_uid"]), beyond=str(beyond))


def not_evaluable(contract: ModelContract, reason: str) -> Analysis:
    """Return the result of a study that the model says nothing about: all that was asked, and no number."""
    return Analysis(status=ResultStatus.NOT_EVALUABLE, reason=reason, segments=(), findings=_unmeasured(contract))


def _segmented(prediction: Prediction, contract: ModelContract, entropy: str) -> _Said:
    """Measure every segment of the contract, an empty one too; segments that overlap are measured and not drawn."""
    if prediction.labels is None and prediction.masks is None and prediction.doubts:
        return _Said(findings=_unmeasured(contract))
    measured, labels = (_overlapping if prediction.labels is None else _labelled)(prediction, contract)
    segments: list[Segment] = []
    findings: list[Finding] = []
    doubts: list[str] = []
    # Segments are numbered from 1 without holes, whatever the labels of the model are (PS3.3 C.8.20.2).
    for number, (expected, (count, volume_ml)) in enumerate(zip(contract.segments, measured, strict=True), start=1):
        segments.append(_segment(number, expected, count, contract, entropy))
        spread_ml = prediction.volume_spread_ml[number - 1 : number]
        findings.append(_segment_finding(number, expected, volume_ml, spread_ml))
        doubts += _volume_doubts(expected, count, volume_ml)
    return _Said(findings=tuple(findings), doubts=tuple(doubts), segments=tuple(segments), labels=labels)


def _labelled(prediction: Prediction, contract: ModelContract) -> tuple[list[_Size], Labels | None]:
    """Return the size of each segment, and the labels as segment numbers."""
    labels, geometry = prediction.drawn
    counts, volumes = _sizes(labels, geometry.voxel_volumes_mm3)
    _refuse_unknown(np.flatnonzero(counts[1:]) + 1, [each.label for each in contract.segments], contract)
    found = [
        (int(counts[each.label]), float(volumes[each.label]) / MM3_PER_ML) if each.label < len(counts) else (0, 0.0)
        for each in contract.segments
    ]
    return found, _numbered(labels, contract)


def _overlapping(prediction: Prediction, contract: ModelContract) -> tuple[list[_Size], Labels | None]:
    """Return the size of each segment, whose masks are in the order of the contract."""
    masks, geometry = prediction.masks, prediction.geometry
    if masks is None or geometry is None:
        raise ModelFailed(f"{contract.name} {contract.version} drew nothing that lies anywhere")
    if len(masks) != len(contract.segments):
        raise ModelFailed(
            f"{contract.name} {contract.version} drew {len(masks)} masks, its contract names {len(contract.segments)}"
        )
    found = []
    for mask in masks:
        counts = np.array([np.count_nonzero(plane) for plane in mask], dtype=np.int64)
        found.append((int(counts.sum()), float(counts @ geometry.voxel_volumes_mm3) / MM3_PER_ML))
    return found, None


def _sizes(labels: Labels, volumes_mm3: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return how many voxels carry each label, and how much they take in mm³, given that of a voxel of each plane.

    Plane by plane, because planes may lie at uneven distances, and counting widens what it counts.
    """
    possible = int(np.iinfo(labels.dtype).max) + 1
    counts, volumes = np.zeros(possible, dtype=np.int64), np.zeros(possible)
    for plane, volume in zip(labels, volumes_mm3, strict=True):
        in_plane = np.bincount(plane.ravel(), minlength=possible)
        counts += in_plane
        volumes += in_plane * volume
    return counts, volumes


def _numbered(labels: Labels, contract: ModelContract) -> Labels:
    """Return the labels as segment numbers."""
    pairs = [(segment.label, number) for number, segment in enumerate(contract.segments, start=1)]
    if all(label == number for label, number in pairs):
        return labels
    numbers = np.zeros(int(np.iinfo(labels.dtype).max) + 1, dtype=labels.dtype)
    for label, number in pairs:
        if label < len(numbers):
            numbers[label] = number
    return numbers[labels]


def _segment(number: int, expected: SegmentContract, count: int, contract: ModelContract, entropy: str) -> Segment:
    return Segment(
        number=number,
        label=expected.name,
        category=expected.category,
        type=expected.type,
        colour=expected.colour,
        laterality=expected.laterality,
        voxel_count=count,
        tracking_id=f"{contract.name} {number}",
        tracking_uid=derived_uid("tracking", entropy, str(number)),
    )


def _segment_finding(
    number: int | None, expected: SegmentContract, volume_ml: float, spread_ml: tuple[float, ...] = ()
) -> Finding:
    volumes = [_measured(VOLUME, volume_ml, MILLILITRE)]
    volumes += [_spread(_measured(VOLUME, each, MILLILITRE)) for each in spread_ml]
    measured = {MeasurementKind.VOLUME: volumes}
    return Finding(
        # Without a code of its own the finding is the thing that was segmented (PS3.16 TID 1411, Finding).
        code=expected.finding or expected.type,
        segment_number=number,
        measurements=tuple(each for kind in expected.measure for each in measured[kind]),
        present=volume_ml > 0,
    )


def _volume_doubts(expected: SegmentContract, count: int, volume_ml: float) -> list[str]:
    """Return why the volume cannot be believed: nothing where something must be, or beyond the limits."""
    limits = expected.plausible_volume_ml
    if limits is None or limits.minimum <= volume_ml <= limits.maximum:
        return []
    if count == 0:
        return [f"{expected.name} is empty; plausible are {limits.minimum:g} to {limits.maximum:g} mL"]
    return [f"{expected.name} measures {volume_ml:.1f} mL; plausible are {limits.minimum:g} to {limits.maximum:g} mL"]


def _classified(prediction: Prediction, contract: ModelContract, _: str) -> _Said:
    """Say of each class whether it is there, and how sure that is."""
    scores = _scores(prediction, len(contract.classes), contract)
    found = present(scores, [(each.group, each.threshold) for each in contract.classes])
    spreads = [[_spread(_certainty(each))] for each in prediction.score_spread] or [[]] * len(scores)
    return _Said(
        findings=tuple(
            Finding(code=each.finding, segment_number=None, measurements=(_certainty(score), *spread), present=there)
            for each, score, there, spread in zip(contract.classes, scores, found, spreads, strict=True)
        )
    )


def _measured_scores(prediction: Prediction, contract: ModelContract, _: str) -> _Said:
    """Give each number of a regression its name and unit."""
    values = _scores(prediction, len(contract.scores), contract)
    return _Said(
        findings=tuple(
            _score_finding(each, value, prediction.score_spread[index : index + 1])
            for index, (each, value) in enumerate(zip(contract.scores, values, strict=True))
        ),
        doubts=tuple(
            f"{each.name.meaning} is {value:g} {each.unit.value}; plausible are {each.plausible}"
            for each, value in zip(contract.scores, values, strict=True)
            if each.plausible is not None and math.isfinite(value) and not each.plausible.holds(value)
        ),
    )


def _score_finding(expected: ScoreContract, value: float, spread: tuple[float, ...] = ()) -> Finding:
    measured = _measured(expected.name, value, expected.unit)
    spreads = (_spread(_measured(expected.name, each, expected.unit)) for each in spread)
    return Finding(
        code=expected.name, segment_number=None, measurements=(measured, *spreads), present=measured.value is not None
    )


def _scores(prediction: Prediction, expected: int, contract: ModelContract) -> tuple[float, ...]:
    if len(prediction.scores) != expected:
        raise ModelFailed(
            f"{contract.name} {contract.version} gave {len(prediction.scores)} scores, its contract names {expected}"
        )
    return prediction.scores


def _detected(prediction: Prediction, contract: ModelContract, _: str) -> _Said:
    """Report every box that reaches its threshold; of what was not found, say so."""
    surest, doubts = _surest(prediction.boxes, prediction, contract)
    findings = [
        Finding(
            code=_of(box.label, contract).finding, segment_number=None, measurements=(_certainty(box.score),), box=box
        )
        for box in surest
    ]
    return _Said(findings=(*findings, *_absent(surest, contract)), doubts=tuple(doubts))


def _marked(prediction: Prediction, contract: ModelContract, _: str) -> _Said:
    """Report every landmark that reaches its threshold; of what was not found, say so."""
    surest, doubts = _surest(prediction.landmarks, prediction, contract)
    findings = [
        Finding(
            code=_of(each.label, contract).finding,
            segment_number=None,
            measurements=(_certainty(each.score),),
            landmark=each,
        )
        for each in surest
    ]
    missing = _missing(surest, contract)
    if not contract.output_limits.may_be_empty:
        doubts += [f"{each.name} was not found" for each in missing]
    return _Said(findings=(*findings, *_absent(surest, contract)), doubts=tuple(doubts))


_Object = TypeVar("_Object", Box, Landmark)


def _surest(
    objects: tuple[_Object, ...], prediction: Prediction, contract: ModelContract
) -> tuple[list[_Object], list[str]]:
    """Return what reaches its threshold, the surest first, and a doubt where there is more than anybody can read."""
    _refuse_unknown([each.label for each in objects], [each.label for each in contract.objects], contract)
    for each in objects:
        _refuse_nowhere(each, prediction, contract)
    reached = [each for each in objects if each.score >= _of(each.label, contract).threshold and _is_somewhere(each)]
    reached.sort(key=lambda each: -each.score)
    if len(reached) <= MAX_OBJECTS:
        return reached, []
    return reached[:MAX_OBJECTS], [f"{len(reached)} objects were found, of which the surest {MAX_OBJECTS} are kept"]


def _refuse_nowhere(each: Box | Landmark, prediction: Prediction, contract: ModelContract) -> None:
    """Refuse what is neither in the volume nor on a picture: nobody could say where it is."""
    axes = len(each.low) if isinstance(each, Box) else len(each.position)
    if axes != (2 if each.source else 3) or (each.source is None and prediction.geometry is None):
        raise ModelFailed(
            f"{contract.name} {contract.version} gave a place of {axes} axes "
            + ("on a picture" if each.source else "in a volume" if prediction.geometry else "and no picture for it")
        )


def _is_somewhere(each: Box | Landmark) -> bool:
    """Return whether the coordinates are numbers; those that are not are the guard's to tell of."""
    return bool(np.isfinite((*each.low, *each.high) if isinstance(each, Box) else each.position).all())


def _absent(found: Iterable[Box | Landmark], contract: ModelContract) -> tuple[Finding, ...]:
    return tuple(_object_finding(each) for each in _missing(found, contract))


def _missing(found: Iterable[Box | Landmark], contract: ModelContract) -> list[ObjectContract]:
    labels = {each.label for each in found}
    return [each for each in contract.objects if each.label not in labels]


def _object_finding(expected: ObjectContract) -> Finding:
    """Return the finding of an object that is nowhere."""
    return Finding(code=expected.finding, segment_number=None, measurements=(_certainty(math.nan),), present=False)


def _of(label: int, contract: ModelContract) -> ObjectContract:
    return next(each for each in contract.objects if each.label == label)


def _refuse_unknown(found: Iterable[int], known: Iterable[int], contract: ModelContract) -> None:
    unknown = sorted({int(each) for each in found} - set(known))
    if unknown:
        raise ModelFailed(
            f"{contract.name} {contract.version} produced label(s) {', '.join(map(str, unknown[:8]))},"
            " which its contract does not name"
        )


def _unmeasured(contract: ModelContract) -> tuple[Finding, ...]:
    """Return what the contract asks for, without a number: nobody could look."""
    return (
        *(_segment_finding(None, each, math.nan) for each in contract.segments),
        *(
            Finding(code=each.finding, segment_number=None, measurements=(_certainty(math.nan),), present=False)
            for each in contract.classes
        ),
        *(_score_finding(each, math.nan) for each in contract.scores),
        *(_object_finding(each) for each in contract.objects),
    )


def _certainty(score: float) -> Measurement:
    return _measured(CERTAINTY_OF_FINDING, score * 100, PERCENT)


def _spread(measurement: Measurement) -> Measurement:
    """Return the same measurement as the standard deviation of several (PS3.16 TID 1419, Derivation)."""
    return replace(measurement, derivation=STANDARD_DEVIATION)


def _measured(name: Code, value: float, unit: Code) -> Measurement:
    return Measurement(name=name, value=reported(value) if math.isfinite(value) else None, unit=unit)


_READINGS: Mapping[ModelKind, Callable[[Prediction, ModelContract, str], _Said]] = {
    ModelKind.SEGMENTATION: _segmented,
    ModelKind.CLASSIFICATION: _classified,
    ModelKind.REGRESSION: _measured_scores,
    ModelKind.DETECTION: _detected,
    ModelKind.LANDMARKS: _marked,
}
