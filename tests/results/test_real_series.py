"""Real series through the encoders and the gate."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest
from dicom_factory import make_series
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from result_samples import BRAIN, KIDNEY, LEFT, analysis_of, ball, geometry_of, request_for

from meddaemon.domain.result import EncodedObject, ResultStatus
from meddaemon.domain.uids import derived_uid
from meddaemon.domain.volume import Geometry
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.report import measured_value

CHARSETS = ("chrFren", "chrGerm", "chrH31", "chrI2", "chrRuss", "chrX1")


def on_grid(mask_file: Path, geometry: Geometry) -> NDArray[np.uint8]:
    """A NIfTI mask (RAS) on the grid of a series, each voxel by its position in the patient."""
    image = nibabel.load(mask_file)
    mask = np.asarray(image.dataobj) > 0
    to_nifti = np.linalg.inv(image.affine) @ geometry.affine_ras
    planes, rows, columns = geometry.shape
    labels = np.zeros(geometry.shape, np.uint8)
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    for plane in range(planes):
        index = np.stack([np.full_like(row, plane), row, column, np.ones_like(row)]).reshape(4, -1)
        at = np.rint((to_nifti @ index)[:3]).astype(int)
        inside = ((at >= 0) & (at < np.array(mask.shape)[:, None])).all(axis=0)
        labels[plane].reshape(-1)[inside] = mask[tuple(at[:, inside])]
    return labels


def with_identity(folder: Path, target: Path) -> list[Path]:
    """Copies of a series whose identifiers were wiped, under identifiers of their own."""
    target.mkdir(parents=True)
    copies = []
    for path in sorted(folder.iterdir()):
        dataset = dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID = derived_uid("study", folder.name)
        dataset.SeriesInstanceUID = derived_uid("series", folder.name)
        copies.append(target / path.name)
        dataset.save_as(copies[-1])
    return copies


def middle(paths: Sequence[Path], most: int | None) -> list[Path]:
    """The planes in the middle of a series, at most so many."""
    planes = {str(header.SOPInstanceUID): path for path in paths for header in [dcmread(path, stop_before_pixels=True)]}
    ordered = [planes[uid] for uid in geometry_of(paths).sop_instance_uids]
    skip = max(len(ordered) - (most or len(ordered)), 0) // 2
    return ordered[skip:][:most]


def brain(shared: Path, _: Path, most: int | None = None) -> EncodingRequest:
    paths = middle(sorted((shared / "series/mr_brain_sag_anon").iterdir()), most)
    geometry = geometry_of(paths)
    return request_for(paths, on_grid(shared / "ref/sag_anon_deepbet_mask.nii.gz", geometry))


def chest(shared: Path, _: Path, most: int | None = None) -> EncodingRequest:
    paths = middle(sorted((shared / "series/ct_chest_P001").iterdir()), most)
    geometry = geometry_of(paths)
    implausible = analysis_of(
        ball(geometry.shape), geometry, status=ResultStatus.IMPLAUSIBLE, reason="10213 mL is not within 700 to 2300 mL"
    )
    return request_for(paths, analysis=implausible)


def abdomen(shared: Path, folder: Path, most: int | None = None) -> EncodingRequest:
    paths = middle(with_identity(shared / "series/ct_abdomen_totalseg", folder / "source"), most)
    geometry = geometry_of(paths)
    labels = ball(geometry.shape)
    labels[:, :, geometry.shape[2] // 2 :] *= 2
    kinds = [("Brain", BRAIN, None), ("Left kidney", KIDNEY, LEFT)]
    return request_for(paths, analysis=analysis_of(labels, geometry, kinds=kinds))


def overlapping(shared: Path, folder: Path, most: int | None = None) -> EncodingRequest:
    """An organ, and a lesion partly within it."""
    paths = middle(with_identity(shared / "series/ct_abdomen_totalseg", folder / "source"), most)
    geometry = geometry_of(paths)
    organ = ball(geometry.shape) > 0
    masks = np.stack([organ, np.roll(organ, geometry.shape[2] // 4, axis=2)])
    kinds = [("Brain", BRAIN, None), ("Left kidney", KIDNEY, LEFT)]
    return request_for(paths, analysis=analysis_of(masks, geometry, kinds=kinds))


def japanese(shared: Path, folder: Path, _: int | None = None) -> EncodingRequest:
    return request_for(with_identity(shared / "derived/japanese_name", folder / "source"))


def named_like(name: str) -> Callable[[Path, Path, int | None], EncodingRequest]:
    def request(shared: Path, folder: Path, _: int | None = None) -> EncodingRequest:
        donor = dcmread(shared / f"charset/{name}.dcm")

        def graft(_: int, dataset: Dataset) -> None:
            dataset.SpecificCharacterSet = donor.SpecificCharacterSet
            dataset.PatientName = donor.PatientName

        return request_for(make_series(folder, rows=16, orientation="oblique", edit=graft, charset=None))

    return request


SERIES: dict[str, Callable[[Path, Path, int | None], EncodingRequest]] = {
    "mr_brain_sag_anon": brain,
    "ct_chest_P001": chest,
    "ct_abdomen_totalseg": abdomen,
    "overlapping": overlapping,
    "japanese_name": japanese,
    **{name: named_like(name) for name in CHARSETS},
}


def read(encoded: EncodedObject) -> Dataset:
    return dcmread(BytesIO(encoded.content))


@pytest.mark.shared
@pytest.mark.parametrize("name", SERIES)
def test_patient_and_mask_of_a_real_series_survive(name: str, shared_dicom: Path, tmp_path: Path) -> None:
    request = SERIES[name](shared_dicom, tmp_path, None)
    seg, sr = encode(request)
    first = dcmread(request.sources[0], stop_before_pixels=True)
    for written in (read(seg), read(sr)):
        for keyword in ("PatientName", "PatientID", "StudyDescription"):
            assert str(written.get(keyword, "")) == str(first.get(keyword, ""))
    analysis = request.analysis
    labels = analysis.labels if analysis.masks is None else np.moveaxis(analysis.masks, 0, -1)
    volume = hd.seg.segread(BytesIO(seg.content)).get_volume(combine_segments=analysis.masks is None)
    # Readers may run along the normal the other way: compare where the voxels lie, not in which order.
    ours = request.analysis.geometry.affine_lps
    there = np.rint(np.linalg.inv(ours) @ volume.affine).astype(int)
    assert there[0, 0] in (1, -1)
    np.testing.assert_array_equal(volume.array if there[0, 0] == 1 else volume.array[::-1], labels)


@pytest.mark.shared
def test_the_brain_measures_what_deepbet_says(shared_dicom: Path, tmp_path: Path) -> None:
    request = brain(shared_dicom, tmp_path)
    (measurement,) = request.analysis.findings[0].measurements
    assert measured_value(measurement) == pytest.approx(1469, abs=1)
