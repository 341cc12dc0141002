"""Artefacts as NIfTI: other readers find the same values at the same places in the patient."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddaemon.domain.result import Artefact, ArtefactKind
from meddaemon.domain.volume import Geometry
from meddaemon.results.nifti import encode

nibabel = pytest.importorskip("nibabel")
sitk = pytest.importorskip("SimpleITK")

SHAPE = (3, 4, 5)


def turn(angles: tuple[float, float, float]) -> np.ndarray:
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        about = np.eye(3)
        about[one, one] = about[other, other] = np.cos(angle)
        about[one, other], about[other, one] = -np.sin(angle), np.sin(angle)
        result = about @ result
    return result


def geometry(axes: np.ndarray, spacing: tuple[float, float, float] = (2.5, 0.7, 1.3), **more: Any) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = (-31.5, 17.25, 205.125)
    return Geometry(
        shape=SHAPE,
        affine_lps=affine,
        frame_of_reference_uid="1.2.3",
        sop_instance_uids=("1.2.4",) * SHAPE[0],
        frame_numbers=(1,) * SHAPE[0],
        **more,
    )


def artefact(dtype: Any = np.float16, **more: Any) -> Artefact:
    values = (np.arange(np.prod(SHAPE)) / 64).reshape(SHAPE).astype(dtype)
    return Artefact(**{"kind": ArtefactKind.PROBABILITY, "of": "Liver", "values": values, **more})


def written(folder: Path, content: bytes) -> Path:
    path = folder / "x.nii.gz"
    path.write_bytes(content)
    return path


SIGNS = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    order=st.permutations([0, 1, 2]),
    signs=SIGNS,
    spacing=st.tuples(*[st.floats(0.2, 9)] * 3),
)
def test_two_readers_find_each_voxel_where_the_patient_has_it(
    angles: tuple[float, float, float],
    order: list[int],
    signs: tuple[float, float, float],
    spacing: tuple[float, float, float],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = geometry((turn(angles)[:, order]) * signs, spacing)
    kept = artefact()
    path = written(tmp_path_factory.mktemp("nifti"), encode(kept, place))
    image = nibabel.load(path)
    np.testing.assert_array_equal(image.get_fdata(), kept.values.T.astype(float))
    itk = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk), kept.values.astype(np.float32))
    for voxel in ((0, 0, 0), (2, 3, 4), (1, 0, 3)):
        plane, row, column = voxel
        lps = np.array(place.point(*voxel))
        ras = lps * (-1, -1, 1)
        for affine in (image.get_sform(), image.affine):
            np.testing.assert_allclose((affine @ (column, row, plane, 1))[:3], ras, atol=2e-4)
        # Of a quaternion in single precision one part is what is left of the others: up to a thousandth of a turn.
        far = 2e-3 + 1e-3 * float(np.linalg.norm(lps - place.point(0, 0, 0)))
        np.testing.assert_allclose((image.get_qform() @ (column, row, plane, 1))[:3], ras, atol=far)
        np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint((column, row, plane)), lps, atol=far)
    assert image.get_sform(coded=True)[1] == image.get_qform(coded=True)[1] == 1
    np.testing.assert_allclose(image.header.get_zooms(), spacing[::-1], rtol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_tilted_stack_has_the_affine_alone(tmp_path: Path) -> None:
    axes = np.eye(3)[:, ::-1].copy()
    axes[1, 0] = 0.3
    image = nibabel.load(written(tmp_path, encode(artefact(), geometry(axes))))
    expected = np.diag([-1, -1, 1, 1]) @ geometry(axes).affine_lps
    np.testing.assert_allclose(image.get_sform()[:, [2, 1, 0, 3]], expected, atol=1e-4)
    assert image.get_qform(coded=True)[1] == 0


def test_planes_at_uneven_distances_are_told_of_one_by_one(tmp_path: Path) -> None:
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 5.5]])
    uneven = geometry(np.eye(3)[:, ::-1], positions_lps=positions)
    image = nibabel.load(written(tmp_path, encode(artefact(), uneven)))
    (extension,) = image.header.extensions
    assert extension.get_code() == 6
    said = json.loads(bytes(extension.get_content()).rstrip(b"\0"))
    np.testing.assert_allclose(said["first_voxel_of_each_plane_lps_mm"], positions)
    np.testing.assert_array_equal(image.get_fdata(), artefact().values.T.astype(float))


def test_on_a_picture_it_lies_nowhere_in_the_patient(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    picture = artefact(kind=ArtefactKind.SALIENCY, values=values, source=("1.2.9", 1))
    image = nibabel.load(written(tmp_path, encode(picture, None)))
    assert image.shape == (4, 3)
    assert image.get_sform(coded=True)[1] == image.get_qform(coded=True)[1] == 0
    np.testing.assert_array_equal(image.get_fdata(), values.T)
    assert sitk.ReadImage(str(tmp_path / "x.nii.gz")).GetSize() == (4, 3)


def test_equal_artefacts_make_equal_files_without_a_time_or_a_name() -> None:
    place = geometry(np.eye(3)[:, ::-1])
    one, other = encode(artefact(), place), encode(artefact(np.float32), place)
    assert one == other
    assert one[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\x03"
    plain = gzip.decompress(one)
    assert len(plain) == 352 + 4 * np.prod(SHAPE)
    assert b"probability: Liver" in plain[:348]
    assert zlib.crc32(plain) == int.from_bytes(one[-8:-4], "little")


def test_what_nifti_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="40000 voxels"):
        encode(artefact(values=np.zeros((1, 40000), np.float16), source=("1.2.9", 1)), None)
