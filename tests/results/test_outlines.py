"""Outlines go around a mask exactly: filling them gives it back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage.draw import polygon2mask
from skimage.measure import label

from meddaemon.results.gate.areas import agree, around, covered
from meddaemon.results.outlines import is_hole, outlines

masks = arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)))


@settings(max_examples=150, deadline=None)
@given(masks)
def test_filled_outlines_are_the_mask(mask: NDArray[np.bool_]) -> None:
    filled = np.zeros_like(mask)
    for polygon in outlines(mask):
        filled ^= polygon2mask(mask.shape, polygon - 0.5)  # it counts centres of pixels
    np.testing.assert_array_equal(filled, mask)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_there_is_one_outline_for_each_region_and_each_hole(mask: NDArray[np.bool_]) -> None:
    found = outlines(mask)
    regions = int(label(mask, connectivity=1).max())
    background = int(label(~np.pad(mask, 1), connectivity=2).max()) - 1
    assert [sum(not is_hole(each) for each in found), sum(map(is_hole, found))] == [regions, background]
    for polygon in found:
        steps = np.diff(np.concatenate([polygon, polygon[:1]]), axis=0)
        assert ((steps != 0).sum(axis=1) == 1).all()
        # Each corner is one: no two steps go the same way.
        assert ((steps[:, 0] != 0) != (np.roll(steps, 1, axis=0)[:, 0] != 0)).all()


@settings(max_examples=100, deadline=None)
@given(masks)
def test_what_lines_go_around_is_what_pixels_cover(mask: NDArray[np.bool_]) -> None:
    closed = [np.concatenate([each, each[:1]]).astype(float) for each in outlines(mask)]
    assert agree(around(closed), covered(mask))
    if closed:
        closed[0] = closed[0] + [0, 1]
        assert not agree(around(closed), covered(mask))


@pytest.mark.parametrize("shape", [(3, 4), (1, 1)])
def test_nothing_has_no_outline_and_all_has_the_frame(shape: tuple[int, int]) -> None:
    assert outlines(np.zeros(shape, bool)) == []
    rows, columns = shape
    (frame,) = outlines(np.ones(shape, bool))
    assert frame.tolist() == [[0, 0], [0, columns], [rows, columns], [rows, 0]]
