"""Artefacts as NIfTI-1 files, which every tool of research reads: one file, compressed, no identity in it.

The values are float32, x along a row, y down a column, z through the planes; the affine (sform, and qform where the
axes are orthogonal) maps voxel centres to RAS mm. Source: nifti1.h, https://nifti.nimh.nih.gov/nifti-1
"""

import json
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.result import Artefact
from meddaemon.domain.volume import Geometry

SUFFIX = ".nii.gz"

_HEADER = struct.Struct("<i10s18sihcb8h3f4h8f3fhbb4f2i80s24s2h6f4f4f4f16s4s")
_FLOAT32 = 16
_SCANNER = 1
"""The affine is that of the patient on the scanner, as DICOM has it."""
_MILLIMETRE = 2
_COMMENT = 6
_LONGEST_AXIS = 2**15 - 1
_ORTHOGONAL = 1e-4
# Numbers that were halves before have 13 bits of zeros: even the quickest level leaves these out.
_LEVEL = 1


def encode(artefact: Artefact, geometry: Geometry | None) -> bytes:
    """Return the file of an artefact; without a geometry, or on a picture, it lies nowhere in the patient.

    Equal artefacts make equal files. Raises ValueError for an axis that is longer than NIfTI-1 can say.
    """
    return b"".join(_compressed(_pieces(artefact, geometry)))


def _compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    # 31: with the frame of gzip, which zlib writes without a name and without a time.
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def _pieces(artefact: Artefact, geometry: Geometry | None) -> Iterator[bytes]:
    values = artefact.values
    place = geometry if values.ndim == 3 and artefact.source is None else None
    comment = _comment(place)
    yield _header(artefact, place, _HEADER.size + 4 + len(comment))
    yield bytes([bool(comment), 0, 0, 0]) + comment
    for plane in values if values.ndim == 3 else [values]:
        # Row by row, column fastest: the order that NIfTI calls x, y, z.
        yield plane.astype("<f4").tobytes()


def _header(artefact: Artefact, place: Geometry | None, offset: int) -> bytes:
    lengths = artefact.values.shape[::-1]
    if max(lengths) > _LONGEST_AXIS:
        raise ValueError(f"an axis of {max(lengths)} voxels is longer than NIfTI-1 can say")
    affine, spacing, quaternion = np.zeros((4, 4)), (1.0, 1.0, 1.0), None
    if place is not None:
        affine = place.affine_ras.copy()
        affine[:, :3] = affine[:, 2::-1]
        columns = np.linalg.norm(affine[:3, :3], axis=0)
        spacing = (float(columns[0]), float(columns[1]), float(columns[2]))
        quaternion = _quaternion(affine[:3, :3] / columns)
    qfac, turn = quaternion or (1.0, (0.0, 0.0, 0.0))
    return _HEADER.pack(
        *(_HEADER.size, b"", b"", 0, 0, b"r", 0),
        *(len(lengths), *lengths, *[1] * (7 - len(lengths))),
        *(0.0, 0.0, 0.0, 0, _FLOAT32, 32, 0),
        *(qfac, *spacing, 1.0, 1.0, 1.0, 1.0),
        *(float(offset), 1.0, 0.0, 0, 0, _MILLIMETRE if place is not None else 0),
        *(float(artefact.values.max()), float(artefact.values.min()), 0.0, 0.0, 0, 0),
        *(artefact.name.encode("ascii", "replace")[:79], b""),
        *(_SCANNER if quaternion else 0, _SCANNER if place is not None else 0),
        *(*turn, *map(float, affine[:3, 3])),
        *map(float, affine[:3].ravel()),
        *(artefact.kind.value.encode()[:15], b"n+1"),
    )


def _comment(place: Geometry | None) -> bytes:
    """Return an extension that says where the planes are, when the affine does not: at uneven distances, for one."""
    if place is None or place.positions_lps is None:
        return b""
    said = {"first_voxel_of_each_plane_lps_mm": [[round(float(each), 6) for each in at] for at in place.positions]}
    text = json.dumps(said).encode()
    size = -(-(8 + len(text)) // 16) * 16
    return struct.pack("<ii", size, _COMMENT) + text.ljust(size - 8, b"\0")


def _quaternion(axes: NDArray[np.float64]) -> tuple[float, tuple[float, float, float]] | None:
    """Return qfac and the quaternion (b, c, d) of unit axes, the columns; None where they are not orthogonal."""
    if np.abs(axes.T @ axes - np.eye(3)).max() > _ORTHOGONAL:
        return None
    qfac = 1.0 if np.linalg.det(axes) > 0 else -1.0
    turn = axes * (1.0, 1.0, qfac)
    # The quaternion is the eigenvector of the greatest eigenvalue, which no rotation makes ill-conditioned
    # (Bar-Itzhack 2000).
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = turn
    symmetric = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    first, *rest = np.linalg.eigh(symmetric)[1][:, -1]
    b, c, d = (float(each) * (1.0 if first >= 0 else -1.0) for each in rest)
    return qfac, (b, c, d)
