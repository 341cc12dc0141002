"""Series that hold more than one stack: laws of taking them apart, policies, and what is refused all the same."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_enhanced, make_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence as ItemSequence

from meddaemon.domain.contract import MOMENTS, Duplicates, GeometryPolicy, Mixed, Times, Unevenness
from meddaemon.domain.errors import UnsoundVolume
from meddaemon.domain.volume import Volume
from meddaemon.inference.geometry import Plane
from meddaemon.inference.regrid import Straightened, is_straight
from meddaemon.inference.stacks import select
from meddaemon.inference.volume import assemble_read, read_headers
from tests.inference.test_geometry import boxes, rotations, stack

LARGEST = GeometryPolicy(mixed=Mixed.LARGEST)
FIRST, LAST = GeometryPolicy(time=Times.FIRST), GeometryPolicy(time=Times.LAST)
DROP = GeometryPolicy(duplicates=Duplicates.DROP)
FILL = GeometryPolicy(gap=Unevenness.RESAMPLE)


def renamed(planes: list[Plane], root: str, **changes: object) -> list[Plane]:
    return [replace(each, sop_instance_uid=f"{root}.{n}", **changes) for n, each in enumerate(planes)]  # type: ignore[arg-type]


def read(paths: list[Path], policy: GeometryPolicy) -> Volume:
    return assemble_read(read_headers(paths), policy)


def refused(act: Callable[[], object]) -> UnsoundVolume:
    with pytest.raises(UnsoundVolume) as caught:
        act()
    return caught.value


# --- laws -----------------------------------------------------------------------------------------------------------


@st.composite
def repeated(draw: st.DrawFn) -> tuple[list[list[Plane]], str]:
    """A box at several times, told apart by one attribute."""
    box, keyword = draw(boxes()), draw(st.sampled_from(sorted(MOMENTS)))
    times = draw(st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 2)), min_size=2, max_size=5, unique=True))
    return [renamed(box, f"1.{t}", moment=((keyword, value),)) for t, value in enumerate(sorted(times), 1)], keyword


@pytest.mark.fault(92)
@settings(max_examples=60)
@given(series=repeated(), data=st.data())
def test_each_of_several_times_comes_out_whole_in_any_order_of_arrival(
    series: tuple[list[list[Plane]], str], data: st.DataObject
) -> None:
    times, keyword = series
    shuffled = data.draw(st.permutations([plane for time in times for plane in time]))
    for policy, time in ((FIRST, times[0]), (LAST, times[-1])):
        found = select(shuffled, policy)
        assert {shuffled[index].sop_instance_uid for index in found.order} == {each.sop_instance_uid for each in time}
        assert found.geometry.sop_instance_uids == select(time).geometry.sop_instance_uids
        assert np.array_equal(found.geometry.affine_lps, select(time).geometry.affine_lps)
        assert keyword in found.remarks["times_left_out"]
        assert f"{len(shuffled) - len(time)} planes" in found.remarks["times_left_out"]
    assert refused(lambda: select(shuffled)).reason == "temporal"
    # Each in its turn, when those before are gone.
    for time in times[:-1]:
        found = select(shuffled, FIRST)
        assert {shuffled[index].sop_instance_uid for index in found.order} == {each.sop_instance_uid for each in time}
        shuffled = [each for index, each in enumerate(shuffled) if index not in found.order]
    assert select(shuffled).geometry.sop_instance_uids == select(times[-1]).geometry.sop_instance_uids


@pytest.mark.fault(84)
@settings(max_examples=60)
@given(
    box=boxes(),
    other=boxes(),
    turn=rotations(),
    kind=st.sampled_from(["size", "frame", "spacing", "turned"]),
    data=st.data(),
)
def test_the_largest_of_two_stacks_is_never_mixed_with_the_other(
    box: list[Plane], other: list[Plane], turn: np.ndarray, kind: str, data: st.DataObject
) -> None:
    change: Mapping[str, object] = {
        "size": {"rows": 9},
        "frame": {"frame_of_reference_uid": "1.8"},
        "spacing": {"pixel_spacing": tuple(2 * each for each in box[0].pixel_spacing)},
        "turned": {"orientation": (*box[0].orientation[3:], *box[0].orientation[:3])},
    }[kind]
    beside = renamed([replace(each, orientation=box[0].orientation) for each in other], "1.7", **change)
    shuffled = data.draw(st.permutations([*box, *beside]))
    if len(box) == len(beside):
        assert refused(lambda: select(shuffled, LARGEST)).reason.startswith("mixed_")
        return
    if len(box) < len(beside):
        return
    found = select(shuffled, LARGEST)
    assert found.geometry.sop_instance_uids == select(box).geometry.sop_instance_uids
    assert np.array_equal(found.geometry.affine_lps, select(box).geometry.affine_lps)
    assert found.remarks["stacks_left_out"].startswith(f"{len(beside)} planes of another ")
    assert beside[0].sop_instance_uid in found.remarks["stacks_left_out"]
    assert refused(lambda: select(shuffled)).reason.startswith("mixed_")


@pytest.mark.fault(83)
@given(box=boxes(), data=st.data())
def test_a_missing_plane_is_a_place_on_the_grid_where_the_contract_takes_gaps(
    box: list[Plane], data: st.DataObject
) -> None:
    if len(box) < 4:
        return
    gone = data.draw(st.integers(1, len(box) - 2))
    left = data.draw(st.permutations([*box[:gone], *box[gone + 1 :]]))
    geometry = select(left, FILL).geometry
    assert geometry.shape[0] == len(box) - 1
    assert geometry.spacing[0] == pytest.approx(select(box).geometry.spacing[0], rel=1e-6)
    by_uid = {each.sop_instance_uid: each.position for each in box}
    for plane, uid in enumerate(geometry.sop_instance_uids):
        assert geometry.positions[plane] == pytest.approx(by_uid[uid], abs=1e-3)
    straight = Straightened(geometry).geometry
    assert straight.shape[0] == len(box), "the model sees all places"
    assert "1 beside" in select(left, FILL).remarks["planes_missing"]


# --- times ----------------------------------------------------------------------------------------------------------

BOX = stack(8)


def timed(values: list[float], keyword: str = "TriggerTime", **more: list[float]) -> list[Plane]:
    """The box once for each value."""
    return [
        replace(
            each,
            sop_instance_uid=f"1.{time}.{n}",
            moment=tuple(sorted({keyword: value, **{name: all_[time] for name, all_ in more.items()}}.items())),
        )
        for time, value in enumerate(values)
        for n, each in enumerate(BOX)
    ]


def test_phases_of_a_heart_that_beats_unevenly_are_counted_at_each_place() -> None:
    planes = [
        replace(each, moment=(("TriggerTime", 30.0 * time + time * n % 7),))
        for time in range(1, 6)
        for n, each in enumerate(renamed(BOX, f"1.{time}"))
    ]
    for policy, time in ((FIRST, 1), (LAST, 5)):
        assert set(select(planes, policy).geometry.sop_instance_uids) == {f"1.{time}.{n}" for n in range(8)}
    assert "number 5 by TriggerTime" in select(planes, LAST).remarks["times_left_out"]


def test_two_attributes_together_tell_times_apart_that_neither_does() -> None:
    planes = timed([1, 1, 2, 2], "TemporalPositionIdentifier", EchoTime=[30.0, 10.0, 10.0, 30.0])
    assert set(select(planes, FIRST).geometry.sop_instance_uids) == {f"1.1.{n}" for n in range(8)}
    assert set(select(planes, LAST).geometry.sop_instance_uids) == {f"1.3.{n}" for n in range(8)}


def test_a_time_that_is_not_whole_is_refused_and_not_filled_from_another() -> None:
    planes = timed([1, 2], "AcquisitionNumber")[:-2]
    assert select(planes, FIRST).geometry.shape[0] == 8
    error = refused(lambda: select(planes, LAST))
    assert error.reason == "temporal"
    assert (error.numbers["planes"], error.numbers["positions"]) == (6, 8)


def test_what_no_attribute_tells_apart_is_refused() -> None:
    assert refused(lambda: select(timed([5, 5]), FIRST)).reason == "temporal"
    # Two directions of diffusion share a b-value: which of them is the first is not for us to say.
    assert refused(lambda: select(timed([0, 1000, 1000], "DiffusionBValue"), FIRST)).reason == "temporal"


def test_planes_of_another_size_in_the_same_place_are_no_duplicates() -> None:
    both = [*BOX, *renamed([replace(each, rows=9) for each in BOX[:2]], "1.7")]
    for policy in (GeometryPolicy(duplicates=Duplicates.FIRST), FIRST, DROP):
        assert refused(lambda: select(both, policy)).reason == "mixed_size"  # noqa: B023


def test_a_series_that_is_all_directions_is_refused_at_once() -> None:
    """Radial planes: each has an orientation of its own."""
    angles = np.linspace(0, 3, 5000)
    planes = [
        replace(BOX[0], sop_instance_uid=f"1.{n}", orientation=(np.cos(a), np.sin(a), 0, 0, 0, -1))
        for n, a in enumerate(angles)
    ]
    error = refused(lambda: select(planes, LARGEST))
    assert error.reason == "mixed_orientation"
    assert "more than 64 stacks" in str(error)


def test_twins_of_what_is_left_out_need_no_proof_and_twins_of_twins_have_one() -> None:
    both = GeometryPolicy(time=Times.FIRST, duplicates=Duplicates.DROP)
    times = timed([1, 2], "EchoTime")
    twin_of_second = replace(times[10], sop_instance_uid="1.9.1")
    assert select([*times, twin_of_second], both).twins == ()
    assert select([*times, twin_of_second], both).geometry.shape[0] == 8
    # Two of one echo, and a third of another: all of them are left out for the first.
    more = [replace(BOX[3], sop_instance_uid=f"9.{n}", moment=(("EchoTime", n // 2),)) for n in range(3)]
    found = select([*[replace(each, moment=(("EchoTime", 0),)) for each in BOX], *more], DROP)
    kept = 3
    assert [(twin.plane, twin.kept) for twin in sorted(found.twins, key=lambda twin: twin.plane)] == [
        (8, kept),
        (9, kept),
        (10, kept),
    ]


def test_one_b_value_is_taken_by_its_number_and_what_has_another_is_named() -> None:
    planes = timed([0, 1000, 1000.4, 50], "DiffusionBValue")
    found = select(planes, GeometryPolicy(at={"DiffusionBValue": 50}))
    assert set(found.geometry.sop_instance_uids) == {f"1.3.{n}" for n in range(8)}
    assert found.remarks["other_DiffusionBValue_left_out"].startswith("24 planes: 1.0.0, ")
    # Two directions are left of the other, and are not told apart.
    assert refused(lambda: select(planes, GeometryPolicy(at={"DiffusionBValue": 1000}))).reason == "temporal"
    error = refused(lambda: select(planes, GeometryPolicy(at={"DiffusionBValue": 800})))
    assert error.numbers == {"wanted": 800, "there": [0, 50, 1000, 1000.4]}
    # Then, of what has the number, the first time.
    both = timed([1, 2, 3], "TemporalPositionIdentifier", EchoTime=[10.0, 30.0, 30.0])
    found = select(both, GeometryPolicy(at={"EchoTime": 30}, time=Times.FIRST))
    assert set(found.geometry.sop_instance_uids) == {f"1.1.{n}" for n in range(8)}


# --- duplicates -----------------------------------------------------------------------------------------------------


def _named(folder: Path, name: str, **how: object) -> list[Path]:
    def edit(plane: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = f"1.2.{name}.{plane + 1}"

    return make_series(folder / name, edit=edit, **how)  # type: ignore[arg-type]


@pytest.mark.fault(83)
def test_a_plane_that_was_sent_twice_is_dropped_only_when_its_pixels_are_the_same(tmp_path: Path) -> None:
    files = _named(tmp_path, "1")
    expected = assemble_read(read_headers(files))
    again = tmp_path / "again.dcm"
    dataset = dcmread(files[2])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.1.99"
    dataset.save_as(again)
    found = read([again, *files], DROP)
    assert np.array_equal(found.voxels, expected.voxels)
    assert np.array_equal(found.geometry.affine_lps, expected.geometry.affine_lps)
    assert "1 planes in the place of another, with the same pixels" in found.remarks["duplicates_left_out"]
    assert refused(lambda: read([again, *files], GeometryPolicy())).reason == "duplicate_position"
    pixels = bytearray(dataset.PixelData)
    pixels[0] ^= 1
    dataset.PixelData = bytes(pixels)
    dataset.InstanceNumber = 77
    dataset.save_as(again)
    error = refused(lambda: read([again, *files], DROP))
    assert (error.reason, error.numbers["different"]) == ("duplicate_position", 1)
    assert error.sop_instance_uid == "1.2.1.99"
    kept = read([again, *files], GeometryPolicy(duplicates=Duplicates.FIRST))
    assert np.array_equal(kept.voxels, expected.voxels), "the lower instance number is the first"
    assert "1.2.1.99" in kept.remarks["duplicates_left_out"]


def test_a_series_that_was_sent_twice_is_one_series_and_one_over_time_is_not(tmp_path: Path) -> None:
    once, twice = _named(tmp_path, "1"), _named(tmp_path, "2")
    found = read([*once, *twice], DROP)
    assert found.geometry.shape[0] == 5
    assert found.remarks["duplicates_left_out"].startswith("5 planes")
    assert refused(lambda: read([*once, *twice], GeometryPolicy(duplicates=Duplicates.FIRST))).reason == "temporal"
    later = _named(tmp_path, "3", voxels=np.ones((5, 12, 10), np.int16))
    for policy in (DROP, GeometryPolicy(duplicates=Duplicates.FIRST)):
        assert refused(lambda: read([*once, *later], policy)).reason in {"temporal", "duplicate_position"}  # noqa: B023
    # All but one plane of a second time: most places are crowded, and none of them may be chosen for its number.
    assert refused(lambda: read([*once, *later[1:]], GeometryPolicy(duplicates=Duplicates.FIRST))).reason == (
        "duplicate_position"
    )


# --- localizers and stacks, in files --------------------------------------------------------------------------------


@pytest.mark.fault(84)
def test_a_localizer_and_a_stack_across_are_left_out_and_named(tmp_path: Path) -> None:
    main = _named(tmp_path, "1", planes=6)
    across = _named(tmp_path, "2", planes=3, orientation="sagittal")
    scout = _named(
        tmp_path, "3", planes=1, orientation="coronal", attributes={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    )
    found = read([*scout, *across, *main], LARGEST)
    expected = assemble_read(read_headers(main))
    assert np.array_equal(found.voxels, expected.voxels)
    assert found.geometry.sop_instance_uids == expected.geometry.sop_instance_uids
    assert found.remarks["localizers_left_out"] == "1 planes: 1.2.3.1"
    assert found.remarks["stacks_left_out"] == (
        "3 planes of another Image Orientation (Patient): 1.2.2.1, 1.2.2.2, 1.2.2.3"
    )
    assert refused(lambda: read([*scout, *main], GeometryPolicy())).reason == "localizer"
    assert refused(lambda: read(scout, LARGEST)).reason == "localizer"


@pytest.mark.fault(92)
@pytest.mark.parametrize(
    ("macro", "keyword", "values"),
    [
        ("FrameContentSequence", "TemporalPositionIndex", (1, 2, 3)),
        ("FrameContentSequence", "FrameAcquisitionNumber", (4, 5, 6)),
        ("MREchoSequence", "EffectiveEchoTime", (2.5, 5.0, 7.5)),
        ("MRDiffusionSequence", "DiffusionBValue", (0.0, 50.0, 1000.0)),
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", (0.0, 33.3, 66.6)),
    ],
)
def test_frames_of_several_times_are_told_apart_by_their_functional_groups(
    tmp_path: Path, macro: str, keyword: str, values: tuple[float, ...]
) -> None:
    path = make_enhanced(tmp_path, planes=6)
    dataset = dcmread(path)
    for number, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        # Frames 1 to 3 show the first place, 4 to 6 the second, each at three times.
        item.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2.0 * (number // 3)]
        part = item[macro].value[0] if macro in item else Dataset()
        setattr(part, keyword, values[number % 3])
        setattr(item, macro, ItemSequence([part]))
    dataset.save_as(path)
    for policy, frames in ((FIRST, (1, 4)), (LAST, (3, 6))):
        volume = read([path], policy)
        assert volume.geometry.frame_numbers == frames
        assert np.array_equal(volume.voxels, dcmread(path).pixel_array[[each - 1 for each in frames]])
        classic = next(name for name, enhanced in MOMENTS.items() if keyword in {name, enhanced})
        assert classic in volume.remarks["times_left_out"], "one word for both, so that one contract does"
        chosen = read([path], GeometryPolicy(at={classic: values[0 if policy is FIRST else 2]}))
        assert np.array_equal(chosen.voxels, volume.voxels)


@pytest.mark.parametrize("keyword", ["TemporalPositionIdentifier", "EchoTime", "TriggerTime", "AcquisitionNumber"])
def test_images_of_several_times_are_told_apart_by_their_headers(tmp_path: Path, keyword: str) -> None:
    times = [
        _named(tmp_path, str(9 - n), seed=str(n), attributes={keyword: n, "SeriesInstanceUID": "1.2.5"})
        for n in (1, 2, 3)
    ]
    files = [file for time in zip(*times, strict=True) for file in time]
    assert np.array_equal(read(files, LAST).voxels, assemble_read(read_headers(times[2])).voxels)


# --- gaps -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault(83)
def test_so_many_planes_are_interpolated_and_no_more() -> None:
    long = stack(41)
    assert select([*long[:10], *long[12:]], FILL).remarks["planes_missing"].startswith("2 beside 39")
    three = refused(lambda: select([*long[:10], *long[13:]], FILL))
    assert three.reason == "gap", "three in a row"
    scattered = [each for n, each in enumerate(long) if n % 7 != 3]
    error = refused(lambda: select(scattered, FILL))
    assert (error.reason, error.numbers["missing"], error.numbers["planes"]) == ("gap", 6, 35)
    moved = [
        replace(each, position=(*each.position[:2], each.position[2] + 0.3)) if n == 5 else each
        for n, each in enumerate(long)
    ]
    assert refused(lambda: select(moved, FILL)).reason == "irregular_spacing"


@pytest.mark.fault(83)
@pytest.mark.shared
def test_a_real_series_with_a_hole_is_filled_for_the_model_only(shared_dicom: Path) -> None:
    paths = sorted((shared_dicom / "derived/missing_slice").iterdir())
    volume = read(paths, FILL)
    assert volume.geometry.shape[0] == 7
    assert volume.remarks["planes_missing"].startswith("1 beside 7")
    assert not is_straight(volume.geometry)
    by = Straightened(volume.geometry)
    assert by.geometry.shape[0] == 8
    seen = by.volume(volume).voxels
    hole = int(np.argmax(np.diff(volume.geometry.heights)))
    around = volume.voxels[hole : hole + 2].astype(np.float64)
    assert np.abs(seen[hole + 1] - around.mean(axis=0)).max() < 1e-3
    assert np.array_equal(by.labels((seen > 200).astype(np.uint8)), (volume.voxels > 200).astype(np.uint8))


@pytest.mark.fault(83)
@pytest.mark.shared
def test_a_real_series_with_a_plane_sent_twice_is_whole_without_it(shared_dicom: Path) -> None:
    volume = read(sorted((shared_dicom / "derived/duplicate_position").iterdir()), DROP)
    assert volume.geometry.shape[0] == 8
    assert volume.geometry.positions_lps is None
    assert volume.remarks["duplicates_left_out"].startswith("1 planes")
