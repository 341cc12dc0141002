"""Analyses and requests for the tests of the encoders: what a model might have said of a series."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from meddaemon.domain.codes import MILLILITRE, VOLUME, Code
from meddaemon.domain.contract import ModelContract, SegmentContract
from meddaemon.domain.result import Analysis, Drawing, Finding, Measurement, ResultStatus, Segment
from meddaemon.domain.uids import derived_uid
from meddaemon.domain.volume import Geometry
from meddaemon.results.encoding import EncodingRequest

ANATOMY = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
BRAIN = Code(value="12738006", scheme="SCT", meaning="Brain")
KIDNEY = Code(value="64033007", scheme="SCT", meaning="Kidney")
LEFT = Code(value="7771000", scheme="SCT", meaning="Left")


def contract(**changes: Any) -> ModelContract:
    """A deployed brain model."""
    fields: dict[str, Any] = {
        "name": "brain",
        "title": "Brain mask and intracranial volume",
        "version": "1.0.2",
        "manufacturer": "deepbet",
        "bundle": Path("/nowhere"),
        "contract_file": Path("/nowhere/contract.toml"),
        "digest": "5c3e" * 16,
        "weights_digest": "77aa" * 16,
        "inputs": (),
        "output": "pred",
        "segments": (SegmentContract(label=1, name="Brain", category=ANATOMY, type=BRAIN, colour=(216, 101, 79)),),
        "series_description": "Brain mask",
    }
    return ModelContract(**(fields | changes))


def geometry_of(paths: Sequence[Path]) -> Geometry:
    """The geometry of a classic series whose files are given in any order; planes ascend along the normal."""
    headers = [dcmread(path, stop_before_pixels=True) for path in paths]
    directions = np.array(headers[0].ImageOrientationPatient, float)
    along_row, along_column = directions[:3], directions[3:]
    normal = np.cross(along_row, along_column)
    headers.sort(key=lambda header: float(normal @ np.array(header.ImagePositionPatient, float)))
    positions = np.array([header.ImagePositionPatient for header in headers], float)
    affine = np.eye(4)
    affine[:3, 0] = (positions[-1] - positions[0]) / max(len(headers) - 1, 1) if len(headers) > 1 else normal
    affine[:3, 1] = along_column * float(headers[0].PixelSpacing[0])
    affine[:3, 2] = along_row * float(headers[0].PixelSpacing[1])
    affine[:3, 3] = positions[0]
    return Geometry(
        shape=(len(headers), int(headers[0].Rows), int(headers[0].Columns)),
        affine_lps=affine,
        frame_of_reference_uid=str(headers[0].FrameOfReferenceUID),
        sop_instance_uids=tuple(str(header.SOPInstanceUID) for header in headers),
        frame_numbers=(1,) * len(headers),
    )


def analysis_of(
    labels: NDArray[np.uint8] | NDArray[np.bool_],
    geometry: Geometry,
    *,
    kinds: Sequence[tuple[str, Code, Code | None]] = (("Brain", BRAIN, None),),
    status: ResultStatus = ResultStatus.PLAUSIBLE,
    reason: str = "",
) -> Analysis:
    """One segment and one finding with its volume for each of `kinds` (label, type, laterality).

    `labels` are masks [segment, plane, row, column] where segments overlap.
    """
    drawing = Drawing(labels=labels) if labels.ndim == 3 else Drawing(masks=labels)
    segments, findings = [], []
    for number, (label, code, laterality) in enumerate(kinds, 1):
        voxels = sum(int(drawing.mask(number, plane).sum()) for plane in range(drawing.shape[0]))
        segments.append(
            Segment(
                number=number,
                label=label,
                category=ANATOMY,
                type=code,
                colour=(216, 101, (79 + number) % 256),
                laterality=laterality,
                voxel_count=voxels,
                tracking_id=f"brain {label}",
                tracking_uid=derived_uid("tracking", *geometry.sop_instance_uids, label),
            )
        )
        volume = Measurement(name=VOLUME, value=float(voxels * geometry.voxel_volumes_mm3[0]) / 1000, unit=MILLILITRE)
        findings.append(Finding(code=code, segment_number=number, measurements=(volume,)))
    return Analysis(
        status=status,
        reason=reason,
        segments=tuple(segments),
        findings=tuple(findings),
        labels=drawing.labels,
        masks=drawing.masks,
        geometry=geometry,
    )


def ball(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An ellipsoid with a corner knocked off, so that no axis and no direction is like another."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, size) for size in shape], indexing="ij"))
    mask = ((grid**2).sum(axis=0) < 1.0).astype(np.uint8)
    mask[: shape[0] // 2, : shape[1] // 2, : shape[2] // 2] = 0
    return mask


def request_for(paths: Sequence[Path], labels: NDArray[np.uint8] | None = None, **changes: Any) -> EncodingRequest:
    """A request that claims that the model found `labels` (by default a lopsided ball) in the series."""
    geometry = geometry_of(paths)
    mask = ball(geometry.shape) if labels is None else labels
    analysis = changes.pop("analysis", None) or analysis_of(mask, geometry)
    return EncodingRequest(
        analysis=analysis, contract=changes.pop("contract", None) or contract(), sources=list(paths), **changes
    )
