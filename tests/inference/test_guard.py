"""What a model was not made for is told with the numbers, before anything is computed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.domain.conditions import ALWAYS
from meddaemon.domain.contract import InputContract, InputLimits, Range
from meddaemon.domain.picture import Pictures, Signal
from meddaemon.domain.volume import Geometry, Volume
from meddaemon.inference.guard import check_input


def volume(shape: tuple[int, int, int] = (10, 20, 30), values: np.ndarray | None = None) -> Volume:
    """A volume of 5 x 3 x 2 mm; its voxels count from 0 to 99."""
    geometry = Geometry(
        shape=shape,
        affine_lps=np.diag([5.0, 3.0, 2.0, 1.0]),
        frame_of_reference_uid="1.2",
        sop_instance_uids=("1.3",) * shape[0],
        frame_numbers=(1,) * shape[0],
    )
    voxels = np.resize(np.arange(100, dtype=np.float32), shape) if values is None else values
    return Volume(voxels=voxels, geometry=geometry, series_instance_uid="1.4")


def pictures(**said: Any) -> Pictures:
    frames = np.zeros((2, 40, 30, 3), np.float32)
    return Pictures(frames=frames, sources=(("1.3", 1), ("1.3", 2)), series_instance_uid="1.4", **said)


SIGNAL = Signal(
    samples=np.linspace(-1, 1, 200, dtype=np.float32).reshape(2, 100),
    rate_hz=500,
    channels=("I", "II"),
    unit="uV",
    sop_instance_uid="1.3",
    series_instance_uid="1.4",
)


def limited(**limits: Any) -> InputContract:
    return InputContract(key="image", series=ALWAYS, limits=InputLimits(**limits))


def between(low: float | None = None, high: float | None = None) -> Range:
    return Range(minimum=low, maximum=high)


def test_without_limits_everything_is_taken() -> None:
    for value in (volume(), pictures(), SIGNAL):
        assert check_input(value, limited()) == []


WITHIN = [
    (volume(), {"spacing_mm": between(2, 5), "extent_mm": between(50, 60), "planes": between(10, 10)}),
    (volume(), {"intensity": between(0, 99)}),
    (pictures(spacing_mm=(0.1, 0.2)), {"spacing_mm": between(0.1, 0.2), "extent_mm": between(4, 6)}),
    (pictures(), {"planes": between(high=2), "intensity": between(0, 0)}),
    (SIGNAL, {"intensity": between(-1, 1)}),
]


@pytest.mark.parametrize(("value", "limits"), WITHIN)
def test_what_is_within_its_limits_is_taken(value: Volume, limits: dict[str, Any]) -> None:
    assert check_input(value, limited(**limits)) == []


HEADER = {"Modality": ("MR",), "BodyPartExamined": ("HEAD",), "ScanningSequence": ("SE", "IR")}
BEYOND = [
    (volume(), {"spacing_mm": between(1, 4)}, "spacing 5 × 3 × 2 mm; the model takes 1 to 4 mm"),
    (volume(), {"extent_mm": between(low=60)}, "extent 50 × 60 × 60 mm; the model takes at least 60 mm"),
    (volume(), {"planes": between(low=11)}, "planes 10; the model takes at least 11"),
    (volume(), {"planes": between(high=9)}, "planes 10; the model takes at most 9"),
    (volume(), {"intensity": between(-1000, 50)}, "intensity 0.99 to 98.01; the model takes -1000 to 50"),
    (volume(), {"intensity": between(10, 500)}, "intensity 0.99 to 98.01; the model takes 10 to 500"),
    (volume(), {"modalities": ("CT", "PT")}, "Modality MR; the model takes CT, PT"),
    (volume(), {"attributes": {"BodyPartExamined": ("CHEST",)}}, "BodyPartExamined HEAD; the model takes CHEST"),
    (volume(), {"attributes": {"ScanningSequence": ("GR",)}}, "ScanningSequence SE/IR; the model takes GR"),
    (volume(), {"attributes": {"SequenceName": ("x",)}}, "SequenceName (none); the model takes x"),
    (pictures(spacing_mm=(0.1, 0.2)), {"spacing_mm": between(high=0.1)}, "spacing 0.1 × 0.2 mm; the model takes"),
    (pictures(), {"spacing_mm": between(high=1)}, "its spacing is not known; the model takes at most 1 mm"),
    (pictures(), {"extent_mm": between(high=1)}, "its extent is not known; the model takes at most 1 mm"),
    (SIGNAL, {"intensity": between(0, 1)}, "intensity -0.98"),
]


@pytest.mark.parametrize(("value", "limits", "said"), BEYOND)
def test_what_is_beyond_its_limits_is_told_with_the_numbers(value: Volume, limits: dict[str, Any], said: str) -> None:
    (problem,) = check_input(
        value, limited(**limits), {"Modality": ("MR",), "BodyPartExamined": ("HEAD",), "ScanningSequence": ("SE", "IR")}
    )
    assert problem.startswith(f"input image: {said}")


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_limits_hold_what_lies_between_them(value: float, one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    assert between(low, high).holds(value) == (low <= value <= high)
    assert between(low).holds(value) == (low <= value)
    assert between(high=high).holds(value) == (value <= high)


@pytest.mark.parametrize("value", [float("nan")])
@pytest.mark.parametrize("limits", [between(), between(0), between(high=0), between(-1, 1)])
def test_limits_do_not_hold_what_is_no_number(value: float, limits: Range) -> None:
    assert not limits.holds(value)


def test_one_of_the_values_that_the_header_names_is_enough() -> None:
    limits = limited(modalities=("MR",), attributes={"ScanningSequence": ("ir", "GR")})
    assert check_input(volume(), limits, {"Modality": ("MR",), "ScanningSequence": ("SE", "IR")}) == []


def test_a_few_pixels_of_metal_say_nothing_about_the_intensity() -> None:
    values = np.full((10, 20, 30), 40, np.int16)
    values[5, 5, :10] = 30000
    assert check_input(volume(values=values), limited(intensity=between(0, 100))) == []


def test_a_large_volume_is_sampled_evenly() -> None:
    """The upper half is beyond: a sample that only looked at one corner or one column would not see it."""
    values = np.zeros((64, 256, 256), np.int16)
    values[:, :, 128:] = 1000
    (problem,) = check_input(volume((64, 256, 256), values), limited(intensity=between(0, 500)))
    assert "intensity 0 to 1000" in problem
