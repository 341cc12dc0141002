"""Segments against their reference: overlap, distances of surfaces (MONAI), errors of volume."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from numpy.typing import NDArray

from meddaemon.evaluation.estimates import LIMITS, Bootstrap, Estimate, mean

PERCENTILE = 95.0
BOTH_EMPTY = "result and reference are both empty"
ONE_EMPTY = "the result or the reference is empty: it has no surface"
NOT_UPRIGHT = "the planes are tilted or at uneven distances: distances of surfaces are not measured there"
NO_VOLUME = "the reference is empty: no error is relative to it"
NOT_DRAWN = "the reference gives volumes only"


@dataclass(frozen=True, kw_only=True)
class SegmentCase:
    """One segment of one case. Distances in mm, volumes in mL; what is None is named in `reasons`."""

    segment: str
    case: str
    study: str
    dice: float | None
    surface_distance_mm: float | None
    hausdorff95_mm: float | None
    volume_ml: float
    reference_volume_ml: float
    volume_error_ml: float
    relative_volume_error: float | None
    reasons: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class SegmentTable:
    """One segment over all cases: means, each with the interval of a bootstrap over studies.

    `volume_bias_ml` is the mean of result less reference, `limits_of_agreement_ml` are Bland and Altman's.
    """

    name: str
    dice: Estimate
    surface_distance_mm: Estimate
    hausdorff95_mm: Estimate
    volume_bias_ml: Estimate
    absolute_volume_error_ml: Estimate
    relative_volume_error: Estimate
    absolute_relative_volume_error: Estimate
    limits_of_agreement_ml: tuple[float, float] | None
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
    drawn, expected = (int(np.count_nonzero(mask)) for mask in (result, reference))
    reasons: dict[str, str] = {}
    dice: float | None = None
    if drawn + expected:
        dice = 2 * int(np.count_nonzero(result & reference)) / (drawn + expected)
    else:
        reasons["dice"] = BOTH_EMPTY
    surface = hausdorff = None
    if not drawn or not expected or spacing_mm is None:
        why = BOTH_EMPTY if not drawn + expected else ONE_EMPTY if not drawn or not expected else NOT_UPRIGHT
        reasons["surface_distance_mm"] = reasons["hausdorff95_mm"] = why
    else:
        surface, hausdorff = _distances(result, reference, spacing_mm)
    volume, expected_ml = (
        float(np.count_nonzero(mask, axis=(1, 2)) @ plane_voxel_mm3) / 1000 for mask in (result, reference)
    )
    return _with_volumes(segment, case, study, dice, (surface, hausdorff), (volume, expected_ml), reasons)


def compare_volumes(
    volume_ml: float, reference_volume_ml: float, *, segment: str, case: str, study: str
) -> SegmentCase:
    """Hold one volume against another, where the reference draws nothing."""
    reasons = dict.fromkeys(("dice", "surface_distance_mm", "hausdorff95_mm"), NOT_DRAWN)
    return _with_volumes(segment, case, study, None, (None, None), (volume_ml, reference_volume_ml), reasons)


def _with_volumes(
    segment: str,
    case: str,
    study: str,
    dice: float | None,
    distances: tuple[float | None, float | None],
    volumes: tuple[float, float],
    reasons: dict[str, str],
) -> SegmentCase:
    volume, expected = volumes
    relative = (volume - expected) / expected if expected > 0 else None
    if relative is None:
        reasons["relative_volume_error"] = NO_VOLUME
    return SegmentCase(
        segment=segment,
        case=case,
        study=study,
        dice=dice,
        surface_distance_mm=distances[0],
        hausdorff95_mm=distances[1],
        volume_ml=volume,
        reference_volume_ml=expected,
        volume_error_ml=volume - expected,
        relative_volume_error=relative,
        reasons=reasons,
    )


def judge_segment(name: str, cases: Sequence[SegmentCase], bootstrap: Bootstrap) -> SegmentTable:
    """Return what is to be said of one segment over all its cases."""
    studies = [each.study for each in cases]

    def of(values: Sequence[float | None], without: str) -> Estimate:
        return mean(values, studies, bootstrap, without=without)

    errors = [each.volume_error_ml for each in cases]
    relative = [each.relative_volume_error for each in cases]
    return SegmentTable(
        name=name,
        dice=of([each.dice for each in cases], _why("dice", cases)),
        surface_distance_mm=of([each.surface_distance_mm for each in cases], _why("surface_distance_mm", cases)),
        hausdorff95_mm=of([each.hausdorff95_mm for each in cases], _why("hausdorff95_mm", cases)),
        volume_bias_ml=of(errors, "no cases"),
        absolute_volume_error_ml=of([abs(each) for each in errors], "no cases"),
        relative_volume_error=of(relative, NO_VOLUME),
        absolute_relative_volume_error=of([None if each is None else abs(each) for each in relative], NO_VOLUME),
        limits_of_agreement_ml=_limits(errors),
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
    result: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
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
