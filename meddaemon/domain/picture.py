"""Inputs that are no volume: pictures and waveforms."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Frames [frame, row, column], or [frame, row, column, 3] in RGB, that lie in no common grid.

    Greyscale values are real-world values or, where the contract asks for it, those of the VOI LUT; larger is brighter
    always (MONOCHROME1 is inverted). `sources` names the SOP Instance UID and the frame number (1-based) of each
    frame. `spacing_mm` is the distance of (rows, columns) where the image says one: Pixel Spacing, or that at the
    detector, which is larger than in the patient; `spacing_is_of_detector` tells which. `padding` of the pixels hold no
    value but the one that the contract has for what shows nothing.
    """

    frames: NDArray[np.float32]
    sources: tuple[tuple[str, int], ...]
    series_instance_uid: str
    spacing_mm: tuple[float, float] | None = None
    spacing_is_of_detector: bool = False
    remarks: Mapping[str, str] = field(default_factory=dict)
    padding: int = 0

    @property
    def grid(self) -> "PictureGrid":
        """Where what is found on the frames lies."""
        in_patient = None if self.spacing_is_of_detector else self.spacing_mm
        return PictureGrid(shape=self.frames.shape[:3], sources=self.sources, spacing_mm=in_patient)


@dataclass(frozen=True, kw_only=True)
class PictureGrid:
    """Frames that lie nowhere in the patient: `shape` is (frames, rows, columns), `sources` as those of `Pictures`.

    `spacing_mm` is the distance of (rows, columns) in the patient, None where nobody knows it: at the detector alone
    it is larger by a magnification that the image does not say.
    """

    shape: tuple[int, ...]
    sources: tuple[tuple[str, int], ...]
    spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Samples [channel, sample] of one multiplex group of a waveform (PS3.3 C.10.9), in `unit` (UCUM)."""

    samples: NDArray[np.float32]
    rate_hz: float
    channels: tuple[str, ...]
    unit: str
    sop_instance_uid: str
    series_instance_uid: str
    remarks: Mapping[str, str] = field(default_factory=dict)
