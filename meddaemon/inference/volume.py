"""The files of a series to one sound volume, or a refusal that says which instance and which numbers.

Everything in a header is hostile until checked: no memory is asked for on the word of a header alone, and what a
decoder may raise becomes one of our errors. A decoder may also crash; that is why only a disposable process comes here.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from meddaemon.domain.contract import MOMENTS, GeometryPolicy
from meddaemon.domain.errors import ContradictoryIdentity, UndecodablePixels, UnsoundVolume
from meddaemon.domain.volume import Volume, VoxelMeaning
from meddaemon.inference import modality, part10, pixels, stacks
from meddaemon.inference.geometry import STRICT, Plane
from meddaemon.inference.modality import Modality, NotFinite, NotWhole, Rescale
from meddaemon.inference.part10 import Attributes
from meddaemon.inference.pixels import Layout
from meddaemon.inference.stacks import Twin

MAX_PLANE_PIXELS = 2**26
"""No detector makes a larger plane (8192 × 8192); a larger claim is refused before any decoder sees it."""

MAX_FRAMES = 2**16

MAXIMUM_THREADS = 8
"""More do not help: memory is as fast as it is. Each costs the address space of an arena of the C library."""

_ARENA_BYTES = 2**27

Voxels = NDArray[np.int16] | NDArray[np.float32]
Allocate = Callable[[tuple[int, int, int], DTypeLike], Voxels]
"""Makes the array of a volume, such as one that another process sees too; it need not be cleared."""

Watch = Callable[["Frames"], AbstractContextManager[object]]
"""Is entered for each file while it is decoded, perhaps several times, from any thread."""

_MOMENT_NAMES = {name: classic for classic, enhanced in MOMENTS.items() for name in (classic, enhanced) if name}
_MOMENT_MACROS = (
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
    "FrameContentSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "CardiacSynchronizationSequence",
)
_TRANSFORMATION = "PixelValueTransformationSequence"

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The header of one file, checked: whose it is, its planes in the order in which they are stored, its pixels.

    `modalities` says for each plane what its stored values mean, `meaning` what the values are that come of it.
    """

    path: Path
    sop_instance_uid: str
    identity: Mapping[str, str]
    planes: tuple[Plane, ...]
    modalities: tuple[Modality, ...] = field(repr=False)
    layout: Layout
    meaning: VoxelMeaning = VoxelMeaning.UNNAMED


def assemble(instances: Sequence[Path]) -> Volume:
    """Return the one volume that the instances make, in whatever order they are given.

    Takes single-frame instances, enhanced multi-frame instances, or both; the planes come out in ascending order
    along the normal, in real-world values as int16 or float32 [plane, row, column].

    Raises `UnsoundVolume` (see `stacks.select` for what concerns the stack; `unreadable`, `duplicate_instance`,
    `missing_<attribute>`, `malformed`, `localizer`, `mosaic`, `samples_per_pixel`, `photometric_interpretation`,
    `bits`, `size`, `frames`, `modality_lut`, `rescale`, `missing_functional_groups`, `not_finite` for single
    files), `UndecodablePixels` (`no_decoder`, `missing_pixel_data`, `short_pixel_data`, `damaged_pixel_data`) and
    `ContradictoryIdentity` (`mixed_patient`, `mixed_study`, `mixed_series`).
    """
    return assemble_read(read_headers(instances))


def read_headers(paths: Sequence[Path], threads: int | None = None) -> list[Frames]:
    """Read and check the headers of files, in this order; raises what `read_header` raises, of the first that fails.

    More `threads` than one (the default) hide what a slow disk takes; the scan itself gains nothing by them.
    """
    return _in_order(read_header, paths, 1 if threads is None else threads)


def read_inputs(inputs: Mapping[str, Sequence[Path]]) -> dict[str, tuple[Frames, ...]]:
    """Read the headers of every input of a model; raises what `read_header` raises.

    The inputs may be different series, but only of one patient and one study: else `ContradictoryIdentity`.
    """
    headers = {key: tuple(read_headers(paths)) for key, paths in inputs.items()}
    everything = [header for each in headers.values() for header in each]
    for level in ("patient", "study"):
        _refuse_mixture(level, everything)
    return headers


def decoding_bytes(headers: Sequence[Frames]) -> int:
    """Return how much address space assembling these files can honestly need: the volume, and some for each thread."""
    planes = [plane.rows * plane.columns for header in headers for plane in header.planes]
    files = [header.layout.size for header in headers]
    return 4 * sum(planes) + _threads(None) * (16 * max(planes, default=0) + 2 * max(files, default=0) + _ARENA_BYTES)


def assemble_read(
    headers: Sequence[Frames],
    policy: GeometryPolicy = STRICT,
    *,
    padding: float | None = None,
    allocate: Allocate = np.empty,
    threads: int | None = None,
    watch: Watch = nullcontext,
) -> Volume:
    """Return the one volume that files make whose headers were read; raises what `assemble` raises.

    What is no box is refused unless `policy` takes it. Pixels that show nothing (Pixel Padding Value) become `padding`,
    or keep what they hold where it is None. The voxels are int16 where that holds every value exactly, else float32;
    never are there two of them. `allocate` is called again when int16 turns out not to do, after the first array is
    gone. A file is only decoded within its `watch`.
    """
    for level in ("patient", "study", "series"):
        _refuse_mixture(level, headers)
    _refuse_repetition(headers)
    stack = stacks.select([plane for header in headers for plane in header.planes], policy)
    geometry, order = stack.geometry, stack.order
    voxels: Voxels | None = None
    padded = 0
    if may_be_int16(headers, padding):
        voxels = allocate(geometry.shape, np.int16)
        try:
            padded = read_into(headers, order, voxels, threads, padding=padding, watch=watch)
        except NotWhole:
            voxels = None
    if voxels is None:
        voxels = allocate(geometry.shape, np.float32)
        padded = read_into(headers, order, voxels, threads, padding=padding, watch=watch)
    for twin in stack.twins:
        _refuse_other_pixels(headers, twin, voxels[order.index(twin.kept)], padding, watch)
    remarks = dict(stack.remarks)
    if padded:
        remarks["padding"] = (
            f"{padded} voxels show nothing by their Pixel Padding Value, and have the value {padding:g}"
        )
    meanings = {header.meaning for header in headers}
    return Volume(
        voxels=voxels,
        geometry=geometry,
        series_instance_uid=headers[0].identity["series"],
        remarks=remarks,
        padding=padded,
        meaning=meanings.pop() if len(meanings) == 1 else VoxelMeaning.UNNAMED,
    )


def _refuse_other_pixels(
    headers: Sequence[Frames], twin: Twin, kept: Voxels, padding: float | None, watch: Watch
) -> None:
    """Refuse a plane that was to be left out because it has the same values as another, and does not."""
    firsts = list(accumulate((len(header.planes) for header in headers), initial=0))
    at = bisect_right(firsts, twin.plane) - 1
    header, frame = headers[at], twin.plane - firsts[at]
    other = np.empty_like(kept)
    with watch(header):
        try:
            _read_frames(header, [frame], [other], padding)
            different = int(np.count_nonzero(other != kept))
        except NotWhole:
            different = kept.size
    if different:
        beside = headers[bisect_right(firsts, twin.kept) - 1].sop_instance_uid
        raise UnsoundVolume(
            "duplicate_position",
            f"lies where instance {beside} lies, and is another image: {different} of {kept.size} pixels differ",
            sop_instance_uid=header.sop_instance_uid,
            numbers={"twin": beside, "different": different, "pixels": kept.size},
        )


def may_be_int16(headers: Sequence[Frames], padding: float | None = None) -> bool:
    """Whether int16 may hold every value exactly, by the headers; only the pixels prove it."""
    if padding is not None and not (padding.is_integer() and modality.INT16.min <= padding <= modality.INT16.max):
        return False
    return all(each.is_whole and header.layout.bits_stored <= 16 for header in headers for each in header.modalities)


def read_into(
    headers: Sequence[Frames],
    order: Sequence[int],
    out: Voxels,
    threads: int | None = None,
    *,
    padding: float | None = None,
    watch: Watch = nullcontext,
) -> int:
    """Decode the pixels of all files into `out` [plane, row, column], int16 or float32, as real-world values.

    `order` names for each plane of `out` which plane of the headers it is, as `stacks.select` returns it; those that
    it does not name are left out. Frames are decoded side by side in `threads` (default: one per core, 8 at most),
    without a copy of the volume. Returns how many of them show nothing, and have the value `padding`, if there is one.

    Raises `UndecodablePixels`, `UnsoundVolume` (`not_finite`), always of the first plane in the order of the headers
    that has an error, and `modality.NotWhole` when int16 does not hold a value.
    """
    place = {source: plane for plane, source in enumerate(order)}
    count = _threads(threads)
    firsts = accumulate((len(header.planes) for header in headers), initial=0)
    tasks = [
        (header, wanted, first)
        for header, first in zip(headers, firsts, strict=False)
        for frames in _shares(header, count)
        if (wanted := [frame for frame in frames if first + frame in place])
    ]

    def read(task: tuple[Frames, Sequence[int], int]) -> int:
        header, frames, first = task
        with watch(header):
            return _read_frames(header, frames, [out[place[first + frame]] for frame in frames], padding)

    return sum(_in_order(read, tasks, count))


def _shares(header: Frames, count: int) -> Iterable[range]:
    """Return the frames of a file in parts, a few for each thread; a deflated file can only be read from its begin."""
    frames = len(header.planes)
    if frames == 1 or header.layout.transfer_syntax_uid == part10.DEFLATED_LITTLE:
        return [range(frames)]
    step = max(1, frames // (4 * count))
    return [range(start, min(start + step, frames)) for start in range(0, frames, step)]


def _read_frames(header: Frames, frames: Sequence[int], out: Sequence[Voxels], padding: float | None) -> int:
    """Read frames of one file as real-world values into one plane each; return how many pixels were padding."""
    layout, padded = header.layout, 0
    # Where the types have one size the plane itself takes the stored values, and is changed in place.
    in_place = layout.dtype.itemsize == 2 and out[0].dtype == np.int16
    scratch = None if in_place else np.empty((layout.rows, layout.columns), layout.dtype)
    with pixels.Pixels(layout) as source:
        for frame, plane in zip(frames, out, strict=True):
            stored = plane.view(layout.dtype) if scratch is None else scratch
            source.read_into(frame, stored)
            blank = None if padding is None else layout.padded(stored)
            if blank is not None:
                # What it is does not count, and must not keep the others from being int16.
                stored[blank] = stored.reshape(-1)[blank.argmin()]
            try:
                modality.apply(stored, header.modalities[frame], plane, layout.bits_stored)
            except NotFinite as error:
                raise UnsoundVolume(
                    "not_finite", "a pixel is not a finite number", sop_instance_uid=header.sop_instance_uid
                ) from error
            if blank is not None and padding is not None:
                np.copyto(plane, np.float64(padding), where=blank, casting="unsafe")
                padded += int(np.count_nonzero(blank))
    return padded


def decode(header: Frames) -> Iterator[NDArray[np.generic]]:
    """Yield the stored values [row, column] of every frame of the file, in stored order; they are the caller's.

    Raises `UndecodablePixels` when the data are absent, short or damaged.
    """
    yield from stored_frames(header.layout)


def stored_frames(layout: Layout) -> Iterator[NDArray[np.generic]]:
    """Yield the stored values [row, column] of every frame, in stored order; raises `UndecodablePixels`."""
    with pixels.Pixels(layout) as source:
        for frame in range(layout.frames):
            stored = np.empty((layout.rows, layout.columns), layout.dtype)
            source.read_into(frame, stored)
            yield stored


def _threads(threads: int | None) -> int:
    return max(1, min(len(os.sched_getaffinity(0)), MAXIMUM_THREADS) if threads is None else threads)


def _in_order(do: Callable[[_T], _U], each: Sequence[_T], threads: int) -> list[_U]:
    """Return what `do` makes of each; the error that is raised is that of the first which has one."""
    if threads < 2 or len(each) < 2:
        return [do(one) for one in each]

    def some(part: Sequence[_T]) -> list[_U]:
        return [do(one) for one in part]

    # In parts, because handing over a task costs as much as reading a small plane.
    step = max(1, len(each) // (threads * 8))
    parts = [each[start : start + step] for start in range(0, len(each), step)]
    with ThreadPoolExecutor(min(threads, len(parts)), thread_name_prefix="decode") as pool:
        try:
            return list(chain.from_iterable(pool.map(some, parts)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_header(path: Path) -> Frames:
    """Read and check the header of one file without its pixels; raises `UnsoundVolume`, `UndecodablePixels`."""
    return _read(path).frames()


def read_layout(path: Path, *, samples: int = 1) -> Layout:
    """Return how the pixels of an image of so many samples are stored, wherever it lies.

    Raises what `read_header` raises.
    """
    return _read(path).layout(samples)


def _read(path: Path) -> "_Header":
    file = -1
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = part10.read(file)
    except part10.Malformed as error:
        raise UnsoundVolume("unreadable", str(error), numbers={"file": path.name}) from error
    except OSError as error:
        raise UnsoundVolume(
            "unreadable", f"the file cannot be read: {error.strerror}", numbers={"file": path.name}
        ) from error
    finally:
        if file >= 0:
            os.close(file)
    return _Header(path, found)


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

    def __init__(self, path: Path, header: part10.Header) -> None:
        self.path = path
        self.header = header
        self.dataset = header.data_set
        # Some de-identifiers empty the UID in the data set; the file meta then still names the instance.
        self.uid = self.text("SOPInstanceUID") or self._meta("MediaStorageSOPInstanceUID")
        if not self.uid:
            self.refuse("missing_sop_instance_uid", "has no SOP Instance UID", file=path.name)

    def refuse(self, reason: str, message: str, **numbers: object) -> NoReturn:
        raise UnsoundVolume(reason, message, sop_instance_uid=self.uid, numbers=numbers)

    def frames(self) -> Frames:
        """Check everything that concerns this file alone."""
        image_type = {each.upper() for each in self.components(self.dataset, "ImageType")}
        self.refuse_what_is_no_slice(image_type)
        layout = self.layout()
        frame_of_reference_uid = self.text("FrameOfReferenceUID")
        if not frame_of_reference_uid:
            self.refuse("missing_frame_of_reference_uid", "has no Frame of Reference UID")
        groups = self.functional_groups(layout.frames)
        instance_number = int(self.told(self.dataset, "InstanceNumber") or 0)
        planes = tuple(
            Plane(
                sop_instance_uid=self.uid,
                frame_number=number,
                position=self.triple(group),
                orientation=self.sextuple(group),
                pixel_spacing=self.pair(group),
                rows=layout.rows,
                columns=layout.columns,
                frame_of_reference_uid=frame_of_reference_uid,
                moment=self.moment(group),
                instance_number=instance_number,
                is_localizer="LOCALIZER" in image_type,
            )
            for number, group in enumerate(groups, start=1)
        )
        lut = self.modality_lut(layout.signed)
        frames = Frames(
            path=self.path,
            sop_instance_uid=self.uid,
            identity=self.identity(),
            planes=planes,
            modalities=tuple(lut or self.rescale(group) for group in groups),
            layout=layout,
            meaning=self.meaning(groups),
        )
        pixels.check(layout)
        return frames

    def _meta(self, keyword: str) -> str:
        return self.header.meta.texts.get(keyword, b"").decode("ascii", "replace")

    def text(self, keyword: str) -> str:
        """Return a text in ASCII, empty where it is absent."""
        return self.dataset.texts.get(keyword, b"").decode("ascii", "replace").strip()

    def transfer_syntax_uid(self) -> str:
        uid = self._meta("TransferSyntaxUID")
        if uid not in pixels.SYNTAXES:
            raise UndecodablePixels(
                "no_decoder",
                f"no decoder for transfer syntax {uid[:64]}",
                sop_instance_uid=self.uid,
                numbers={"transfer_syntax_uid": uid[:64]},
            )
        return uid

    def identity(self) -> dict[str, str]:
        """Return patient, study and series; a missing Patient ID is legal (type 2), missing UIDs are not."""
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
            if not self.text(keyword):
                self.refuse(_missing(keyword), f"has no {keyword}")
        patient = f"{self.characters('PatientID')}\x1f{self.characters('IssuerOfPatientID')}"
        return {"patient": patient, "study": self.text("StudyInstanceUID"), "series": self.text("SeriesInstanceUID")}

    def characters(self, keyword: str) -> str:
        """Return a text in whatever character set the file has, told apart by it where it is not ASCII."""
        raw = self.dataset.texts.get(keyword, b"").strip()
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii")
        return f"{self.text('SpecificCharacterSet')}\x1f{raw.hex()}"

    def refuse_what_is_no_slice(self, image_type: set[str]) -> None:
        """Refuse images whose pixels are not one grey value per voxel of one plane."""
        if "MOSAIC" in image_type:
            self.refuse("mosaic", "is a mosaic of many planes")
        self.refuse_other_samples(1)
        photometric = self.text("PhotometricInterpretation")
        # MONOCHROME1 says how to show a value, not what it means; models are not trained on it, so nobody knows.
        if photometric != "MONOCHROME2":
            self.refuse("photometric_interpretation", f"Photometric Interpretation {photometric[:16]!r} is not taken")

    def refuse_other_samples(self, expected: int) -> None:
        samples = self.integer("SamplesPerPixel")
        if samples != expected:
            self.refuse("samples_per_pixel", f"has {samples} samples per pixel", samples_per_pixel=samples)

    def bits(self) -> tuple[int, int, bool]:
        """Return the bits that are allocated and stored, and whether they have a sign."""
        allocated = self.integer("BitsAllocated")
        if allocated not in {8, 16, 32, 64}:
            self.refuse("bits", f"has {allocated} bits allocated", bits_allocated=allocated)
        representation = self.integer("PixelRepresentation", 0)
        if representation not in {0, 1}:
            self.refuse("bits", f"has Pixel Representation {representation}", pixel_representation=representation)
        stored = self.integer("BitsStored", allocated)
        high = self.integer("HighBit", stored - 1)
        if not 1 <= stored <= allocated or high != stored - 1:
            self.refuse(
                "bits",
                f"{allocated} bits allocated, {stored} stored, high bit {high} contradict each other",
                bits_allocated=allocated,
                bits_stored=stored,
                high_bit=high,
            )
        return allocated, stored, bool(representation)

    def layout(self, samples: int = 1) -> Layout:
        """Return how the pixels are stored; refuses claims that no scanner makes, and another number of samples."""
        transfer_syntax_uid = self.transfer_syntax_uid()
        self.refuse_other_samples(samples)
        allocated, stored, signed = self.bits()
        count = self.frame_count()
        rows, columns = self.integer("Rows"), self.integer("Columns")
        if rows < 1 or columns < 1 or rows * columns > MAX_PLANE_PIXELS:
            self.refuse("size", f"{rows} rows and {columns} columns are not taken", rows=rows, columns=columns)
        if not 1 <= count <= MAX_FRAMES:
            self.refuse("frames", f"{count} frames are not taken", frames=count)
        return Layout(
            path=self.path,
            sop_instance_uid=self.uid,
            transfer_syntax_uid=transfer_syntax_uid,
            frames=count,
            rows=rows,
            columns=columns,
            bits_allocated=allocated,
            bits_stored=stored,
            signed=signed,
            value=self.header.pixels,
            begin=self.header.begin,
            size=self.header.size,
            samples=samples,
            padding=self.padding(stored, signed=signed) if samples == 1 and allocated <= 16 else None,
        )

    def padding(self, bits: int, *, signed: bool) -> tuple[int, int] | None:
        """Return the lowest and highest stored value that shows nothing; None where no pixel can have one.

        The VR of both attributes is that of the pixels, but whether it was written so or not, the sign of the pixels
        says what the 16 bits mean.
        """
        said = [*self.dataset.words.get("PixelPaddingValue", ())[:1]]
        if not said:
            return None
        said += self.dataset.words.get("PixelPaddingRangeLimit", ())[:1]
        values = [word - 2**16 if signed and word >= 2**15 else word for word in said]
        lowest, highest = modality.stored_range(bits, signed=signed)
        if min(values) > highest or max(values) < lowest:
            return None
        return max(min(values), lowest), min(max(values), highest)

    def frame_count(self) -> int:
        value = self.text("NumberOfFrames")
        if not value:
            return 1
        try:
            return int(value.replace("_", "?"))
        except ValueError:
            self.refuse("malformed", "NumberOfFrames is not one whole number")

    def modality_lut(self, signed: bool) -> modality.Table | None:
        """Return the Modality LUT, which there is instead of a rescale (PS3.3 C.11.1)."""
        items = self.dataset.sequences.get("ModalityLUTSequence")
        if items is None:
            return None
        if len(items) != 1 or self.dataset.texts.keys() & {"RescaleSlope", "RescaleIntercept"}:
            self.refuse("modality_lut", f"has {len(items)} Modality LUTs, or a rescale beside one", items=len(items))
        try:
            return modality.table(items[0], signed=signed)
        except modality.MalformedTable as error:
            self.refuse("modality_lut", f"the Modality LUT has {error}")

    def functional_groups(self, count: int) -> list[tuple[Attributes, ...]]:
        """Return for each frame where to look for its attributes, nearest first (PS3.3 C.7.6.16)."""
        per_frame = self.dataset.sequences.get("PerFrameFunctionalGroupsSequence")
        if per_frame is None:
            if count > 1:
                self.refuse("missing_functional_groups", f"{count} frames without functional groups", frames=count)
            return [(self.dataset,)]
        if len(per_frame) != count:
            self.refuse(
                "frames", f"{count} frames, {len(per_frame)} functional groups", frames=count, groups=len(per_frame)
            )
        shared = self.dataset.sequences.get("SharedFunctionalGroupsSequence", [])
        return [(item, *shared[:1]) for item in per_frame]

    def triple(self, group: tuple[Attributes, ...]) -> tuple[float, float, float]:
        x, y, z = self.numbers(group, "PlanePositionSequence", "ImagePositionPatient", 3)
        return x, y, z

    def sextuple(self, group: tuple[Attributes, ...]) -> tuple[float, float, float, float, float, float]:
        a, b, c, d, e, f = self.numbers(group, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        return a, b, c, d, e, f

    def pair(self, group: tuple[Attributes, ...]) -> tuple[float, float]:
        row, column = self.numbers(group, "PixelMeasuresSequence", "PixelSpacing", 2)
        return row, column

    def rescale(self, group: tuple[Attributes, ...]) -> Rescale:
        """Return the rescale of the frame; an image without any holds its values as they are."""
        pair = []
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
            components = self.look_up(group, _TRANSFORMATION, keyword)
            if len(components) > 1:
                self.refuse("malformed", f"{keyword} has {len(components)} components instead of 1")
            pair.append(self.number(keyword, components[0]) if components else default)
        slope, intercept = pair
        if not np.isfinite(pair).all() or slope == 0:
            self.refuse("rescale", f"rescale slope {slope}, intercept {intercept}", slope=slope, intercept=intercept)
        return Rescale(slope=slope, intercept=intercept)

    def meaning(self, groups: Sequence[tuple[Attributes, ...]]) -> VoxelMeaning:
        """Return what the values are after the rescale.

        Those of CT are Hounsfield units unless Rescale Type says otherwise (PS3.3 C.8.2.1); those of MR are its signal
        in an original image only: maps made of it may hold anything.
        """
        types = {
            self.told_type(group) if self.look_up(group, _TRANSFORMATION, "RescaleIntercept") else None
            for group in groups
        }
        modality_said = self.text("Modality").upper()
        if modality_said == "CT" and types <= {"", "HU"}:
            return VoxelMeaning.HOUNSFIELD
        original = self.components(self.dataset, "ImageType")[:1] == ["ORIGINAL"]
        if modality_said == "MR" and original and types <= {None, "", "US"}:
            return VoxelMeaning.MR_SIGNAL
        return VoxelMeaning.UNNAMED

    def told_type(self, group: tuple[Attributes, ...]) -> str:
        """Return the Rescale Type of a frame, empty where it is absent."""
        return "".join(self.look_up(group, _TRANSFORMATION, "RescaleType")[:1]).upper()

    def moment(self, group: tuple[Attributes, ...]) -> tuple[tuple[str, float], ...]:
        """Return the numbers that tell images of one place apart, from the frame's functional groups or the data set.

        They decide nothing unless the contract asks for them: what is malformed counts as absent.
        """
        holders = [
            holder
            for source in group
            for holder in (source, *(items[0] for items in map(source.sequences.get, _MOMENT_MACROS) if items))
        ]
        if group[-1] is not self.dataset:
            holders.append(self.dataset)
        found = {
            name: value
            # The nearest has the last word.
            for holder in reversed(holders)
            for said, name in _MOMENT_NAMES.items()
            if said in holder.texts or said in holder.numbers or said in holder.words
            if (value := self.told(holder, said)) is not None
        }
        return tuple(sorted(found.items()))

    def told(self, holder: Attributes, keyword: str) -> float | None:
        """Return one finite number, None where there is none."""
        given = holder.numbers.get(keyword) or holder.words.get(keyword) or self.components(holder, keyword)[:2]
        try:
            number = float(given[0]) if len(given) == 1 else math.nan
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def look_up(self, group: tuple[Attributes, ...], sequence: str, keyword: str) -> list[str]:
        """Return the components from the functional group macro, or from the data set itself when it is classic."""
        for source in group:
            if source is self.dataset:
                return self.components(source, keyword)
            macro = source.sequences.get(sequence)
            if macro:
                return self.components(macro[0], keyword)
        return []

    def numbers(self, group: tuple[Attributes, ...], sequence: str, keyword: str, count: int) -> list[float]:
        components = self.look_up(group, sequence, keyword)
        if not components:
            self.refuse(_missing(keyword), f"has no {keyword}")
        if len(components) != count:
            self.refuse("malformed", f"{keyword} has {len(components)} components instead of {count}")
        return [self.number(keyword, each) for each in components]

    def number(self, keyword: str, value: str) -> float:
        try:
            # Python's separator of digits is none of DICOM's.
            return float(value.replace("_", "?"))
        except ValueError:
            self.refuse("malformed", f"{keyword} is not a number")

    def components(self, source: Attributes, keyword: str) -> list[str]:
        """Return the components of a text value; none where it is absent."""
        raw = source.texts.get(keyword)
        return [each.strip() for each in raw.decode("ascii", "replace").split("\\")] if raw else []

    def integer(self, keyword: str, default: int | None = None) -> int:
        values = self.dataset.words.get(keyword, ())
        if not values and default is not None:
            return default
        if not values:
            self.refuse(_missing(keyword), f"has no {keyword}")
        if len(values) != 1:
            self.refuse("malformed", f"{keyword} is not one whole number")
        return values[0]


def _missing(keyword: str) -> str:
    """Return the reason for a missing attribute: `PixelSpacing` -> `missing_pixel_spacing`."""
    words = "".join(f" {c.lower()}" if c.isupper() and not prev.isupper() else c.lower() for prev, c in _pairs(keyword))
    return "missing_" + words.strip().replace(" ", "_")


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    return zip(" " + text, text, strict=False)
