"""Numbers with their uncertainty, against tables of the literature and against scikit-learn."""

import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("sklearn", reason="the extra `evaluate` is not installed")
from sklearn import metrics

from meddaemon.evaluation.classification import NONE, Judged, area, judge_class, judge_group
from meddaemon.evaluation.detection import RATES, Detected, assign, curve_of, judge_detection, overlap
from meddaemon.evaluation.estimates import Bootstrap, mean, proportion, resampled
from meddaemon.evaluation.regression import NumberCase, judge_number

FEW = Bootstrap(resamples=200)


def judged(*said: tuple[int, int, float | None]) -> list[Judged]:
    """Cases of (reference, result, score), each of a study of its own."""
    return [
        Judged(case=str(n), study=str(n), expected=bool(expected), found=bool(found), score=score)
        for n, (expected, found, score) in enumerate(said)
    ]


# --- intervals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3 (Wilson without continuity correction)
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_proportions_have_wilsons_interval(part: int, whole: int, low: float, high: float) -> None:
    estimate = proportion(part, whole, without="")
    assert estimate.value == part / whole
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=6e-5)


def test_a_part_of_nothing_is_not_a_number() -> None:
    estimate = proportion(0, 0, without="nothing there")
    assert (estimate.value, estimate.low, estimate.high, estimate.reason) == (None, None, None, "nothing there")


def test_the_mean_of_a_normal_sample_has_the_interval_of_theory() -> None:
    values = np.random.default_rng(7).normal(10.0, 2.0, 400)
    estimate = mean(list(values), [str(n) for n in range(400)], Bootstrap(resamples=4000), without="")
    half = 1.96 * values.std() / 20
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_cases_of_one_study_are_drawn_together() -> None:
    """Ten copies of each case in its study tell nothing new: the interval stays as it was."""
    values = list(np.random.default_rng(3).normal(size=30))
    once = mean(values, [str(n) for n in range(30)], FEW, without="")
    copied = mean(
        [each for each in values for _ in range(10)], [str(n) for n in range(30) for _ in range(10)], FEW, without=""
    )
    # Studies are drawn in the order of their names, which is the same in both.
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert copied.count == 300


def test_studies_of_one_patient_are_drawn_together() -> None:
    """Ten studies of each patient, all alike, tell nothing new either."""
    values = list(np.random.default_rng(3).normal(size=30))
    patients = {f"{n}.{again}": f"{n}.0" for n in range(30) for again in range(10)}
    whole = replace(FEW, patients=patients)
    once = mean(values, [f"{n}.0" for n in range(30)], FEW, without="")
    studies = [f"{n}.{again}" for n in range(30) for again in range(10)]
    again = mean([each for each in values for _ in range(10)], studies, whole, without="")
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    alone = mean([1.0, 2.0], ["0.0", "0.1"], whole, without="")
    assert (alone.low, alone.reason) == (None, "an interval needs two patients or more")


def test_the_quick_mean_is_the_bootstrap_of_the_mean() -> None:
    values = np.random.default_rng(5).normal(size=23)
    studies = [str(n // 2) for n in range(23)]
    slow = resampled(float(values.mean()), lambda drawn: float(values[drawn].mean()), studies, FEW)
    quick = mean(list(values), studies, FEW, without="")
    assert (quick.value, quick.low, quick.high) == pytest.approx((slow.value, slow.low, slow.high))


def test_one_study_has_no_interval_and_says_so() -> None:
    estimate = mean([1.0, 2.0], ["a", "a"], FEW, without="")
    assert (estimate.value, estimate.low, estimate.high) == (1.5, None, None)
    assert "two patients" in estimate.reason


def test_the_seed_decides() -> None:
    values, studies = [1.0, 2.0, 4.0, 8.0], list("abcd")
    same = [mean(values, studies, Bootstrap(resamples=100, seed=4), without="") for _ in range(2)]
    other = mean(values, studies, Bootstrap(resamples=100, seed=5), without="")
    assert same[0] == same[1] != other


# --- classification ----------------------------------------------------------------------------------------------


def test_a_table_worked_by_hand() -> None:
    """8 hits, 2 misses, 3 false alarms, 7 rightly absent."""
    cases = judged(*[(1, 1, 0.9)] * 8, *[(1, 0, 0.2)] * 2, *[(0, 1, 0.8)] * 3, *[(0, 0, 0.1)] * 7)
    table = judge_class("x", cases, FEW)
    assert (table.true_positive, table.false_negative, table.false_positive, table.true_negative) == (8, 2, 3, 7)
    assert table.accuracy.value == 15 / 20
    assert table.sensitivity.value == 8 / 10
    assert table.specificity.value == 7 / 10
    assert table.precision.value == 8 / 11
    assert table.f1.value == 16 / 21
    # Of 100 pairs: 0.9 beats all 10 negatives 8 times, 0.2 beats the 7 of 0.1 twice.
    assert table.auc.value == pytest.approx((80 + 14) / 100)
    assert (table.sensitivity.count, table.precision.count) == (10, 11)
    assert table.auc.low is not None
    assert table.auc.high is not None
    assert table.auc.low < table.auc.value < table.auc.high
    assert (table.roc[0], table.roc[-1]) == ((0.0, 0.0), (1.0, 1.0))


_said = st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from([0.1, 0.3, 0.5, 0.5001, 0.9]))


@given(st.lists(_said, min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_scikit_learn_says_the_same(said: list[tuple[int, int, float]]) -> None:
    expected, found, scores = zip(*said, strict=True)
    table = judge_class("x", judged(*said), Bootstrap(resamples=1))
    assert table.accuracy.value == pytest.approx(metrics.accuracy_score(expected, found))
    absent = metrics.recall_score(expected, found, pos_label=0, zero_division=np.nan)
    told = {
        "sensitivity": (sum(expected), metrics.recall_score(expected, found, zero_division=np.nan)),
        "specificity": (len(said) - sum(expected), absent),
        "precision": (sum(found), metrics.precision_score(expected, found, zero_division=np.nan)),
        "f1": (sum(expected) + sum(found), metrics.f1_score(expected, found, zero_division=np.nan)),
    }
    for name, (defined, value) in told.items():
        estimate = getattr(table, name)
        assert estimate.value == (pytest.approx(value) if defined else None), name
        assert defined or estimate.reason, name
    if 0 < sum(expected) < len(said):
        assert table.auc.value == pytest.approx(metrics.roc_auc_score(expected, scores))
        levels = np.unique(scores, return_inverse=True)[1]
        assert area(np.array(expected, dtype=bool), levels) == pytest.approx(table.auc.value)
    else:
        assert (table.auc.value, table.roc) == (None, ())
        assert "no positive" in table.auc.reason or "no negative" in table.auc.reason


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ([(0, 0, 0.1), (0, 1, 0.6)], {"sensitivity", "auc"}),
        ([(1, 1, 0.9), (1, 0, 0.1)], {"specificity", "auc"}),
        ([(0, 0, 0.1), (0, 0, 0.2)], {"sensitivity", "precision", "f1", "auc"}),
        ([(0, 0, None), (1, 1, None)], {"auc"}),
        ([(0, 0, 0.3), (1, 1, None)], {"auc"}),
        ([], {"accuracy", "sensitivity", "specificity", "precision", "f1", "auc"}),
    ],
)
def test_what_is_not_defined_is_null_with_a_reason(
    said: list[tuple[int, int, float | None]], missing: set[str]
) -> None:
    table = judge_class("x", judged(*said), FEW)
    names = {"accuracy", "sensitivity", "specificity", "precision", "f1", "auc"}
    assert {name for name in names if getattr(table, name).value is None} == missing
    assert all(getattr(table, name).reason for name in missing)


def test_a_confusion_matrix_worked_by_hand() -> None:
    cases = [("1", "a", "a"), ("2", "a", "b"), ("3", "b", "b"), ("4", "b", NONE), ("5", "c", "c"), ("6", "a", "a")]
    table = judge_group("g", ["a", "b", "c"], cases, FEW)
    assert table.labels == ("a", "b", "c", NONE)
    assert table.matrix == ((2, 1, 0, 0), (0, 1, 0, 1), (0, 0, 1, 0), (0, 0, 0, 0))
    assert table.accuracy.value == 4 / 6
    # F1: a 4/5, b 2/4, c 1.
    assert table.macro_f1.value == pytest.approx((0.8 + 0.5 + 1) / 3)
    expected, found = [each[1] for each in cases], [each[2] for each in cases]
    assert table.macro_f1.value == pytest.approx(
        metrics.f1_score(expected, found, labels=["a", "b", "c"], average="macro")
    )


def test_a_class_that_nobody_met_makes_no_macro_f1() -> None:
    table = judge_group("g", ["a", "b"], [("1", "a", "a"), ("2", "a", "a")], FEW)
    assert table.accuracy.value == 1.0
    assert (table.macro_f1.value, bool(table.macro_f1.reason)) == (None, True)


# --- detection ---------------------------------------------------------------------------------------------------


def detected(study: str, targets: int, hits: tuple[float, ...], misses: tuple[float, ...]) -> Detected:
    return Detected(case=study, study=study, targets=targets, hits=hits, misses=misses)


def test_a_curve_worked_by_hand() -> None:
    cases = [detected("1", 2, (0.9, 0.4), (0.8,)), detected("2", 1, (), (0.3,)), detected("3", 1, (0.7,), ())]
    rates, found = curve_of(cases)
    # Thresholds 0.9, 0.8, 0.7, 0.4, 0.3 over three cases with four targets.
    assert rates == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert found == pytest.approx([0, 1 / 4, 1 / 4, 2 / 4, 3 / 4, 3 / 4])
    froc = judge_detection("x", cases, FEW)
    assert (froc.targets, froc.hits, froc.false_positives) == (4, 3, 2)
    assert froc.sensitivity.value == 3 / 4
    # At 1/8 false positives a case both neighbours have found one; from 2/3 on nothing is added.
    assert dict(froc.at)[0.125] == pytest.approx(0.25)
    assert [value for rate, value in froc.at if rate >= 1] == [0.75] * 4


_scores = st.lists(st.sampled_from([0.05, 0.2, 0.4, 0.6, 0.8, 0.95]), max_size=5)


@given(st.lists(st.tuples(_scores, _scores, st.integers(0, 3)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_monai_says_the_same(said: list[tuple[list[float], list[float], int]]) -> None:
    from monai.metrics import compute_froc_curve_data, compute_froc_score  # noqa: PLC0415

    cases = [
        detected(str(n), len(hits) + more, tuple(hits), tuple(misses)) for n, (hits, misses, more) in enumerate(said)
    ]
    targets = sum(each.targets for each in cases)
    froc = judge_detection("x", cases, Bootstrap(resamples=1))
    if not targets:
        assert (froc.score.value, froc.curve) == (None, ())
        return
    # It leaves out the lowest threshold, whatever that is: one below all others is put before them.
    misses = np.array([-1.0, *(score for each in cases for score in each.misses)])
    hits = np.array([score for each in cases for score in each.hits])
    rates, found = compute_froc_curve_data(misses, hits, targets, len(cases))
    assert froc.score.value == pytest.approx(compute_froc_score(rates, found, RATES))


_side = st.integers(0, 6).map(float)
_extent = st.integers(1, 4).map(float)


@st.composite
def _placed(draw: st.DrawFn) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low = tuple(draw(_side) for _ in range(3))
    return low, tuple(first + draw(_extent) for first in low)


@given(
    st.lists(st.tuples(st.lists(_placed(), max_size=4), st.lists(_placed(), max_size=3)), min_size=1, max_size=4),
    st.sampled_from([0.1, 0.3, 0.5]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_monai_finds_the_same_average_precision(said: list[tuple[list[Any], list[Any]]], iou: float, seed: int) -> None:
    """MONAI matches boxes and averages precision as COCO does; no two of our scores are equal, whose order is moot."""
    from monai.apps.detection.metrics.coco import COCOMetric  # noqa: PLC0415
    from monai.apps.detection.metrics.matching import matching_batch  # noqa: PLC0415
    from monai.data.box_utils import box_iou  # noqa: PLC0415

    drawn = iter(np.random.default_rng(seed).permutation(np.linspace(0.01, 0.99, 20)))
    scores = [[float(next(drawn)) for _ in found] for found, _ in said]
    cases = []
    for number, ((found, targets), sure) in enumerate(zip(said, scores, strict=True)):

        def hit(index: int, target: int, found: list[Any] = found, targets: list[Any] = targets) -> float | None:
            part = overlap(*found[index], *targets[target])
            return 1 - part if part >= iou else None

        hits, misses = assign(sure, len(targets), hit, repeated_is_wrong=True)
        cases.append(detected(str(number), len(targets), hits, misses))
    if not any(each.targets for each in cases):
        assert judge_detection("x", cases, FEW, iou=iou).average_precision.value is None
        return

    def boxes(placed: list[Any]) -> NDArray[np.float64]:
        return np.array([[*low, *high] for low, high in placed], dtype=np.float64).reshape(-1, 6)

    matched = matching_batch(
        iou_fn=box_iou,
        iou_thresholds=[iou],
        pred_boxes=[boxes(found) for found, _ in said],
        pred_classes=[np.zeros(len(found), int) for found, _ in said],
        pred_scores=[np.array(each) for each in scores],
        gt_boxes=[boxes(targets) for _, targets in said],
        gt_classes=[np.zeros(len(targets), int) for _, targets in said],
    )
    metric = COCOMetric(classes=["x"], iou_list=[iou], iou_range=(iou, iou, 0.05), max_detection=(100,))
    told = metric(matched)[0][f"AP_IoU_{iou:.2f}_MaxDet_100"]
    froc = judge_detection("x", cases, Bootstrap(resamples=1), iou=iou)
    assert froc.average_precision.value == pytest.approx(told, abs=1e-9)
    assert froc.iou == iou


def test_of_several_on_one_target_only_the_first_is_right_by_overlap() -> None:
    hits, misses = assign([0.6, 0.9], 1, lambda _, __: 0.2, repeated_is_wrong=True)
    assert (hits, misses) == ((0.9,), (0.6,))
    assert overlap((0, 0, 0), (2, 2, 2), (1, 0, 0), (3, 2, 2)) == pytest.approx(4 / 12)
    assert overlap((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)) == 0.0


# --- numbers -----------------------------------------------------------------------------------------------------


def numbered(*pairs: tuple[float, float]) -> list[NumberCase]:
    return [
        NumberCase(case=str(n), study=str(n), value=found, reference=expected, error=found - expected)
        for n, (found, expected) in enumerate(pairs)
    ]


def test_the_agreement_of_peak_flow_meters_is_that_of_the_literature() -> None:
    """Bland and Altman (1986), table 1: first readings of 17 people with a Wright and a mini Wright meter, l/min."""
    wright = (494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427)
    mini = (512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451)
    table = judge_number("flow", "l/min", numbered(*zip(wright, mini, strict=True)), FEW)
    assert table.bias.value == pytest.approx(-2.1, abs=0.05)
    # The paper takes 2 standard deviations of 38.8, we take 1.96.
    assert (table.lower_limit.value, table.upper_limit.value) == pytest.approx((-78.1, 73.9), abs=0.1)
    assert table.pearson.value == pytest.approx(0.94, abs=0.005)
    for each in (table.bias, table.lower_limit, table.upper_limit, table.pearson, table.concordance):
        assert each.low is not None
        assert each.high is not None
        assert each.low < each.value < each.high


_numbers = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(_numbers, _numbers), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_numbers_are_those_of_their_definitions(pairs: list[tuple[float, float]]) -> None:
    found, expected = zip(*pairs, strict=True)
    table = judge_number("x", "1", numbered(*pairs), Bootstrap(resamples=2))
    errors = [one - other for one, other in pairs]
    assert table.bias.value == pytest.approx(statistics.fmean(errors))
    assert table.absolute_error.value == pytest.approx(statistics.fmean(map(abs, errors)))
    assert table.root_mean_square_error.value == pytest.approx(math.hypot(*errors) / math.sqrt(len(errors)))
    half = statistics.NormalDist().inv_cdf(0.975) * statistics.stdev(errors)
    assert table.upper_limit.value == pytest.approx(statistics.fmean(errors) + half, rel=1e-4, abs=1e-4)
    if len(set(found)) == 1 or len(set(expected)) == 1:
        assert (table.pearson.value, table.spearman.value, table.concordance.value) == (None, None, None)
        assert "all the same" in table.concordance.reason
        return
    assert table.pearson.value == pytest.approx(statistics.correlation(found, expected), abs=1e-6)
    places = ([(sum(a < b for a in each) + sum(a <= b for a in each)) / 2 for b in each] for each in (found, expected))
    ranked = statistics.correlation(*places)
    assert table.spearman.value == pytest.approx(ranked, abs=1e-6)
    # Lin: how far pairs are apart, of how far they would be if any went with any.
    own = statistics.fmean((one - other) ** 2 for one, other in pairs)
    any_other = statistics.fmean((one - other) ** 2 for one in found for other in expected)
    assert table.concordance.value == pytest.approx(1 - own / any_other, abs=1e-6)


def test_one_number_has_an_error_and_nothing_else() -> None:
    table = judge_number("x", "1", numbered((3.0, 2.0)), FEW)
    assert (table.bias.value, table.absolute_error.value, table.lower_limit.value) == (1.0, 1.0, None)
    assert "two cases" in table.pearson.reason


def test_the_surest_hits_and_the_others_on_it_count_for_nothing() -> None:
    near = {(0, 0): 1.0, (1, 0): 0.5, (2, 1): 1.0}
    hits, misses = assign([0.6, 0.9, 0.5, 0.2], 2, lambda index, target: near.get((index, target)))
    assert (hits, misses) == ((0.9, 0.5), (0.2,))


def test_one_detection_on_two_targets_takes_the_nearer() -> None:
    near = {(0, 0): 2.0, (0, 1): 1.0, (1, 1): 0.1, (1, 0): 3.0}
    hits, misses = assign([0.9, 0.8], 2, lambda index, target: near.get((index, target)))
    assert (hits, misses) == ((0.9, 0.8), ())


def test_without_targets_there_is_no_sensitivity() -> None:
    froc = judge_detection("x", [detected("1", 0, (), (0.5,)), detected("2", 0, (), ())], FEW)
    assert (froc.sensitivity.value, froc.score.value, froc.false_positives) == (None, None, 1)
    assert all(value is None for _, value in froc.at)
    assert froc.score.reason


def test_names_are_text_in_pictures() -> None:
    pytest.importorskip("matplotlib")
    from meddaemon.evaluation import plots  # noqa: PLC0415

    table = judge_class("<script>$x^2$ & co", judged((1, 1, 0.9), (0, 0, 0.1)), FEW)
    picture = plots.roc([table])
    assert "<script" not in picture
    assert "&lt;script&gt;$x^2$ &amp; co (AUC 1.000)" in picture
    assert picture == plots.roc([table])
