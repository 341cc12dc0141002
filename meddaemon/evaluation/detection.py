"""Detections against their reference: the free-response ROC curve (FROC).

By centres the rules are those of LUNA16 and CAMELYON16: a detection hits a target when its centre lies in it; of
several that hit one target the surest counts, and the others are neither right nor wrong. By overlap they are those of
COCO, as nnDetection and MONAI have them: the others are false positives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meddaemon.evaluation.estimates import Bootstrap, Estimate, resampled, undefined

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a case at which sensitivity is told; the score is their mean (LUNA16)."""
NO_TARGETS = "the reference has no lesion"
POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What one result detects of one finding, against the targets of the reference.

    `hits` are scores of detections that hit a target, the surest for each; `misses` those of false positives.
    """

    case: str
    study: str
    targets: int
    hits: tuple[float, ...]
    misses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Froc:
    """One finding over all cases. `curve` is (false positives a case, sensitivity) of each threshold, rising.

    `iou` is the intersection over union from which on a detection is a hit, None where its centre decides.
    `average_precision` is the mean of the precision at 101 values of recall (COCO).
    Beyond the least sure detection that the model reports the curve does not go on: sensitivity stays as it is there.
    """

    name: str
    iou: float | None
    cases: int
    targets: int
    hits: int
    false_positives: int
    sensitivity: Estimate
    score: Estimate
    average_precision: Estimate
    at: tuple[tuple[float, float | None], ...]
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Everything that is said of detections."""

    findings: tuple[Froc, ...]


def assign(
    scores: Sequence[float],
    targets: int,
    hit: Callable[[int, int], float | None],
    *,
    repeated_is_wrong: bool = False,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the scores of detections that hit a target and of those that hit none.

    `hit` is the distance of a detection from a target that it hits, None where it does not. The surest detection
    chooses first, the nearest target that is left; one that hits nothing but targets that are taken counts for nothing,
    or is a false positive.
    """
    left = set(range(targets))
    hits, misses = [], []
    for index in sorted(range(len(scores)), key=lambda each: -scores[each]):
        near = {each: distance for each in range(targets) if (distance := hit(index, each)) is not None}
        free = {each: distance for each, distance in near.items() if each in left}
        if free:
            left.remove(min(free, key=lambda each: free[each]))
            hits.append(scores[index])
        elif not near or repeated_is_wrong:
            misses.append(scores[index])
    return tuple(hits), tuple(misses)


def overlap(
    low: Sequence[float], high: Sequence[float], other_low: Sequence[float], other_high: Sequence[float]
) -> float:
    """Return the intersection over union of two boxes of as many axes; 0 where both are empty."""
    sides = np.minimum(high, other_high) - np.maximum(low, other_low)
    both = float(np.prod(np.maximum(sides, 0)))
    either = float(np.prod(np.subtract(high, low)) + np.prod(np.subtract(other_high, other_low))) - both
    return both / either if either > 0 else 0.0


def judge_detection(name: str, cases: Sequence[Detected], bootstrap: Bootstrap, *, iou: float | None = None) -> Froc:
    """Return the FROC curve of one finding over all its cases, and what follows from it."""
    targets = sum(each.targets for each in cases)
    hits, misses = sum(len(each.hits) for each in cases), sum(len(each.misses) for each in cases)
    studies = [each.study for each in cases]
    if not targets:
        return Froc(
            name=name,
            iou=iou,
            cases=len(cases),
            targets=0,
            hits=0,
            false_positives=misses,
            sensitivity=undefined(NO_TARGETS),
            score=undefined(NO_TARGETS, len(cases)),
            average_precision=undefined(NO_TARGETS, len(cases)),
            at=tuple((rate, None) for rate in RATES),
            curve=(),
        )
    rates, found = curve_of(cases)
    at = np.interp(RATES, rates, found)
    kept = np.unique(np.linspace(0, len(rates) - 1, min(POINTS, len(rates))).round().astype(int))

    def score(drawn: NDArray[np.intp]) -> float | None:
        sample = [cases[each] for each in drawn]
        return float(np.interp(RATES, *curve_of(sample)).mean()) if any(each.targets for each in sample) else None

    def precision(drawn: NDArray[np.intp]) -> float | None:
        sample = [cases[each] for each in drawn]
        return average_precision(sample) if any(each.targets for each in sample) else None

    def sensitivity(drawn: NDArray[np.intp]) -> float | None:
        there = sum(cases[each].targets for each in drawn)
        return sum(len(cases[each].hits) for each in drawn) / there if there else None

    return Froc(
        name=name,
        iou=iou,
        cases=len(cases),
        targets=targets,
        hits=hits,
        false_positives=misses,
        sensitivity=resampled(hits / targets, sensitivity, studies, bootstrap),
        score=resampled(float(at.mean()), score, studies, bootstrap),
        average_precision=resampled(average_precision(cases), precision, studies, bootstrap),
        at=tuple((rate, float(value)) for rate, value in zip(RATES, at, strict=True)),
        curve=tuple((float(rates[each]), float(found[each])) for each in kept),
    )


def curve_of(cases: Sequence[Detected]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false positives a case and sensitivity at each threshold, from above the surest detection downwards."""
    wrong, right = _counts(cases)
    rates = np.concatenate([[0.0], wrong / len(cases)])
    found = np.concatenate([[0.0], right / sum(each.targets for each in cases)])
    return rates, found


def average_precision(cases: Sequence[Detected]) -> float:
    """Return the mean precision over 101 values of recall; each is the best that is reached at that recall or more."""
    wrong, right = _counts(cases)
    recall = right / sum(each.targets for each in cases)
    best = np.maximum.accumulate((right / (right + wrong))[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0.0, 1.0, 101), side="left")
    return float(np.append(best, 0.0)[places].mean())


def _counts(cases: Sequence[Detected]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return how many detections are wrong and how many right at each threshold, the highest first."""
    hits = np.array([score for each in cases for score in each.hits], dtype=np.float64)
    misses = np.array([score for each in cases for score in each.misses], dtype=np.float64)
    thresholds = np.unique(np.concatenate([hits, misses]))[::-1]
    wrong, right = (len(each) - np.searchsorted(np.sort(each), thresholds, side="left") for each in (misses, hits))
    return wrong, right
