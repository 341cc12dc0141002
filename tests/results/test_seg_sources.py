"""Segmentations of what is no plain stack of single images: frames of several instances, tilt, uneven distances."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_factory import make_enhanced, make_series
from pydicom import Dataset, dcmread
from result_samples import BRAIN, analysis_of, contract
from test_seg import read_by_frame, voxels_in_patient_space

from meddaemon.domain.contract import GeometryPolicy, Unevenness
from meddaemon.domain.errors import InputRefused, ObjectRefusedByGate
from meddaemon.domain.outlet import EDITIONS
from meddaemon.inference.geometry import STRICT
from meddaemon.inference.volume import assemble, assemble_read, read_headers
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.gate import check

TOLERANT = GeometryPolicy(tilt=Unevenness.RESAMPLE, irregular=Unevenness.RESAMPLE)


def edited(path: Path, **changes: Any) -> Path:
    dataset = dcmread(path)
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path)
    return path


def two_instances(folder: Path, orientation: str = "oblique") -> list[Path]:
    """Two enhanced instances of one series, the second going on where the first ends."""
    first = make_enhanced(folder / "1", planes=3, orientation=orientation)
    whole = dcmread(make_enhanced(folder / "2", planes=5, orientation=orientation))
    second = folder / "2" / "enhanced.dcm"
    frames = list(whole.PerFrameFunctionalGroupsSequence)[3:]
    pixels = whole.PixelData[len(whole.PixelData) // 5 * 3 :]
    edited(
        second,
        SOPInstanceUID="2.25.4711",
        NumberOfFrames=2,
        PerFrameFunctionalGroupsSequence=frames,
        PixelData=pixels,
        InstanceNumber=2,
    )
    return [first, second]


def own_groups(path: Path, group: str) -> Path:
    """Move a functional group from those of all frames to each frame, where many scanners write it."""
    dataset = dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for item in dataset.PerFrameFunctionalGroupsSequence:
        item.add(shared[group])
    del shared[group]
    dataset.save_as(path)
    return path


def drawn_on(paths: Sequence[Path], segments: int = 2, policy: GeometryPolicy = STRICT) -> EncodingRequest:
    """A lopsided pattern on the volume that the loader makes of the files."""
    geometry = assemble_read(read_headers(paths), policy).geometry
    labels = (np.arange(np.prod(geometry.shape)) * 7 % 11 % (segments + 1)).reshape(geometry.shape).astype(np.uint8)
    kinds = [(f"Segment {number}", BRAIN, None) for number in range(1, segments + 1)]
    analysis = analysis_of(labels, geometry, kinds=kinds)
    return EncodingRequest(
        analysis=analysis, contract=contract(), sources=list(paths), editions=EDITIONS, kinds=frozenset({"SEG"})
    )


def expected(request: EncodingRequest) -> dict[int, set[tuple[float, ...]]]:
    """Positions of the voxels of each segment, plane by plane."""
    drawing, geometry = request.analysis.drawn
    found: dict[int, set[tuple[float, ...]]] = {}
    for segment in request.analysis.segments:
        points = found.setdefault(segment.number, set())
        for plane, position in enumerate(geometry.positions):
            affine = geometry.affine_lps.copy()
            affine[:3, 0], affine[:3, 3] = 0, position
            points |= voxels_in_patient_space(drawing.mask(segment.number, plane)[np.newaxis], affine)
    return found


def references(dataset: Dataset) -> set[tuple[str, str, int]]:
    """Class, instance and frame of what the frames were derived from."""
    frames = dataset.PerFrameFunctionalGroupsSequence
    images = [item.DerivationImageSequence[0].SourceImageSequence[0] for item in frames]
    return {
        (str(each.ReferencedSOPClassUID), str(each.ReferencedSOPInstanceUID), each.get("ReferencedFrameNumber", 0))
        for each in images
    }


@pytest.mark.parametrize("segments", [1, 2])
def test_planes_that_are_frames_of_several_instances(tmp_path: Path, segments: int) -> None:
    paths = two_instances(tmp_path)
    request = drawn_on(paths, segments)
    binary, label_map = encode(request)
    assert read_by_frame(binary) == expected(request)
    headers = [dcmread(path) for path in paths]
    wanted = {
        (str(header.SOPClassUID), str(header.SOPInstanceUID), frame)
        for header in headers
        for frame in range(1, header.NumberOfFrames + 1)
    }
    for each in (binary, label_map):
        dataset = dcmread(BytesIO(each.content))
        assert references(dataset) == wanted
        named = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert {item.ReferencedSOPInstanceUID for item in named} == {header.SOPInstanceUID for header in headers}
        assert len(named) == len(dataset.SourceImageSequence) == 2


@pytest.mark.parametrize("group", ["PlaneOrientationSequence", "PixelMeasuresSequence"])
def test_frames_that_each_say_how_they_lie(tmp_path: Path, group: str) -> None:
    path = own_groups(make_enhanced(tmp_path, orientation="oblique"), group)
    request = drawn_on([path])
    binary, _ = encode(request)
    assert read_by_frame(binary) == expected(request)


def test_frames_of_other_times_lie_where_those_that_are_drawn_on_do(tmp_path: Path) -> None:
    """Two frames at one place: only one of them is a plane of the volume."""
    path = make_enhanced(tmp_path, planes=6, orientation="oblique")
    dataset = dcmread(path)
    items = dataset.PerFrameFunctionalGroupsSequence
    for earlier, later in zip(items[:3], items[3:], strict=True):
        later.PlanePositionSequence = earlier.PlanePositionSequence
    dataset.save_as(path)
    first = make_enhanced(tmp_path / "first", planes=3, orientation="oblique")
    geometry = assemble([edited(first, SOPInstanceUID=dataset.SOPInstanceUID)]).geometry
    drawn = analysis_of(np.ones(geometry.shape, np.uint8), replace(geometry, frame_numbers=(4, 5, 6)))
    request = EncodingRequest(analysis=drawn, contract=contract(), sources=[path], kinds=frozenset({"SEG"}))
    (binary,) = encode(request)
    assert {frame for _, _, frame in references(dcmread(BytesIO(binary.content)))} == {4, 5, 6}


def test_planes_that_lie_across_each_other_are_refused(tmp_path: Path) -> None:
    paths = two_instances(tmp_path)
    request = drawn_on(paths)
    dataset = dcmread(paths[1])  # which nobody had looked at before it changed
    across = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    across.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.save_as(paths[1])
    with pytest.raises(InputRefused) as caught:
        encode(replace(request))
    assert caught.value.reason == "orientations_differ"


def test_directions_that_differ_in_the_last_digit_are_the_same(tmp_path: Path) -> None:
    def round_off(plane: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = [1, plane * 1e-6, 0, -plane * 1e-6, 1, 0]

    paths = make_series(tmp_path, orientation="axial", edit=round_off)
    request = drawn_on(paths)
    binary, _ = encode(request)
    assert read_by_frame(binary) == expected(request)


def tilted(plane: int, dataset: Dataset) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y + 0.7 * plane, z]


def uneven(plane: int, dataset: Dataset) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, z + 0.04 * plane**2]


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("edit", [tilted, uneven])
def test_a_stack_that_is_no_grid_is_not_called_one(tmp_path: Path, edit: Any, segments: int) -> None:
    paths = make_series(tmp_path, planes=6, modality="CT", edit=edit)
    request = drawn_on(paths, segments, policy=TOLERANT)
    assert request.analysis.drawn[1].positions_lps is not None or edit is tilted
    for written in encode(request):
        dataset = dcmread(BytesIO(written.content))
        assert "DimensionOrganizationType" not in dataset
        assert "SpacingBetweenSlices" not in dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        if dataset.SegmentationType == "BINARY":
            assert read_by_frame(written) == expected(request)
            dataset.DimensionOrganizationType = "3D"
            file = BytesIO()
            dataset.save_as(file)
            with pytest.raises(ObjectRefusedByGate, match="do not follow each other evenly"):
                check([replace(written, content=file.getvalue())], request)
