"""Classes against their reference: tables of two by two, confusion matrices, ROC curves (scikit-learn)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from meddaemon.evaluation.estimates import Bootstrap, Estimate, proportion, resampled, undefined

NONE = "(none)"
"""What a case is called in a confusion matrix of which no class of the group is there."""
NO_CASES = "no cases"
NO_POSITIVES = "the reference has no positive case"
NO_NEGATIVES = "the reference has no negative case"
NO_SCORES = "the results have no certainty"
POINTS = 200
"""Most points that a ROC curve is shown with."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What reference and result say of one class of one case; `score` is from 0 to 1, None where there is none."""

    case: str
    study: str
    expected: bool
    found: bool
    score: float | None


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """One class: its table of two by two, and what follows from it."""

    name: str
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    precision: Estimate
    f1: Estimate
    auc: Estimate
    roc: tuple[tuple[float, float], ...]
    """(1 - specificity, sensitivity) of each threshold, from (0, 0) to (1, 1); empty without an AUC."""


@dataclass(frozen=True, kw_only=True)
class GroupTable:
    """Classes that exclude each other: how often each was taken for which. `matrix` is [reference][result]."""

    name: str
    labels: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]
    accuracy: Estimate
    macro_f1: Estimate


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Everything that is said of classes."""

    classes: tuple[ClassTable, ...]
    groups: tuple[GroupTable, ...]


def judge_class(name: str, cases: Sequence[Judged], bootstrap: Bootstrap) -> ClassTable:
    """Return what is to be said of one class over all its cases."""
    expected = np.array([each.expected for each in cases], dtype=bool)
    found = np.array([each.found for each in cases], dtype=bool)
    studies = [each.study for each in cases]
    (tn, fp), (fn, tp) = _two_by_two(expected, found)
    auc, roc = _auc(cases, expected, studies, bootstrap)
    return ClassTable(
        name=name,
        true_positive=tp,
        false_positive=fp,
        false_negative=fn,
        true_negative=tn,
        accuracy=proportion(tp + tn, len(cases), without=NO_CASES),
        sensitivity=proportion(tp, tp + fn, without=NO_POSITIVES),
        specificity=proportion(tn, tn + fp, without=NO_NEGATIVES),
        precision=proportion(tp, tp + fp, without="the results have no positive case"),
        f1=resampled(
            _f1(tp, fp, fn),
            lambda drawn: _f1_of(expected[drawn], found[drawn]),
            studies,
            bootstrap,
            reason="neither reference nor results have a positive case",
        ),
        auc=auc,
        roc=roc,
    )


def judge_group(
    name: str, labels: Sequence[str], cases: Sequence[tuple[str, str, str]], bootstrap: Bootstrap
) -> GroupTable:
    """Return the confusion matrix of classes that exclude each other.

    `cases` are (study, class of the reference, class of the result), either of them NONE where there is none.
    """
    shown = [*labels, *([NONE] if any(NONE in each[1:] for each in cases) else [])]
    expected = np.array([each[1] for each in cases], dtype=object)
    found = np.array([each[2] for each in cases], dtype=object)
    if len(cases) == 0:
        empty = undefined(NO_CASES)
        zeros = tuple((0,) * len(shown) for _ in shown)
        return GroupTable(name=name, labels=tuple(shown), matrix=zeros, accuracy=empty, macro_f1=empty)
    matrix = confusion_matrix(expected, found, labels=shown)
    return GroupTable(
        name=name,
        labels=tuple(shown),
        matrix=tuple(tuple(int(count) for count in row) for row in matrix),
        accuracy=proportion(int(np.trace(matrix)), len(cases), without=NO_CASES),
        macro_f1=resampled(
            _macro_f1(expected, found, labels),
            lambda drawn: _macro_f1(expected[drawn], found[drawn], labels),
            [each[0] for each in cases],
            bootstrap,
            reason="a class is neither in the reference nor in the results",
        ),
    )


def area(expected: NDArray[np.bool_], levels: NDArray[np.intp]) -> float | None:
    """Return the area under the ROC curve; None where one of both is missing: how often a positive case ranks higher.

    `levels` are the ranks of the scores among those that there are. It is what scikit-learn says, in a hundredth of
    the time, which a thousand samples are glad of.
    """
    size = int(levels.max(initial=0)) + 1
    positive, negative = (np.bincount(levels[which], minlength=size) for which in (expected, ~expected))
    pairs = int(positive.sum()) * int(negative.sum())
    if not pairs:
        return None
    below = np.cumsum(negative) - negative
    return float((positive @ (below + negative / 2)) / pairs)


def _two_by_two(expected: NDArray[np.bool_], found: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    if len(expected) == 0:
        return (0, 0), (0, 0)
    (tn, fp), (fn, tp) = confusion_matrix(expected, found, labels=[False, True])
    return (int(tn), int(fp)), (int(fn), int(tp))


def _f1(tp: int, fp: int, fn: int) -> float | None:
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None


def _f1_of(expected: NDArray[np.bool_], found: NDArray[np.bool_]) -> float | None:
    both, either = int((expected & found).sum()), int((expected ^ found).sum())
    return 2 * both / (2 * both + either) if both + either else None


def _macro_f1(expected: NDArray[np.object_], found: NDArray[np.object_], labels: Sequence[str]) -> float | None:
    """Return the mean of the F1 of each class; None where one is not defined, for it would count as 0."""
    each = [_f1_of(expected == label, found == label) for label in labels]
    known = [value for value in each if value is not None]
    return float(np.mean(known)) if known and len(known) == len(each) else None


def _auc(
    cases: Sequence[Judged], expected: NDArray[np.bool_], studies: Sequence[str], bootstrap: Bootstrap
) -> tuple[Estimate, tuple[tuple[float, float], ...]]:
    """Return the area under the ROC curve and the curve."""
    scores = np.array([np.nan if each.score is None else each.score for each in cases], dtype=np.float64)
    if len(cases) == 0:
        return undefined(NO_CASES), ()
    if np.isnan(scores).any():
        missing = int(np.isnan(scores).sum())
        said = NO_SCORES if missing == len(cases) else f"{missing} of the results have no certainty"
        return undefined(said, len(cases)), ()
    if not expected.any() or expected.all():
        return undefined(NO_NEGATIVES if expected.all() else NO_POSITIVES, len(cases)), ()

    levels = np.unique(scores, return_inverse=True)[1]
    whole = float(roc_auc_score(expected, scores))
    false_rate, true_rate, _ = roc_curve(expected, scores)
    kept = np.unique(np.linspace(0, len(false_rate) - 1, min(POINTS, len(false_rate))).round().astype(int))
    curve = tuple((float(x), float(y)) for x, y in zip(false_rate[kept], true_rate[kept], strict=True))
    return resampled(whole, lambda drawn: area(expected[drawn], levels[drawn]), studies, bootstrap), curve
