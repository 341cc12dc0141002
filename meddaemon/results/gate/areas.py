"""What closed lines go around, without drawing them: areas and first moments by Green's theorem."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def around(lines: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return (area, row moment, column moment) of what lines (points, 2) of (row, column) go around clockwise.

    Lines may be pieces of closed ones that follow each other; holes, which run against the clock, count against.
    """
    total = np.zeros(3)
    for line in lines:
        (row, column), (row_after, column_after) = line[:-1].T, line[1:].T
        cross = column * row_after - column_after * row
        total += cross.sum() / 2, ((row + row_after) * cross).sum() / 6, ((column + column_after) * cross).sum() / 6
    return total


def covered(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the same of the pixels of a mask [row, column], pixel (0, 0) reaching from 0 to 1."""
    row, column = np.nonzero(mask)
    return np.array([len(row), (row + 0.5).sum(), (column + 0.5).sum()])


def agree(lines: NDArray[np.float64], pixels: NDArray[np.float64]) -> bool:
    """Return whether lines go around as much as there are pixels, in the same place."""
    return bool(np.allclose(lines, pixels, rtol=1e-6, atol=1e-3))
