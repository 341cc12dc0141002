"""What a prediction says: segments, measurements, findings, and whether they may be believed. Pure NumPy."""

from collections.abc import Sequence

import numpy as np

from meddaemon.domain.codes import MILLILITRE, VOLUME
from meddaemon.domain.contract import MeasurementKind, ModelContract, SegmentContract
from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import Analysis, Finding, Measurement, Prediction, ResultStatus, Segment
from meddaemon.domain.uids import derived_uid

MM3_PER_ML = 1000.0


def analyse(prediction: Prediction, contract: ModelContract, *, entropy: Sequence[str]) -> Analysis:
    """Measure every segment of the contract on the prediction and judge it by the contract's limits.

    `entropy` names the run (study, generation, model digest...): tracking UIDs derive from it, the segment number and
    nothing else, so that the same run made again has the same UIDs. Every segment of the contract becomes a segment
    of the result, an empty one too, with one finding that holds its measurements.

    Raises `ModelFailed` when the prediction holds a label that the contract does not name: what cannot be coded is
    not delivered.
    """
    counts = np.bincount(prediction.labels.ravel(), minlength=1)
    known = {segment.label for segment in contract.segments}
    unknown = [label for label in np.flatnonzero(counts).tolist() if label and label not in known]
    if unknown:
        raise ModelFailed(
            f"{contract.name} {contract.version} produced label(s) {', '.join(map(str, unknown[:8]))},"
            " which its contract does not name"
        )
    voxel_ml = prediction.geometry.voxel_volume_mm3 / MM3_PER_ML
    segments: list[Segment] = []
    findings: list[Finding] = []
    doubts: list[str] = []
    for expected in contract.segments:
        count = int(counts[expected.label]) if expected.label < len(counts) else 0
        segments.append(_segment(expected, count, contract, entropy))
        findings.append(_finding(expected, count * voxel_ml))
        doubts += _doubts(expected, count, count * voxel_ml)
    if not np.any(counts[1:]):
        doubts.append("nothing was segmented")
    return Analysis(
        status=ResultStatus.IMPLAUSIBLE if doubts else ResultStatus.PLAUSIBLE,
        reason="; ".join(doubts),
        segments=tuple(segments),
        findings=tuple(findings),
        labels=prediction.labels,
        geometry=prediction.geometry,
    )


def _segment(expected: SegmentContract, count: int, contract: ModelContract, entropy: Sequence[str]) -> Segment:
    return Segment(
        number=expected.label,
        label=expected.name,
        category=expected.category,
        type=expected.type,
        colour=expected.colour,
        laterality=expected.laterality,
        voxel_count=count,
        tracking_id=f"{contract.name} {expected.label}",
        tracking_uid=derived_uid("tracking", *entropy, str(expected.label)),
    )


def _finding(expected: SegmentContract, volume_ml: float) -> Finding:
    measured = {MeasurementKind.VOLUME: Measurement(name=VOLUME, value=volume_ml, unit=MILLILITRE)}
    return Finding(
        # Without a code of its own the finding is the thing that was segmented (PS3.16 TID 1411, Finding).
        code=expected.finding or expected.type,
        segment_number=expected.label,
        measurements=tuple(measured[kind] for kind in expected.measure),
    )


def _doubts(expected: SegmentContract, count: int, volume_ml: float) -> list[str]:
    """Return why the volume cannot be believed: nothing where something must be, or beyond the limits."""
    limits = expected.plausible_volume_ml
    if limits is None or limits.minimum <= volume_ml <= limits.maximum:
        return []
    if count == 0:
        return [f"{expected.name} is empty; plausible are {limits.minimum:g} to {limits.maximum:g} mL"]
    return [f"{expected.name} measures {volume_ml:.1f} mL; plausible are {limits.minimum:g} to {limits.maximum:g} mL"]
