"""A volume in patient space.

One convention everywhere: arrays are [plane, row, column] and affines map
(plane, row, column, 1) to LPS millimetres, the patient coordinate system of DICOM (PS3.3 C.7.6.2.1.1).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where a stack of planes lies in the patient.

    `shape` is (planes, rows, columns). `affine_lps` is 4x4 and maps (plane, row, column, 1) of a voxel centre to
    LPS mm. `sop_instance_uids` and `frame_numbers` (1-based) name the source of each plane, in plane order.
    """

    shape: tuple[int, int, int]
    affine_lps: NDArray[np.float64]
    frame_of_reference_uid: str
    sop_instance_uids: tuple[str, ...]
    frame_numbers: tuple[int, ...]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring (planes, rows, columns)."""
        plane, row, column = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(plane), float(row), float(column)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm³."""
        return float(abs(np.linalg.det(self.affine_lps[:3, :3])))

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """The same affine to RAS mm (NIfTI, MONAI): first two coordinates negated."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine_lps


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Voxels [plane, row, column] in real-world units (HU for CT; after Modality LUT), and where they lie.

    They are int16 where that holds every value exactly, else float32.
    """

    voxels: NDArray[np.int16] | NDArray[np.float32]
    geometry: Geometry
    series_instance_uid: str
