"""Real series against other readers, and what an agreement with them is worth: plane by plane, voxel by voxel."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.geometry.readers import READERS, Seen, Unread, compare
from benchmarks.geometry.series import CASES, SOUND, Case, files
from meddaemon.domain.errors import InputRefused
from meddaemon.inference.volume import assemble, assemble_read, read_header, read_headers
from tests.dicom_factory import make_series

MUCH = "series/ct_chest_P001"


@pytest.mark.fault(85, 90)
@pytest.mark.shared
@pytest.mark.parametrize("reader", ["SimpleITK", "dcm2niix"])
@pytest.mark.parametrize("case", SOUND, ids=[case.name for case in SOUND])
def test_every_sound_series_has_the_same_voxels_in_the_same_places(
    shared_dicom: Path, tmp_path: Path, case: Case, reader: str
) -> None:
    paths = files(case, shared_dicom, tmp_path)
    if case.name == MUCH:
        paths = lowest(paths, 40)
    verdict = compare(assemble(paths), READERS[reader](paths))
    assert verdict.agrees, str(verdict)


def lowest(paths: Sequence[Path], count: int) -> list[Path]:
    """Keep the lowest planes, which are a series as well, and take the other files away: this is no test of speed."""
    by_height = sorted(paths, key=lambda path: read_header(path).planes[0].position[2])
    for path in by_height[count:]:
        path.unlink()
    return by_height[:count]


@pytest.mark.fault(83, 85, 92)
@pytest.mark.shared
def test_what_is_refused_is_what_others_put_in_wrong_places(shared_dicom: Path, tmp_path: Path) -> None:
    """SimpleITK shifts a tilted stack by centimetres and closes a gap, without an error."""
    off = {}
    for case in CASES:
        if not case.refused:
            continue
        (folder := tmp_path / case.refused).mkdir()
        paths = files(case, shared_dicom, folder)
        with pytest.raises(InputRefused) as refused:
            assemble(paths)
        assert refused.value.reason == case.refused
        if case.policy is not None:
            verdict = compare(assemble_read(read_headers(paths), case.policy), READERS["SimpleITK"](paths))
            assert not verdict.agrees
            off[case.refused] = verdict.off_mm
    assert off["tilt"] > 30
    assert off["gap"] >= 1


def test_a_plane_that_lies_elsewhere_is_seen(tmp_path: Path) -> None:
    volume = assemble(make_series(tmp_path, orientation="oblique"))
    affine, voxels = volume.geometry.affine_lps, volume.voxels
    turned = np.array([[0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    turned[0, 3] = voxels.shape[2] - 1
    # Index 0 runs against our columns, index 2 along our planes.
    other = Seen(voxels.transpose(2, 1, 0)[::-1], affine @ np.linalg.inv(turned))
    assert compare(volume, other).agrees
    for change in (np.roll(voxels, 1, axis=0), voxels[::-1], voxels[:, ::-1]):
        assert not compare(volume, Seen(change, affine)).agrees
    assert not compare(volume, Seen(np.concatenate([voxels, voxels[-1:]]), affine)).agrees
    moved = affine.copy()
    moved[0, 3] += 0.01
    assert compare(volume, Seen(voxels, moved)).off_mm == pytest.approx(0.01)
    with pytest.raises(Unread):
        compare(volume, Seen(voxels[0], affine))
    assert compare(replace(volume, voxels=voxels), Seen(voxels.astype(float), affine)).agrees
