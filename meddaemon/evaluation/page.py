"""The report of an evaluation as one HTML file that needs nothing else: tables, pictures and every case."""

from collections.abc import Iterable, Sequence
from html import escape

from meddaemon.evaluation import plots
from meddaemon.evaluation.classification import Classification
from meddaemon.evaluation.detection import Detection
from meddaemon.evaluation.estimates import Estimate
from meddaemon.evaluation.regression import Regression
from meddaemon.evaluation.report import CaseShown, Report
from meddaemon.evaluation.segmentation import Segmentation

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { background: #f4f6f8; } td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
small { color: #666; } .mark { background: #fff3cd; padding: .6rem 1rem; } svg { max-width: 100%; height: auto; }
"""
_CASE = ("study", "series", "image", "reference", "kind", "result", "status", "remark")


def as_html(report: Report) -> str:
    """Return the report as a page; equal reports are equal texts."""
    model = report.model
    parts = [
        f"<h1>Evaluation of {escape(model.name)}</h1>",
        '<p class="mark">Research use only. Not a medical device.</p>',
        _table(("what", "value"), _summary(report)),
        *(f"<p class=mark>{escape(note)}</p>" for note in report.notes),
        *(_classes(report.classification) if report.classification else ()),
        *(_segments(report.segmentation) if report.segmentation else ()),
        *(_detections(report.detection) if report.detection else ()),
        *(_numbers(report.regression) if report.regression else ()),
        *_listing("Compared", report.cases.compared),
        *_listing("Missing: no result to compare with", report.cases.missing),
        *_listing("Refused: not compared, or not in full", report.cases.refused),
        *_listing("Results without a reference", report.cases.unreferenced),
    ]
    title = escape(f"Evaluation of {model.name}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _summary(report: Report) -> list[tuple[str, ...]]:
    cases, method = report.cases, report.method
    return [
        ("versions", escape(", ".join(report.model.versions))),
        ("digests", escape(", ".join(report.model.digests))),
        ("compared", str(len(cases.compared))),
        ("missing", str(len(cases.missing))),
        ("refused", str(len(cases.refused))),
        ("without a reference", str(len(cases.unreferenced))),
        ("superseded, left out", str(cases.superseded)),
        (
            "intervals",
            f"{method.confidence:.0%}; Wilson for proportions, else bootstrap over patients ("
            f"{method.resamples} samples, seed {method.seed})",
        ),
        ("made by", escape(f"{report.software.name} {report.software.version}")),
    ]


def _classes(found: Classification) -> Iterable[str]:
    yield "<h2>Classification</h2>"
    yield _table(
        ("class", "TP", "FP", "FN", "TN", "accuracy", "sensitivity", "specificity", "precision", "F1", "AUC"),
        [
            (
                escape(each.name),
                *map(str, (each.true_positive, each.false_positive, each.false_negative, each.true_negative)),
                *map(
                    _estimate,
                    (each.accuracy, each.sensitivity, each.specificity, each.precision, each.f1, each.auc),
                ),
            )
            for each in found.classes
        ],
    )
    if curves := [each for each in found.classes if each.roc]:
        yield plots.roc(curves)
    for group in found.groups:
        yield f"<h3>{escape(group.name)}</h3>"
        yield _table(("accuracy", "macro F1"), [(_estimate(group.accuracy), _estimate(group.macro_f1))])
        yield plots.confusion(group)


def _segments(found: Segmentation) -> Iterable[str]:
    yield "<h2>Segmentation</h2>"
    yield _table(
        (
            "segment",
            "cases",
            "Dice",
            "surface distance / mm",
            "Hausdorff 95 % / mm",
            "size in",
            "bias",
            "absolute error",
            "relative error",
            "limits of agreement",
        ),
        [
            (
                escape(each.name),
                str(len(each.cases)),
                *map(_estimate, (each.dice, each.surface_distance_mm, each.hausdorff95_mm)),
                escape(each.unit),
                *map(_estimate, (each.bias, each.absolute_error, each.relative_error)),
                " to ".join(f"{limit:.4g}" for limit in each.limits_of_agreement or ()) or "–",
            )
            for each in found.segments
        ],
    )
    if any(case.dice is not None for each in found.segments for case in each.cases):
        yield plots.overlap(found.segments)
    yield from (plots.sizes(each) for each in found.segments if len(each.cases) > 1)
    for each in found.segments:
        yield f"<h3>{escape(each.name)}: every case</h3>"
        yield _table(
            (
                "case",
                "Dice",
                "surface / mm",
                "Hausdorff 95 % / mm",
                *(f"{what} / {each.unit}" for what in ("result", "reference", "error")),
                "why",
            ),
            [
                (
                    escape(case.case),
                    *map(
                        _number,
                        (
                            case.dice,
                            case.surface_distance_mm,
                            case.hausdorff95_mm,
                            case.size,
                            case.reference_size,
                            case.size_error,
                        ),
                    ),
                    escape("; ".join(dict.fromkeys(case.reasons.values()))),
                )
                for case in each.cases
            ],
        )


def _detections(found: Detection) -> Iterable[str]:
    yield "<h2>Detection</h2>"
    rates = [f"{rate:g}" for rate, _ in (found.findings[0].at if found.findings else ())]
    yield _table(
        (
            "finding",
            "cases",
            "targets",
            "hits",
            "false positives",
            "sensitivity",
            "FROC score",
            "average precision",
            *(f"at {r}" for r in rates),
        ),
        [
            (
                escape(plots.criterion(each)),
                *map(str, (each.cases, each.targets, each.hits, each.false_positives)),
                *map(_estimate, (each.sensitivity, each.score, each.average_precision)),
                *(_number(value) for _, value in each.at),
            )
            for each in found.findings
        ],
    )
    if curves := [each for each in found.findings if each.curve]:
        yield plots.froc(curves)


def _numbers(found: Regression) -> Iterable[str]:
    yield "<h2>Numbers</h2>"
    yield _table(
        (
            "number",
            "unit",
            "bias",
            "lower limit of agreement",
            "upper limit of agreement",
            "mean absolute error",
            "RMSE",
            "Pearson",
            "Spearman",
            "Lin's concordance",
        ),
        [
            (
                escape(each.name),
                escape(each.unit),
                *map(
                    _estimate,
                    (
                        each.bias,
                        each.lower_limit,
                        each.upper_limit,
                        each.absolute_error,
                        each.root_mean_square_error,
                        each.pearson,
                        each.spearman,
                        each.concordance,
                    ),
                ),
            )
            for each in found.numbers
        ],
    )
    for each in found.numbers:
        yield f"<h3>{escape(each.name)}: every case</h3>"
        yield plots.numbers(each)
        yield _table(
            ("case", *(f"{what} / {each.unit}" for what in ("result", "reference", "error"))),
            [(escape(case.case), *map(_number, (case.value, case.reference, case.error))) for case in each.cases],
        )


def _listing(title: str, cases: Sequence[CaseShown]) -> Iterable[str]:
    if not cases:
        return
    yield f"<h2>{escape(title)} ({len(cases)})</h2>"
    yield _table(
        _CASE,
        [
            tuple(
                escape(str(value))
                for value in (
                    each.study_instance_uid,
                    each.series_instance_uid,
                    f"{each.sop_instance_uid} {each.frame_number or ''}".strip(),
                    each.reference,
                    each.kind,
                    "" if each.result_id is None else each.result_id,
                    each.status or "",
                    each.remark,
                )
            )
            for each in cases
        ],
    )


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    head = "".join(f"<th>{escape(each)}</th>" for each in heading)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _estimate(estimate: Estimate) -> str:
    """Return a number with its interval; where there is none, why."""
    if estimate.value is None:
        return f"– <small>{escape(estimate.reason)}</small>"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g} <small>n = {estimate.count}; {escape(estimate.reason)}</small>"
    return f"{estimate.value:.4g} <small>({estimate.low:.4g} to {estimate.high:.4g}), n = {estimate.count}</small>"
