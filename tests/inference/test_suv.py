"""SUV by body weight: what it is, and every reason for which there is none."""

import math
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.domain.errors import InputRefused
from meddaemon.inference.suv import Acquisition, factor

F18_HALF_LIFE = 6586.2
SCAN = datetime(2026, 3, 2, 10, 30)
IMAGE = Acquisition(
    sop_instance_uid="1.2.3",
    units="BQML",
    corrections=("DECY", "ATTN", "SCAT"),
    decay_correction="START",
    weight_kg=70.0,
    dose_bq=370e6,
    half_life_s=F18_HALF_LIFE,
    injected=SCAN - timedelta(hours=1),
    injected_at=None,
    series=SCAN,
    acquired=SCAN + timedelta(minutes=3),
)


def test_a_textbook_scan() -> None:
    """370 MBq of F-18, an hour of uptake, 70 kg: 253 MBq are left, and 3619 Bq/mL are an SUV of 1."""
    assert factor(IMAGE) == pytest.approx(1 / 3619, rel=1e-3)


@given(
    weight=st.floats(1, 300),
    dose=st.floats(1e7, 1e9),
    half_life=st.floats(60, 1e6),
    uptake=st.floats(0, 6 * 3600),
)
def test_a_dose_that_spreads_evenly_is_one_everywhere(
    weight: float, dose: float, half_life: float, uptake: float
) -> None:
    image = replace(
        IMAGE, weight_kg=weight, dose_bq=dose, half_life_s=half_life, injected=SCAN - timedelta(seconds=uptake)
    )
    seconds = timedelta(seconds=uptake).total_seconds()
    concentration = dose * math.exp(-math.log(2) * seconds / half_life) / (weight * 1000)
    assert factor(image) * concentration == pytest.approx(1.0)


def test_an_injection_before_midnight_is_of_the_day_before() -> None:
    after_midnight = datetime(2026, 3, 2, 0, 20)
    image = replace(
        IMAGE,
        series=after_midnight,
        acquired=after_midnight,
        injected=None,
        injected_at=datetime(1900, 1, 1, 23, 20),
    )
    assert factor(image) == pytest.approx(factor(IMAGE))


def test_a_time_alone_is_of_the_day_of_the_scan() -> None:
    image = replace(IMAGE, injected=None, injected_at=datetime(1900, 1, 1, 9, 30))
    assert factor(image) == factor(IMAGE)


def test_what_is_corrected_to_the_injection_has_not_decayed() -> None:
    image = replace(IMAGE, decay_correction="ADMIN", series=None, injected=None, half_life_s=None)
    assert factor(image) == pytest.approx(70_000 / 370e6)


def test_values_that_are_suv_already_stay_as_they_are() -> None:
    assert factor(replace(IMAGE, units="GML", weight_kg=None)) == 1.0
    assert factor(replace(IMAGE, units="GML", suv_type="BW")) == 1.0


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("suv_units", {"units": "CNTS"}),
        ("suv_units", {"units": ""}),
        ("suv_units", {"units": "GML", "suv_type": "LBM"}),
        ("suv_not_corrected", {"corrections": ("DECY",)}),
        ("suv_decay_correction", {"decay_correction": "NONE"}),
        ("suv_weight", {"weight_kg": None}),
        ("suv_weight", {"weight_kg": 0.0}),
        ("suv_weight", {"weight_kg": float("nan")}),
        ("suv_dose", {"dose_bq": None}),
        ("suv_dose", {"dose_bq": 370.0}),  # MBq where Bq belong
        ("suv_half_life", {"half_life_s": None}),
        ("suv_injection_time", {"injected": None}),
        ("suv_series_time", {"series": None}),
        ("suv_series_time", {"series": SCAN + timedelta(hours=5)}),
        ("suv_uptake_time", {"injected": SCAN + timedelta(minutes=1)}),
        ("suv_uptake_time", {"injected": SCAN - timedelta(days=30)}),
    ],
)
def test_what_is_missing_or_impossible_is_named(reason: str, change: dict[str, object]) -> None:
    with pytest.raises(InputRefused) as refused:
        factor(replace(IMAGE, **change))  # type: ignore[arg-type]
    assert refused.value.reason == reason
    assert refused.value.sop_instance_uid == "1.2.3"
