"""What a prediction says: segments, measurements, findings, and whether they may be believed. Pure NumPy."""

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.codes import MILLILITRE, VOLUME
from meddaemon.domain.contract import MeasurementKind, ModelContract, SegmentContract
from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import Analysis, Finding, Labels, Measurement, Prediction, ResultStatus, Segment, reported
from meddaemon.domain.uids import derived_uid

MM3_PER_ML = 1000.0


def analyse(prediction: Prediction, contract: ModelContract, *, entropy: str) -> Analysis:
    """Measure every segment of the contract on the prediction and judge it by the contract's limits.

    `entropy` names the run (the key of its job): tracking UIDs derive from it, the segment number and
    nothing else, so that the same run made again has the same UIDs. Every segment of the contract becomes a segment
    of the result, an empty one too, with one finding that holds its measurements.

    Raises `ModelFailed` when the prediction holds a label that the contract does not name: what cannot be coded is
    not delivered.
    """
    labels, geometry = prediction.drawn
    counts = _counts(labels)
    known = {segment.label for segment in contract.segments}
    unknown = [label for label in np.flatnonzero(counts).tolist() if label and label not in known]
    if unknown:
        raise ModelFailed(
            f"{contract.name} {contract.version} produced label(s) {', '.join(map(str, unknown[:8]))},"
            " which its contract does not name"
        )
    voxel_ml = geometry.voxel_volume_mm3 / MM3_PER_ML
    segments: list[Segment] = []
    findings: list[Finding] = []
    doubts: list[str] = []
    # Segments are numbered from 1 without holes, whatever the labels of the model are (PS3.3 C.8.20.2).
    for number, expected in enumerate(contract.segments, start=1):
        count = int(counts[expected.label]) if expected.label < len(counts) else 0
        segments.append(_segment(number, expected, count, contract, entropy))
        findings.append(_finding(number, expected, count * voxel_ml))
        doubts += _doubts(expected, count, count * voxel_ml)
    if not np.any(counts[1:]):
        doubts.append("nothing was segmented")
    return Analysis(
        status=ResultStatus.IMPLAUSIBLE if doubts else ResultStatus.PLAUSIBLE,
        reason="; ".join(doubts),
        segments=tuple(segments),
        findings=tuple(findings),
        labels=_numbered(labels, contract),
        geometry=geometry,
    )


def _counts(labels: Labels) -> NDArray[np.int64]:
    """Return how many voxels carry each label; plane by plane, because counting widens what it counts."""
    possible = int(np.iinfo(labels.dtype).max) + 1
    counts = np.zeros(possible, dtype=np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=possible)
    return counts


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


def _finding(number: int, expected: SegmentContract, volume_ml: float) -> Finding:
    measured = {MeasurementKind.VOLUME: Measurement(name=VOLUME, value=reported(volume_ml), unit=MILLILITRE)}
    return Finding(
        # Without a code of its own the finding is the thing that was segmented (PS3.16 TID 1411, Finding).
        code=expected.finding or expected.type,
        segment_number=number,
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
