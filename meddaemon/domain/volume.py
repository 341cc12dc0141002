"""A volume in patient space.

One convention everywhere: arrays are [plane, row, column] and affines map
(plane, row, column, 1) to LPS millimetres, the patient coordinate system of DICOM (PS3.3 C.7.6.2.1.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where a stack of planes lies in the patient.

    `shape` is (planes, rows, columns). `affine_lps` is 4x4 and maps (plane, row, column, 1) of a voxel centre to
    LPS mm; with gantry tilt its first axis is not that of the planes' normal. `positions_lps`, (planes, 3), are the
    centres of the first pixels where the affine does not say them to 1e-3 mm: positions that the scanner has rounded,
    or planes at uneven distances. `sop_instance_uids` and `frame_numbers` (1-based) name the source of each plane, in
    plane order.
    """

    shape: tuple[int, int, int]
    affine_lps: NDArray[np.float64]
    frame_of_reference_uid: str
    sop_instance_uids: tuple[str, ...]
    frame_numbers: tuple[int, ...]
    positions_lps: NDArray[np.float64] | None = None

    @property
    def positions(self) -> NDArray[np.float64]:
        """Centres of the first pixels of all planes in LPS mm, (planes, 3)."""
        if self.positions_lps is not None:
            return self.positions_lps
        steps: NDArray[np.float64] = np.outer(np.arange(self.shape[0]), self.affine_lps[:3, 0])
        return steps + self.affine_lps[:3, 3]

    def point(self, plane: float, row: float, column: float) -> tuple[float, float, float]:
        """Return where a point between voxel centres lies, in LPS mm; beyond the planes as the outermost go on."""
        positions = self.positions
        below = min(max(int(np.floor(plane)), 0), max(len(positions) - 2, 0))
        step = positions[below + 1] - positions[below] if len(positions) > 1 else self.affine_lps[:3, 0]
        x, y, z = positions[below] + (plane - below) * step + self.affine_lps[:3, 1:3] @ (row, column)
        return float(x), float(y), float(z)

    @property
    def axes(self) -> NDArray[np.float64]:
        """Unit vectors in LPS as columns: the planes' normal, the way rows follow each other, and columns."""
        column, row = (self.affine_lps[:3, axis] / np.linalg.norm(self.affine_lps[:3, axis]) for axis in (1, 2))
        normal = np.cross(row, column)
        # Planes may count against the normal that rows and columns span.
        return np.column_stack([normal * np.sign(normal @ self.affine_lps[:3, 0]), column, row])

    @property
    def heights(self) -> NDArray[np.float64]:
        """How far each plane lies along the normal from the first one, in mm, rising."""
        rising: NDArray[np.float64] = (self.positions - self.positions[0]) @ self.axes[:, 0]
        return rising

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring (planes, rows, columns), that of planes along their normal."""
        row, column = np.linalg.norm(self.affine_lps[:3, 1:3], axis=0)
        return float(self.axes[:, 0] @ self.affine_lps[:3, 0]), float(row), float(column)

    @property
    def voxel_volumes_mm3(self) -> NDArray[np.float64]:
        """Volume of a voxel of each plane in mm³; a plane reaches half-way to its neighbours."""
        _, row, column = self.spacing
        if self.positions_lps is None:
            return np.full(self.shape[0], abs(np.linalg.det(self.affine_lps[:3, :3])))
        steps = np.diff(self.heights)
        thickness = (np.append(steps[:1], steps) + np.append(steps, steps[-1:])) / 2
        volumes: NDArray[np.float64] = thickness * row * column
        return volumes

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """The same affine to RAS mm (NIfTI, MONAI): first two coordinates negated."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine_lps


class VoxelMeaning(StrEnum):
    """What the values of voxels are: Hounsfield units, SUV by body weight, signal of MR, or nothing that has a name."""

    HOUNSFIELD = "hounsfield"
    UPTAKE = "suvbw"
    MR_SIGNAL = "mr_signal"
    UNNAMED = ""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Voxels [plane, row, column] in real-world units (HU for CT; after Modality LUT), and where they lie.

    They are int16 where that holds every value exactly, else float32. `remarks` says what was done to the series to
    make a volume of it, and what was left out. `padding` of the voxels hold no value but the one that the contract has
    for what shows nothing. `meaning` is what the header says that the values are.
    """

    voxels: NDArray[np.int16] | NDArray[np.float32]
    geometry: Geometry
    series_instance_uid: str
    remarks: Mapping[str, str] = field(default_factory=dict)
    padding: int = 0
    meaning: VoxelMeaning = VoxelMeaning.UNNAMED
