"""What a reader sees in a folder: values of voxels, and where in the patient they lie."""

import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.volume import Volume


class Unread(Exception):
    """The reader gives no image of three dimensions; the message says what it does."""


@dataclass(frozen=True)
class Seen:
    """Voxels along any three axes, and an affine from their indices to LPS mm."""

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]
    said: str = ""


def simpleitk(files: Sequence[Path]) -> Seen:
    """`ImageSeriesReader` with the files in the order in which GDCM puts them, as its documentation has it."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(files[0].parent))
    try:
        image = sitk.ReadImage(names if len(files) > 1 else str(files[0]))
    except RuntimeError as error:
        raise Unread(f"fails: {str(error).splitlines()[-1].strip()[:80]}") from error
    affine = np.eye(4)
    affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return Seen(sitk.GetArrayFromImage(image), affine)


def dcm2niix(files: Sequence[Path]) -> Seen:
    """The program with its default settings; of several images that it writes, the one of the most voxels."""
    import nibabel  # noqa: PLC0415
    from dcm2niix import bin as program  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as target:
        done = subprocess.run(
            [program, "-z", "n", "-b", "n", "-f", "v", "-o", target, files[0].parent],
            capture_output=True,
            text=True,
            check=False,
        )
        written = sorted(Path(target).glob("*.nii"))
        lines = re.findall(r"^(?:Warning|Error): (.*)$", done.stdout + done.stderr, re.MULTILINE)
        warnings = "; ".join(dict.fromkeys(lines))[:160]
        if not written:
            raise Unread(f"writes nothing: {warnings}")
        images = [nibabel.load(path) for path in written]
        image = max(images, key=lambda each: np.prod(each.shape))
        names = ", ".join(path.name for path in written) if len(written) > 1 else ""
        said = "; ".join(filter(None, (f"writes {names}" if names else "", warnings)))
        return Seen(np.asarray(image.dataobj), np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine, said)


def monai(files: Sequence[Path]) -> Seen:
    """`LoadImage` with MONAI's own DICOM reader, on the folder, or the one file."""
    from monai.transforms import LoadImage  # noqa: PLC0415

    load = LoadImage(reader="PydicomReader", image_only=True, dtype=np.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = load(str(files[0].parent if len(files) > 1 else files[0]))
    except (RuntimeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise Unread(f"fails: {type(error).__name__}: {str(error).splitlines()[0][:60]}") from error
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(image.affine, np.float64)
    return Seen(np.asarray(image), affine)


READERS: dict[str, Callable[[Sequence[Path]], Seen]] = {
    "SimpleITK": simpleitk,
    "dcm2niix": dcm2niix,
    "MONAI": monai,
}


@dataclass(frozen=True)
class Verdict:
    """Ours beside another's: `planes` of ours are there value by value; the farthest of their voxels lies `off_mm`."""

    planes: int
    of: int
    off_mm: float
    shape: tuple[int, ...]

    @property
    def agrees(self) -> bool:
        """The same voxels in the same places, and no others."""
        return self.planes == self.of == self.shape[0] and self.off_mm <= 1e-3

    def __str__(self) -> str:
        planes = f"{self.planes} of {self.of} planes, of {self.shape[0]} theirs"
        return f"same voxels, {self.off_mm:.1e} mm" if self.agrees else f"{planes}; up to {self.off_mm:.3g} mm off"


def compare(volume: Volume, seen: Seen) -> Verdict:
    """Find each plane of ours among those of another, along whatever axes, and measure where it puts the corners.

    Raises `Unread` for what has other axes.
    """
    voxels = seen.voxels
    if voxels.ndim != 3 or min(voxels.shape) < 2:
        raise Unread(f"gives {' × '.join(map(str, voxels.shape))}")
    turn = np.rint(np.linalg.inv(_unit(seen.affine)) @ _unit(volume.geometry.affine_lps)).astype(int)
    if not np.array_equal(np.abs(turn).sum(axis=0), [1, 1, 1]) or not np.array_equal(
        np.abs(turn).sum(axis=1), [1, 1, 1]
    ):
        raise Unread("gives other axes")
    # To the order and the sense of our axes, with an affine that follows.
    order = [int(np.flatnonzero(turn[:, axis])[0]) for axis in range(3)]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = seen.affine[:3, order], seen.affine[:3, 3]
    voxels = voxels.transpose(order)
    for axis in range(3):
        if turn[order[axis], axis] < 0:
            voxels = np.flip(voxels, axis)
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
    voxels = np.ascontiguousarray(voxels)
    planes, rows, columns = volume.voxels.shape
    if voxels.shape[1:] != (rows, columns):
        raise Unread(f"gives planes of {voxels.shape[1]} × {voxels.shape[2]} instead of {rows} × {columns}")
    found, worst = 0, 0.0
    corners = np.array([[row, column] for row in (0, rows - 1) for column in (0, columns - 1)], float)
    ours_in_plane = corners @ volume.geometry.affine_lps[:3, 1:3].T
    theirs_in_plane = corners @ affine[:3, 1:3].T
    for plane in range(planes):
        same = [
            index
            for index in sorted(range(len(voxels)), key=lambda each: abs(each - plane))
            if np.array_equal(voxels[index], volume.voxels[plane])
        ]
        if same:
            found += 1
            theirs = affine[:3, 3] + affine[:3, 0] * same[0] + theirs_in_plane
            ours = volume.geometry.positions[plane] + ours_in_plane
            worst = max(worst, float(np.linalg.norm(theirs - ours, axis=1).max()))
    return Verdict(found, planes, worst, voxels.shape)


def _unit(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The directions of the axes; along the planes that of their normal, tilted or not."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    unit: NDArray[np.float64] = directions
    return unit
