"""Stored values to real-world values: equal to double precision arithmetic, in int16 only where that is exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from meddaemon.inference import modality
from meddaemon.inference.modality import MalformedTable, NotFinite, NotWhole, Rescale, Table
from meddaemon.inference.part10 import Attributes

SLOPES = st.one_of(st.integers(-40, 40).filter(bool).map(float), st.floats(-1e3, 1e3).filter(bool))
INTERCEPTS = st.one_of(st.integers(-40_000, 40_000).map(float), st.floats(-1e5, 1e5))


@st.composite
def planes(draw: st.DrawFn) -> tuple[NDArray[np.generic], int]:
    """A small plane, and how many bits are stored."""
    bits, signed = draw(st.sampled_from([1, 8, 12, 16])), draw(st.booleans())
    low, high = modality.stored_range(bits, signed=signed)
    values = draw(st.lists(st.integers(low, high), min_size=6, max_size=6))
    return np.array(values, f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}").reshape(2, 3), bits


def exact(stored: NDArray[np.generic], rescale: Rescale) -> NDArray[np.float64]:
    return stored.astype(np.float64) * rescale.slope + rescale.intercept


@given(plane=planes(), slope=SLOPES, intercept=INTERCEPTS)
def test_float32_is_rounded_once(plane: tuple[NDArray[np.generic], int], slope: float, intercept: float) -> None:
    (stored, bits), rescale = plane, Rescale(slope=slope, intercept=intercept)
    out = np.empty(stored.shape, np.float32)
    modality.apply(stored, rescale, out, bits)
    assert np.array_equal(out, exact(stored, rescale).astype(np.float32))


@given(plane=planes(), slope=st.integers(-40, 40).filter(bool), intercept=st.integers(-40_000, 40_000))
def test_int16_is_exact_or_refused(plane: tuple[NDArray[np.generic], int], slope: int, intercept: int) -> None:
    (stored, bits), rescale = plane, Rescale(slope=float(slope), intercept=float(intercept))
    expected = exact(stored, rescale)
    fits = rescale.is_whole and expected.min() >= -(2**15) and expected.max() < 2**15
    out = np.empty(stored.shape, np.int16)
    in_place = stored.copy()
    targets = [(stored, out)] + ([(in_place, in_place.view(np.int16))] if stored.itemsize == 2 else [])
    for source, target in targets:
        if fits:
            modality.apply(source, rescale, target, bits)
            assert np.array_equal(target, expected)
        else:
            with pytest.raises(NotWhole):
                modality.apply(source, rescale, target, bits)


def test_a_value_beyond_float32_is_refused() -> None:
    with pytest.raises(NotFinite):
        modality.apply(np.array([[1]], np.uint8), Rescale(slope=1e300, intercept=0), np.empty((1, 1), np.float32), 8)


def test_a_plane_larger_than_a_block() -> None:
    stored = np.arange(300 * 400, dtype=np.uint32).reshape(300, 400)
    out = np.empty(stored.shape, np.float32)
    modality.apply(stored, Rescale(slope=0.5, intercept=-3), out, 32)
    assert np.array_equal(out, (stored * 0.5 - 3).astype(np.float32))


# --- Modality LUT -----------------------------------------------------------------------------------------------------


def lut(descriptor: tuple[int, ...], data: tuple[int, ...]) -> Attributes:
    return Attributes(words={"LUTDescriptor": descriptor, "LUTData": data})


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_table_ends_with_its_first_and_last_value(dtype: type) -> None:
    table = modality.table(lut((4, 0xFFFF, 16), (10, 20, 30, 5000)), signed=True)
    stored = np.array([[-300, -2, -1, 0], [1, 2, 3, 300]], np.int16)
    out = np.empty(stored.shape, dtype)
    modality.apply(stored, table, out, 16)
    assert out.tolist() == [[10, 10, 10, 20], [30, 5000, 5000, 5000]]


def test_a_table_whose_values_int16_does_not_hold() -> None:
    table = modality.table(lut((2, 0, 16), (1, 40_000)), signed=False)
    stored = np.array([[0, 1]], np.uint8)
    with pytest.raises(NotWhole):
        modality.apply(stored, table, np.empty((1, 2), np.int16), 8)
    out = np.empty((1, 2), np.float32)
    modality.apply(stored, table, out, 8)
    assert out.tolist() == [[1, 40_000]]


def test_a_table_of_bytes_in_words_and_one_of_65536_entries() -> None:
    assert modality.table(lut((3, 7, 8), (0x0201, 0x0003)), signed=False).values.tolist() == [1, 2, 3]
    assert modality.table(lut((3, 7, 8), (1, 2, 3)), signed=False).values.tolist() == [1, 2, 3]
    assert len(modality.table(lut((0, 0, 16), (5,) * 2**16), signed=False).values) == 2**16


@pytest.mark.parametrize(
    ("descriptor", "data"),
    [
        ((), ()),
        ((3, 0), (1, 2, 3)),
        ((3, 0, 16), (1, 2)),
        ((3, 0, 12), (1, 2, 3)),
        ((2, 0, 8), (1, 256)),
        ((1, 0, 16), ()),
    ],
)
def test_a_table_that_contradicts_itself(descriptor: tuple[int, ...], data: tuple[int, ...]) -> None:
    with pytest.raises(MalformedTable):
        modality.table(lut(descriptor, data), signed=False)


def test_only_whole_numbers_stay_whole() -> None:
    assert Rescale(slope=1, intercept=-1024).is_whole
    assert not Rescale(slope=0.5, intercept=0).is_whole
    assert not Rescale(slope=1, intercept=1e9).is_whole
    assert Table(first=0, values=np.array([1], np.uint16)).is_whole
