"""Segments against their reference: overlap, distances of surfaces (MONAI), errors of volume or, on images, of area."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from numpy.typing import NDArray

from meddaemon.domain.codes import MILLILITRE, PIXELS, SQUARE_MILLIMETRE
from meddaemon.evaluation.estimates import LIMITS, Bootstrap, Estimate, mean

PERCENTILE = 95.0
BOTH_EMPTY = "result and reference are both empty"
ONE_EMPTY = "the result or the reference is empty: it has no surface"
NOT_UPRIGHT = "the planes are tilted or at uneven distances: distances of surfaces are not measured there"
NO_SPACING = "the image does not say how far its pixels lie apart in the patient"
NO_SIZE = "the reference is empty: no error is relative to it"
NOT_DRAWN = "the reference gives volumes only"


@dataclass(frozen=True, kw_only=True)
class SegmentCase:
    """One segment of one case; what is None is named in `reasons`.

    Sizes are in `unit` (UCUM): volumes in mL, areas on an image in mm2 or, where nobody knows them, in {pixels}.
    """

    segment: str
    case: str
    study: str
    unit: str
    dice: float | None
    surface_distance_mm: float | None
    hausdorff95_mm: float | None
    size: float
    reference_size: float
    size_error: float
    relative_size_error: float | None
    reasons: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class SegmentTable:
    """One segment over all cases: means, each with the interval of a bootstrap over patients.

    `bias` is the mean of result less reference, `limits_of_agreement` are Bland and Altman's, all in `unit`.
    """

    name: str
    unit: str
    dice: Estimate
    surface_distance_mm: Estimate
    hausdorff95_mm: Estimate
    bias: Estimate
    absolute_error: Estimate
    relative_error: Estimate
    absolute_relative_error: Estimate
    limits_of_agreement: tuple[float, float] | None
    cases: tuple[SegmentCase, ...]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Everything that is said of segments."""

    segments: tuple[SegmentTable, ...]


def compare(
    result: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    *,
    segment: str,
    case: str,
    study: str,
    spacing_mm: tuple[float, float, float] | None,
    plane_voxel_mm3: NDArray[np.float64],
) -> SegmentCase:
    """Hold one mask [plane, row, column] against another on the same grid, with nothing drawn on its outermost voxels.

    `spacing_mm` is that of (planes, rows, columns), None where the stack is tilted or uneven; `plane_voxel_mm3` is the
    volume of a voxel of each plane.
    """
    volume, expected = (
        float(np.count_nonzero(mask, axis=(1, 2)) @ plane_voxel_mm3) / 1000 for mask in (result, reference)
    )
    told = _with_sizes(volume, expected, MILLILITRE.value, segment=segment, case=case, study=study)
    return _with_masks(told, result, reference, spacing_mm, NOT_UPRIGHT)


def compare_on_picture(
    result: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    *,
    segment: str,
    case: str,
    study: str,
    spacing_mm: tuple[float, float] | None,
) -> SegmentCase:
    """Hold one mask [row, column] against another on the same image.

    `spacing_mm` is that of (rows, columns) in the patient, None where nobody knows it: areas are in pixels then.
    """
    mm2, unit = (1.0, PIXELS) if spacing_mm is None else (spacing_mm[0] * spacing_mm[1], SQUARE_MILLIMETRE)
    area, expected = (int(np.count_nonzero(mask)) * mm2 for mask in (result, reference))
    told = _with_sizes(area, expected, unit.value, segment=segment, case=case, study=study)
    # What is drawn up to the edge of an image ends there, too.
    return _with_masks(told, np.pad(result, 1), np.pad(reference, 1), spacing_mm, NO_SPACING)


def compare_volumes(
    volume_ml: float, reference_volume_ml: float, *, segment: str, case: str, study: str
) -> SegmentCase:
    """Hold one volume against another, where the reference draws nothing."""
    told = _with_sizes(volume_ml, reference_volume_ml, MILLILITRE.value, segment=segment, case=case, study=study)
    reasons = dict.fromkeys(("dice", "surface_distance_mm", "hausdorff95_mm"), NOT_DRAWN)
    return replace(told, reasons=reasons | told.reasons)


def _with_sizes(size: float, expected: float, unit: str, *, segment: str, case: str, study: str) -> SegmentCase:
    """Return what sizes say of a case, without anything that masks say."""
    return SegmentCase(
        segment=segment,
        case=case,
        study=study,
        unit=unit,
        dice=None,
        surface_distance_mm=None,
        hausdorff95_mm=None,
        size=size,
        reference_size=expected,
        size_error=size - expected,
        relative_size_error=(size - expected) / expected if expected > 0 else None,
        reasons={} if expected > 0 else {"relative_size_error": NO_SIZE},
    )


def _with_masks(
    told: SegmentCase,
    result: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing_mm: tuple[float, ...] | None,
    without_spacing: str,
) -> SegmentCase:
    """Add what masks say, on whose outermost voxels nothing is drawn."""
    drawn, expected = (int(np.count_nonzero(mask)) for mask in (result, reference))
    if not drawn + expected:
        reasons = dict.fromkeys(("dice", "surface_distance_mm", "hausdorff95_mm"), BOTH_EMPTY)
        return replace(told, reasons=reasons | told.reasons)
    dice = 2 * int(np.count_nonzero(result & reference)) / (drawn + expected)
    if not drawn or not expected or spacing_mm is None:
        why = without_spacing if drawn and expected else ONE_EMPTY
        reasons = dict.fromkeys(("surface_distance_mm", "hausdorff95_mm"), why)
        return replace(told, dice=dice, reasons=reasons | told.reasons)
    surface, hausdorff = _distances(result, reference, spacing_mm)
    return replace(told, dice=dice, surface_distance_mm=surface, hausdorff95_mm=hausdorff)


def judge_segment(name: str, unit: str, cases: Sequence[SegmentCase], bootstrap: Bootstrap) -> SegmentTable:
    """Return what is to be said of one segment over all its cases, whose sizes are in one unit."""
    studies = [each.study for each in cases]

    def of(values: Sequence[float | None], without: str) -> Estimate:
        return mean(values, studies, bootstrap, without=without)

    errors = [each.size_error for each in cases]
    relative = [each.relative_size_error for each in cases]
    return SegmentTable(
        name=name,
        unit=unit,
        dice=of([each.dice for each in cases], _why("dice", cases)),
        surface_distance_mm=of([each.surface_distance_mm for each in cases], _why("surface_distance_mm", cases)),
        hausdorff95_mm=of([each.hausdorff95_mm for each in cases], _why("hausdorff95_mm", cases)),
        bias=of(errors, "no cases"),
        absolute_error=of([abs(each) for each in errors], "no cases"),
        relative_error=of(relative, NO_SIZE),
        absolute_relative_error=of([None if each is None else abs(each) for each in relative], NO_SIZE),
        limits_of_agreement=_limits(errors),
        cases=tuple(cases),
    )


def _why(name: str, cases: Sequence[SegmentCase]) -> str:
    """Return why a number is there for no case."""
    return "; ".join(dict.fromkeys(each.reasons[name] for each in cases if name in each.reasons)) or "no cases"


def _limits(errors: Sequence[float]) -> tuple[float, float] | None:
    if len(errors) < 2:
        return None
    bias, deviation = float(np.mean(errors)), float(np.std(errors, ddof=1))
    return bias - LIMITS * deviation, bias + LIMITS * deviation


def _distances(
    result: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: tuple[float, ...]
) -> tuple[float, float]:
    """Return the mean distance of both surfaces to each other, and the 95th percentile of Hausdorff's, in mm."""
    found, expected = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (result, reference))
    with warnings.catch_warnings():
        # MONAI 1.6 calls itself in a way that it has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        surface = compute_average_surface_distance(
            found, expected, include_background=True, symmetric=True, spacing=list(spacing_mm)
        )
        hausdorff = compute_hausdorff_distance(
            found, expected, include_background=True, percentile=PERCENTILE, spacing=list(spacing_mm)
        )
    told = float(surface.item()), float(hausdorff.item())
    if not all(map(math.isfinite, told)):
        raise ValueError("a distance of two surfaces is not a number")
    return told
