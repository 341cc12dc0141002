"""The gate refuses each fault of a label map and of probabilities, and of frames of several instances."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicom_factory import make_series
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from result_samples import ball, geometry_of
from test_seg_forms import BOTH, drawn, probable, smooth

from meddaemon.domain.errors import ObjectRefusedByGate
from meddaemon.domain.outlet import Edition, ObjectKind, SegmentationForm
from meddaemon.domain.result import EncodedObject
from meddaemon.results import rle
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.gate import check

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def request_made(tmp_path_factory: pytest.TempPathFactory) -> EncodingRequest:
    paths = make_series(tmp_path_factory.mktemp("series"), planes=4, orientation="oblique")
    labels = ball(geometry_of(paths).shape)
    labels[2:] *= 2
    request = drawn(paths, labels, 2, editions=(Edition(segmentation=SegmentationForm.LABELMAP),))
    return probable(request, {1: smooth(labels.shape), 2: 1 - smooth(labels.shape, 9.0)})


@pytest.fixture(scope="module")
def written(request_made: EncodingRequest) -> dict[str, EncodedObject]:
    return {each.name: each for each in encode(request_made)}


def frames(dataset: Dataset) -> list[bytes]:
    return list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))


def repack(dataset: Dataset, parts: list[bytes]) -> None:
    dataset.PixelData = encapsulate(parts)
    dataset["PixelData"].is_undefined_length = True


def swap_pixels(dataset: Dataset) -> None:
    parts = frames(dataset)
    other = next(index for index, part in enumerate(parts) if part != parts[0])
    parts[0], parts[other] = parts[other], parts[0]
    repack(dataset, parts)


def change_a_voxel(value: int) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        images = dataset.pixel_array.copy()
        images[1, 5, 5] = value
        repack(dataset, [rle.encoded(image) for image in images])

    return change


def drop_a_frame(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[1:]
    dataset.NumberOfFrames -= 1
    repack(dataset, frames(dataset)[1:])


def lose_pixels(dataset: Dataset) -> None:
    repack(dataset, frames(dataset)[:-1])


def garble(dataset: Dataset) -> None:
    repack(dataset, [b"\x01\0\0\0" + bytes(61), *frames(dataset)[1:]])


def swap_sources(dataset: Dataset) -> None:
    first, second = dataset.PerFrameFunctionalGroupsSequence[:2]
    one, other = first.DerivationImageSequence, second.DerivationImageSequence
    first.DerivationImageSequence, second.DerivationImageSequence = other, one


def move(dataset: Dataset) -> None:
    for item in dataset.PerFrameFunctionalGroupsSequence:
        position = item.PlanePositionSequence[0]
        x, y, z = (float(value) for value in position.ImagePositionPatient)
        position.ImagePositionPatient = [x + 0.48, y - 0.64, z + 0.6]


def repeat_an_index(dataset: Dataset) -> None:
    first, second = (item.FrameContentSequence[0] for item in dataset.PerFrameFunctionalGroupsSequence[:2])
    second.DimensionIndexValues = first.DimensionIndexValues


def to(keyword: str, value: Any) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


def segment(number: int, keyword: str, value: Any) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset.SegmentSequence[number], keyword, value)


def no_background(dataset: Dataset) -> None:
    dataset.SegmentSequence = list(dataset.SegmentSequence)[1:]


def code_of(number: int) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(
        dataset.SegmentSequence[number].SegmentedPropertyTypeCodeSequence[0], "CodeValue", "38266002"
    )


EITHER: list[tuple[str, Callable[[Dataset], object], str]] = [
    ("half a slice away", move, "lies 1 mm from"),
    ("each other's images", swap_sources, "mm from the plane of its source image"),
    ("a repeated index", repeat_an_index, "share the dimension index"),
    ("pixels of another frame", swap_pixels, "does not show"),
    ("pixels missing", lose_pixels, "cannot be examined"),
    ("pixels garbled", garble, "cannot be examined"),
    ("other class", to("SOPClassUID", "1.2.840.10008.5.1.4.1.1.66"), "SOPClassUID"),
    ("more bits than said", to("BitsStored", 7), "BitsStored is not 8"),
    ("another organ", code_of(1), "SegmentedPropertyTypeCodeSequence"),
    ("not tracked", segment(1, "TrackingUID", "1.2.3"), "tracking identifiers"),
]
OF_LABEL_MAPS: list[tuple[str, Callable[[Dataset], object], str]] = [
    ("a voxel more", change_a_voxel(0), "does not show what is drawn on plane"),
    ("an unknown segment", change_a_voxel(9), "shows segment 9 of 2"),
    ("a plane missing", drop_a_frame, "plane 3 has no frame"),
    ("no background", no_background, "segment 0"),
    ("another background", code_of(0), "segment 0: SegmentedPropertyTypeCodeSequence"),
    ("another padding", to("PixelPaddingValue", 255), "PixelPaddingValue is not 0"),
    ("said to be binary", to("SegmentationType", "BINARY"), "SegmentationType is not LABELMAP"),
    ("said to overlap", to("SegmentsOverlap", "YES"), "SegmentsOverlap is not NO"),
]
OF_PROBABILITIES: list[tuple[str, Callable[[Dataset], object], str]] = [
    ("another probability", change_a_voxel(77), "does not show the probability of segment 1"),
    ("a frame missing", drop_a_frame, "is probable on plane"),
    ("other scale", to("MaximumFractionalValue", 100), "MaximumFractionalValue is not 255"),
    ("said to be occupancy", to("SegmentationFractionalType", "OCCUPANCY"), "SegmentationFractionalType"),
    ("said to be one volume", to("DimensionOrganizationType", "3D"), "DimensionOrganizationType should be absent"),
    ("segments swapped", lambda d: d.SegmentSequence.reverse(), "segments [2, 1]"),
]


@pytest.mark.parametrize(
    ("name", "mutate", "says"),
    [
        pytest.param(name, mutate, says, id=f"{name}: {fault}")
        for name, faults in (
            ("SEG labelmap", [*EITHER, *OF_LABEL_MAPS]),
            ("PROBABILITY", [*EITHER, *OF_PROBABILITIES]),
        )
        for fault, mutate, says in faults
    ],
)
def test_a_fault_is_refused(
    request_made: EncodingRequest,
    written: dict[str, EncodedObject],
    name: str,
    mutate: Callable[[Dataset], object],
    says: str,
) -> None:
    dataset = dcmread(BytesIO(written[name].content))
    mutate(dataset)
    file = BytesIO()
    dataset.save_as(file)
    with pytest.raises(ObjectRefusedByGate) as caught:
        check([replace(written[name], content=file.getvalue())], request_made)
    assert says in str(caught.value)


def test_what_was_read_and_saved_again_passes(request_made: EncodingRequest, written: dict[str, EncodedObject]) -> None:
    for each in written.values():
        file = BytesIO()
        dcmread(BytesIO(each.content)).save_as(file)
        check([replace(each, content=file.getvalue())], request_made)


def test_a_form_under_the_name_of_another_is_refused(
    request_made: EncodingRequest, written: dict[str, EncodedObject]
) -> None:
    with pytest.raises(ObjectRefusedByGate, match="SegmentationType is not BINARY"):
        check([replace(written["SEG labelmap"], edition=SegmentationForm.BINARY)], request_made)


def test_forms_of_one_result_do_not_share_a_uid(tmp_path: Path) -> None:
    labels = ball((5, 12, 10))
    request = drawn(make_series(tmp_path), labels, 1, editions=BOTH, kinds=frozenset({ObjectKind.SEG}))
    binary, label_map = encode(request)
    renamed = dcmread(BytesIO(binary.content))
    renamed.SOPInstanceUID = renamed.file_meta.MediaStorageSOPInstanceUID = label_map.sop_instance_uid
    file = BytesIO()
    renamed.save_as(file)
    same = replace(binary, sop_instance_uid=label_map.sop_instance_uid, content=file.getvalue())
    with pytest.raises(ObjectRefusedByGate, match="has the UID of SEG labelmap"):
        check([same, label_map], request)
