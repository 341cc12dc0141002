"""Radiographs, ultrasound, captures and frames to pictures: real files against pydicom, and images made here."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from meddaemon.domain.contract import Voi
from meddaemon.domain.errors import ContradictoryIdentity, InputRefused
from meddaemon.inference.pictures import Lookup, Window, read
from tests.other_objects import image

REAL = ["cxr/PatientA.dcm", "cxr/RG1_J2KI.dcm", "other/MG_OutOfBoundsOverlay.dcm", "other/XA1_J2KR.dcm"]
REAL_COLOUR = ["cxr/ex-covid_rgb_sc.dcm", "other/US1_J2KR.dcm"]
RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100


# --- real files --------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_greyscale_is_what_pydicom_makes_of_it(shared_dicom: Path, name: str) -> None:
    path = shared_dicom / name
    dataset = dcmread(path)
    values = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float32)
    pictures = read([path])
    inverse = dataset.PhotometricInterpretation == "MONOCHROME1"
    highest = 2**dataset.BitsStored - 1
    # Two decoders of JPEG with loss agree within what rounding leaves.
    assert np.abs(pictures.frames[0] - (highest - values if inverse else values)).max() <= 1
    assert pictures.sources == ((dataset.SOPInstanceUID, 1),)
    assert ("inverted" in pictures.remarks) == inverse


@pytest.mark.shared
@pytest.mark.parametrize("name", ["cxr/RG1_J2KI.dcm", "other/MG_OutOfBoundsOverlay.dcm"])
def test_real_windows_are_what_pydicom_makes_of_them(shared_dicom: Path, name: str) -> None:
    path = shared_dicom / name
    dataset = dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    lowest, highest = 0, 2**dataset.BitsStored - 1
    expected = (shown - lowest) / (highest - lowest)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    assert np.abs(read([path], voi=Voi.WINDOW).frames[0] - expected).max() < 1e-3


@pytest.mark.fault(87)
@pytest.mark.shared
def test_a_radiograph_in_inverse_grey_comes_out_with_bright_bones(shared_dicom: Path) -> None:
    """A chest: the lungs, in the middle of either half, let more through than the spine and are darker."""
    for voi in Voi:
        (frame,) = read([shared_dicom / "cxr/RG1_J2KI.dcm"], voi=voi).frames
        rows, columns = frame.shape
        middle = frame[rows // 3 : rows // 2]
        spine = middle[:, columns // 2 - 50 : columns // 2 + 50].mean()
        lungs = [middle[:, at - 50 : at + 50].mean() for at in (columns // 4, 3 * columns // 4)]
        assert spine > max(lungs)


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL_COLOUR)
def test_real_colour_is_what_pydicom_makes_of_it(shared_dicom: Path, name: str) -> None:
    dataset = dcmread(shared_dicom / name)
    (frame,) = read([shared_dicom / name]).frames
    assert np.array_equal(frame, dataset.pixel_array)


@pytest.mark.shared
def test_a_real_palette_that_is_segmented_gives_colours(shared_dicom: Path) -> None:
    (frame,) = read([shared_dicom / "other/US_ALOKA_palette.dcm"]).frames
    assert frame.shape == (480, 640, 3)
    # An ultrasound: mostly grey, and a bar of colours.
    assert np.ptp(frame, axis=-1).max() > 100
    assert np.median(np.ptp(frame, axis=-1)) == 0


@pytest.mark.shared
def test_frames_of_a_real_cine_keep_their_order(shared_dicom: Path) -> None:
    path = shared_dicom / "multiframe/MOVEKNEE.dcm"
    pictures = read([path])
    assert np.array_equal(pictures.frames, dcmread(path).pixel_array.astype(np.float32))
    assert [number for _, number in pictures.sources] == list(range(1, 20))
    assert pictures.spacing_mm == (0.625, 0.625)


@pytest.mark.shared
def test_a_real_mammogram_says_the_size_of_pixels_at_the_detector(shared_dicom: Path) -> None:
    pictures = read([shared_dicom / "other/MG_OutOfBoundsOverlay.dcm"])
    assert (pictures.spacing_mm, pictures.spacing_is_of_detector) == ((0.085, 0.085), True)


# --- greyscale ---------------------------------------------------------------------------------------------------


@pytest.mark.fault(87)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -1000)])
def test_inverse_grey_is_the_same_picture_as_its_twin(
    tmp_path: Path, dtype: str, slope: float, intercept: float
) -> None:
    """Stored values turned round and said to be inverse show the same as before."""
    pixels = np.arange(12, dtype=dtype).reshape(3, 4)
    ends = np.iinfo(dtype)
    turned = (ends.max + ends.min - pixels.astype(np.int64)).astype(dtype)
    meaning = {"RescaleSlope": slope, "RescaleIntercept": intercept, "WindowCenter": "5", "WindowWidth": "8"}
    straight = image(tmp_path, pixels, name="1", **meaning)
    inverse = image(tmp_path, turned, name="2", PhotometricInterpretation="MONOCHROME1", **meaning)
    assert np.array_equal(read([straight]).frames, read([inverse]).frames)
    assert read([inverse]).remarks == {"inverted": "inverse grey was turned round"}


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_inverse_grey_is_turned_round_once(tmp_path: Path, photometric: str, shape: str | None, inverted: bool) -> None:
    path = image(tmp_path, RAMP, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    first, last = read([path]).frames[0, 0, 0], read([path]).frames[0, -1, -1]
    assert (first > last) == inverted
    shown = read([path], voi=Voi.WINDOW).frames[0]
    assert (shown[0, 0], shown[-1, -1]) == ((1, 0) if inverted else (0, 1))


def test_a_modality_lut_gives_the_values_and_a_voi_lut_how_bright_they_are(tmp_path: Path) -> None:
    modality_lut, voi_lut = Dataset(), Dataset()
    modality_lut.add_new("LUTDescriptor", "US", [4, 1, 16])
    modality_lut.add_new("LUTData", "US", [10, 20, 40, 80])
    modality_lut.ModalityLUTType = "US"
    voi_lut.add_new("LUTDescriptor", "US", [81, 0, 8])
    voi_lut.add_new("LUTData", "OW", bytes([*range(80), 255, 0]))
    pixels = np.array([[0, 1, 2], [3, 4, 9]], np.uint8)
    path = image(tmp_path, pixels, ModalityLUTSequence=[modality_lut], VOILUTSequence=[voi_lut])
    assert read([path]).frames[0].tolist() == [[10, 10, 20], [40, 80, 80]]
    assert read([path], voi=Voi.WINDOW).frames[0] == pytest.approx(
        np.array([[10, 10, 20], [40, 255, 255]]) / 255, abs=1e-6
    )


def test_each_frame_has_the_rescale_and_the_window_of_its_own(tmp_path: Path) -> None:
    groups = []
    for slope in (1, 3):
        group, value, window = Dataset(), Dataset(), Dataset()
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = slope, 0, "US"
        window.WindowCenter, window.WindowWidth = 50 * slope + 0.5, 100 * slope + 1
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [value], [window]
        groups.append(group)
    pixels = np.full((2, 2, 2), 25, np.uint16)
    path = image(tmp_path, pixels, PerFrameFunctionalGroupsSequence=groups, SharedFunctionalGroupsSequence=[Dataset()])
    assert read([path]).frames[:, 0, 0].tolist() == [25, 75]
    assert read([path], voi=Voi.WINDOW).frames[:, 0, 0] == pytest.approx([0.25, 0.25])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of pydicom
@settings(deadline=None, max_examples=60)
@given(
    centre=st.floats(-2000, 2000),
    width=st.floats(1, 4000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    values=st.lists(st.integers(-3000, 3000), min_size=1, max_size=20),
)
def test_windows_are_those_of_the_standard(centre: float, width: float, function: str, values: list[int]) -> None:
    """Against pydicom's, whose output spans the 16 bits of the data set it is given."""
    dataset = Dataset()
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = "MONOCHROME2", 16, 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = centre, width, function
    stored = np.array(values, np.float64)
    expected = apply_voi_lut(stored, dataset) / 65535
    shown = Window(centre=centre, width=width, function=function).apply(stored.astype(np.float32))
    assert shown == pytest.approx(expected, abs=1e-5)
    assert ((shown >= 0) & (shown <= 1)).all()


def test_a_window_of_one_value_is_a_threshold() -> None:
    values = np.array([9, 9.4, 9.6, 10], np.float32)
    assert Window(centre=10, width=1, function="LINEAR").apply(values).tolist() == [0, 0, 1, 1]
    assert Lookup(first=9, values=np.array([0, 5], np.uint16), highest=5).apply(values).tolist() == [0, 0, 1, 1]


@pytest.mark.fault(88)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_what_shows_nothing_in_a_picture_has_the_value_of_the_contract(tmp_path: Path, photometric: str) -> None:
    """Also when grey is inverse, and it says nothing of how bright the rest is."""
    pixels = np.array([[0, 0, 400, 500], [0, 600, 700, 800]], np.uint16)
    path = image(tmp_path, pixels, PhotometricInterpretation=photometric, PixelPaddingValue=0)
    for voi in Voi:
        pictures = read([path], voi=voi, padding=-7)
        assert pictures.padding == 3
        assert np.array_equal(pictures.frames[0] == -7, pixels == 0)
        assert pictures.remarks["padding"].startswith("3 pixels show nothing")
    shown = np.sort(pictures.frames[0][pixels > 0])
    assert shown == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert np.array_equal(read([path]).frames[0] == read([path], padding=-7).frames[0], pixels > 0)


# --- colour ------------------------------------------------------------------------------------------------------

COLOURS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def planes(colours: np.ndarray) -> bytes:
    return np.ascontiguousarray(np.moveaxis(colours, -1, 0)).tobytes()


def rle(colours: np.ndarray) -> bytes:
    import struct  # noqa: PLC0415

    segments = []
    for sample in range(3):
        plain = colours[..., sample].tobytes()
        runs = b"".join(
            bytes([len(part) - 1]) + part for part in (plain[at : at + 128] for at in range(0, len(plain), 128))
        )
        segments.append(runs + b"\0" * (len(runs) % 2))
    offsets = [64, 64 + len(segments[0]), 64 + len(segments[0]) + len(segments[1])]
    return struct.pack("<16I", 3, *offsets, *[0] * 12) + b"".join(segments)


ENCODED = {
    "native": {},
    "by plane": {"PlanarConfiguration": 1, "PixelData": planes(COLOURS)},
    "rle": {"syntax": RLELossless, "content": rle(COLOURS), "PlanarConfiguration": 1},
    "jpeg 2000": {
        "syntax": JPEG2000Lossless,
        "content": imagecodecs.jpeg2k_encode(COLOURS, level=0, codecformat="j2k", mct=True, reversible=True),
        "PhotometricInterpretation": "YBR_RCT",
    },
    "jpeg-ls": {"syntax": JPEGLSLossless, "content": imagecodecs.jpegls_encode(COLOURS)},
}


@pytest.mark.parametrize("name", ENCODED)
def test_colour_is_the_same_however_it_is_stored(tmp_path: Path, name: str) -> None:
    said = dict(ENCODED[name])
    data = said.pop("PixelData", None)
    path = image(tmp_path, COLOURS, **said)
    if data is not None:
        dataset = dcmread(path)
        dataset.PixelData = data
        dataset.save_as(path)
    assert np.array_equal(read([path]).frames[0], COLOURS)


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_luminance_and_chrominance_become_rgb(tmp_path: Path, photometric: str) -> None:
    smooth = np.stack([*np.meshgrid(np.arange(16) * 15, np.arange(24) * 10, indexing="ij"), np.full((16, 24), 90)], -1)
    smooth = smooth.astype(np.uint8)
    content = imagecodecs.jpeg8_encode(smooth, level=95, subsampling="422" if "422" in photometric else "444")
    path = image(tmp_path, smooth, syntax=JPEGBaseline8Bit, content=content, PhotometricInterpretation=photometric)
    assert np.abs(read([path]).frames[0] - smooth).max() < 12
    assert np.abs(read([path]).frames[0] - imagecodecs.jpeg8_decode(content)).max() <= 2


def test_native_luminance_and_chrominance_become_rgb(tmp_path: Path) -> None:
    stored = convert_color_space(COLOURS, "RGB", "YBR_FULL")
    path = image(tmp_path, stored, PhotometricInterpretation="YBR_FULL")
    expected = convert_color_space(stored, "YBR_FULL", "RGB")
    assert np.abs(read([path]).frames[0] - expected).max() <= 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("vr", ["OB", "OW"])
def test_native_neighbours_that_share_their_colour_are_what_pydicom_makes_of_them(
    tmp_path: Path, syntax: str, vr: str
) -> None:
    """Two luminances, then the colour of both (PS3.3 C.7.6.3.1.2), frame by frame."""
    pairs = np.random.default_rng(1).integers(0, 256, (2, 16, 12, 4), dtype=np.uint8)
    path = image(tmp_path, COLOURS, PhotometricInterpretation="YBR_FULL_422", NumberOfFrames=2)
    made = dcmread(path)
    # A new one, which has no byte order yet.
    dataset = Dataset({element.tag: element for element in made})
    dataset.file_meta = made.file_meta
    words = pairs.tobytes()
    if syntax == ExplicitVRBigEndian and vr == "OW":
        words = np.frombuffer(words, "<u2").astype(">u2").tobytes()
    dataset.add_new("PixelData", vr, words)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    found = read([path]).frames
    expected = convert_color_space(_unpaired(pairs), "YBR_FULL", "RGB")
    assert np.abs(found - expected).max() <= 1
    if syntax != ExplicitVRBigEndian:
        assert np.abs(found - dcmread(path).pixel_array).max() <= 1


def _unpaired(pairs: np.ndarray) -> np.ndarray:
    first, second, blue, red = np.moveaxis(pairs, -1, 0)
    colour = [np.repeat(each, 2, axis=-1) for each in (blue, red)]
    return np.stack([np.stack([first, second], -1).reshape(colour[0].shape), *colour], axis=-1)


@pytest.mark.parametrize("how", ["by plane", "rle"])
def test_luminance_and_chrominance_by_plane_are_what_pydicom_makes_of_them(tmp_path: Path, how: str) -> None:
    said = {"syntax": RLELossless, "content": rle(COLOURS)} if how == "rle" else {}
    path = image(tmp_path, COLOURS, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=1, **said)
    if how == "by plane":
        dataset = dcmread(path)
        dataset.PixelData = planes(COLOURS)
        dataset.save_as(path)
    assert np.abs(read([path]).frames[0] - dcmread(path).pixel_array).max() <= 1


@pytest.mark.parametrize("photometric", ["RGB", "YBR_RCT", "YBR_ICT", "YBR_FULL"])
@pytest.mark.parametrize("turned", [True, False])
def test_jpeg_2000_turns_its_own_colours_back_whatever_they_are_called(
    tmp_path: Path, photometric: str, turned: bool
) -> None:
    """The code stream says whether its components were turned, the header what they are then (PS3.5 8.2.4)."""
    content = imagecodecs.jpeg2k_encode(COLOURS, level=0, codecformat="j2k", mct=turned, reversible=True)
    path = image(tmp_path, COLOURS, syntax=JPEG2000Lossless, content=content, PhotometricInterpretation=photometric)
    expected = convert_color_space(COLOURS, "YBR_FULL", "RGB") if photometric == "YBR_FULL" else COLOURS
    assert np.abs(read([path]).frames[0] - expected).max() <= 1
    assert np.abs(read([path]).frames[0] - dcmread(path).pixel_array).max() <= 1


def test_a_palette_in_segments_is_the_one_that_it_stands_for(tmp_path: Path) -> None:
    """Discrete, linear and indirect segments (PS3.3 C.7.9.2), beside the table that they make."""
    segments = [0, 2, 10, 20, 1, 4, 60, 2, 1]
    table = [10, 20, 30, 40, 50, 60, 10, 20]
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 4)
    for bits in (8, 16):
        said: dict[str, Any] = {}
        whole: dict[str, Any] = {}
        for colour in ("Red", "Green", "Blue"):
            said[f"{colour}PaletteColorLookupTableDescriptor"] = [8, 0, bits]
            said[f"Segmented{colour}PaletteColorLookupTableData"] = np.array(
                [*segments, *[0] * (32 // bits)], f"<u{bits // 8}"
            ).tobytes()
            whole[f"{colour}PaletteColorLookupTableDescriptor"] = [8, 0, bits]
            whole[f"{colour}PaletteColorLookupTableData"] = np.array(table, f"<u{bits // 8}").tobytes()
        one = image(tmp_path, pixels, name="1", PhotometricInterpretation="PALETTE COLOR", **said)
        other = image(tmp_path, pixels, name="2", PhotometricInterpretation="PALETTE COLOR", **whole)
        scale = 255 / (2**bits - 1)
        assert read([other]).frames[0, ..., 0].ravel() == pytest.approx(np.array(table) * scale, rel=1e-6)
        assert np.array_equal(read([one]).frames, read([other]).frames)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_gives_each_value_its_colour(tmp_path: Path, bits: int) -> None:
    highest = 2**bits - 1
    red, green, blue = [0, highest], [highest, 0], [0, 0]
    pixels = np.array([[0, 1], [1, 2]], np.uint8)
    tables: dict[str, Any] = {}
    for colour, entries in (("Red", red), ("Green", green), ("Blue", blue)):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, bits]
        tables[f"{colour}PaletteColorLookupTableData"] = np.array(entries, f"<u{bits // 8}").tobytes()
    path = image(tmp_path, pixels, PhotometricInterpretation="PALETTE COLOR", **tables)
    assert read([path]).frames[0].tolist() == [[[0, 255, 0], [255, 0, 0]], [[255, 0, 0], [255, 0, 0]]]


# --- series ------------------------------------------------------------------------------------------------------


def test_images_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    paths = [image(tmp_path, np.full((2, 2), int(name), np.uint8), name=name) for name in ("10", "9", "2")]
    pictures = read(paths)
    assert pictures.frames[:, 0, 0].tolist() == [2, 9, 10]
    assert pictures.sources == (("1.2.3.2", 1), ("1.2.3.9", 1), ("1.2.3.10", 1))
    assert pictures.series_instance_uid == "1.2.5"


@pytest.mark.parametrize(
    ("said", "mm", "of_detector"),
    [
        ({"PixelSpacing": ["0.2", "0.1"]}, (0.2, 0.1), False),
        ({"ImagerPixelSpacing": ["0.2", "0.1"]}, (0.2, 0.1), True),
        ({"ImagerPixelSpacing": ["0.2", "0.1"], "PixelSpacing": ["0.2", "0.1"]}, (0.2, 0.1), True),
        (
            {
                "ImagerPixelSpacing": ["0.2", "0.1"],
                "PixelSpacing": ["0.2", "0.1"],
                "PixelSpacingCalibrationType": "GEOMETRY",
            },
            (0.2, 0.1),
            False,
        ),
        ({"ImagerPixelSpacing": ["0.2", "0.2"], "PixelSpacing": ["0.1", "0.1"]}, (0.1, 0.1), False),
        ({"NominalScannedPixelSpacing": ["0.2", "0.1"]}, (0.2, 0.1), True),
        ({"PixelSpacing": ["0", "0"]}, None, False),
        ({}, None, False),
    ],
)
def test_the_size_of_pixels_in_the_patient_is_not_that_at_the_detector(
    tmp_path: Path, said: dict[str, Any], mm: tuple[float, float] | None, of_detector: bool
) -> None:
    pictures = read([image(tmp_path, RAMP, **said)])
    assert (pictures.spacing_mm, pictures.spacing_is_of_detector) == (mm, of_detector)


def region(**changes: object) -> Dataset:
    """An ultrasound region of tissue over the whole of `RAMP`, of 0.02 cm along a row and 0.03 cm down a column."""
    item = Dataset()
    said = {
        "RegionSpatialFormat": 1,
        "RegionDataType": 1,
        "RegionLocationMinX0": 0,
        "RegionLocationMinY0": 0,
        "RegionLocationMaxX1": 3,
        "RegionLocationMaxY1": 2,
        "PhysicalUnitsXDirection": 3,
        "PhysicalUnitsYDirection": 3,
        "PhysicalDeltaX": 0.02,
        "PhysicalDeltaY": 0.03,
        **changes,
    }
    for keyword, value in said.items():
        if value is not None:
            setattr(item, keyword, value)
    return item


MM = (0.3, 0.2)
REGIONS: dict[str, tuple[list[Dataset], list[str] | None, tuple[float, float] | None]] = {
    "the whole image": ([region()], None, MM),
    "a pixel more": ([region(RegionLocationMaxX1=4, RegionLocationMaxY1=3)], None, MM),
    "counted upwards": ([region(PhysicalDeltaY=-0.03)], None, MM),
    "a part": ([region(RegionLocationMinX0=1)], None, None),
    "a part, and the image says the same": ([region(RegionLocationMinX0=1)], ["0.3", "0.2"], MM),
    "a part, and the image says something else": ([region(RegionLocationMinX0=1)], ["0.5", "0.5"], None),
    "the whole image, which says something else": ([region()], ["0.5", "0.5"], MM),
    "two": ([region(), region(PhysicalDeltaX=0.05)], None, None),
    "two of one spacing, and the image says the same": ([region(RegionLocationMinX0=2), region()], ["0.3", "0.2"], MM),
    "a spectrum": ([region(RegionSpatialFormat=3)], ["0.3", "0.2"], None),
    "tissue beside a spectrum": ([region(), region(RegionDataType=3)], ["0.3", "0.2"], None),
    "seconds along a row": ([region(PhysicalUnitsXDirection=4)], None, None),
    "no corners": ([region(RegionLocationMinX0=None)], None, None),
    "no deltas": ([region(PhysicalDeltaX=None)], None, None),
    "nothing": ([region(PhysicalDeltaX=0.0)], None, None),
}


@pytest.mark.parametrize("name", REGIONS)
def test_an_ultrasound_has_a_spacing_only_when_all_of_it_has_the_same(tmp_path: Path, name: str) -> None:
    regions, spacing, expected = REGIONS[name]
    pictures = read([image(tmp_path, RAMP, SequenceOfUltrasoundRegions=regions, PixelSpacing=spacing)])
    assert pictures.spacing_mm == (None if expected is None else pytest.approx(expected))
    assert ("ultrasound regions" in pictures.remarks.get("spacing", "")) == (expected is None)


def test_images_of_different_spacing_have_none_in_common(tmp_path: Path) -> None:
    paths = [image(tmp_path, RAMP, name=name, PixelSpacing=[spacing] * 2) for name, spacing in (("1", "1"), ("2", "2"))]
    pictures = read(paths)
    assert pictures.spacing_mm is None
    assert "spacing" in pictures.remarks


MIXED = {
    "another size": ({"pixels": RAMP[:2]}, "mixed_size", InputRefused),
    "colour": ({"pixels": np.zeros((3, 4, 3), np.uint8)}, "mixed_colour", InputRefused),
    "another patient": ({"PatientID": "SOMEBODY"}, "mixed_patient", ContradictoryIdentity),
    "another study": ({"StudyInstanceUID": "9.9"}, "mixed_study", ContradictoryIdentity),
    "another series": ({"SeriesInstanceUID": "9.9"}, "mixed_series", ContradictoryIdentity),
    "the same again": ({"SOPInstanceUID": "1.2.3.1"}, "duplicate_instance", InputRefused),
}


@pytest.mark.parametrize("name", MIXED)
def test_images_that_are_no_one_series_are_refused(tmp_path: Path, name: str) -> None:
    said, reason, kind = MIXED[name]
    other = {"pixels": RAMP, **said}
    paths = [image(tmp_path, RAMP), image(tmp_path, other.pop("pixels"), name="2", **other)]
    with pytest.raises(kind) as refused:
        read(paths)
    assert refused.value.reason == reason
    assert "NOBODY" not in str(refused.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another photometric interpretation": ({"PhotometricInterpretation": "CMYK"}, "photometric_interpretation"),
    "none": ({"PhotometricInterpretation": None}, "photometric_interpretation"),
    "native chrominance that is shared": (
        {"pixels": COLOURS, "PhotometricInterpretation": "YBR_FULL_422"},
        "photometric_interpretation",
    ),
    "more samples than it says": ({"SamplesPerPixel": 3}, "samples_per_pixel"),
    "no rows": ({"Rows": None}, "missing_rows"),
    "more pixels than there are": ({"Rows": 4000}, "short_pixel_data"),
    "terabytes": ({"Rows": 65535, "Columns": 65535}, "size"),
    "a slope of zero": ({"RescaleSlope": "0", "RescaleIntercept": "1"}, "rescale"),
    "a window without width": ({"WindowCenter": "1", "WindowWidth": "0"}, "voi"),
    "a window of no known function": (
        {"WindowCenter": "1", "WindowWidth": "5", "VOILUTFunction": "MAGIC"},
        "voi",
    ),
    "a palette without tables": ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
    "no study": ({"StudyInstanceUID": None}, "missing_attribute"),
    "values beyond all": ({"RescaleSlope": "1e300", "RescaleIntercept": "0"}, "not_finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_sound_image_is_refused_by_name(tmp_path: Path, name: str) -> None:
    said, reason = WRONG[name]
    said = {"pixels": RAMP, **said}
    with pytest.raises(InputRefused) as refused:
        read([image(tmp_path, said.pop("pixels"), **said)], voi=Voi.WINDOW)
    assert refused.value.reason == reason
    assert "NOBODY" not in str(refused.value)


@pytest.mark.shared
def test_a_damaged_image_is_refused_by_name(shared_dicom: Path, tmp_path: Path) -> None:
    whole = (shared_dicom / "cxr/PatientA.dcm").read_bytes()
    for length in (100, 400, 2000, len(whole) // 2):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        with pytest.raises(InputRefused):
            read([tmp_path / "cut.dcm"])
