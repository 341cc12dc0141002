"""A label map and the probabilities say what the BINARY Segmentation says, and readers get back what was put in."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from dicom_factory import ORIENTATIONS, make_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless
from result_samples import BRAIN, KIDNEY, analysis_of, ball, geometry_of, request_for

from meddaemon.domain.errors import InputRefused
from meddaemon.domain.outlet import Edition, ObjectKind, SegmentationForm
from meddaemon.domain.result import Artefact, ArtefactKind, EncodedObject
from meddaemon.domain.volume import Geometry
from meddaemon.results import rle
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.gate import check
from meddaemon.results.request import find
from meddaemon.results.seg import encode_label_map, encode_seg, why_no_label_map

BOTH = (Edition(), Edition(segmentation=SegmentationForm.LABELMAP))
LABEL_MAP_ONLY = BOTH[1:]
LABEL_MAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"


def kinds(count: int) -> list[tuple[str, Any, None]]:
    return [(f"Segment {number}", KIDNEY if number % 2 else BRAIN, None) for number in range(1, count + 1)]


def drawn(paths: list[Path], labels: NDArray[Any], count: int, **changes: Any) -> EncodingRequest:
    return request_for(paths, analysis=analysis_of(labels, geometry_of(paths), kinds=kinds(count)), **changes)


def probable(request: EncodingRequest, values: dict[int, NDArray[Any]]) -> EncodingRequest:
    """The same with probabilities kept of some segments."""
    made = tuple(
        Artefact(kind=ArtefactKind.PROBABILITY, of=f"Segment {number}", values=each) for number, each in values.items()
    )
    return replace(
        request,
        analysis=replace(request.analysis, artefacts=made),
        kinds=frozenset({ObjectKind.SEG, ObjectKind.PROBABILITY}),
    )


def on_our_grid(encoded: EncodedObject, geometry: Geometry, **how: Any) -> NDArray[Any]:
    """What highdicom makes of the object, in the order of our planes; it must lie where they do."""
    volume = hd.seg.segread(BytesIO(encoded.content)).get_volume(**how)
    there = np.linalg.inv(geometry.affine_lps) @ volume.affine
    assert np.allclose(np.abs(there[:3, :3]), np.eye(3), atol=1e-3)
    array: NDArray[Any] = volume.array if there[0, 0] > 0 else volume.array[::-1]
    first = round(there[0, 3] if there[0, 0] > 0 else there[0, 3] - len(array) + 1)
    whole = np.zeros((geometry.shape[0], *array.shape[1:]), array.dtype)
    whole[first : first + len(array)] = array
    return whole


@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
def test_a_label_map_comes_back(tmp_path: Path, orientation: str) -> None:
    paths = make_series(tmp_path, planes=5, orientation=orientation)
    labels = ball(geometry_of(paths).shape)
    labels[2:] *= 2
    request = drawn(paths, labels, 2, editions=BOTH, kinds=frozenset({ObjectKind.SEG}))
    binary, label_map = encode(request)
    assert (label_map.edition, label_map.sop_class_uid) == ("labelmap", LABEL_MAP_CLASS)
    assert label_map.transfer_syntax_uid == RLELossless
    assert not {binary.sop_instance_uid, binary.series_instance_uid} & {
        label_map.sop_instance_uid,
        label_map.series_instance_uid,
    }
    geometry = request.analysis.drawn[1]
    for each in (binary, label_map):
        np.testing.assert_array_equal(on_our_grid(each, geometry, combine_segments=True), labels)
    described, again = (dcmread(BytesIO(each.content)).SegmentSequence for each in (binary, label_map))
    assert [item.SegmentLabel for item in again] == ["Background", *(item.SegmentLabel for item in described)]
    assert [item.TrackingUID for item in list(again)[1:]] == [item.TrackingUID for item in described]


@pytest.mark.parametrize(("count", "bits"), [(255, 8), (256, 16), (300, 16)])
def test_hundreds_of_segments_need_wider_pixels(tmp_path: Path, count: int, bits: int) -> None:
    paths = make_series(tmp_path, planes=3, rows=10, columns=11)
    labels = np.arange(330, dtype=np.uint16).reshape(3, 10, 11) % (count + 1)
    request = drawn(paths, labels, count)
    written = encode_label_map(request)
    check([written], request)
    dataset = dcmread(BytesIO(written.content))
    assert (dataset.BitsAllocated, len(dataset.SegmentSequence)) == (bits, count + 1)
    np.testing.assert_array_equal(on_our_grid(written, request.analysis.drawn[1], combine_segments=True), labels)


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_labels_come_back_from_both_forms(tmp_path: Path, data: st.DataObject) -> None:
    paths = make_series(tmp_path / "series", planes=3, rows=5, columns=7, orientation="oblique")
    values = data.draw(st.binary(min_size=105, max_size=105))
    used = data.draw(st.integers(1, 4))
    labels = (np.frombuffer(values, np.uint8) % used).reshape(3, 5, 7)
    request = drawn(paths, labels, 3)
    objects = [encode_seg(request), encode_label_map(request)]
    check(objects, request)
    for each in objects:
        found = on_our_grid(each, request.analysis.drawn[1], combine_segments=True)
        np.testing.assert_array_equal(found, labels)


def test_a_label_map_is_written_only_where_it_is_asked_for(tmp_path: Path) -> None:
    request = request_for(make_series(tmp_path))
    assert [each.edition for each in encode(request) if each.kind == "SEG"] == ["binary"]
    only = encode(replace(request, editions=LABEL_MAP_ONLY))
    assert [each.edition for each in only if each.kind == "SEG"] == ["labelmap"]


def test_segments_that_overlap_go_as_binary_to_those_who_want_a_label_map(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=5, rows=16)
    whole = ball(geometry_of(paths).shape) > 0
    request = drawn(paths, np.stack([whole, np.roll(whole, 2, axis=2)]), 2, kinds=frozenset({ObjectKind.SEG}))
    (written,) = encode(replace(request, editions=LABEL_MAP_ONLY))
    assert find([written], ObjectKind.SEG, "labelmap") is written
    assert find([written], ObjectKind.SEG, "binary") is written
    assert written.content == encode_seg(request).content
    assert why_no_label_map(request.analysis).startswith("segments overlap")
    assert not why_no_label_map(drawn(paths, whole.astype(np.uint8), 1).analysis)
    with pytest.raises(InputRefused, match="segments overlap"):
        encode_label_map(request)


def test_masks_that_do_not_overlap_make_a_label_map(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=5, rows=16)
    whole = ball(geometry_of(paths).shape) > 0
    masks = np.stack([whole, ~whole])
    request = drawn(paths, masks, 2)
    written = encode_label_map(request)
    check([written], request)
    found = on_our_grid(written, request.analysis.drawn[1], combine_segments=True)
    np.testing.assert_array_equal(found, np.where(whole, 1, 2))


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 400),
    colours=st.sampled_from([1, 2, 3, 300]),
    stretch=st.integers(1, 150),
    seed=st.integers(0, 99),
    wide=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_run_lengths_are_what_pydicom_reads(
    rows: int, columns: int, colours: int, stretch: int, seed: int, wide: bool
) -> None:
    width = np.uint16 if wide else np.uint8
    values = np.random.default_rng(seed).integers(0, colours, (rows, -(-columns // stretch)))
    image = np.repeat(values, stretch, axis=1)[:, :columns].astype(width)
    holder = Dataset()
    holder.Rows, holder.Columns, holder.SamplesPerPixel = rows, columns, 1
    holder.PhotometricInterpretation, holder.PixelRepresentation = "MONOCHROME2", 0
    holder.BitsAllocated = holder.BitsStored = image.itemsize * 8
    holder.PixelData = encapsulate([rle.encoded(image)])
    holder["PixelData"].VR = "OB"
    holder.file_meta = FileMetaDataset()
    holder.file_meta.TransferSyntaxUID = RLELossless
    np.testing.assert_array_equal(holder.pixel_array, image)


def smooth(shape: tuple[int, ...], reach: float = 4.0) -> NDArray[np.float16]:
    """A probability that is 1 inside, 0 far outside, and something between at the edge."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij"))
    return np.clip(reach * (0.7 - np.sqrt((grid**2).sum(axis=0))), 0, 1).astype(np.float16)


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_probabilities_come_back(tmp_path: Path, orientation: str) -> None:
    paths = make_series(tmp_path, planes=7, orientation=orientation)
    geometry = geometry_of(paths)
    first, third = smooth(geometry.shape), 1 - smooth(geometry.shape, 9.0)
    request = probable(drawn(paths, (first > 0.5).astype(np.uint8), 3), {1: first, 3: third})
    binary, fractional = encode(request)
    assert (binary.kind, fractional.kind, fractional.edition) == ("SEG", "PROBABILITY", "")
    dataset = dcmread(BytesIO(fractional.content))
    assert (dataset.SegmentationType, dataset.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    labels = [item.SegmentLabel for item in dataset.SegmentSequence]
    assert labels == ["Segment 1", "Segment 3"]
    described = dcmread(BytesIO(binary.content)).SegmentSequence
    assert [item.TrackingUID for item in dataset.SegmentSequence] == [
        described[0].TrackingUID,
        described[2].TrackingUID,
    ]
    found = on_our_grid(fractional, geometry, combine_segments=False, rescale_fractional=True)
    np.testing.assert_allclose(found[..., 0], first, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(found[..., 1], third, atol=0.5 / 255 + 1e-6)


def test_frames_without_probability_are_left_out(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=5)
    values = np.zeros(geometry_of(paths).shape, np.float32)
    request = drawn(paths, np.zeros(values.shape, np.uint8), 2)
    *_, nothing = encode(probable(request, {2: values}))
    assert dcmread(BytesIO(nothing.content)).NumberOfFrames == 5
    values[1:3] = 0.25
    *_, some = encode(probable(request, {2: values}))
    assert dcmread(BytesIO(some.content)).NumberOfFrames == 2
    assert some.sop_instance_uid != nothing.sop_instance_uid
    assert some.series_instance_uid == nothing.series_instance_uid


def test_no_probabilities_no_object(tmp_path: Path) -> None:
    request = drawn(make_series(tmp_path), np.zeros((5, 12, 10), np.uint8), 1)
    assert [each.kind for each in encode(probable(request, {}))] == ["SEG"]
    other_grid = probable(request, {1: np.ones((4, 12, 10), np.float32)})
    assert [each.kind for each in encode(other_grid)] == ["SEG"]


def test_the_same_result_is_the_same_bytes(tmp_path: Path) -> None:
    paths = make_series(tmp_path)
    request = probable(drawn(paths, ball((5, 12, 10)), 1, editions=BOTH), {1: smooth((5, 12, 10))})
    assert [each.content for each in encode(request)] == [each.content for each in encode(request)]
