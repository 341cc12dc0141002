"""PET series to standardised uptake values, through the headers."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from meddaemon.domain.conditions import ALWAYS
from meddaemon.domain.contract import InputContract
from meddaemon.domain.errors import InputRefused
from meddaemon.domain.volume import Volume, VoxelMeaning
from meddaemon.inference.inputs import Inputs
from meddaemon.inference.pet import acquisition, as_uptake
from meddaemon.inference.volume import assemble
from tests.dicom_factory import make_series

HALF_LIFE = 6586.2
"""Seconds, of F-18."""


def make_pet(folder: Path, *, drug: dict[str, Any] | None = None, **said: Any) -> list[Path]:
    """A PET series of 1000 Bq/mL everywhere: 70 kg, 350 MBq, injected one half-life before the scan."""
    given = Dataset()
    told = {
        "RadionuclideTotalDose": 350e6,
        "RadionuclideHalfLife": HALF_LIFE,
        "RadiopharmaceuticalStartDateTime": "20260302081013.8",
    }
    for keyword, value in {**told, **(drug or {})}.items():
        if value is not None:
            setattr(given, keyword, value)
    attributes: dict[str, Any] = {
        "Modality": "PT",
        "Units": "BQML",
        "CorrectedImage": ["DECY", "ATTN"],
        "DecayCorrection": "START",
        "PatientWeight": 70,
        "SeriesDate": "20260302",
        "SeriesTime": "100000",
        "AcquisitionDate": "20260302",
        "AcquisitionTime": "100300",
        "RadiopharmaceuticalInformationSequence": [given],
        **said,
    }
    return make_series(folder, voxels=np.full((3, 4, 5), 500, np.int16), rescale=(2.0, 0.0), attributes=attributes)


SUV = 1000 * 70_000 / 175e6
"""One half-life after 350 MBq, 175 MBq are left for 70 kg."""


def test_a_volume_comes_in_uptake(tmp_path: Path) -> None:
    files = make_pet(tmp_path)
    volume = as_uptake(assemble(files), files)
    assert volume.voxels.dtype == np.float32
    assert volume.meaning is VoxelMeaning.UPTAKE
    assert volume.voxels == pytest.approx(np.full((3, 4, 5), SUV), rel=1e-6)
    assert volume.geometry.shape == (3, 4, 5)


def test_each_plane_has_the_dose_of_its_own_header(tmp_path: Path) -> None:
    files = make_pet(tmp_path)
    dataset = dcmread(files[1])
    dataset.PatientWeight = 140
    dataset.save_as(files[1])
    found = as_uptake(assemble(files), files).voxels[:, 0, 0]
    assert sorted(found.tolist()) == pytest.approx([SUV, SUV, 2 * SUV], rel=1e-6)


@pytest.mark.parametrize(
    ("drug", "said"),
    [
        ({"RadiopharmaceuticalStartDateTime": None, "RadiopharmaceuticalStartTime": "081013.8"}, {}),
        ({"RadiopharmaceuticalStartDateTime": "20260302081013.8+0100"}, {}),
        ({"RadiopharmaceuticalStartDateTime": "20260302071013.8+0000"}, {"TimezoneOffsetFromUTC": "+0100"}),
        ({"RadiopharmaceuticalStartDateTime": "20260302001013.8-0700"}, {"TimezoneOffsetFromUTC": "+0100"}),
    ],
)
def test_the_injection_is_told_in_several_ways(tmp_path: Path, drug: dict[str, Any], said: dict[str, Any]) -> None:
    files = make_pet(tmp_path, drug=drug, **said)
    assert as_uptake(assemble(files), files).voxels[0, 0, 0] == pytest.approx(SUV, rel=1e-6)


@pytest.mark.parametrize(
    ("drug", "said", "reason"),
    [
        ({}, {"Units": "CNTS"}, "suv_units"),
        ({}, {"Units": "GML", "SUVType": "LBM"}, "suv_units"),
        ({}, {"PatientWeight": None}, "suv_weight"),
        ({}, {"CorrectedImage": ["DECY"]}, "suv_not_corrected"),
        ({}, {"DecayCorrection": "NONE"}, "suv_decay_correction"),
        ({}, {"SeriesTime": None}, "suv_series_time"),
        ({}, {"SeriesTime": "110000"}, "suv_series_time"),
        ({}, {"RadiopharmaceuticalInformationSequence": []}, "suv_dose"),
        ({}, {"RadiopharmaceuticalInformationSequence": [Dataset(), Dataset()]}, "suv_dose"),
        ({"RadionuclideTotalDose": None}, {}, "suv_dose"),
        ({"RadionuclideTotalDose": 350}, {}, "suv_dose"),
        ({"RadionuclideHalfLife": None}, {}, "suv_half_life"),
        ({"RadiopharmaceuticalStartDateTime": None}, {}, "suv_injection_time"),
        ({"RadiopharmaceuticalStartDateTime": "20260302120000"}, {}, "suv_uptake_time"),
    ],
)
def test_what_is_missing_has_a_name(tmp_path: Path, drug: dict[str, Any], said: dict[str, Any], reason: str) -> None:
    files = make_pet(tmp_path, drug=drug, **said)
    with pytest.raises(InputRefused) as refused:
        as_uptake(assemble(files), files)
    assert refused.value.reason == reason
    assert refused.value.sop_instance_uid == acquisition(files[0]).sop_instance_uid


def test_a_model_gets_the_unit_that_its_contract_asks_for(tmp_path: Path) -> None:
    files = {"image": make_pet(tmp_path)}
    for unit, expected in (("", 1000.0), ("SUVbw", SUV)):
        reading = Inputs([InputContract(key="image", series=ALWAYS, unit=unit)], files)
        found = reading.read(allocate=np.empty, watch=nullcontext)["image"]
        assert isinstance(found, Volume)
        assert found.voxels[0, 0, 0] == pytest.approx(expected, rel=1e-6)
