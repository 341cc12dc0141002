"""Real series through the encoders, the gate and, where they are installed, every validator there is.

The validators run when MEDDAEMON_VALIDATORS names their `validate.sh` (its report is printed with `-s`).
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest
from dicom_factory import make_series
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from reported_samples import CLASSES, SAMPLES, request_of
from result_samples import BRAIN, KIDNEY, LEFT, analysis_of, ball, geometry_of, request_for

from meddaemon.domain.outlet import Edition, ReportForm
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
    target.mkdir()
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


def brain(shared: Path, _: Path) -> EncodingRequest:
    paths = sorted((shared / "series/mr_brain_sag_anon").iterdir())
    geometry = geometry_of(paths)
    return request_for(paths, on_grid(shared / "ref/sag_anon_deepbet_mask.nii.gz", geometry))


def chest(shared: Path, _: Path) -> EncodingRequest:
    paths = sorted((shared / "series/ct_chest_P001").iterdir())
    geometry = geometry_of(paths)
    implausible = analysis_of(
        ball(geometry.shape), geometry, status=ResultStatus.IMPLAUSIBLE, reason="10213 mL is not within 700 to 2300 mL"
    )
    return request_for(paths, analysis=implausible)


def abdomen(shared: Path, folder: Path) -> EncodingRequest:
    paths = with_identity(shared / "series/ct_abdomen_totalseg", folder / "source")
    geometry = geometry_of(paths)
    labels = ball(geometry.shape)
    labels[:, :, geometry.shape[2] // 2 :] *= 2
    kinds = [("Brain", BRAIN, None), ("Left kidney", KIDNEY, LEFT)]
    return request_for(paths, analysis=analysis_of(labels, geometry, kinds=kinds))


def overlapping(shared: Path, folder: Path) -> EncodingRequest:
    """An organ, and a lesion partly within it."""
    paths = with_identity(shared / "series/ct_abdomen_totalseg", folder / "source")
    geometry = geometry_of(paths)
    organ = ball(geometry.shape) > 0
    masks = np.stack([organ, np.roll(organ, geometry.shape[2] // 4, axis=2)])
    kinds = [("Brain", BRAIN, None), ("Left kidney", KIDNEY, LEFT)]
    return request_for(paths, analysis=analysis_of(masks, geometry, kinds=kinds))


def japanese(shared: Path, folder: Path) -> EncodingRequest:
    return request_for(with_identity(shared / "derived/japanese_name", folder / "source"))


def named_like(name: str) -> Callable[[Path, Path], EncodingRequest]:
    def request(shared: Path, folder: Path) -> EncodingRequest:
        donor = dcmread(shared / f"charset/{name}.dcm")

        def graft(_: int, dataset: Dataset) -> None:
            dataset.SpecificCharacterSet = donor.SpecificCharacterSet
            dataset.PatientName = donor.PatientName

        # Each is a patient of its own: validators look at all of them together.
        own = {"seed": name, "study": name, "patient_id": name}
        paths = make_series(folder / name, rows=16, orientation="oblique", edit=graft, charset=None, **own)
        return request_for(paths)

    return request


SERIES: dict[str, Callable[[Path, Path], EncodingRequest]] = {
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
    request = SERIES[name](shared_dicom, tmp_path)
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


def refused_by_validators(asked: Sequence[EncodingRequest], folder: Path, script: str) -> list[str]:
    """What any validator has against the objects of results beside their sources; prints their report."""
    together = folder / "together"
    together.mkdir()
    names = []
    for result, request in enumerate(asked):
        for encoded in encode(request):
            names.append(f"{encoded.name.replace(' ', '_').replace('/', '-')}-{result}.dcm")
            (together / names[-1]).write_bytes(encoded.content)
        for number, path in enumerate(request.sources):
            shutil.copy(path, together / f"source{result}-{number:04d}.dcm")
    done = subprocess.run(
        ["bash", script, "--net", str(together), str(folder / "messages")],
        env=os.environ | {"JOBS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)  # noqa: T201
    # Only our rows count: real sources have errors of their own, and refer to images that are not here.
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith(tuple(names))}
    assert set(rows) == set(names), done.stdout + done.stderr
    counts = {name: re.findall(r"(\d+)/\d+", row) for name, row in rows.items()}
    assert all(len(found) > 1 for found in counts.values())
    entities = (folder / "messages" / "ALL.dcentvfy.txt").read_text(errors="replace").splitlines()
    ours = [line for line in entities if line.startswith("Error") and any(f"together/{name}" in line for name in names)]
    # dcentvfy compares bytes: a name in ISO_IR 100 is another one for it than the same name in UTF-8.
    return [rows[name] for name, found in counts.items() if set(found) != {"0"}] + [
        line for line in ours if line.isascii()
    ]


@pytest.fixture
def validators() -> str:
    script = os.environ.get("MEDDAEMON_VALIDATORS")
    if not script:
        pytest.skip("MEDDAEMON_VALIDATORS does not name a validate.sh")
    return script


@pytest.mark.peer
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        "factory",
        *(
            pytest.param(name, marks=pytest.mark.shared)
            for name in ("charsets", *(each for each in SERIES if each not in CHARSETS))
        ),
    ],
)
def test_no_validator_finds_an_error(
    name: str, tmp_path: Path, validators: str, request: pytest.FixtureRequest
) -> None:
    if name == "factory":
        asked = [request_for(make_series(tmp_path / "source", rows=16, modality="CT", orientation="sagittal"))]
    else:
        names = CHARSETS if name == "charsets" else (name,)
        asked = [SERIES[each](request.getfixturevalue("shared_dicom"), tmp_path) for each in names]
    assert refused_by_validators(asked, tmp_path, validators) == []


REAL_PICTURES = ("cxr/RG1_J2KI.dcm", "other/MG_OutOfBoundsOverlay.dcm", "nonimage/waveform_ecg.dcm")


@pytest.mark.peer
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*SAMPLES, *(pytest.param(name, marks=pytest.mark.shared) for name in REAL_PICTURES)])
def test_no_validator_finds_an_error_in_a_report_of_any_kind(
    name: str, tmp_path: Path, validators: str, request: pytest.FixtureRequest
) -> None:
    if name in SAMPLES:
        asked = SAMPLES[name](tmp_path / "source")
    else:
        path = request.getfixturevalue("shared_dicom") / name
        asked = request_of([path], CLASSES, {"scores": (0.9, 0.1)})
    older = Edition(report=ReportForm.COMPREHENSIVE)
    assert refused_by_validators([replace(asked, editions=(Edition(), older))], tmp_path, validators) == []
