"""Reports as a reference: measurement groups of TID 1500 (PS3.16 Annex A), with findings, volumes and places."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes

from meddaemon.domain.codes import TOTAL, VOLUME
from meddaemon.domain.errors import ReferenceRefused
from meddaemon.evaluation.concepts import concept
from meddaemon.evaluation.masks import SEGMENTATIONS
from meddaemon.evaluation.references import (
    Case,
    Labels,
    Rectangle,
    Reference,
    Sphere,
    Target,
    Targets,
    Volumes,
)

REPORTS = frozenset(f"1.2.840.10008.5.1.4.1.1.88.{kind}" for kind in (22, 33, 34))
"""Enhanced SR, Comprehensive SR and Comprehensive 3D SR."""
_GROUP, _FINDING, _DERIVATION = "DCM:125007", "DCM:121071", "DCM:121401"
_PRESENCE = "SCT:705057003"
_TOTAL = f"{TOTAL.scheme}:{TOTAL.value}"
# CID 240, and what others write instead; of what nobody could tell, nothing is said.
_ABSENT = frozenset({f"SCT:{codes.cid240.Absent.value}", "SCT:2667000"})
_UNTOLD = frozenset({f"SCT:{codes.cid240.Undetermined.value}", "SCT:82334004", "SCT:261665006"})
_MILLILITRES: Mapping[str, float] = MappingProxyType({"mL": 1.0, "ml": 1.0, "cm3": 1.0, "mm3": 1e-3, "L": 1e3})
_DEEPEST = 64


def report_references(dataset: Dataset, path: Path) -> list[Reference]:
    """Return what a report says of the study that it is about. Raises ReferenceRefused."""
    try:
        return _references(dataset, path)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as wrong:
        said = f"{type(wrong).__name__}: {wrong}"
        raise ReferenceRefused(f"{path}: it is not a report that can be read ({said}): export it anew") from wrong


def _references(dataset: Dataset, path: Path) -> list[Reference]:
    case = Case(study_instance_uid=str(dataset.StudyInstanceUID), series_instance_uid=_series(dataset))
    present: dict[str, bool] = {}
    volumes: dict[str, float] = {}
    totals: dict[str, float] = {}
    targets: list[Target] = []
    for group in _groups(dataset.get("ContentSequence") or (), 0):
        items = list(group.get("ContentSequence") or ())
        finding = next((concept(each.ConceptCodeSequence) for each in items if _is(each, "CODE", _FINDING)), None)
        if finding is None:
            continue
        # Calcification that is absent says nothing of the nodule: only what is asked of the finding itself counts.
        answers = (each for each in items if _is(each, "CODE", _PRESENCE) or _is(each, "CODE", finding))
        values = {concept(each.ConceptCodeSequence) for each in answers}
        if values & _UNTOLD:
            continue
        there = not values & _ABSENT
        present[finding] = present.get(finding, False) or there
        for each in items:
            if _is(each, "NUM", f"{VOLUME.scheme}:{VOLUME.value}") and each.get("MeasuredValueSequence"):
                derived = _derivation(each)
                if not derived:
                    volumes[finding] = volumes.get(finding, 0.0) + _millilitres(each, path)
                elif derived == _TOTAL:
                    totals[finding] = _millilitres(each, path)
        targets += [Target(finding=finding, place=place) for place in _places(items)] if there else []
    if not present:
        raise ReferenceRefused(
            f"{path}: no measurement group of it (TID 1500) names a finding: there is nothing to compare"
        )
    # Of what is told one by one the total says nothing more, and a mean or a spread is no volume of anything.
    volumes = totals | volumes
    said: list[Labels | Volumes | Targets] = [Labels(present=present, closed=False)]
    said += [Volumes(millilitres=volumes)] if volumes else []
    said += [Targets(targets=tuple(targets), asked=bool(targets))] if targets or not any(present.values()) else []
    return [Reference(case=case, origin=str(path), says=each, of_report=True) for each in said]


def _series(dataset: Dataset) -> str:
    """Return the series that a report is about; "" where it names several, or none but segmentations."""
    named = {
        str(series.SeriesInstanceUID)
        for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or ()
        for series in study.ReferencedSeriesSequence
        if not {str(each.ReferencedSOPClassUID) for each in series.ReferencedSOPSequence} <= SEGMENTATIONS
    }
    return named.pop() if len(named) == 1 else ""


def _groups(items: Sequence[Dataset], depth: int) -> Iterator[Dataset]:
    for item in items:
        if _is(item, "CONTAINER", _GROUP):
            yield item
        elif depth < _DEEPEST:
            yield from _groups(item.get("ContentSequence") or (), depth + 1)


def _is(item: Dataset, kind: str, name: str) -> bool:
    return item.get("ValueType") == kind and concept(item.get("ConceptNameCodeSequence")) == name


def _derivation(item: Dataset) -> str:
    """Return what a number is of several others; "" where it stands for itself (PS3.16 TID 300, Derivation)."""
    told = (each for each in item.get("ContentSequence") or () if _is(each, "CODE", _DERIVATION))
    return next((concept(each.ConceptCodeSequence) for each in told), "")


def _millilitres(item: Dataset, path: Path) -> float:
    measured = item.MeasuredValueSequence[0]
    unit = str(measured.MeasurementUnitsCodeSequence[0].CodeValue)
    if unit not in _MILLILITRES:
        raise ReferenceRefused(f"{path}: a volume in {unit!r}; known are {', '.join(_MILLILITRES)}")
    much = float(measured.NumericValue)
    if not math.isfinite(much) or much < 0:
        raise ReferenceRefused(f"{path}: a volume of {much:g} {unit} is none")
    return much * _MILLILITRES[unit]


def _places(items: Sequence[Dataset]) -> Iterator[Sphere | Rectangle]:
    for item in items:
        if item.get("ValueType") == "SCOORD3D":
            points = _points(item, 3)
            centre = (points.min(axis=0) + points.max(axis=0)) / 2
            radius = float(np.linalg.norm(points - centre, axis=1).max())
            yield Sphere(centre_lps=(float(centre[0]), float(centre[1]), float(centre[2])), radius_mm=radius)
        elif item.get("ValueType") == "SCOORD":
            # (column, row); 0 is the corner of the first pixel (PS3.3 C.18.6.1.1), and -0.5 its edge to us.
            points = _points(item, 2)[:, ::-1] - 0.5
            if str(item.GraphicType) == "CIRCLE":
                reach = float(np.linalg.norm(points[1] - points[0]))
                points = np.array([points[0] - reach, points[0] + reach])
            (shown,) = (each for each in item.ContentSequence if each.ValueType == "IMAGE")
            image = shown.ReferencedSOPSequence[0]
            low, high = points.min(axis=0), points.max(axis=0)
            yield Rectangle(
                sop_instance_uid=str(image.ReferencedSOPInstanceUID),
                frame_number=int(image.get("ReferencedFrameNumber") or 1),
                low=(float(low[0]), float(low[1])),
                high=(float(high[0]), float(high[1])),
            )


def _points(item: Dataset, axes: int) -> NDArray[np.float64]:
    """Return the points of a region, (n, axes). Raises ValueError where they are none."""
    points = np.array(item.GraphicData, dtype=np.float64).reshape(-1, axes)
    if not np.isfinite(points).all():
        raise ValueError("a region has points that are not numbers")
    return points
