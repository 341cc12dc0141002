"""The segmentation that is read back is the mask that was found: voxel by voxel, in patient space."""

import tracemalloc
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from dicom_factory import ORIENTATIONS, affine_lps, make_enhanced, make_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from result_samples import BRAIN, KIDNEY, LEFT, analysis_of, ball, contract, geometry_of, request_for

from meddaemon.domain.errors import InputRefused, ObjectRefusedByGate
from meddaemon.domain.result import EncodedObject
from meddaemon.domain.volume import Geometry
from meddaemon.results import seg as seg_module
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.envelope import finish
from meddaemon.results.gate import check
from meddaemon.results.seg import encode_seg


def voxels_in_patient_space(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> set[tuple[float, ...]]:
    """LPS positions, rounded to a hundredth of a millimetre, of the voxels of a mask."""
    indices = np.argwhere(mask)
    points = indices @ affine[:3, :3].T + affine[:3, 3]
    return {tuple(float(value) + 0.0 for value in point) for point in np.round(points, 2)}


def read_by_frame(encoded: EncodedObject) -> dict[int, set[tuple[float, ...]]]:
    """Positions of the voxels of each segment, from nothing but the frames' own attributes."""
    dataset = dcmread(BytesIO(encoded.content))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    found: dict[int, set[tuple[float, ...]]] = {}
    for frame, item in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        groups = item if "SegmentIdentificationSequence" in item else shared
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        affine = np.eye(4)
        affine[:3, 0] = 0
        affine[:3, 1], affine[:3, 2] = directions[3:] * spacing[0], directions[:3] * spacing[1]
        affine[:3, 3] = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        found.setdefault(number, set()).update(voxels_in_patient_space(frame[np.newaxis].astype(bool), affine))
    return found


def read_by_volume(encoded: EncodedObject) -> dict[int, set[tuple[float, ...]]]:
    """The same through highdicom's volume reader."""
    dataset = hd.seg.segread(BytesIO(encoded.content))
    volume = dataset.get_volume(combine_segments=True)
    return {
        number: voxels_in_patient_space(volume.array == number, volume.affine) for number in dataset.segment_numbers
    }


def expected(request: EncodingRequest) -> dict[int, set[tuple[float, ...]]]:
    analysis = request.analysis
    drawing, geometry = analysis.drawn
    return {
        segment.number: voxels_in_patient_space(
            np.stack([drawing.mask(segment.number, plane) for plane in range(drawing.shape[0])]), geometry.affine_lps
        )
        for segment in analysis.segments
    }


@pytest.mark.fault(90)
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
def test_the_mask_comes_back_voxel_by_voxel(tmp_path: Path, orientation: str, modality: str) -> None:
    request = request_for(make_series(tmp_path, planes=7, orientation=orientation, modality=modality))
    np.testing.assert_allclose(request.analysis.geometry.affine_lps, affine_lps(orientation=orientation), atol=1e-9)
    seg, _ = encode(request)
    assert read_by_frame(seg) == read_by_volume(seg) == expected(request)


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_label_map_comes_back(tmp_path: Path, data: st.DataObject) -> None:
    shape = (3, 5, 7)
    paths = make_series(tmp_path / "series", planes=3, rows=5, columns=7, orientation="oblique")
    values = data.draw(st.binary(min_size=105, max_size=105))
    labels = (np.frombuffer(values, np.uint8) % 4).reshape(shape)
    kinds = [("Brain", BRAIN, None), ("Kidney", KIDNEY, LEFT), ("Third", BRAIN, None)]
    request = request_for(paths, analysis=analysis_of(labels, geometry_of(paths), kinds=kinds))
    seg = encode_seg(request)
    check([seg], request)
    assert read_by_frame(seg) == expected(request)


def as_highdicom_writes(request: EncodingRequest) -> bytes:
    """The same object with the frames written by highdicom, which takes its time."""
    drawing, geometry = request.analysis.drawn
    masks = [
        [drawing.mask(each.number, plane) for plane in range(geometry.shape[0])] for each in request.analysis.segments
    ]
    pixels = np.moveaxis(np.array(masks, np.uint8), 0, -1)
    omit_empty = seg_module._leaves_out_empty_frames(request)
    described = seg_module.descriptions(request)
    whole = seg_module.segmentation(request, described, pixels=pixels, omit_empty=omit_empty)
    return finish(whole, request, seg_module.KIND).content


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_frames_are_written_as_highdicom_writes_them(tmp_path: Path, data: st.DataObject) -> None:
    """Byte for byte, whatever is drawn, left out, or does not fill a byte."""
    columns, enhanced = data.draw(st.sampled_from([7, 8, 16])), data.draw(st.booleans())
    orientation = data.draw(st.sampled_from(sorted(ORIENTATIONS)))
    folder = tmp_path / f"{columns} {enhanced} {orientation}"
    if enhanced:
        path = make_enhanced(folder, orientation=orientation)
        rows, columns = (int(dcmread(path).get(name)) for name in ("Rows", "Columns"))
        frames = (5, 4, 3, 2, 1) if data.draw(st.booleans()) else (1, 2, 3, 4, 5)
        template = enhanced_request(path, frames, orientation)
        paths, geometry = [path], template.analysis.geometry
    else:
        paths = make_series(folder, planes=5, rows=5, columns=columns, orientation=orientation)
        rows, geometry = 5, geometry_of(paths)
    assert geometry is not None
    size = 5 * rows * columns
    used = data.draw(st.integers(1, 4))
    values = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, used, size, dtype=np.uint8)
    labels = values.reshape(5, rows, columns)
    for plane in data.draw(st.sets(st.integers(0, 4))):
        labels[plane] = 0
    kinds = [("Brain", BRAIN, None), ("Kidney", KIDNEY, LEFT), ("Third", BRAIN, None)][: data.draw(st.integers(1, 3))]
    labels[labels > len(kinds)] = 0
    analysis = analysis_of(labels, geometry, kinds=kinds)
    if data.draw(st.booleans()):
        masks = np.stack([labels >= number for number in range(1, len(kinds) + 1)])
        analysis = replace(analysis, labels=None, masks=masks)
    request = EncodingRequest(analysis=analysis, contract=contract(), sources=paths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seg_module, "MOST_FRAMES", data.draw(st.sampled_from([0, 4096])))
        assert encode_seg(request).content == as_highdicom_writes(request)


def single_voxel(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    labels = np.zeros(shape, np.uint8)
    labels[2, 3, 4] = 1
    return labels


def one_plane(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    labels = np.zeros(shape, np.uint8)
    labels[3] = 1
    return labels


@pytest.mark.parametrize("make", [single_voxel, one_plane, np.zeros, np.ones])
def test_masks_at_the_edge(tmp_path: Path, make: object) -> None:
    paths = make_series(tmp_path, planes=5, orientation="sagittal")
    labels = make(geometry_of(paths).shape).astype(np.uint8)  # type: ignore[operator]
    request = request_for(paths, labels)
    seg, _ = encode(request)
    assert read_by_frame(seg) == read_by_volume(seg) == expected(request)


def test_every_plane_has_a_frame_until_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_series(tmp_path, planes=5, rows=16)
    request = request_for(paths, one_plane(geometry_of(paths).shape))
    assert dcmread(BytesIO(encode_seg(request).content)).NumberOfFrames == 5
    monkeypatch.setattr(seg_module, "MOST_FRAMES", 4)
    sparse = encode_seg(request)
    check([sparse], request)
    assert dcmread(BytesIO(sparse.content)).NumberOfFrames == 1
    assert read_by_frame(sparse) == expected(request)


def test_a_padded_bitmap_is_avoided_where_leaving_out_empty_frames_does_it(tmp_path: Path) -> None:
    # 5 frames of 12 x 10 pixels are 75 bytes, padded to 76; 4 of them are 60.
    paths = make_series(tmp_path, planes=5, rows=12, columns=10)
    labels = np.ones(geometry_of(paths).shape, np.uint8)
    labels[0] = 0
    request = request_for(paths, labels)
    seg = encode_seg(request)
    check([seg], request)
    assert len(dcmread(BytesIO(seg.content)).PixelData) == 60
    labels = np.ones(geometry_of(paths).shape, np.uint8)
    assert len(dcmread(BytesIO(encode_seg(request_for(paths, labels)).content)).PixelData) == 76


@pytest.mark.parametrize("order", [slice(None, None, -1), [3, 0, 4, 2, 1]])
def test_the_order_of_files_changes_nothing(tmp_path: Path, order: object) -> None:
    paths = make_series(tmp_path, planes=5, orientation="oblique")
    shuffled = paths[order] if isinstance(order, slice) else [paths[index] for index in order]  # type: ignore[union-attr]
    assert encode(request_for(shuffled)) == encode(request_for(paths))


@pytest.mark.parametrize("transfer_syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.5"])
def test_implicit_and_compressed_sources(tmp_path: Path, transfer_syntax: str) -> None:
    request = request_for(make_series(tmp_path, transfer_syntax=transfer_syntax))
    assert read_by_frame(encode(request)[0]) == expected(request)


def enhanced_request(path: Path, frames: tuple[int, ...], orientation: str = "oblique") -> EncodingRequest:
    header = dcmread(path)
    affine = affine_lps(orientation=orientation)
    if frames[0] > frames[-1]:
        affine[:3, 3] += (len(frames) - 1) * affine[:3, 0]
        affine[:3, 0] *= -1
    shape = (len(frames), int(header.Rows), int(header.Columns))
    geometry = Geometry(
        shape=shape,
        affine_lps=affine,
        frame_of_reference_uid=str(header.FrameOfReferenceUID),
        sop_instance_uids=(str(header.SOPInstanceUID),) * len(frames),
        frame_numbers=frames,
    )
    return EncodingRequest(analysis=analysis_of(ball(shape), geometry), contract=contract(), sources=[path])


@pytest.mark.parametrize("frames", [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1)])
def test_planes_that_are_frames_of_one_enhanced_instance(tmp_path: Path, frames: tuple[int, ...]) -> None:
    request = enhanced_request(make_enhanced(tmp_path, orientation="oblique"), frames)
    seg, _ = encode(request)
    assert read_by_frame(seg) == read_by_volume(seg) == expected(request)


@pytest.mark.parametrize("segments", [1, 2])
def test_a_volume_may_use_some_frames_of_an_enhanced_instance(tmp_path: Path, segments: int) -> None:
    """One time of several, for example: the others are not drawn on."""
    path = make_enhanced(tmp_path, orientation="oblique")
    request = enhanced_request(path, (1, 2, 3))
    _, geometry = request.analysis.drawn
    labels = ball(geometry.shape)
    labels[1, :2] *= segments
    kinds = [("Brain", BRAIN, None), ("Kidney", KIDNEY, LEFT)][:segments]
    request = replace(request, analysis=analysis_of(labels, geometry, kinds=kinds))
    seg, _ = encode(request)
    assert read_by_frame(seg) == expected(request)
    named = dcmread(BytesIO(seg.content)).PerFrameFunctionalGroupsSequence
    frames = {int(item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber) for item in named}
    assert frames <= {1, 2, 3}


def test_planes_of_another_instance_are_refused(tmp_path: Path) -> None:
    request = enhanced_request(make_enhanced(tmp_path, orientation="oblique"), (1, 2, 3))
    _, geometry = request.analysis.drawn
    elsewhere = replace(geometry, frame_numbers=(1, 2, 9))
    with pytest.raises(InputRefused) as caught:
        encode_seg(replace(request, analysis=replace(request.analysis, geometry=elsewhere)))
    assert caught.value.reason == "frames_differ"


def test_segments_are_described_as_the_contract_says(tmp_path: Path) -> None:
    paths = make_series(tmp_path)
    kinds = [("Brain", BRAIN, None), ("Left kidney", KIDNEY, LEFT)]
    labels = ball(geometry_of(paths).shape)
    labels[labels > 0] += (np.arange(labels.sum()) % 2).astype(np.uint8)
    request = request_for(paths, analysis=analysis_of(labels, geometry_of(paths), kinds=kinds))
    dataset = dcmread(BytesIO(encode(request)[0].content))
    brain, kidney = dataset.SegmentSequence
    assert (brain.SegmentNumber, brain.SegmentLabel, brain.SegmentAlgorithmType) == (1, "Brain", "AUTOMATIC")
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == KIDNEY.value
    modifier: Dataset = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (modifier.CodeValue, modifier.CodeMeaning) == (LEFT.value, "Left")
    algorithm = brain.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("brain", "1.0.2")
    assert request.contract.weights_digest in str(algorithm.AlgorithmParameters)
    assert dataset.SegmentationType == "BINARY"


@pytest.mark.parametrize(
    ("colour", "lab"), [((255, 0, 0), (53.24, 80.09, 67.2)), ((255, 255, 255), (100, 0, 0)), ((0, 0, 0), (0, 0, 0))]
)
def test_colours_are_cielab(tmp_path: Path, colour: tuple[int, int, int], lab: tuple[float, float, float]) -> None:
    request = request_for(make_series(tmp_path))
    segment = replace(request.analysis.segments[0], colour=colour)
    request = replace(request, analysis=replace(request.analysis, segments=(segment,)))
    written = dcmread(BytesIO(encode_seg(request).content)).SegmentSequence[0].RecommendedDisplayCIELabValue
    # PS3.3 C.10.7.1.1: L* 0..100 and a*, b* -128..127 each mapped to 0..65535.
    read = (written[0] * 100 / 65535, written[1] * 255 / 65535 - 128, written[2] * 255 / 65535 - 128)
    np.testing.assert_allclose(read, lab, atol=0.6)


def overlapping(paths: list[Path], masks: NDArray[np.bool_]) -> EncodingRequest:
    """A request that claims that the model found these masks in the series."""
    kinds = [(f"Segment {number}", BRAIN, None) for number in range(1, len(masks) + 1)]
    return request_for(paths, analysis=analysis_of(masks, geometry_of(paths), kinds=kinds))


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_masks_come_back_each_whole_and_say_whether_they_overlap(tmp_path: Path, data: st.DataObject) -> None:
    """Fault 1 of peers: a label map keeps one segment of those that share a voxel."""
    paths = make_series(tmp_path / "series", planes=3, rows=5, columns=7, orientation="oblique")
    values = data.draw(st.binary(min_size=105, max_size=105))
    bits = np.frombuffer(values, np.uint8).reshape(3, 5, 7)
    masks = np.stack([bits & 1 > 0, bits & 2 > 0, bits & 4 > 0])
    request = overlapping(paths, masks)
    seg, report = encode(request)
    found, drawn = (
        {number: each for number, each in voxels.items() if each} for voxels in (read_by_frame(seg), expected(request))
    )
    assert found == drawn
    dataset = dcmread(BytesIO(seg.content))
    assert dataset.SegmentsOverlap == ("YES" if (masks.sum(axis=0) > 1).any() else "NO")
    numbers = [item.ReferencedSOPSequence[0].ReferencedSegmentNumber for item in referenced_segments(report)]
    assert numbers == [1, 2, 3]


def referenced_segments(report: EncodedObject) -> list[Dataset]:
    def below(item: Dataset) -> list[Dataset]:
        return [item, *(each for child in item.get("ContentSequence", ()) for each in below(child))]

    return [
        item
        for item in below(dcmread(BytesIO(report.content)))
        if item.get("ValueType") == "IMAGE" and item.ConceptNameCodeSequence[0].CodeValue == "121191"
    ]


@pytest.mark.parametrize("frames", [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1)])
def test_masks_on_frames_of_one_enhanced_instance(tmp_path: Path, frames: tuple[int, ...]) -> None:
    request = enhanced_request(make_enhanced(tmp_path, orientation="oblique"), frames)
    whole = request.analysis.labels > 0
    masks = np.stack([whole, np.roll(whole, 1, axis=2)])
    kinds = [("Whole", BRAIN, None), ("Part", BRAIN, None)]
    request = replace(request, analysis=analysis_of(masks, request.analysis.geometry, kinds=kinds))
    assert read_by_frame(encode(request)[0]) == expected(request)


def test_the_gate_sees_masks_that_were_merged(tmp_path: Path) -> None:
    """What a label map would have kept of two segments is not what was drawn."""
    paths = make_series(tmp_path, planes=5, rows=16)
    whole = ball(geometry_of(paths).shape) > 0
    request = overlapping(paths, np.stack([whole, np.roll(whole, 2, axis=2)]))
    merged = overlapping(paths, np.stack([whole & ~request.analysis.masks[1], request.analysis.masks[1]]))
    check([encode_seg(request)], request)
    with pytest.raises(ObjectRefusedByGate, match="does not show what is drawn of segment 1"):
        check([encode_seg(merged)], request)
    with pytest.raises(ObjectRefusedByGate, match="SegmentsOverlap is not YES"):
        check([encode_seg(merged)], request)


def test_many_masks_take_no_more_memory_than_they_have(tmp_path: Path) -> None:
    """highdicom would add them up: 8 bytes for each voxel of the volume, and more."""
    paths = make_series(tmp_path, planes=24, rows=256, columns=256)
    masks = np.zeros((8, 24, 256, 256), np.bool_)
    for number, mask in enumerate(masks):
        mask[:, 8 * number : 8 * number + 24, 32:64] = True
    request = overlapping(paths, masks)
    request.source  # noqa: B018  the headers are read before the measurement
    tracemalloc.start()
    seg = encode_seg(request)
    check([seg], request)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < masks.nbytes
