"""Every transfer syntax × bit depth × sign against its uncompressed twin, and against a second decoder."""

import shutil
import subprocess
from pathlib import Path

import encoded_pixels as encoded
import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from meddaemon.domain.errors import UndecodablePixels
from meddaemon.inference.pixels import SYNTAXES
from meddaemon.inference.volume import read_layout, stored_frames

DEPTHS = (1, 2, 7, 8, 10, 12, 13, 16)


def decoded(path: Path) -> np.ndarray:
    return np.stack(list(stored_frames(read_layout(path))))


@pytest.mark.fault(100)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("syntax", [*encoded.NATIVE, *encoded.LOSSLESS], ids=lambda uid: UID(uid).name)
def test_lossless_syntaxes_hold_every_value(tmp_path: Path, syntax: str, bits: int, signed: bool) -> None:
    if bits == 1 and syntax in {JPEGLossless, JPEGLosslessSV1}:
        pytest.skip("JPEG has no samples of one bit")
    values = encoded.image(bits, signed=signed, frames=3)
    path = encoded.write(tmp_path / "file", values, bits, syntax)
    found = decoded(path)
    assert found.dtype == values.dtype
    assert np.array_equal(found, values)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("syntax", [*encoded.NATIVE, RLELossless], ids=lambda uid: UID(uid).name)
def test_32_bits(tmp_path: Path, syntax: str, signed: bool) -> None:
    values = encoded.image(32, signed=signed)
    assert np.array_equal(decoded(encoded.write(tmp_path / "file", values, 32, syntax)), values)


@pytest.mark.fault(100)
@pytest.mark.parametrize(
    ("syntax", "bits", "signed", "off"),
    [
        (JPEGBaseline8Bit, 8, False, 8),
        (JPEGExtended12Bit, 12, False, 40),
        (JPEGLSNearLossless, 8, False, 3),
        (JPEGLSNearLossless, 12, False, 3),
        (JPEGLSNearLossless, 16, False, 3),
        (JPEG2000, 8, False, 4),
        (JPEG2000, 12, False, 40),
        (JPEG2000, 16, True, 900),
        (HTJ2K, 8, False, 8),
        (HTJ2K, 12, False, 80),
        (HTJ2K, 16, False, 900),
        (HTJ2K, 16, True, 900),
    ],
)
def test_lossy_syntaxes_are_near(tmp_path: Path, syntax: str, bits: int, signed: bool, off: int) -> None:
    values = encoded.image(bits, signed=signed, rows=90, columns=110)
    path = encoded.write(tmp_path / "file", values, bits, syntax)
    differences = np.abs(decoded(path).astype(np.int64) - values)
    assert differences.max() <= off
    assert path.stat().st_size < values.nbytes


SECOND = {
    RLELossless: "pydicom",
    JPEGBaseline8Bit: "gdcm",
    JPEGLosslessSV1: "gdcm",
    "1.2.840.10008.1.2.4.57": "gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    HTJ2K: "pylibjpeg",
}
"""Another decoder than ours for the same syntax, in tests alone."""

PEER_LIMITS = {(JPEGBaseline8Bit, 12), (JPEGBaseline8Bit, 16)}


@pytest.mark.fault(100)
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", SECOND, ids=lambda uid: UID(uid).name)
def test_two_decoders_agree(tmp_path: Path, syntax: str, bits: int) -> None:
    if (syntax, bits) in PEER_LIMITS:
        pytest.skip("the syntax has 8 bits")
    values = encoded.image(bits, signed=False, frames=2, rows=64, columns=48)
    path = encoded.write(tmp_path / "file", values, bits, syntax)
    dataset = dcmread(path)
    dataset.pixel_array_options(decoding_plugin=SECOND[syntax])
    # Where the stream has more bits than are stored, the other decoders leave what it overshoots.
    assert np.array_equal(decoded(path), np.minimum(dataset.pixel_array, (1 << bits) - 1))


def test_an_irreversible_stream_is_not_lossless(tmp_path: Path) -> None:
    """OpenJPH lets it overshoot the range, to the other end of it: 65535 becomes 0."""
    values = encoded.image(16, signed=False)
    path = encoded.write(tmp_path / "file", values, 16, HTJ2K)
    path.write_bytes(path.read_bytes().replace(HTJ2K.encode() + b"\0", HTJ2KLossless.encode() + b"\0"))
    with pytest.raises(UndecodablePixels, match="irreversible"):
        decoded(path)


@pytest.mark.fault(100)
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "plugin"),
    [
        ("compressed/CT1_J2KI.dcm", "pylibjpeg"),
        ("compressed/CT1_J2KR.dcm", "gdcm"),
        ("compressed/CT1_JLSN.dcm", "pyjpegls"),
        ("compressed/CT1_JLSL.dcm", "gdcm"),
        ("compressed/CT1_JPLL.dcm", "gdcm"),
        ("cxr/PatientA.dcm", "gdcm"),
        ("cxr/RG1_J2KI.dcm", "pylibjpeg"),
        ("other/PT_LUT_GH610.dcm", "gdcm"),
        ("other/MG_OutOfBoundsOverlay.dcm", "gdcm"),
        ("other/XA1_J2KR.dcm", "pylibjpeg"),
        ("series/ct_chest_P001", "gdcm"),
        ("series/ct_abdomen_totalseg", "pylibjpeg"),
    ],
)
def test_two_decoders_agree_on_real_files(shared_dicom: Path, name: str, plugin: str) -> None:
    path = shared_dicom / name
    path = sorted(path.iterdir())[3] if path.is_dir() else path
    dataset = dcmread(path)
    dataset.pixel_array_options(decoding_plugin=plugin)
    expected = dataset.pixel_array.astype(np.int64)
    bits = dataset.BitsStored
    if not dataset.PixelRepresentation:
        expected &= (1 << bits) - 1
    assert np.array_equal(decoded(path)[0], expected)


@pytest.mark.shared
@pytest.mark.peer
def test_extended_jpeg_of_12_bits_decodes_as_dcmtk_does(shared_dicom: Path, tmp_path: Path) -> None:
    """GDCM and pylibjpeg fail on this file."""
    if shutil.which("dcmdjpeg") is None:
        pytest.skip("no DCMTK on this machine")
    path = shared_dicom / "compressed/MR1_JPLY.dcm"
    subprocess.run(["dcmdjpeg", str(path), str(tmp_path / "plain.dcm")], check=True, capture_output=True)
    assert np.array_equal(decoded(path)[0], dcmread(tmp_path / "plain.dcm").pixel_array)


# --- signs and bits ---------------------------------------------------------------------------------------------------


@pytest.mark.fault(88)
@pytest.mark.parametrize("stream_is_signed", [False, True])
def test_the_header_says_what_the_bits_of_a_code_stream_mean(tmp_path: Path, stream_is_signed: bool) -> None:
    """The stream says the opposite of the header: its bits are right, the sign is the header's (PS3.5 8.2.4)."""
    values = encoded.image(13, signed=not stream_is_signed)
    raw = encoded.raw_of(values, 13)
    wrong = raw if not stream_is_signed else (raw.astype(np.int16) << 3) >> 3
    dataset = encoded.described(values, 13, JPEG2000Lossless)
    stream = imagecodecs.jpeg2k_encode(wrong[0], level=0, reversible=True, codecformat="J2K", bitspersample=13)
    dataset.PixelData = encapsulate([stream])
    dataset.save_as(tmp_path / "file", enforce_file_format=True)
    assert np.array_equal(decoded(tmp_path / "file"), values)


@pytest.mark.fault(88)
@pytest.mark.shared
def test_a_real_file_whose_code_stream_has_another_sign(shared_dicom: Path) -> None:
    path = shared_dicom / "broken/J2K_pixelrep_mismatch.dcm"
    dataset = dcmread(path)
    dataset.pixel_array_options(decoding_plugin="pylibjpeg")
    found = decoded(path)[0]
    assert found.dtype == np.int16
    assert np.array_equal(found, dataset.pixel_array)
    assert found.min() < 0


@pytest.mark.fault(88)
def test_fewer_bits_and_another_sign_are_no_answer(tmp_path: Path) -> None:
    """11 bits without a sign for 12 with one: nobody knows whether 1500 is 1500 or -548."""
    for value, sound in ((1023, True), (1024, False)):
        values = np.full((1, 8, 8), value, np.int16)
        dataset = encoded.described(values, 12, JPEG2000Lossless)
        raw = values[0].astype(np.uint16)
        stream = imagecodecs.jpeg2k_encode(raw, level=0, reversible=True, codecformat="J2K", bitspersample=11)
        dataset.PixelData = encapsulate([stream])
        dataset.save_as(tmp_path / "file", enforce_file_format=True)
        if sound:
            assert np.array_equal(decoded(tmp_path / "file"), values)
        else:
            with pytest.raises(UndecodablePixels, match="contradict"):
                decoded(tmp_path / "file")


@pytest.mark.fault(88)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [*encoded.NATIVE, RLELossless], ids=lambda uid: UID(uid).name)
def test_bits_above_the_stored_ones_are_none(tmp_path: Path, syntax: str, signed: bool) -> None:
    values = encoded.image(12, signed=signed)
    stray = (encoded.raw_of(values, 12) | 0xA000).view(values.dtype)
    path = encoded.write(tmp_path / "file", stray, 16, syntax)
    dataset = dcmread(path)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.save_as(path, enforce_file_format=True)
    assert np.array_equal(decoded(path), values)


def test_8_bits_in_words_of_big_endian(tmp_path: Path) -> None:
    values = encoded.image(8, signed=False, rows=4, columns=6)
    path = encoded.write(tmp_path / "file", values, 8, ExplicitVRBigEndian)
    dataset = dcmread(path)
    dataset["PixelData"].VR = "OW"
    swapped = np.frombuffer(dataset.PixelData, np.uint8).reshape(-1, 2)[:, ::-1].tobytes()
    dataset.PixelData = swapped
    dataset.save_as(path, enforce_file_format=True)
    assert np.array_equal(decoded(path), values)


# --- fragments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [False, True], ids=["no table", "offset table"])
@pytest.mark.parametrize("per_frame", [1, 3])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_frames_in_several_fragments(tmp_path: Path, syntax: str, per_frame: int, table: bool) -> None:
    values = encoded.image(12, signed=True, frames=4)
    path = tmp_path / "file"
    encoded.write(path, values, 12, syntax, fragments_per_frame=per_frame, has_bot=table)
    if syntax == RLELossless and per_frame > 1 and not table:
        with pytest.raises(UndecodablePixels, match="nothing tells which is whose"):
            decoded(path)
        return
    assert np.array_equal(decoded(path), values)


def test_a_code_stream_in_a_jp2_file(tmp_path: Path) -> None:
    values = encoded.image(12, signed=False)
    dataset = encoded.described(values, 12, JPEG2000Lossless)
    stream = imagecodecs.jpeg2k_encode(values[0], level=0, reversible=True, codecformat="JP2", bitspersample=12)
    dataset.PixelData = encapsulate([stream])
    dataset.save_as(tmp_path / "file", enforce_file_format=True)
    assert np.array_equal(decoded(tmp_path / "file"), values)


def test_every_syntax_is_covered_here() -> None:
    assert set(SYNTAXES) == {*encoded.NATIVE, *encoded.ENCODERS}
    assert DeflatedExplicitVRLittleEndian in SYNTAXES
    assert ExplicitVRLittleEndian in SYNTAXES
