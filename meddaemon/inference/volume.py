"""The files of a series to one sound volume, or a refusal that says which instance and which numbers.

Everything in a header is hostile until checked: no memory is asked for on the word of a header alone, and what a
decoder may raise becomes one of our errors. A decoder may also crash; that is why only the model child comes here.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from meddaemon.domain.contract import GeometryPolicy
from meddaemon.domain.errors import ContradictoryIdentity, InputRefused, UndecodablePixels, UnsoundVolume
from meddaemon.domain.volume import Volume
from meddaemon.inference.geometry import STRICT, Plane, arrange

# One decoder per transfer syntax, so that the same file gives the same pixels on every machine: pydicom alone
# would try one after the other. GDCM only where nothing else (without a copyleft licence) can.
DECODERS: dict[UID, str] = {
    ImplicitVRLittleEndian: "",
    ExplicitVRLittleEndian: "",
    ExplicitVRBigEndian: "",
    DeflatedExplicitVRLittleEndian: "",
    RLELossless: "pydicom",
    JPEGBaseline8Bit: "gdcm",
    JPEGExtended12Bit: "gdcm",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
}

MAX_PLANE_PIXELS = 2**26
"""No detector makes a larger plane (8192 × 8192); a larger claim is refused before any decoder sees it."""

MAX_FRAMES = 2**16

# What pydicom and the decoders are known to raise on damaged or hostile input.
READ_ERRORS = (
    InvalidDicomError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """Modality transformation of one plane: value = slope · stored value + intercept (PS3.3 C.11.1)."""

    slope: float
    intercept: float


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The header of one file, checked: whose it is, and its planes in the order in which they are stored."""

    path: Path
    sop_instance_uid: str
    transfer_syntax_uid: UID
    identity: Mapping[str, str]
    planes: tuple[Plane, ...]
    rescales: tuple[Rescale, ...]


def assemble(instances: Sequence[Path]) -> Volume:
    """Return the one volume that the instances make, in whatever order they are given.

    Takes single-frame instances, enhanced multi-frame instances, or both; the planes come out in ascending order
    along the normal, in real-world values as float32 [plane, row, column].

    Raises `UnsoundVolume` (see `geometry.arrange` for what concerns the stack; `unreadable`, `duplicate_instance`,
    `missing_<attribute>`, `malformed`, `localizer`, `mosaic`, `samples_per_pixel`, `photometric_interpretation`,
    `bits`, `size`, `frames`, `modality_lut`, `rescale`, `missing_functional_groups`, `not_finite` for single
    files), `UndecodablePixels` (`no_decoder`, `short_pixel_data`, `damaged_pixel_data`) and
    `ContradictoryIdentity` (`mixed_patient`, `mixed_study`, `mixed_series`).
    """
    return assemble_read([read_header(path) for path in instances])


def read_inputs(inputs: Mapping[str, Sequence[Path]]) -> dict[str, tuple[Frames, ...]]:
    """Read the headers of every input of a model; raises what `read_header` raises.

    The inputs may be different series, but only of one patient and one study: else `ContradictoryIdentity`.
    """
    headers = {key: tuple(read_header(path) for path in paths) for key, paths in inputs.items()}
    everything = [header for each in headers.values() for header in each]
    for level in ("patient", "study"):
        _refuse_mixture(level, everything)
    return headers


def decoding_bytes(headers: Sequence[Frames]) -> int:
    """Return how much memory assembling these files can honestly need: the volume, and a few planes on the way."""
    planes = [plane.rows * plane.columns for header in headers for plane in header.planes]
    files = [header.path.stat().st_size for header in headers]
    return 4 * sum(planes) + 64 * max(planes, default=0) + 2 * max(files, default=0)


def assemble_read(headers: Sequence[Frames], policy: GeometryPolicy = STRICT) -> Volume:
    """Return the one volume that files make whose headers were read; raises what `assemble` raises.

    What is no box is refused unless `policy` takes it.
    """
    for level in ("patient", "study", "series"):
        _refuse_mixture(level, headers)
    _refuse_repetition(headers)
    planes = [plane for header in headers for plane in header.planes]
    geometry, order = arrange(planes, policy)
    place = {source: plane for plane, source in enumerate(order)}
    voxels = np.empty(geometry.shape, dtype=np.float32)
    source = 0
    for header in headers:
        for frame, rescale in zip(decode(header), header.rescales, strict=True):
            np.copyto(voxels[place[source]], _rescaled(frame, rescale), casting="same_kind")
            source += 1
    for plane, sop_instance_uid in enumerate(geometry.sop_instance_uids):
        if not np.isfinite(voxels[plane]).all():
            raise UnsoundVolume("not_finite", "a pixel is not a finite number", sop_instance_uid=sop_instance_uid)
    return Volume(voxels=voxels, geometry=geometry, series_instance_uid=headers[0].identity["series"])


def read_header(path: Path) -> Frames:
    """Read and check the header of one file without its pixels; raises `UnsoundVolume`, `UndecodablePixels`."""
    try:
        # Values that break their VR are judged by us, by name; pydicom's warnings would quote them, and so a patient.
        with pydicom_config.disable_value_validation():
            dataset = dcmread(path, stop_before_pixels=True)
            # Values are converted when they are first touched: touch everything while errors are translated.
            return _Header(path, dataset).frames()
    except InputRefused:
        raise
    except READ_ERRORS as error:
        # The text of the error may quote a value of the header, and so a patient: name only its type.
        raise UnsoundVolume(
            "unreadable", f"not a readable DICOM file ({type(error).__name__})", numbers={"file": path.name}
        ) from error


def decode(header: Frames) -> Iterator[NDArray[np.generic]]:
    """Yield the stored values [row, column] of every frame of the file, in stored order.

    Raises `UndecodablePixels` when the data are absent, short or damaged, or no decoder is installed.
    """
    plugin = DECODERS[header.transfer_syntax_uid]
    first = header.planes[0]
    count = 0
    try:
        # pydicom reads frame by frame from a path, but does not inflate there.
        deflated = header.transfer_syntax_uid.is_deflated
        source = dcmread(header.path) if deflated else header.path
        for frame in iter_pixels(source, raw=True, decoding_plugin=plugin):
            if frame.shape != (first.rows, first.columns):
                _undecodable(header, "damaged_pixel_data", f"frame {count + 1} has another shape than its header")
            count += 1
            yield frame
            if count == len(header.planes):
                break
    except READ_ERRORS as error:
        _undecodable(header, "damaged_pixel_data", _decoder_message(error), error)
    if count != len(header.planes):
        _undecodable(header, "short_pixel_data", f"{count} of {len(header.planes)} frames are there")


def _undecodable(header: Frames, reason: str, message: str, cause: BaseException | None = None) -> NoReturn:
    raise UndecodablePixels(
        reason,
        f"{message} (transfer syntax {header.transfer_syntax_uid.name})",
        sop_instance_uid=header.sop_instance_uid,
        numbers={"frames": len(header.planes), "transfer_syntax_uid": str(header.transfer_syntax_uid)},
    ) from cause


def _decoder_message(error: BaseException) -> str:
    """Return the first line of what the decoder said, bounded; pixel errors quote sizes, never a patient."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _rescaled(frame: NDArray[np.generic], rescale: Rescale) -> NDArray[np.float32]:
    """Return real-world values; computed in double precision so that float32 rounds once."""
    values = frame.astype(np.float64) * rescale.slope + rescale.intercept
    with np.errstate(over="ignore"):  # infinity is found and refused by the caller
        return values.astype(np.float32)


def _refuse_mixture(level: str, headers: Sequence[Frames]) -> None:
    """Refuse instances of more than one patient, study or series."""
    for header in headers:
        if header.identity[level] != headers[0].identity[level]:
            raise ContradictoryIdentity(
                f"mixed_{level}",
                f"belongs to another {level} than instance {headers[0].sop_instance_uid}",
                sop_instance_uid=header.sop_instance_uid,
                numbers={"instances": len(headers)},
            )


def _refuse_repetition(headers: Sequence[Frames]) -> None:
    """Refuse the same instance given twice."""
    seen: set[str] = set()
    for header in headers:
        if header.sop_instance_uid in seen:
            raise UnsoundVolume("duplicate_instance", "occurs more than once", sop_instance_uid=header.sop_instance_uid)
        seen.add(header.sop_instance_uid)


class _Header:
    """One data set on its way to `Frames`: looks up attributes, refuses by name what is missing or malformed."""

    def __init__(self, path: Path, dataset: FileDataset) -> None:
        self.path = path
        self.dataset = dataset
        meta_uid = dataset.file_meta.get("MediaStorageSOPInstanceUID")
        # Some de-identifiers empty the UID in the data set; the file meta then still names the instance.
        self.uid = str(dataset.get("SOPInstanceUID") or meta_uid or "")
        if not self.uid:
            self.refuse("missing_sop_instance_uid", "has no SOP Instance UID", file=path.name)

    def refuse(self, reason: str, message: str, **numbers: object) -> NoReturn:
        raise UnsoundVolume(reason, message, sop_instance_uid=self.uid, numbers=numbers)

    def frames(self) -> Frames:
        """Check everything that concerns this file alone."""
        dataset = self.dataset
        transfer_syntax_uid = self.transfer_syntax_uid()
        self.refuse_what_is_no_slice()
        count = self.integer("NumberOfFrames") if dataset.get("NumberOfFrames") is not None else 1
        rows, columns = self.integer("Rows"), self.integer("Columns")
        self.refuse_impossible_size(count, rows, columns, transfer_syntax_uid)
        frame_of_reference_uid = str(dataset.get("FrameOfReferenceUID") or "")
        if not frame_of_reference_uid:
            self.refuse("missing_frame_of_reference_uid", "has no Frame of Reference UID")
        groups = self.functional_groups(count)
        planes = tuple(
            Plane(
                sop_instance_uid=self.uid,
                frame_number=number,
                position=self.triple(group),
                orientation=self.sextuple(group),
                pixel_spacing=self.pair(group),
                rows=rows,
                columns=columns,
                frame_of_reference_uid=frame_of_reference_uid,
            )
            for number, group in enumerate(groups, start=1)
        )
        return Frames(
            path=self.path,
            sop_instance_uid=self.uid,
            transfer_syntax_uid=transfer_syntax_uid,
            identity=self.identity(),
            planes=planes,
            rescales=tuple(self.rescale(group) for group in groups),
        )

    def transfer_syntax_uid(self) -> UID:
        uid = self.dataset.file_meta.get("TransferSyntaxUID")
        if not uid:
            self.refuse("missing_transfer_syntax_uid", "file meta names no Transfer Syntax UID")
        if uid not in DECODERS:
            raise UndecodablePixels(
                "no_decoder",
                f"no decoder for transfer syntax {UID(uid).name}",
                sop_instance_uid=self.uid,
                numbers={"transfer_syntax_uid": str(uid)},
            )
        return UID(uid)

    def identity(self) -> dict[str, str]:
        """Return patient, study and series; a missing Patient ID is legal (type 2), missing UIDs are not."""
        dataset = self.dataset
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            if not dataset.get(keyword):
                self.refuse(_missing(keyword), f"has no {keyword}")
        patient = f"{dataset.get('PatientID') or ''}\x1f{dataset.get('IssuerOfPatientID') or ''}"
        return {
            "patient": patient,
            "study": str(dataset.StudyInstanceUID),
            "series": str(dataset.SeriesInstanceUID),
        }

    def refuse_what_is_no_slice(self) -> None:
        """Refuse images whose pixels are not one grey value per voxel of one plane."""
        dataset = self.dataset
        image_type = {str(each).upper() for each in _components(dataset.get("ImageType"))}
        if "LOCALIZER" in image_type:
            self.refuse("localizer", "is a localizer")
        if "MOSAIC" in image_type:
            self.refuse("mosaic", "is a mosaic of many planes")
        samples = self.integer("SamplesPerPixel")
        if samples != 1:
            self.refuse("samples_per_pixel", f"has {samples} samples per pixel", samples_per_pixel=samples)
        photometric = str(dataset.get("PhotometricInterpretation") or "")
        # MONOCHROME1 says how to show a value, not what it means; models are not trained on it, so nobody knows.
        if photometric != "MONOCHROME2":
            self.refuse("photometric_interpretation", f"Photometric Interpretation {photometric[:16]!r} is not taken")
        allocated = self.integer("BitsAllocated")
        if allocated not in {8, 16, 32, 64}:
            self.refuse("bits", f"has {allocated} bits allocated", bits_allocated=allocated)
        if dataset.get("BitsStored") is not None and dataset.get("HighBit") is not None:
            stored, high = self.integer("BitsStored"), self.integer("HighBit")
            if not 1 <= stored <= allocated or high != stored - 1:
                self.refuse(
                    "bits",
                    f"{allocated} bits allocated, {stored} stored, high bit {high} contradict each other",
                    bits_allocated=allocated,
                    bits_stored=stored,
                    high_bit=high,
                )
        if dataset.get("ModalityLUTSequence"):
            self.refuse("modality_lut", "has a Modality LUT, which is not linear")

    def refuse_impossible_size(self, count: int, rows: int, columns: int, transfer_syntax_uid: UID) -> None:
        """Refuse claims that no scanner makes or that the file is too short to hold."""
        if rows < 1 or columns < 1 or rows * columns > MAX_PLANE_PIXELS:
            self.refuse("size", f"{rows} rows and {columns} columns are not taken", rows=rows, columns=columns)
        if not 1 <= count <= MAX_FRAMES:
            self.refuse("frames", f"{count} frames are not taken", frames=count)
        needed = count * rows * columns * self.integer("BitsAllocated") // 8
        held = self.path.stat().st_size
        # Compressed and deflated files are judged by what their decoder yields.
        native = not transfer_syntax_uid.is_compressed and not transfer_syntax_uid.is_deflated
        if native and needed > held:
            raise UndecodablePixels(
                "short_pixel_data",
                f"{count} × {rows} × {columns} pixels need {needed} bytes, the file has {held}",
                sop_instance_uid=self.uid,
                numbers={"needed_bytes": needed, "file_bytes": held},
            )

    def functional_groups(self, count: int) -> list[tuple[Dataset, ...]]:
        """Return for each frame where to look for its attributes, nearest first (PS3.3 C.7.6.16)."""
        per_frame = self.dataset.get("PerFrameFunctionalGroupsSequence")
        if per_frame is None:
            if count > 1:
                self.refuse("missing_functional_groups", f"{count} frames without functional groups", frames=count)
            return [(self.dataset,)]
        if len(per_frame) != count:
            self.refuse(
                "frames", f"{count} frames, {len(per_frame)} functional groups", frames=count, groups=len(per_frame)
            )
        shared = self.dataset.get("SharedFunctionalGroupsSequence") or ()
        return [(item, *shared[:1]) for item in per_frame]

    def triple(self, group: tuple[Dataset, ...]) -> tuple[float, float, float]:
        x, y, z = self.numbers(group, "PlanePositionSequence", "ImagePositionPatient", 3)
        return x, y, z

    def sextuple(self, group: tuple[Dataset, ...]) -> tuple[float, float, float, float, float, float]:
        a, b, c, d, e, f = self.numbers(group, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        return a, b, c, d, e, f

    def pair(self, group: tuple[Dataset, ...]) -> tuple[float, float]:
        row, column = self.numbers(group, "PixelMeasuresSequence", "PixelSpacing", 2)
        return row, column

    def rescale(self, group: tuple[Dataset, ...]) -> Rescale:
        """Return the rescale of the frame; an image without any holds its values as they are."""
        pair = []
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
            value = self.look_up(group, "PixelValueTransformationSequence", keyword)
            pair.append(default if value is None or value == "" else self.number(keyword, value))
        slope, intercept = pair
        if not np.isfinite(pair).all() or slope == 0:
            self.refuse("rescale", f"rescale slope {slope}, intercept {intercept}", slope=slope, intercept=intercept)
        return Rescale(slope=slope, intercept=intercept)

    def look_up(self, group: tuple[Dataset, ...], sequence: str, keyword: str) -> object:
        """Return the raw value from the functional group macro, or from the data set itself when it is classic."""
        for source in group:
            if source is self.dataset:
                return source.get(keyword)
            macro = source.get(sequence)
            if macro:
                value: object = macro[0].get(keyword)
                return value
        return None

    def numbers(self, group: tuple[Dataset, ...], sequence: str, keyword: str, count: int) -> list[float]:
        components = _components(self.look_up(group, sequence, keyword))
        if not components:
            self.refuse(_missing(keyword), f"has no {keyword}")
        if len(components) != count:
            self.refuse("malformed", f"{keyword} has {len(components)} components instead of {count}")
        return [self.number(keyword, each) for each in components]

    def number(self, keyword: str, value: object) -> float:
        try:
            return float(str(value))
        except ValueError:
            self.refuse("malformed", f"{keyword} is not a number")

    def integer(self, keyword: str) -> int:
        value = self.dataset.get(keyword)
        if value is None or value == "":
            self.refuse(_missing(keyword), f"has no {keyword}")
        if not isinstance(value, int):
            self.refuse("malformed", f"{keyword} is not one whole number")
        return int(value)


def _components(value: object) -> list[object]:
    """Return the components of a DICOM value, whatever its multiplicity."""
    if value is None or value == "":
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return [value]
    return list(value)


def _missing(keyword: str) -> str:
    """Return the reason for a missing attribute: `PixelSpacing` -> `missing_pixel_spacing`."""
    words = "".join(f" {c.lower()}" if c.isupper() and not prev.isupper() else c.lower() for prev, c in _pairs(keyword))
    return "missing_" + words.strip().replace(" ", "_")


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    return zip(" " + text, text, strict=False)
