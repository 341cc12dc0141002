"""A picture of the delivered segmentation over the image it was made from, in three planes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset, dcmread

PANEL = 384
"""Pixels of the longer side of one plane."""
OVERLAY = np.array([230, 159, 0], dtype=np.float64)
"""Orange that colour-blind people tell from grey (Okabe and Ito)."""
BANNER = "meddaemon demo - research use only, not for diagnosis"


def draw(images: Sequence[Path], segmentation: Path, caption: str, target: Path) -> None:
    """Draw the middle of the first segment in three orthogonal planes of the volume and save it as PNG.

    Image and segmentation are read back from their DICOM files and put together by position in the patient, so the
    picture shows what a viewer would.
    """
    volume, mask, spacing = _volume_and_mask([dcmread(path) for path in images], dcmread(segmentation))
    middle = [round(float(np.mean(where))) for where in np.nonzero(mask)]
    top = float(np.quantile(volume, 0.995))
    grey = np.clip(volume / top, 0, 1) * 255
    panels = []
    # Sagittal, axial, coronal: each leaves out one axis of [head to feet, front to back, right to left].
    for axis in (2, 0, 1):
        panel = _blend(np.take(grey, middle[axis], axis), np.take(mask, middle[axis], axis))
        panels.append(_scaled(panel, [each for number, each in enumerate(spacing) if number != axis]))
    _compose(panels, caption).save(target)


def _volume_and_mask(
    images: list[Dataset], segmentation: Dataset
) -> tuple[NDArray[np.float64], NDArray[np.bool_], tuple[float, ...]]:
    """Return voxels, mask and spacing (mm), axes turned to head-feet, front-back, right-left."""
    cosines = np.array(images[0].ImageOrientationPatient, dtype=float)
    normal = np.cross(cosines[:3], cosines[3:])

    def along(position: Sequence[float]) -> float:
        return float(np.asarray(position, dtype=float) @ normal)

    images.sort(key=lambda image: along(image.ImagePositionPatient))
    places = np.array([along(image.ImagePositionPatient) for image in images])
    volume = np.stack([image.pixel_array for image in images]).astype(np.float64)
    mask = np.zeros(volume.shape, dtype=bool)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    for frame, groups in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        place = along(groups.PlanePositionSequence[0].ImagePositionPatient)
        # What is the same for every frame may stand in the shared groups (PS3.3 C.7.6.16).
        identified = groups if "SegmentIdentificationSequence" in groups else shared
        if identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1:
            mask[int(np.argmin(abs(places - place)))] |= frame.astype(bool)
    spacing = (float(np.median(np.diff(places))), *(float(value) for value in images[0].PixelSpacing))
    directions = np.stack([normal, cosines[3:], cosines[:3]])  # LPS, of [plane, row, column]
    order = [int(np.argmax(abs(directions[:, patient_axis]))) for patient_axis in (2, 1, 0)]
    flips = [axis for axis, wanted in enumerate((-1, 1, 1)) if directions[order[axis], 2 - axis] * wanted < 0]
    return (
        np.flip(volume.transpose(order), tuple(flips)),
        np.flip(mask.transpose(order), tuple(flips)),
        tuple(spacing[axis] for axis in order),
    )


def _blend(grey: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    picture = np.repeat(grey[..., None], 3, axis=2)
    inside = mask.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inside &= np.roll(mask, step, axis)
    outline = mask & ~inside
    picture[mask] = 0.75 * picture[mask] + 0.25 * OVERLAY
    picture[outline] = OVERLAY
    return picture.astype(np.uint8)


def _scaled(panel: NDArray[np.uint8], spacing: Sequence[float]) -> Image.Image:
    height, width = panel.shape[0] * spacing[0], panel.shape[1] * spacing[1]
    factor = PANEL / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return Image.fromarray(panel).resize(size, Image.Resampling.BICUBIC)


def _compose(panels: list[Image.Image], caption: str) -> Image.Image:
    sheet = Image.new("RGB", (PANEL * len(panels), PANEL + 48), "black")
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index * PANEL + (PANEL - panel.width) // 2, (PANEL - panel.height) // 2))
    pen = ImageDraw.Draw(sheet)
    pen.text((8, PANEL + 6), caption, fill="white", font_size=15)
    pen.text((8, PANEL + 27), BANNER, fill=(230, 159, 0), font_size=13)
    return sheet
