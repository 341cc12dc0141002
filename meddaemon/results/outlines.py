"""Outlines of masks along the edges of their pixels."""

import numpy as np
from numpy.typing import NDArray

# Ways along pixel edges as (row, column), each a right turn from the one before: right, down, left, up.
_WAYS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return the closed polygons around the pixels of a mask [row, column], holes among them, in scan order.

    Each is (corners, 2) of (row, column), where (0, 0) is the top left corner of the first pixel and a pixel is 1
    wide; the last corner is joined to the first. Only corners are listed, no points along a straight line. What is
    inside lies on the right: outer polygons run clockwise on the screen, holes against the clock. Pixels that touch
    at a corner alone are apart, so no polygon touches itself along a line and rasterising them gives the mask back.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return []
    columns = np.flatnonzero(mask.any(axis=0))
    corner = np.array((rows[0], columns[0]))
    following = _following(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    _, height, width = following.shape
    chain = following.ravel().tolist()
    found = []
    for start, after in enumerate(chain):
        if after < 0:
            continue
        edges, edge = [], start
        while (after := chain[edge]) >= 0:
            edges.append(edge)
            chain[edge] = -1
            edge = after
        way, row, column = np.unravel_index(np.array(edges), (4, height, width))
        turns = way != np.roll(way, 1)
        found.append(np.stack([row[turns], column[turns]], axis=1) + corner)
    return found


def is_hole(polygon: NDArray[np.int64]) -> bool:
    """Return whether a polygon of `outlines` goes around what is not of the mask."""
    row, column = polygon[:, 0], polygon[:, 1]
    return int(np.sum(column * np.roll(row, -1) - np.roll(column, -1) * row)) < 0


def _following(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each edge [way, row, column of its start] the number of the one that follows it; -1: no edge."""
    framed = np.pad(mask, 1)
    height, width = mask.shape[0] + 1, mask.shape[1] + 1
    edges = np.zeros((4, height, width), dtype=np.bool_)
    above, left = framed[:-1, 1:-1], framed[1:-1, :-1]
    below, right = framed[1:, 1:-1], framed[1:-1, 1:]
    edges[0, :, :-1] = below & ~above  # the top of a pixel, to the right
    edges[1, :-1, :] = left & ~right  # its right side, down
    edges[2, :, 1:] = above & ~below  # its bottom, to the left
    edges[3, 1:, :] = right & ~left  # its left side, up
    following = np.full(edges.shape, -1, dtype=np.int64)
    for way, (down, across) in enumerate(_WAYS):
        row, column = np.nonzero(edges[way])
        row_after, column_after = row + down, column + across
        # Where two edges begin, the one to the right stays at the same pixel.
        turn, straight = (way + 1) % 4, way
        after = np.where(edges[straight, row_after, column_after], straight, (way - 1) % 4)
        after = np.where(edges[turn, row_after, column_after], turn, after)
        following[way, row, column] = np.ravel_multi_index((after, row_after, column_after), edges.shape)
    return following
