"""What a prediction says: segments, findings, measurements, and whether they may be believed. Pure NumPy.

Each kind of model has one function here that turns its output into findings; `guard` judges the prediction as such.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.codes import (
    AREA,
    CERTAINTY_OF_FINDING,
    LESION_COUNT,
    MILLILITRE,
    PERCENT,
    PIXELS,
    SQUARE_MILLIMETRE,
    STANDARD_DEVIATION,
    TOTAL,
    UNITY,
    VOLUME,
    Code,
)
from meddaemon.domain.contract import (
    FormulaContract,
    MeasurementKind,
    ModelContract,
    ModelKind,
    ObjectContract,
    ScoreContract,
    SegmentContract,
    present,
)
from meddaemon.domain.errors import ModelFailed, NotEvaluable
from meddaemon.domain.formulas import Measured, evaluate, measured_in
from meddaemon.domain.picture import PictureGrid, Pictures
from meddaemon.domain.result import (
    Analysis,
    Box,
    Drawing,
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
from meddaemon.domain.volume import Geometry, Volume, VoxelMeaning
from meddaemon.inference.guard import check_output
from meddaemon.inference.lesions import MM3_PER_ML, Lesions, Part, drawn, split
from meddaemon.inference.quantities import INTENSITIES, measured, measurement

MAX_OBJECTS = 1000
"""So many boxes or landmarks are kept, the surest first; no reader looks at more."""


Shown: TypeAlias = Volume | Pictures | None
_Size: TypeAlias = tuple[int, float]
"""Voxels, and mL."""
_Scores: TypeAlias = tuple[tuple[str, int] | None, tuple[float, ...], list[tuple[float, ...]]]
"""The image that they are about, None for all together, one number for each class, and how far each differs."""


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What one kind of output says, and what speaks against it."""

    findings: tuple[Finding, ...]
    doubts: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    labels: Labels | None = None
    masks: NDArray[np.bool_] | None = None


def analyse(prediction: Prediction, contract: ModelContract, *, entropy: str, shown: Shown = None) -> Analysis:
    """Put what the model said into findings with codes and judge it by the contract's limits.

    `entropy` names the run (the key of its job): tracking UIDs derive from it, the segment number and nothing else,
    so that the same run made again has the same UIDs. Everything that the contract names becomes a finding, also what
    was looked for and not found: every segment, every class, every score, every kind of object.

    `shown` is the input that segments are drawn on, in the values that the model saw; only what is measured of them
    asks for it.

    Raises `ModelFailed` when the prediction holds what the contract does not name, or not what it promises: what
    cannot be coded is not delivered.
    """
    if prediction.beyond:
        return not_evaluable(contract, prediction.beyond, entropy=entropy)
    said = _READINGS[contract.kind](prediction, contract, entropy, shown)
    doubts = dict.fromkeys((*prediction.doubts, *said.doubts, *check_output(prediction, contract)))
    return Analysis(
        status=ResultStatus.IMPLAUSIBLE if doubts else ResultStatus.PLAUSIBLE,
        reason="; ".join(doubts),
        segments=said.segments,
        findings=_tracked(said.findings, said.segments, contract, entropy),
        labels=said.labels,
        masks=said.masks,
        geometry=prediction.geometry,
        pictures=prediction.pictures,
        artefacts=prediction.artefacts,
    )


def unasked(beyond: NotEvaluable) -> Prediction:
    """Return the prediction of a model that was not asked, because the input is not what it was made for."""
    return Prediction(series_instance_uid=str(beyond.numbers["series_instance_uid"]), beyond=str(beyond))


def not_evaluable(contract: ModelContract, reason: str, *, entropy: str) -> Analysis:
    """Return the result of a study that the model says nothing about: all that was asked, and no number."""
    findings = _tracked(_unmeasured(contract), (), contract, entropy)
    return Analysis(status=ResultStatus.NOT_EVALUABLE, reason=reason, segments=(), findings=findings)


def failed(contract: ModelContract, reason: str, *, entropy: str) -> Analysis:
    """Return what is to be told of a job that failed: all that was asked, and no number, as of one not evaluable."""
    return replace(not_evaluable(contract, reason, entropy=entropy), status=ResultStatus.FAILED)


def _tracked(
    findings: Sequence[Finding], segments: Sequence[Segment], contract: ModelContract, entropy: str
) -> tuple[Finding, ...]:
    """Give every finding tracking identifiers: readers merge groups that share one, so that each has its own.

    The first finding on a segment has those of the segment.
    """
    of_segment = {each.number: (each.tracking_id, each.tracking_uid) for each in segments}
    tracked = []
    for ordinal, finding in enumerate(findings, 1):
        named = finding.label or "finding"
        own = (f"{contract.name} {named} {ordinal}", derived_uid("tracking", entropy, "finding", str(ordinal)))
        name, uid = of_segment.pop(finding.segment_number or 0, own)
        tracked.append(replace(finding, tracking_id=name, tracking_uid=uid))
    return tuple(tracked)


def _segmented(prediction: Prediction, contract: ModelContract, entropy: str, shown: Shown) -> _Said:
    """Measure every segment of the contract, an empty one too, or each lesion of those that have some."""
    if prediction.labels is None and prediction.masks is None and prediction.doubts:
        return _Said(findings=_unmeasured(contract))
    if prediction.pictures is not None:
        return _on_pictures(prediction, prediction.pictures, contract, entropy)
    sizes, drawing = (_overlapping if prediction.labels is None else _labelled)(prediction, contract)
    volumes_mm3, geometry = _voxel_volumes(prediction), prediction.geometry
    if volumes_mm3 is None or geometry is None:
        raise _lies_nowhere(contract)
    found: Mapping[int, Lesions] = {}
    if any(each.lesions for each in contract.segments):
        drawing, found = split(drawing, contract.segments, volumes_mm3)
        sizes = [
            (found[number].count, found[number].volume_ml) if number in found else size
            for number, size in enumerate(sizes, 1)
        ]
    parts = drawn(contract.segments, sizes, found)
    voxels, doubts = _voxels(shown, geometry, contract)
    meaning = voxels.meaning if voxels else _foreseen(contract)
    findings: list[Finding] = []
    values: dict[Measured, float | None] = {}
    wanted = [each.expected.measure for each in parts]
    # Segments are numbered from 1 without holes, whatever the labels of the model are (PS3.3 C.8.20.2).
    for number, (part, also) in enumerate(zip(parts, measured(drawing, geometry, wanted, voxels), strict=True), 1):
        said: dict[MeasurementKind, float] = {MeasurementKind.VOLUME: part.volume_ml, **also}
        spread_ml = prediction.volume_spread_ml[part.of - 1 : part.of] if part.of not in found else ()
        findings.append(_segment_finding(number, part.expected, said, meaning, spread_ml))
        if part.of not in found:
            values |= {Measured(kind.value, part.name): said.get(kind) for kind in part.expected.measure}
    for of, lesions in found.items():
        expected, spread_ml = contract.segments[of - 1], prediction.volume_spread_ml[of - 1 : of]
        findings.append(_lesions_finding(expected, lesions.found, lesions.volume_ml, spread_ml))
        values[Measured("count", expected.name)] = lesions.found
        values[Measured("volume", expected.name)] = lesions.volume_ml
        doubts += _lesion_doubts(expected, lesions)
    for expected, (count, volume_ml) in zip(contract.segments, sizes, strict=True):
        doubts += _volume_doubts(expected, count, volume_ml)
    computed, unbelieved = _computed(contract, values)
    return _Said(
        findings=(*findings, *computed),
        doubts=(*doubts, *unbelieved),
        segments=tuple(_segment(number, part, contract, entropy) for number, part in enumerate(parts, 1)),
        labels=drawing.labels,
        masks=drawing.masks,
    )


def _voxels(shown: Shown, geometry: Geometry, contract: ModelContract) -> tuple[Volume | None, list[str]]:
    """Return the voxels that segments are drawn on where they are asked for, and a doubt where they are not there."""
    if not any(INTENSITIES.keys() & set(each.measure) for each in contract.segments):
        return None, []
    if not isinstance(shown, Volume):
        return None, ["the values within segments are not known: the input is not there any more"]
    if shown.voxels.shape != geometry.shape:
        raise ModelFailed(
            f"{contract.name} {contract.version} drew on {geometry.shape} voxels, its input has {shown.voxels.shape}"
        )
    return shown, []


def _foreseen(contract: ModelContract) -> VoxelMeaning:
    """Return what the values of the input would be, as far as the contract tells."""
    is_uptake = bool(contract.inputs) and contract.inputs[0].unit != ""
    return VoxelMeaning.UPTAKE if is_uptake else VoxelMeaning.UNNAMED


def _lesions_finding(
    expected: SegmentContract, count: float, volume_ml: float, spread_ml: tuple[float, ...] = ()
) -> Finding:
    """Return how many lesions there are, and their volume together."""
    volumes = [_measured(VOLUME, each, MILLILITRE, "volume") for each in (volume_ml, *spread_ml)]
    return Finding(
        code=expected.finding or expected.type,
        segment_number=None,
        measurements=(
            _measured(LESION_COUNT, count, UNITY, "count"),
            replace(volumes[0], derivation=TOTAL),
            *map(_spread, volumes[1:]),
        ),
        present=count > 0,
        label=expected.name,
        laterality=expected.laterality,
    )


def _lesion_doubts(expected: SegmentContract, lesions: Lesions) -> list[str]:
    kept = len(lesions.order)
    if lesions.found == kept:
        return []
    return [f"{expected.name}: {lesions.found} were found, of which the largest {kept} are kept"]


def _computed(contract: ModelContract, values: Mapping[Measured, float | None]) -> tuple[list[Finding], list[str]]:
    """Return the numbers that the contract makes of measurements, and what speaks against them."""
    findings, doubts = [], []
    for each in contract.formulas:
        value = evaluate(each.formula, values)
        finding = _formula_finding(each, math.nan if value is None else value)
        findings.append(finding)
        if value is None:
            doubts.append(f"{each.name.meaning} cannot be computed: {_why_not(each, values)}")
        elif each.plausible is not None and not each.plausible.holds(value):
            doubts.append(f"{each.name.meaning} is {value:g} {each.unit.value}; plausible are {each.plausible}")
    return findings, doubts


def _why_not(expected: FormulaContract, values: Mapping[Measured, float | None]) -> str:
    missing = dict.fromkeys(
        f"{each.measure} of {each.segment}" for each in measured_in(expected.formula) if values.get(each) is None
    )
    return f"no {', no '.join(missing)}" if missing else "it divides by zero, or is too large for a number"


def _formula_finding(expected: FormulaContract, value: float) -> Finding:
    measured_value = _measured(expected.name, value, expected.unit, "formula")
    return Finding(
        code=expected.name,
        segment_number=None,
        measurements=(measured_value,),
        present=measured_value.value is not None,
    )


def _on_pictures(prediction: Prediction, pictures: PictureGrid, contract: ModelContract, entropy: str) -> _Said:
    """Measure every segment on every picture by itself: together they cover no area of anything."""
    _, drawing = (_overlapping if prediction.labels is None else _labelled)(prediction, contract)
    counts = [drawing.counts(frame) for frame in range(drawing.shape[0])]
    found = [_of_segments(each, len(contract.segments)) for each in counts]
    return _Said(
        findings=tuple(
            _area_finding(number, expected, on_frame[number - 1], source, pictures.spacing_mm)
            for source, on_frame in zip(pictures.sources, found, strict=True)
            for number, expected in enumerate(contract.segments, start=1)
        ),
        segments=tuple(
            _segment(number, Part(expected=expected, of=number, count=count), contract, entropy)
            for number, expected in enumerate(contract.segments, start=1)
            for count in [sum(each[number - 1] for each in found)]
        ),
        labels=drawing.labels,
        masks=drawing.masks,
    )


def _of_segments(counts: NDArray[np.int64], segments: int) -> list[int]:
    """Return the count of each segment, also of those beyond the highest label that was met."""
    return [int(counts[number]) if number < len(counts) else 0 for number in range(1, segments + 1)]


def _area_finding(
    number: int,
    expected: SegmentContract,
    count: int,
    source: tuple[str, int],
    spacing_mm: tuple[float, float] | None,
) -> Finding:
    """Return how much of a picture a segment covers: in mm² where the distance of pixels in the patient is known."""
    area = (
        _measured(AREA, count, PIXELS, "area")
        if spacing_mm is None
        else _measured(AREA, count * spacing_mm[0] * spacing_mm[1], SQUARE_MILLIMETRE, "area")
    )
    return Finding(
        code=expected.finding or expected.type,
        segment_number=number,
        measurements=(area,) if expected.measure else (),
        source=source,
        present=count > 0,
    )


def _labelled(prediction: Prediction, contract: ModelContract) -> tuple[list[_Size], Drawing]:
    """Return the size of each segment, and the labels as segment numbers."""
    labels, volumes_mm3 = prediction.labels, _voxel_volumes(prediction)
    if labels is None or volumes_mm3 is None:
        raise _lies_nowhere(contract)
    counts, volumes = _sizes(labels, volumes_mm3)
    _refuse_unknown(np.flatnonzero(counts[1:]) + 1, [each.label for each in contract.segments], contract)
    found = [
        (int(counts[each.label]), float(volumes[each.label]) / MM3_PER_ML) if each.label < len(counts) else (0, 0.0)
        for each in contract.segments
    ]
    return found, Drawing(labels=_numbered(labels, contract))


def _overlapping(prediction: Prediction, contract: ModelContract) -> tuple[list[_Size], Drawing]:
    """Return the size of each segment, and their masks, which are in the order of the contract."""
    masks, volumes_mm3 = prediction.masks, _voxel_volumes(prediction)
    if masks is None or volumes_mm3 is None:
        raise _lies_nowhere(contract)
    if len(masks) != len(contract.segments):
        raise ModelFailed(
            f"{contract.name} {contract.version} drew {len(masks)} masks, its contract names {len(contract.segments)}"
        )
    drawing = Drawing(masks=masks)
    counts = np.stack([drawing.counts(plane) for plane in range(drawing.shape[0])], axis=1)[1:]
    found = [(int(each.sum()), float(each @ volumes_mm3) / MM3_PER_ML) for each in counts]
    return found, drawing


def _lies_nowhere(contract: ModelContract) -> ModelFailed:
    return ModelFailed(f"{contract.name} {contract.version} drew nothing that lies anywhere")


def _voxel_volumes(prediction: Prediction) -> NDArray[np.float64] | None:
    """Return the volume of a voxel of each plane in mm³; pixels of a picture have none; None where nothing lies."""
    if prediction.geometry is not None:
        return prediction.geometry.voxel_volumes_mm3
    return None if prediction.pictures is None else np.zeros(prediction.pictures.shape[0])


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
    # The last of many segments may have a small label.
    possible = int(np.iinfo(labels.dtype).max) + 1
    narrow = labels.dtype == np.uint8 and len(pairs) < possible
    numbers: Labels = np.zeros(possible, np.uint8) if narrow else np.zeros(possible, np.uint16)
    for label, number in pairs:
        if label < len(numbers):
            numbers[label] = number
    return numbers[labels]


def _segment(number: int, part: Part, contract: ModelContract, entropy: str) -> Segment:
    expected = part.expected
    return Segment(
        number=number,
        label=part.name,
        category=expected.category,
        type=expected.type,
        colour=expected.colour,
        laterality=expected.laterality,
        voxel_count=part.count,
        tracking_id=f"{contract.name} {part.place}",
        tracking_uid=derived_uid("tracking", entropy, part.place),
    )


def _segment_finding(
    number: int | None,
    expected: SegmentContract,
    values: Mapping[MeasurementKind, float],
    meaning: VoxelMeaning,
    spread_ml: tuple[float, ...] = (),
) -> Finding:
    """Return what was asked of a segment; what is not among `values` could not be measured."""
    measurements: list[Measurement] = []
    for kind in expected.measure:
        value = values.get(kind, math.nan)
        measurements.append(measurement(kind, reported(value) if math.isfinite(value) else None, meaning))
        if kind is MeasurementKind.VOLUME:
            measurements += [_spread(_measured(VOLUME, each, MILLILITRE, "volume")) for each in spread_ml]
    return Finding(
        # Without a code of its own the finding is the thing that was segmented (PS3.16 TID 1411, Finding).
        code=expected.finding or expected.type,
        segment_number=number,
        measurements=tuple(measurements),
        present=values.get(MeasurementKind.VOLUME, math.nan) > 0,
        label="" if number else expected.name,
        laterality=None if number else expected.laterality,
    )


def _volume_doubts(expected: SegmentContract, count: int, volume_ml: float) -> list[str]:
    """Return why the volume cannot be believed: nothing where something must be, or beyond the limits."""
    limits = expected.plausible_volume_ml
    if limits is None or limits.minimum <= volume_ml <= limits.maximum:
        return []
    found = "is empty" if count == 0 else f"measures {reported(volume_ml):g} mL"
    return [f"{expected.name} {found}; plausible are {limits.minimum:g} to {limits.maximum:g} mL"]


def _classified(prediction: Prediction, contract: ModelContract, _: str, __: Shown) -> _Said:
    """Say of each class whether it is there, and how sure that is."""
    answers = [(each.group, each.threshold) for each in contract.classes]
    return _Said(
        findings=tuple(
            Finding(
                code=each.finding,
                segment_number=None,
                measurements=(_certainty(score), *(_spread(_certainty(far)) for far in spread)),
                source=source,
                present=there,
            )
            for source, scores, spreads in _scores(prediction, len(contract.classes), contract)
            for each, score, there, spread in zip(
                contract.classes, scores, present(scores, answers), spreads, strict=True
            )
        )
    )


def _measured_scores(prediction: Prediction, contract: ModelContract, _: str, __: Shown) -> _Said:
    """Give each number of a regression its name and unit."""
    images = _scores(prediction, len(contract.scores), contract)
    return _Said(
        findings=tuple(
            _score_finding(each, value, source, spread)
            for source, values, spreads in images
            for each, value, spread in zip(contract.scores, values, spreads, strict=True)
        ),
        doubts=tuple(
            f"{each.name.meaning} is {value:g} {each.unit.value}; plausible are {each.plausible}"
            for _, values, _ in images
            for each, value in zip(contract.scores, values, strict=True)
            if each.plausible is not None and math.isfinite(value) and not each.plausible.holds(value)
        ),
    )


def _score_finding(
    expected: ScoreContract, value: float, source: tuple[str, int] | None = None, spread: tuple[float, ...] = ()
) -> Finding:
    score = _measured(expected.name, value, expected.unit, "score")
    spreads = (_spread(_measured(expected.name, each, expected.unit, "score")) for each in spread)
    return Finding(
        code=expected.name,
        segment_number=None,
        measurements=(score, *spreads),
        source=source,
        present=score.value is not None,
    )


def _scores(prediction: Prediction, expected: int, contract: ModelContract) -> list[_Scores]:
    """Return the scores of each image that has its own, or those of all together, which are of no one image."""
    images: tuple[tuple[str, int] | None, ...] = prediction.sources or (None,)
    if len(prediction.scores) != expected * len(images):
        of_images = f" for each of {len(images)} images" if prediction.sources else ""
        raise ModelFailed(
            f"{contract.name} {contract.version} gave {len(prediction.scores)} scores, its contract names {expected}"
            + of_images
        )
    spreads: list[tuple[float, ...]] = [(each,) for each in prediction.score_spread]
    spreads = spreads or [()] * len(prediction.scores)
    of_each = [slice(index * expected, (index + 1) * expected) for index in range(len(images))]
    return [(image, prediction.scores[own], spreads[own]) for image, own in zip(images, of_each, strict=True)]


def _detected(prediction: Prediction, contract: ModelContract, _: str, __: Shown) -> _Said:
    """Report every box that reaches its threshold; of what was not found, say so."""
    surest, doubts = _surest(prediction.boxes, prediction, contract)
    findings = [
        Finding(
            code=_of(box.label, contract).finding, segment_number=None, measurements=(_certainty(box.score),), box=box
        )
        for box in surest
    ]
    return _Said(findings=(*findings, *_absent(surest, contract)), doubts=tuple(doubts))


def _marked(prediction: Prediction, contract: ModelContract, _: str, __: Shown) -> _Said:
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
        *(_segment_finding(None, each, {}, _foreseen(contract)) for each in contract.segments),
        *(_lesions_finding(each, math.nan, math.nan) for each in contract.segments if each.lesions),
        *(_formula_finding(each, math.nan) for each in contract.formulas),
        *(
            Finding(code=each.finding, segment_number=None, measurements=(_certainty(math.nan),), present=False)
            for each in contract.classes
        ),
        *(_score_finding(each, math.nan) for each in contract.scores),
        *(_object_finding(each) for each in contract.objects),
    )


def _certainty(score: float) -> Measurement:
    return _measured(CERTAINTY_OF_FINDING, score * 100, PERCENT, "certainty")


def _spread(number: Measurement) -> Measurement:
    """Return the same measurement as the standard deviation of several (PS3.16 TID 1419, Derivation)."""
    return replace(number, derivation=STANDARD_DEVIATION, key=f"{number.key}_spread")


def _measured(name: Code, value: float, unit: Code, key: str) -> Measurement:
    return Measurement(name=name, value=reported(value) if math.isfinite(value) else None, unit=unit, key=key)


_READINGS: Mapping[ModelKind, Callable[[Prediction, ModelContract, str, Shown], _Said]] = {
    ModelKind.SEGMENTATION: _segmented,
    ModelKind.CLASSIFICATION: _classified,
    ModelKind.REGRESSION: _measured_scores,
    ModelKind.DETECTION: _detected,
    ModelKind.LANDMARKS: _marked,
}
