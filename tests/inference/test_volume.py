"""Files to volume: against SimpleITK on real series, and every refusal by name on real and edited files."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded_pixels import ENCODERS
from numpy.typing import DTypeLike
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    MRImageStorage,
    RLELossless,
)

from meddaemon.domain.errors import ContradictoryIdentity, InputRefused, UndecodablePixels, UnsoundVolume
from meddaemon.domain.volume import Volume, VoxelMeaning
from meddaemon.inference.volume import (
    assemble,
    assemble_read,
    read_header,
    read_headers,
    read_layout,
    stored_frames,
)
from tests.dicom_factory import make_series

Edit = Callable[[list[FileDataset]], None]


def slices(count: int = 4) -> list[FileDataset]:
    """A small classic MR series, double-oblique enough to tell the axes apart, in rising position."""
    made = []
    for index in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{index + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, f"1.2.3.{index + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
        dataset.PatientID, dataset.Modality, dataset.ImageType = "P1", "MR", ["ORIGINAL", "PRIMARY", "M"]
        dataset.InstanceNumber = count - index
        dataset.SliceThickness = "5"
        dataset.ImagePositionPatient = [10.0, 20.0, 30.0 + 2 * index]
        dataset.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        dataset.PixelSpacing = [0.5, 0.25]
        dataset.Rows, dataset.Columns = 3, 4
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = (np.arange(12, dtype="<u2") + 100 * index).tobytes()
        made.append(dataset)
    return made


def enhanced(source: list[FileDataset]) -> FileDataset:
    """The same planes as one enhanced multi-frame instance, frames in falling position."""
    frames = list(reversed(source))
    dataset = FileDataset("", {}, file_meta=source[0].file_meta, preamble=b"\0" * 128)
    dataset.update({elem.tag: elem for elem in source[0]})
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = EnhancedMRImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.NumberOfFrames = len(frames)
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = source[0].ImageOrientationPatient
    measures.PixelSpacing = source[0].PixelSpacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    items = []
    for each in frames:
        position, transformation, item = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = each.ImagePositionPatient
        transformation.RescaleSlope = each.get("RescaleSlope", 1)
        transformation.RescaleIntercept = each.get("RescaleIntercept", 0)
        item.PlanePositionSequence = Sequence([position])
        item.PixelValueTransformationSequence = Sequence([transformation])
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(items)
    dataset.PixelData = b"".join(each.PixelData for each in frames)
    return dataset


def saved(datasets: list[FileDataset], folder: Path) -> list[Path]:
    paths = []
    for index, dataset in enumerate(datasets):
        path = folder / f"{index}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def refusal(paths: list[Path]) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        assemble(paths)
    return caught.value


# --- what comes out -------------------------------------------------------------------------------------------------


def test_a_classic_series_becomes_one_volume(tmp_path: Path) -> None:
    volume = assemble(saved(slices(), tmp_path))
    assert volume.voxels.dtype == np.int16, "whole numbers that int16 holds"
    assert volume.voxels.shape == (4, 3, 4)
    assert volume.voxels[:, 0, 0].tolist() == [0, 100, 200, 300]
    assert volume.voxels[1, 2].tolist() == [108, 109, 110, 111]
    assert volume.series_instance_uid == "1.2.5"
    assert volume.geometry.spacing == (2.0, 0.5, 0.25), "plane spacing comes from positions, not Slice Thickness"
    assert (volume.geometry.affine_lps @ [3, 2, 1, 1]).tolist() == [10.25, 21.0, 36.0, 1.0]


def test_order_of_files_does_not_matter(tmp_path: Path) -> None:
    paths = saved(slices(), tmp_path)
    expected = assemble(paths)
    random.Random(1).shuffle(paths)
    found = assemble(paths)
    assert np.array_equal(found.voxels, expected.voxels)
    assert found.geometry.sop_instance_uids == expected.geometry.sop_instance_uids


@pytest.mark.fault(87)
def test_rescale_is_applied_plane_by_plane(tmp_path: Path) -> None:
    datasets = slices()
    for index, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = str(index + 1), "-1024"
    volume = assemble(saved(datasets, tmp_path))
    assert volume.voxels[:, 0, 1].tolist() == [-1023, -822, -421, 180]


def test_a_volume_is_float32_where_int16_does_not_hold_every_value(tmp_path: Path) -> None:
    """By the header of one plane (a slope of 0.5), or only by its pixels (a stored value of 40000)."""
    (tmp_path / "header").mkdir()
    (tmp_path / "pixels").mkdir()
    datasets = slices()
    datasets[2].RescaleSlope, datasets[2].RescaleIntercept = "0.5", "0"
    volume = assemble(saved(datasets, tmp_path / "header"))
    assert volume.voxels.dtype == np.float32
    assert volume.voxels[:, 0, 1].tolist() == [1, 101, 100.5, 301]
    datasets = slices()
    for dataset in datasets:
        dataset.BitsStored, dataset.HighBit = 16, 15
    datasets[2].PixelData = np.full(12, 40_000, dtype="<u2").tobytes()
    asked = []

    def allocate(shape: tuple[int, int, int], dtype: DTypeLike) -> np.ndarray:
        asked.append(np.dtype(dtype).name)
        return np.empty(shape, dtype)

    volume = assemble_read(read_headers(saved(datasets, tmp_path / "pixels")), allocate=allocate)
    assert asked == ["int16", "float32"]
    assert volume.voxels.dtype == np.float32
    assert volume.voxels[:, 0, 1].tolist() == [1, 101, 40_000, 301]


@pytest.mark.fault(87)
def test_a_modality_lut_is_applied_to_its_plane(tmp_path: Path) -> None:
    datasets = slices()
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [3, 201, 16], "HU"
    lut.add_new("LUTData", "OW", np.array([7, 30_000, 9], "<u2").tobytes())
    datasets[2].ModalityLUTSequence = Sequence([lut])
    volume = assemble(saved(datasets, tmp_path))
    assert volume.voxels.dtype == np.int16
    assert volume.voxels[2].ravel().tolist() == [7, 7, 30_000, *[9] * 9], "200, 201, 202, 203 and so on"
    datasets[2].RescaleSlope = "1"
    assert refusal(saved(datasets, tmp_path)).reason == "modality_lut", "one or the other"


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_change_nothing(tmp_path: Path, threads: int) -> None:
    everything = slices(90)
    for dataset in everything:
        dataset.BitsStored, dataset.HighBit = 16, 15
    datasets = everything[:40]
    for index, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = str(1 + index % 3), str(-index)
        if index % 2:
            dataset.compress(RLELossless, generate_instance_uid=False, encoding_plugin="pydicom")
    paths = saved([*datasets, enhanced(everything[40:])], tmp_path)
    dataset = dcmread(paths[-1])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.9"
    dataset.save_as(paths[-1])
    headers = read_headers(paths, threads)
    volume = assemble_read(headers, threads=threads)
    expected = [(100 * index + 1) * (1 + index % 3) - index if index < 40 else 100 * index + 1 for index in range(90)]
    assert volume.voxels[:, 0, 1].tolist() == expected


@pytest.mark.parametrize("threads", [1, 4])
def test_of_several_damaged_files_the_first_is_named(tmp_path: Path, threads: int) -> None:
    datasets = slices(30)
    for dataset in datasets[11:]:
        dataset.compress(RLELossless, generate_instance_uid=False, encoding_plugin="pydicom")
        dataset.PixelData = dataset.PixelData[:20] + bytes([9]) + dataset.PixelData[21:]
    headers = read_headers(saved(datasets, tmp_path))
    for _ in range(5):
        with pytest.raises(UndecodablePixels) as refused:
            assemble_read(headers, threads=threads)
        assert refused.value.sop_instance_uid == "1.2.3.12"


PEAK = """
import sys
from pathlib import Path
from typing import Any
from meddaemon.inference.volume import assemble
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
before = peak()
volume = assemble(sorted(Path(sys.argv[1]).iterdir()))
print(volume.voxels.dtype, volume.voxels.nbytes // 1024, before, peak())
"""


@pytest.mark.parametrize(("slope", "dtype"), [("1", "int16"), ("1.5", "float32")])
@pytest.mark.parametrize("transfer_syntax_uid", [ExplicitVRLittleEndian, JPEGLosslessSV1])
def test_the_memory_is_one_volume_and_a_little(
    tmp_path: Path, transfer_syntax_uid: str, slope: str, dtype: str
) -> None:
    values = np.arange(512 * 512, dtype=np.uint16).reshape(512, 512) % 4096
    stream = ENCODERS[JPEGLosslessSV1](values, values, 12)
    datasets = slices(150)
    for dataset in datasets:
        dataset.Rows = dataset.Columns = 512
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, "-1024"
        dataset.PixelData = values.astype("<u2").tobytes()
        if transfer_syntax_uid == JPEGLosslessSV1:
            dataset.file_meta.TransferSyntaxUID = transfer_syntax_uid
            dataset.PixelData = encapsulate([stream])
    saved(datasets, tmp_path)
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path], check=True, capture_output=True, text=True)
    found, *kilobytes = done.stdout.split()
    volume, before, peak = map(int, kilobytes)
    assert found == dtype
    assert peak - before <= volume + 30 * 1024
    assert peak <= volume + 100 * 1024


@pytest.mark.fault(89)
def test_enhanced_multi_frame_equals_its_classic_twin(tmp_path: Path) -> None:
    datasets = slices()
    for index, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = str(index + 1), "5"
    (tmp_path / "classic").mkdir()
    classic = assemble(saved(datasets, tmp_path / "classic"))
    multi = assemble(saved([enhanced(datasets)], tmp_path))
    assert np.array_equal(multi.voxels, classic.voxels)
    assert np.array_equal(multi.geometry.affine_lps, classic.geometry.affine_lps)
    assert multi.geometry.frame_numbers == (4, 3, 2, 1)


@pytest.mark.fault(88)
def test_signed_values_and_stray_high_bits(tmp_path: Path) -> None:
    datasets = slices()
    for dataset in datasets:
        dataset.PixelRepresentation = 1
        # -5 in 12 bits, with an overlay's rubbish in the four bits above (PS3.5 8.1.1).
        dataset.PixelData = np.full(12, 0x7000 | (-5 & 0x0FFF), dtype="<u2").tobytes()
    assert np.unique(assemble(saved(datasets, tmp_path)).voxels).tolist() == [-5]


@pytest.mark.parametrize("transfer_syntax_uid", [RLELossless, DeflatedExplicitVRLittleEndian])
def test_an_encoding_does_not_change_the_volume(tmp_path: Path, transfer_syntax_uid: str) -> None:
    (tmp_path / "plain").mkdir()
    expected = assemble(saved(slices(), tmp_path / "plain"))
    datasets = slices()
    for dataset in datasets:
        if transfer_syntax_uid == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = transfer_syntax_uid
    assert np.array_equal(assemble(saved(datasets, tmp_path)).voxels, expected.voxels)


def itk_volume(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [plane, row, column] and affine (plane, row, column) -> LPS as SimpleITK sees the same files."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage([str(path) for path in paths], sitk.sitkFloat64)
    direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3, :3] = direction[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), affine


def sources(volume: Volume, paths: list[Path]) -> list[Path]:
    """The files in plane order."""
    by_uid = {read_header(path).sop_instance_uid: path for path in paths}
    return [by_uid[uid] for uid in volume.geometry.sop_instance_uids]


@pytest.mark.fault(85, 90)
@pytest.mark.shared
@pytest.mark.parametrize(
    "series", ["series/mr_brain_sag_anon", "series/ct_chest_P001", "derived/japanese_name", "nonimage/ct-3slice"]
)
def test_real_series_equal_simpleitk(shared_dicom: Path, series: str) -> None:
    paths = sorted((shared_dicom / series).iterdir())
    volume = assemble(paths)
    voxels, affine = itk_volume(sources(volume, paths))
    assert np.array_equal(volume.voxels, voxels)
    assert np.allclose(volume.geometry.affine_lps, affine, rtol=0, atol=1e-4)


@pytest.mark.shared
def test_the_abdomen_equals_simpleitk_once_it_has_an_identity(shared_dicom: Path, tmp_path: Path) -> None:
    originals = sorted((shared_dicom / "series/ct_abdomen_totalseg").iterdir())
    assert refusal(originals).reason == "missing_study_instance_uid"
    datasets = [dcmread(path) for path in originals]
    for dataset in datasets:
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.5"
    paths = saved(datasets, tmp_path)
    volume = assemble(paths)
    voxels, affine = itk_volume(sources(volume, paths))
    assert np.array_equal(volume.voxels, voxels)
    assert np.allclose(volume.geometry.affine_lps, affine, rtol=0, atol=1e-4)
    assert volume.geometry.spacing[0] == pytest.approx(2.0)


@pytest.mark.shared
def test_functional_groups_of_a_real_enhanced_ct(shared_dicom: Path) -> None:
    path = shared_dicom / "multiframe/eCT_Supplemental.dcm"
    volume = assemble([path])
    stored = dcmread(path).pixel_array.astype(np.float64)
    assert volume.geometry.frame_numbers == (2, 1), "rows run right to left, so the normal points to the feet"
    assert np.array_equal(volume.voxels, stored[::-1] - 1024)
    assert volume.geometry.spacing == pytest.approx((10.0, 0.388672, 0.388672))


# --- what is refused ------------------------------------------------------------------------------------------------

SHARED_REFUSALS = {
    "series/ct_phantom_tilt_m18_5": (UnsoundVolume, "tilt"),
    "derived/missing_slice": (UnsoundVolume, "gap"),
    "derived/duplicate_position": (UnsoundVolume, "duplicate_position"),
    "multiframe/MOVEKNEE.dcm": (UnsoundVolume, "temporal"),
    "multiframe/emri_small.dcm": (UnsoundVolume, "missing_functional_groups"),
    "broken/ExplVR_BigEnd.dcm": (UnsoundVolume, "samples_per_pixel"),
    "broken/J2K_pixelrep_mismatch.dcm": (UnsoundVolume, "too_few_planes"),
    "broken/JPEG2000-embedded-sequence-delimiter.dcm": (UnsoundVolume, "missing_image_position_patient"),
    "broken/MR_small_padded.dcm": (UnsoundVolume, "too_few_planes"),
    "broken/MR_truncated.dcm": (UndecodablePixels, "short_pixel_data"),
    "broken/UN_sequence.dcm": (UnsoundVolume, "missing_samples_per_pixel"),
    "broken/badVR.dcm": (UnsoundVolume, "malformed"),
    "broken/empty_charset_LEI.dcm": (UnsoundVolume, "missing_sop_instance_uid"),
    "broken/meta_missing_tsyntax.dcm": (UnsoundVolume, "unreadable"),
    "broken/no_meta.dcm": (UnsoundVolume, "unreadable"),
    "broken/rtplan_truncated.dcm": (UnsoundVolume, "unreadable"),
    "nonimage/liver_SEG.dcm": (UnsoundVolume, "bits"),
    "cxr/RG1_J2KI.dcm": (UnsoundVolume, "photometric_interpretation"),
}


@pytest.mark.fault(83, 85, 92)
@pytest.mark.shared
@pytest.mark.parametrize("name", SHARED_REFUSALS)
def test_real_files_are_refused_by_name(shared_dicom: Path, name: str) -> None:
    path = shared_dicom / name
    refused = refusal(sorted(path.iterdir()) if path.is_dir() else [path])
    assert (type(refused), refused.reason) == SHARED_REFUSALS[name]


@pytest.mark.shared
def test_every_single_file_of_the_collection_is_assembled_or_refused_never_worse(shared_dicom: Path) -> None:
    assembled = []
    for path in sorted(shared_dicom.rglob("*.dcm")):
        try:
            assemble([path])
        except InputRefused:
            continue
        assembled.append(path.name)
    assert assembled == ["eCT_Supplemental.dcm"]


def _set(keyword: str, value: object, index: int = 2) -> Edit:
    def edit(datasets: list[FileDataset]) -> None:
        setattr(datasets[index], keyword, value)

    return edit


def _drop(keyword: str, index: int = 2) -> Edit:
    def edit(datasets: list[FileDataset]) -> None:
        delattr(datasets[index], keyword)

    return edit


EDITS: dict[str, tuple[Edit, type[InputRefused], str]] = {
    "position absent": (_drop("ImagePositionPatient"), UnsoundVolume, "missing_image_position_patient"),
    "position empty": (_set("ImagePositionPatient", ""), UnsoundVolume, "missing_image_position_patient"),
    "position of two": (_set("ImagePositionPatient", [1, 2]), UnsoundVolume, "malformed"),
    "orientation absent": (_drop("ImageOrientationPatient"), UnsoundVolume, "missing_image_orientation_patient"),
    "spacing absent": (_drop("PixelSpacing"), UnsoundVolume, "missing_pixel_spacing"),
    "spacing zero": (_set("PixelSpacing", [0, 0.25]), UnsoundVolume, "pixel_spacing"),
    "spacing single": (_set("PixelSpacing", 0.5), UnsoundVolume, "malformed"),
    "frame of reference absent": (_drop("FrameOfReferenceUID"), UnsoundVolume, "missing_frame_of_reference_uid"),
    "localizer": (_set("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), UnsoundVolume, "localizer"),
    "mosaic": (_set("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), UnsoundVolume, "mosaic"),
    "rows absent": (_drop("Rows"), UnsoundVolume, "missing_rows"),
    "rows zero": (_set("Rows", 0), UnsoundVolume, "size"),
    "rows huge": (_set("Rows", 65535), UndecodablePixels, "short_pixel_data"),
    "frames negative": (_set("NumberOfFrames", -1), UnsoundVolume, "frames"),
    "frames huge": (_set("NumberOfFrames", 2**31 - 1), UnsoundVolume, "frames"),
    "monochrome1": (_set("PhotometricInterpretation", "MONOCHROME1"), UnsoundVolume, "photometric_interpretation"),
    "colour": (_set("SamplesPerPixel", 3), UnsoundVolume, "samples_per_pixel"),
    "seven bits": (_set("BitsAllocated", 7), UnsoundVolume, "bits"),
    "high bit elsewhere": (_set("HighBit", 15), UnsoundVolume, "bits"),
    "slope zero": (_set("RescaleSlope", "0"), UnsoundVolume, "rescale"),
    "slope overflows": (_set("RescaleSlope", "1e300"), UnsoundVolume, "not_finite"),
    "modality lut": (_set("ModalityLUTSequence", Sequence([Dataset()])), UnsoundVolume, "modality_lut"),
    "pixels absent": (_drop("PixelData"), UndecodablePixels, "missing_pixel_data"),
    "pixels short": (_set("PixelData", b"\0" * 22), UndecodablePixels, "short_pixel_data"),
    "other patient": (_set("PatientID", "P2"), ContradictoryIdentity, "mixed_patient"),
    "other study": (_set("StudyInstanceUID", "1.2.40"), ContradictoryIdentity, "mixed_study"),
    "other series": (_set("SeriesInstanceUID", "1.2.50"), ContradictoryIdentity, "mixed_series"),
    "study absent": (_drop("StudyInstanceUID"), UnsoundVolume, "missing_study_instance_uid"),
    "same instance twice": (_set("SOPInstanceUID", "1.2.3.2"), UnsoundVolume, "duplicate_instance"),
}


@pytest.mark.fault(84, 86, 87, 88)
@pytest.mark.parametrize("name", EDITS)
def test_one_bad_instance_refuses_the_series(tmp_path: Path, name: str) -> None:
    edit, kind, reason = EDITS[name]
    datasets = slices()
    edit(datasets)
    refused = refusal(saved(datasets, tmp_path))
    assert (type(refused), refused.reason) == (kind, reason)
    assert refused.sop_instance_uid in {"1.2.3.3", "1.2.3.2"}
    assert "P1" not in str(refused)
    assert "P2" not in str(refused)


def test_a_multi_frame_without_its_functional_groups_is_refused(tmp_path: Path) -> None:
    short = enhanced(slices())
    del short.PerFrameFunctionalGroupsSequence[1]
    assert refusal(saved([short], tmp_path)).reason == "frames"
    none = enhanced(slices())
    del none.PerFrameFunctionalGroupsSequence
    assert refusal(saved([none], tmp_path)).reason == "missing_functional_groups"


def test_no_files_are_no_volume() -> None:
    assert refusal([]).reason == "too_few_planes"


# --- decoders -------------------------------------------------------------------------------------------------------


def frames_of(path: Path) -> np.ndarray:
    """Every decoded frame of a file whose geometry may be missing."""
    return np.stack(list(stored_frames(read_layout(path))))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "truth", "twins"),
    [
        (
            "compressed",
            "CT1_UNC.dcm",
            ["CT1_J2KR.dcm", "CT1_JLSL.dcm", "CT1_JPLL.dcm", "CT1_RLE.dcm", "CT1_RLE_FRAGS.dcm"],
        ),
        ("compressed", "NM1_UNC.dcm", ["NM1_JLSL.dcm"]),
        (
            "multiframe",
            "emri_small.dcm",
            [
                "emri_small_RLE.dcm",
                "emri_small_big_endian.dcm",
                "emri_small_jpeg_2k_lossless.dcm",
                "emri_small_jpeg_ls_lossless.dcm",
            ],
        ),
    ],
)
def test_lossless_twins_decode_to_the_same_pixels(
    shared_dicom: Path, folder: str, truth: str, twins: list[str]
) -> None:
    expected = frames_of(shared_dicom / folder / truth)
    for twin in twins:
        assert np.array_equal(frames_of(shared_dicom / folder / twin), expected), twin


def test_frames_that_end_early_are_short(tmp_path: Path) -> None:
    dataset = enhanced(slices())
    dataset.PixelData = dataset.PixelData[:-24]
    refused = refusal(saved([dataset], tmp_path))
    assert (type(refused), refused.reason) == (UndecodablePixels, "short_pixel_data")


@pytest.mark.parametrize(
    ("modality", "rescale", "changes", "meaning"),
    [
        ("CT", None, {}, VoxelMeaning.HOUNSFIELD),
        ("CT", None, {"RescaleType": None}, VoxelMeaning.HOUNSFIELD),
        ("CT", None, {"RescaleType": "US"}, VoxelMeaning.UNNAMED),
        ("CT", None, {"RescaleIntercept": None, "RescaleSlope": None}, VoxelMeaning.UNNAMED),
        ("MR", None, {}, VoxelMeaning.MR_SIGNAL),
        ("MR", None, {"ImageType": ["DERIVED", "PRIMARY", "ADC"]}, VoxelMeaning.UNNAMED),
        ("MR", (1.0, 0.0), {"RescaleType": "mm2/s"}, VoxelMeaning.UNNAMED),
        ("CT", None, {"Modality": "PT"}, VoxelMeaning.UNNAMED),
    ],
)
def test_a_volume_knows_what_its_values_are(
    tmp_path: Path, modality: str, rescale: tuple[float, float] | None, changes: dict[str, Any], meaning: VoxelMeaning
) -> None:
    files = make_series(tmp_path, modality=modality, rescale=rescale, attributes=changes)
    assert assemble(files).meaning is meaning


def test_values_of_planes_that_differ_in_meaning_have_none(tmp_path: Path) -> None:
    def edit(plane: int, dataset: Dataset) -> None:
        if plane == 1:
            dataset.RescaleType = "US"

    assert assemble(make_series(tmp_path, modality="CT", edit=edit)).meaning is VoxelMeaning.UNNAMED
