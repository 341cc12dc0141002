"""Enhanced and converted images beside the classic ones that they were made of: the same voxels, values and places."""

import warnings
from collections.abc import Callable
from pathlib import Path

import highdicom.legacy as legacy
import numpy as np
import pytest
from dicom_factory import make_enhanced, make_series
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence as ItemSequence
from pydicom.uid import (
    EnhancedPETImageStorage,
    PositronEmissionTomographyImageStorage,
    XRay3DAngiographicImageStorage,
)

from meddaemon.domain.contract import GeometryPolicy, Times
from meddaemon.domain.errors import InputRefused
from meddaemon.domain.volume import Volume
from meddaemon.inference.pet import as_uptake
from meddaemon.inference.pictures import read
from meddaemon.inference.volume import assemble, assemble_read, read_headers
from tests.inference.test_pet import HALF_LIFE, SUV, make_pet

CONVERTERS = {
    "CT": legacy.LegacyConvertedEnhancedCTImage,
    "MR": legacy.LegacyConvertedEnhancedMRImage,
    "PT": legacy.LegacyConvertedEnhancedPETImage,
}


def converted(files: list[Path], folder: Path) -> Path:
    """The legacy converted enhanced image of classic ones, by highdicom."""
    datasets = [dcmread(path) for path in files]
    for dataset in datasets:
        if dataset.Modality == "PT":
            dataset.SOPClassUID = PositronEmissionTomographyImageStorage
            dataset.SeriesType = ["STATIC", "IMAGE"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = CONVERTERS[datasets[0].Modality](
            legacy_datasets=datasets,
            series_instance_uid=datasets[0].SeriesInstanceUID,
            series_number=1,
            sop_instance_uid="2.25.77",
            instance_number=1,
        )
    folder.mkdir(exist_ok=True)
    image.save_as(folder / "converted.dcm")
    return folder / "converted.dcm"


def assert_twins(one: Volume, other: Volume) -> None:
    assert np.array_equal(one.voxels, other.voxels)
    assert one.voxels.dtype == other.voxels.dtype
    assert np.abs(one.geometry.positions - other.geometry.positions).max() < 1e-9
    assert np.abs(one.geometry.affine_lps - other.geometry.affine_lps).max() < 1e-9
    assert one.geometry.frame_of_reference_uid == other.geometry.frame_of_reference_uid


def _rescaled(plane: int, dataset: Dataset) -> None:
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = f"{plane + 1}.5", f"{-10 * plane}", "US"


@pytest.mark.fault(87, 89)
@pytest.mark.parametrize("edit", [None, _rescaled], ids=["as it is", "another rescale in each plane"])
@pytest.mark.parametrize("orientation", ["axial", "oblique"])
@pytest.mark.parametrize("modality", CONVERTERS)
def test_a_converted_series_is_its_classic_twin(
    tmp_path: Path, modality: str, orientation: str, edit: Callable[[int, Dataset], None] | None
) -> None:
    kind = {"modality": modality} if modality != "PT" else {"attributes": {"Modality": "PT"}}
    files = make_series(tmp_path / "classic", orientation=orientation, edit=edit, **kind)  # type: ignore[arg-type]
    assert_twins(assemble([converted(files, tmp_path)]), assemble(files))


@pytest.mark.fault(92)
def test_times_of_a_converted_series_are_told_apart_as_those_of_its_classic_twin(tmp_path: Path) -> None:
    files = [
        file
        for time in (1, 2, 3)
        for file in make_series(
            tmp_path / str(time),
            voxels=np.full((4, 5, 6), time, np.int16),
            edit=lambda plane, dataset, time=time: (  # type: ignore[misc]
                setattr(dataset, "SOPInstanceUID", f"2.25.{time}{plane}"),
                setattr(dataset, "TriggerTime", 100 * time),
            ),
        )
    ]
    for policy, time in ((Times.FIRST, 1), (Times.LAST, 3)):
        classic, enhanced = (
            assemble_read(read_headers(paths), GeometryPolicy(time=policy))
            for paths in (files, [converted(files, tmp_path)])
        )
        assert_twins(classic, enhanced)
        assert np.unique(enhanced.voxels).tolist() == [time]


def test_uptake_of_a_converted_series_is_that_of_its_classic_twin(tmp_path: Path) -> None:
    files = make_pet(tmp_path / "classic")
    one = converted(files, tmp_path)
    classic, enhanced = as_uptake(assemble(files), files), as_uptake(assemble([one]), [one])
    assert_twins(classic, enhanced)
    assert enhanced.voxels[0, 0, 0] == pytest.approx(SUV, rel=1e-6)
    assert enhanced.remarks["unit"] == classic.remarks["unit"] == f"SUVbw: the values of the series × {SUV / 1000:.6g}"


def enhanced_pet(folder: Path, **changes: object) -> Path:
    """An enhanced PET image: no Units, no Decay Correction, but a mapping to Bq/ml and a moment of correction."""
    path = make_enhanced(folder, voxels=np.full((3, 4, 5), 500, np.int16))
    dataset = dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedPETImageStorage
    drug, unit = Dataset(), Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 350e6, HALF_LIFE
    drug.RadiopharmaceuticalStartDateTime = "20260302081013.8"
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = changes.pop("code", "Bq/ml"), "UCUM", "unit"
    said: dict[str, object] = {
        "Modality": "PT",
        "PatientWeight": 70,
        "AttenuationCorrected": "YES",
        "DecayCorrected": "YES",
        "DecayCorrectionDateTime": "20260302100000",
        "RadiopharmaceuticalInformationSequence": [drug],
        **{keyword: value for keyword, value in changes.items() if keyword != "mapped_slope"},
    }
    for keyword, value in said.items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    for number, item in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        mapping, transformation = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = float(number), 0
        transformation.RescaleType = "US"
        mapping.RealWorldValueSlope = float(changes.get("mapped_slope", number))  # type: ignore[arg-type]
        mapping.RealWorldValueIntercept = 0.0
        mapping.MeasurementUnitsCodeSequence = ItemSequence([unit])
        item.PixelValueTransformationSequence = ItemSequence([transformation])
        item.RealWorldValueMappingSequence = ItemSequence([mapping])
    dataset.save_as(path)
    return path


def test_uptake_of_an_enhanced_image_goes_frame_by_frame(tmp_path: Path) -> None:
    path = enhanced_pet(tmp_path)
    volume = as_uptake(assemble([path]), [path])
    # 500, 1000 and 1500 Bq/mL; half of 350 MBq are left for 70 kg.
    assert volume.voxels[:, 1, 1] == pytest.approx([SUV / 2, SUV, SUV * 3 / 2], rel=1e-6)
    path = enhanced_pet(tmp_path, code="g/ml{SUVbw}")
    assert as_uptake(assemble([path]), [path]).voxels[:, 1, 1] == pytest.approx([500, 1000, 1500])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"code": "1"}, "suv_units"),
        ({"mapped_slope": 7.0}, "suv_units"),
        ({"AttenuationCorrected": "NO"}, "suv_not_corrected"),
        ({"DecayCorrected": "NO"}, "suv_not_corrected"),
        ({"DecayCorrectionDateTime": None}, "suv_decay_correction"),
        ({"DecayCorrectionDateTime": "20260302070000"}, "suv_uptake_time"),
        ({"PatientWeight": None}, "suv_weight"),
        ({"RadiopharmaceuticalInformationSequence": None}, "suv_dose"),
    ],
)
def test_what_an_enhanced_image_does_not_say_has_a_name(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    path = enhanced_pet(tmp_path, **changes)
    with pytest.raises(InputRefused) as refused:
        as_uptake(assemble([path]), [path])
    assert refused.value.reason == reason


@pytest.mark.fault(89)
def test_a_rotational_angiography_is_a_volume_and_a_run_is_frames(tmp_path: Path) -> None:
    """X-Ray 3D has the functional groups of every enhanced image; a projection has no place in the patient."""
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    path = make_enhanced(tmp_path, voxels=voxels, orientation="coronal")
    dataset = dcmread(path)
    dataset.Modality = "XA"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = XRay3DAngiographicImageStorage
    dataset.save_as(path)
    assert_twins(assemble([path]), assemble(make_series(tmp_path / "classic", voxels=voxels, orientation="coronal")))
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        delattr(dataset, keyword)
    dataset.FrameTime = 66
    dataset.save_as(path)
    assert np.array_equal(read([path]).frames, voxels.astype(np.float32))
    with pytest.raises(InputRefused) as refused:
        assemble([path])
    assert refused.value.reason == "missing_functional_groups"
