"""Images that are no slices of a volume, such as CR, DX, MG, US, XA and SC, to pictures a model can look at.

Greyscale is brighter where the value is larger, always: MONOCHROME1, and a Presentation LUT Shape of INVERSE, are
turned round. Colour comes out as RGB. Overlays, which are drawn beside the pixels, are not looked at.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.processing import apply_color_lut

from meddaemon.domain.contract import Voi
from meddaemon.domain.errors import ContradictoryIdentity, InputRefused
from meddaemon.domain.picture import Pictures
from meddaemon.inference import modality, pixels
from meddaemon.inference.dataset import integer, number, numbers, opened, refuse, text
from meddaemon.inference.modality import Rescale, Table
from meddaemon.inference.part10 import Attributes
from meddaemon.inference.pixels import Layout
from meddaemon.inference.volume import read_layout

MAXIMUM_VALUES = 2**29
"""More values than this are not taken at once: 2 GiB as float32."""

Values: TypeAlias = NDArray[np.float32]
Allocate: TypeAlias = Callable[[tuple[int, ...], type[np.float32]], Values]

_GREY = {"MONOCHROME1": True, "MONOCHROME2": False}
"""Whether small values are bright."""

_RGB = frozenset({"RGB", "YBR_RCT", "YBR_ICT"})
"""What comes out of the decoders as RGB: JPEG 2000 turns its own components back."""

_YBR = frozenset({"YBR_FULL", "YBR_FULL_422"})
_PALETTE = "PALETTE COLOR"
_PALETTES = ("Red", "Green", "Blue")


@dataclass(frozen=True, kw_only=True)
class Window:
    """VOI LUT as a function (PS3.3 C.11.2.1.2, C.11.2.1.3); `function` is LINEAR, LINEAR_EXACT or SIGMOID."""

    centre: float
    width: float
    function: str

    def apply(self, values: Values) -> Values:
        """Return brightness from 0 to 1."""
        if self.function == "SIGMOID":
            # Beyond these the result is 0 or 1 in float32, and the exponential would overflow.
            exponent = np.clip(-4 * (values.astype(np.float64) - self.centre) / self.width, -80, 80)
            return (1 / (1 + np.exp(exponent))).astype(np.float32)
        exact = self.function == "LINEAR_EXACT"
        centre, width = (self.centre, self.width) if exact else (self.centre - 0.5, self.width - 1)
        if width <= 0:
            return (values > centre).astype(np.float32)
        return np.clip((values.astype(np.float64) - centre) / width + 0.5, 0, 1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """VOI LUT as a table (PS3.3 C.11.2.1.1): value `first` + i has the brightness `values[i]` of `highest`."""

    first: int
    values: NDArray[np.uint16] = field(repr=False)
    highest: int

    def apply(self, values: Values) -> Values:
        """Return brightness from 0 to 1."""
        indices = np.clip(np.rint(values.astype(np.float64)) - self.first, 0, len(self.values) - 1).astype(np.int64)
        brightness: Values = (self.values[indices] / self.highest).astype(np.float32)
        return brightness


@dataclass(frozen=True, kw_only=True)
class Spacing:
    """Distance of (rows, columns) in mm, and whether it is that at the detector (PS3.3 10.7.1.3)."""

    mm: tuple[float, float]
    of_detector: bool


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The header of one file: whose it is, how its pixels are stored and what they mean, frame by frame."""

    path: Path
    layout: Layout
    identity: tuple[str, str, str]
    """Patient, study, series."""
    instance_number: int
    photometric: str
    inverted: bool
    modalities: tuple[Rescale | Table, ...] = field(repr=False)
    windows: tuple[Window | Lookup | None, ...] = field(repr=False)
    palette: Values | None = field(repr=False)
    """RGB of each stored value."""
    spacing: Spacing | None
    doubt: str
    """Why the image says a spacing that is not taken; empty where it says none, or all of it has the same."""
    lossy: bool

    @property
    def sop_instance_uid(self) -> str:
        """The instance that the file holds."""
        return self.layout.sop_instance_uid


def read(paths: Sequence[Path], *, voi: Voi = Voi.NONE, padding: float | None = None) -> Pictures:
    """Return every frame of a series of images, in the order of their instance numbers; see `assemble`."""
    return assemble([read_header(path, voi) for path in paths], voi=voi, padding=padding)


def decoding_bytes(headers: Sequence[Picture]) -> int:
    """Return how much memory assembling these files can honestly need."""
    frames = [(each.layout.frames, each.layout.rows * each.layout.columns * _samples(each)) for each in headers]
    files = [each.layout.size for each in headers]
    return 4 * sum(n * size for n, size in frames) + 40 * max(size for _, size in frames) + 2 * max(files) + 2**24


def assemble(
    headers: Sequence[Picture],
    *,
    voi: Voi = Voi.NONE,
    padding: float | None = None,
    allocate: Allocate = np.empty,
    watch: Callable[[Picture], AbstractContextManager[object]] = nullcontext,
) -> Pictures:
    """Return every frame of images whose headers were read.

    Greyscale is in real-world values, or, with `Voi.WINDOW`, brightness from 0 to 1 by the first VOI LUT of the image
    (without one from its lowest to its highest value, which is remarked). Colour is RGB from 0 to 255. Grey pixels that
    show nothing (Pixel Padding Value) become `padding`, or keep what they hold where it is None. `watch` is entered for
    each file that is decoded.

    Raises `InputRefused` (`mixed_size`, `mixed_colour`, `duplicate_instance`, `too_large`, `not_finite`),
    `ContradictoryIdentity` (`mixed_patient`, `mixed_study`, `mixed_series`), and what `pixels.Pixels` raises.
    """
    ordered = sorted(headers, key=lambda each: (each.instance_number, each.sop_instance_uid))
    _refuse_mixtures(ordered)
    first = ordered[0]
    count = sum(each.layout.frames for each in ordered)
    shape: tuple[int, ...] = (count, first.layout.rows, first.layout.columns)
    if _samples(first) > 1:
        shape = (*shape, _samples(first))
    if np.prod(shape, dtype=np.int64) > MAXIMUM_VALUES:
        raise InputRefused(
            "too_large", f"{count} frames of {shape[1]} × {shape[2]} are not taken", numbers={"frames": count}
        )
    frames = allocate(shape, np.float32)
    place = padded = 0
    for each in ordered:
        with watch(each):
            padded += _read_frames(each, frames[place : place + each.layout.frames], voi, padding)
        place += each.layout.frames
    spacings = {each.spacing for each in ordered}
    spacing = spacings.pop() if len(spacings) == 1 else None
    remarks = _remarks(ordered, voi, mixed_spacing=bool(spacings))
    if padded:
        remarks["padding"] = (
            f"{padded} pixels show nothing by their Pixel Padding Value, and have the value {padding:g}"
        )
    return Pictures(
        frames=frames,
        sources=tuple((each.sop_instance_uid, n + 1) for each in ordered for n in range(each.layout.frames)),
        series_instance_uid=first.identity[2],
        spacing_mm=spacing.mm if spacing else None,
        spacing_is_of_detector=bool(spacing and spacing.of_detector),
        remarks=remarks,
        padding=padded,
    )


def read_header(path: Path, voi: Voi = Voi.NONE) -> Picture:
    """Read and check the header of one image; its VOI LUT only where it is asked for.

    Raises `InputRefused` (`unreadable`, `missing_<attribute>`, `malformed`, `bits`, `size`, `frames`, `rescale`,
    `modality_lut`, `voi`, `palette`, `photometric_interpretation`) and `UndecodablePixels`.
    """
    with opened(path) as dataset:
        photometric = text(dataset, "PhotometricInterpretation")
        grey = photometric in _GREY
        if not grey and photometric not in {*_RGB, *_YBR, _PALETTE}:
            refuse(
                dataset, "photometric_interpretation", f"Photometric Interpretation {photometric[:16]!r} is not taken"
            )
        layout = read_layout(path, samples=1 if grey or photometric == _PALETTE else 3)
        if layout.samples > 1:
            layout = _colour_layout(dataset, photometric, layout)
        pixels.check(layout)
        groups = _groups(dataset, layout.frames)
        spacing, doubt = _spacing(dataset, groups[0], layout)
        return Picture(
            path=path,
            layout=layout,
            identity=_identity(dataset),
            instance_number=integer(dataset, "InstanceNumber", 0),
            photometric=photometric,
            # A MONOCHROME1 image has the shape INVERSE as well (PS3.3 C.8.11.3.1.2): it is turned round once.
            inverted=_GREY.get(photometric, False) or text(dataset, "PresentationLUTShape") == "INVERSE",
            modalities=tuple(_modality(dataset, each, signed=layout.signed) for each in groups) if grey else (),
            windows=tuple(_window(dataset, each) for each in groups) if grey and voi is Voi.WINDOW else (),
            palette=_palette(dataset, layout) if photometric == _PALETTE else None,
            spacing=spacing,
            doubt=doubt,
            lossy=text(dataset, "LossyImageCompression") == "01",
        )


def _identity(dataset: FileDataset) -> tuple[str, str, str]:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        if not text(dataset, keyword):
            refuse(dataset, "missing_attribute", f"has no {keyword}")
    patient = f"{text(dataset, 'PatientID')}\x1f{text(dataset, 'IssuerOfPatientID')}"
    return patient, text(dataset, "StudyInstanceUID"), text(dataset, "SeriesInstanceUID")


def _colour_layout(dataset: FileDataset, photometric: str, layout: Layout) -> Layout:
    """Return how colour is stored (PS3.3 C.7.6.3.1.2, C.7.6.3.1.3); compressed ones are completed by their decoder."""
    if layout.signed:
        refuse(dataset, "bits", "colour has no sign")
    planar = integer(dataset, "PlanarConfiguration", 0) == 1
    if photometric != "YBR_FULL_422" or pixels.SYNTAXES[layout.transfer_syntax_uid].decode is not None:
        return replace(layout, planar=planar)
    paired = replace(layout, paired=True)
    whole = layout.frames * layout.frame_bytes
    held = layout.value.length if layout.value is not None else None
    # Some write all of the colour, and say that they do not.
    if planar or layout.columns % 2 or (held is not None and whole <= held):
        refuse(
            dataset,
            "photometric_interpretation",
            f"native YBR_FULL_422 with {layout.columns} columns, {held} bytes, Planar Configuration {int(planar)}",
            columns=layout.columns,
            bytes=held,
        )
    return paired


def _groups(dataset: FileDataset, count: int) -> list[tuple[Dataset, ...]]:
    """Return for each frame where to look for its attributes, nearest first (PS3.3 C.7.6.16)."""
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if not per_frame:
        return [(dataset,)] * count
    if len(per_frame) != count:
        refuse(dataset, "frames", f"{count} frames, {len(per_frame)} functional groups", frames=count)
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    return [(each, *shared, dataset) for each in per_frame]


def _holder(groups: Sequence[Dataset], macro: str, keyword: str) -> Dataset | None:
    """Return what holds an attribute: the macro of the nearest group, or the data set itself."""
    for group in groups:
        holders: list[Dataset] = [*(group.get(macro) or ())[:1], group]
        for holder in holders:
            # Zero is a value.
            if keyword in holder and not holder[keyword].is_empty:
                return holder
    return None


def _modality(dataset: FileDataset, groups: Sequence[Dataset], *, signed: bool) -> Rescale | Table:
    """Return what the stored values of a frame mean (PS3.3 C.11.1); without a word about it, themselves."""
    if luts := dataset.get("ModalityLUTSequence"):
        try:
            return modality.table(_lut(dataset, luts[0]), signed=signed)
        except modality.MalformedTable as error:
            refuse(dataset, "modality_lut", f"the Modality LUT has {error}")
    holder = _holder(groups, "PixelValueTransformationSequence", "RescaleSlope")
    if holder is None:
        return Rescale(slope=1.0, intercept=0.0)
    slope, intercept = number(holder, "RescaleSlope", 1.0), number(holder, "RescaleIntercept", 0.0)
    if not np.isfinite((slope, intercept)).all() or slope == 0:
        refuse(dataset, "rescale", f"rescale slope {slope}, intercept {intercept}", slope=slope, intercept=intercept)
    return Rescale(slope=slope, intercept=intercept)


def _window(dataset: FileDataset, groups: Sequence[Dataset]) -> Window | Lookup | None:
    """Return the first VOI LUT of a frame, a table before a function; None where there is none."""
    if holder := _holder(groups, "FrameVOILUTSequence", "VOILUTSequence"):
        return _lookup(dataset, holder.VOILUTSequence[0])
    holder = _holder(groups, "FrameVOILUTSequence", "WindowCenter")
    if holder is None:
        return None
    centres, widths = numbers(holder, "WindowCenter"), numbers(holder, "WindowWidth")
    function = text(holder, "VOILUTFunction") or "LINEAR"
    if not centres or not widths or function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"}:
        refuse(dataset, "voi", "the VOI LUT is no window")
    centre, width = centres[0], widths[0]
    if not np.isfinite((centre, width)).all() or width < (1 if function == "LINEAR" else 1e-9):
        refuse(dataset, "voi", f"a window of width {width:g}", width=width)
    return Window(centre=centre, width=width, function=function)


def _palette(dataset: FileDataset, layout: Layout) -> Values:
    """Return RGB from 0 to 255 of every stored value of a PALETTE COLOR image (PS3.3 C.7.6.3.1.5, C.7.9.2)."""
    tables = [numbers(dataset, f"{each}PaletteColorLookupTableDescriptor") for each in _PALETTES]
    sound = all(len(each) == 3 and each[2] in {8, 16} for each in tables)
    if not sound or layout.signed or layout.bits_stored > 16:
        refuse(dataset, "palette", "the palette has not three tables of 8 or 16 bits for values without a sign")
    colours = apply_color_lut(np.arange(1 << layout.bits_stored, dtype=layout.dtype), dataset)
    return (colours * (255 / np.iinfo(colours.dtype).max)).astype(np.float32)


def _lookup(dataset: FileDataset, item: Dataset) -> Lookup:
    """Return a VOI LUT that is a table."""
    descriptor = [int(each) for each in numbers(item, "LUTDescriptor")]
    values = _words(dataset, item.get("LUTData"))
    if len(descriptor) != 3:
        refuse(dataset, "voi", f"a LUT Descriptor of {len(descriptor)} values")
    count, first, bits = descriptor[0] or 2**16, descriptor[1], descriptor[2]
    if bits == 8 and count > 1 and len(values) == -(-count // 2):
        # Two entries in each word, the first in its less significant byte.
        values = values.astype("<u2").view(np.uint8).astype(np.uint16)[:count]
    if not 8 <= bits <= 16 or len(values) != count:
        refuse(dataset, "voi", f"{len(values)} words for {count} entries of {bits} bits")
    return Lookup(first=first, values=values, highest=(1 << bits) - 1)


def _lut(dataset: FileDataset, item: Dataset) -> Attributes:
    """Return a LUT as the header scan gives it."""
    descriptor = tuple(int(each) for each in numbers(item, "LUTDescriptor"))
    return Attributes(
        words={"LUTDescriptor": descriptor, "LUTData": tuple(_words(dataset, item.get("LUTData")).tolist())}
    )


def _words(dataset: FileDataset, value: object) -> NDArray[np.uint16]:
    """Return the 16-bit words of a LUT, which stand there as numbers or as bytes."""
    if value is None:
        return np.empty(0, np.uint16)
    if isinstance(value, bytes):
        order = ">" if dataset.original_encoding[1] is False else "<"
        return np.frombuffer(value[: len(value) // 2 * 2], f"{order}u2").astype(np.uint16)
    return np.atleast_1d(np.asarray(value, dtype=np.int64)).astype(np.uint16)


def _spacing(dataset: FileDataset, groups: Sequence[Dataset], layout: Layout) -> tuple[Spacing | None, str]:
    """Return the distance of pixels, None where it is not known, and why what the image says of it is not taken."""
    said = _said_spacing(dataset, groups)
    regions = list(dataset.get("SequenceOfUltrasoundRegions") or ())
    if not regions:
        return said, ""
    of_regions = {_region_spacing(each) for each in regions}
    spacing = of_regions.pop() if len(of_regions) == 1 else None
    if spacing is None:
        return None, "its ultrasound regions have no spacing, or different ones"
    if said is not None and np.allclose(said.mm, spacing.mm, rtol=0.01):
        return said, ""
    if len(regions) == 1 and _covers(regions[0], layout):
        return spacing, ""
    return None, "its ultrasound regions do not cover the image"


_TWO_DIMENSIONS, _TISSUE, _CENTIMETRES = 1, 1, 3
"""Region Spatial Format, Region Data Type, Physical Units (PS3.3 C.8.5.5.1)."""
_MM_PER_CM = 10.0


def _region_spacing(region: Dataset) -> Spacing | None:
    """Return the distance of pixels in a region that shows tissue in two dimensions; None of any other."""
    kinds = {
        "RegionSpatialFormat": _TWO_DIMENSIONS,
        "RegionDataType": _TISSUE,
        "PhysicalUnitsXDirection": _CENTIMETRES,
        "PhysicalUnitsYDirection": _CENTIMETRES,
    }
    deltas = numbers(region, "PhysicalDeltaY")[:1] + numbers(region, "PhysicalDeltaX")[:1]
    # A delta below zero counts against the pixels, and is as long.
    row, column = (abs(each) * _MM_PER_CM for each in deltas) if len(deltas) == 2 else (0.0, 0.0)
    sound = all(numbers(region, keyword) == (kind,) for keyword, kind in kinds.items())
    return Spacing(mm=(row, column), of_detector=False) if sound and 0 < row < np.inf and 0 < column < np.inf else None


def _covers(region: Dataset, layout: Layout) -> bool:
    """Whether a region is the whole image: nothing is beside it that has another spacing, or none."""
    names = ("MinX0", "MinY0", "MaxX1", "MaxY1")
    corners = [number for name in names for number in numbers(region, f"RegionLocation{name}")]
    if len(corners) != len(names):
        return False
    left, top, right, bottom = corners
    return left <= 0 and top <= 0 and right >= layout.columns - 1 and bottom >= layout.rows - 1


def _said_spacing(dataset: FileDataset, groups: Sequence[Dataset]) -> Spacing | None:
    """Return the distance of pixels: in the patient where it says so, else at the detector, else None."""
    at_detector = numbers(dataset, "ImagerPixelSpacing") or numbers(dataset, "NominalScannedPixelSpacing")
    holder = _holder(groups, "PixelMeasuresSequence", "PixelSpacing")
    said = numbers(holder, "PixelSpacing") if holder else ()
    found = said or at_detector
    if not found:
        return None
    if len(found) != 2 or not all(0 < each < np.inf for each in found):
        # Some writers say zero for unknown; what needs a size asks for it in its limits.
        return None
    # The same value twice is that at the detector, unless it was calibrated (PS3.3 10.7.1.3).
    calibrated = bool(text(dataset, "PixelSpacingCalibrationType"))
    of_detector = not said or (said == at_detector and not calibrated)
    return Spacing(mm=(found[0], found[1]), of_detector=of_detector)


def _refuse_mixtures(headers: Sequence[Picture]) -> None:
    """Refuse what is not one series of images of one size and kind, each of them once."""
    first, seen = headers[0], set[str]()
    for each in headers:
        uid = each.sop_instance_uid
        for level, mine, other in zip(("patient", "study", "series"), each.identity, first.identity, strict=True):
            if mine != other:
                message = f"belongs to another {level} than instance {first.sop_instance_uid}"
                raise ContradictoryIdentity(f"mixed_{level}", message, sop_instance_uid=uid)
        if uid in seen:
            raise InputRefused("duplicate_instance", "occurs more than once", sop_instance_uid=uid)
        seen.add(uid)
        size, expected = (each.layout.rows, each.layout.columns), (first.layout.rows, first.layout.columns)
        if size != expected:
            message = f"has {size[0]} × {size[1]} pixels, another image of its series {expected[0]} × {expected[1]}"
            raise InputRefused("mixed_size", message, sop_instance_uid=uid)
        if _samples(each) != _samples(first):
            raise InputRefused("mixed_colour", "is in colour or in grey, unlike its series", sop_instance_uid=uid)


def _samples(header: Picture) -> int:
    return 1 if header.photometric in _GREY else 3


def _read_frames(header: Picture, out: Values, voi: Voi, padding: float | None) -> int:
    """Read the frames of one file; return how many pixels were padding."""
    padded = 0
    layout = header.layout
    shape = (layout.rows, layout.columns)
    stored = np.empty(shape if layout.samples == 1 else (*shape, layout.samples), layout.dtype)
    with pixels.Pixels(layout) as source:
        for frame in range(layout.frames):
            source.read_into(frame, stored)
            if header.modalities:
                blank = None if padding is None else layout.padded(stored)
                _show_grey(header, frame, stored, out[frame], voi, blank)
                if blank is not None:
                    out[frame][blank] = padding
                    padded += int(np.count_nonzero(blank))
            else:
                _show_colour(header, stored, out[frame])
    return padded


def _show_grey(
    header: Picture, frame: int, stored: NDArray[np.generic], out: Values, voi: Voi, blank: NDArray[np.bool_] | None
) -> None:
    """Write the values of one frame: larger is brighter. What is `blank` says nothing about the range of the others."""
    layout, meaning = header.layout, header.modalities[frame]
    try:
        modality.apply(stored, meaning, out, layout.bits_stored)
    except modality.NotFinite as error:
        message = f"frame {frame + 1} holds a pixel that is not a finite number"
        raise InputRefused("not_finite", message, sop_instance_uid=layout.sop_instance_uid) from error
    if voi is Voi.NONE:
        if header.inverted:
            np.subtract(sum(_range(meaning, layout)), out, out=out)
        return
    window = header.windows[frame]
    np.copyto(out, window.apply(out) if window else _stretched(out, blank))
    if header.inverted:
        np.subtract(1, out, out=out)


def _range(meaning: Rescale | Table, layout: Layout) -> tuple[float, float]:
    """Return the smallest and largest value that any stored value can become."""
    if isinstance(meaning, Table):
        return float(meaning.values.min()), float(meaning.values.max())
    return meaning.range(*modality.stored_range(layout.bits_stored, signed=layout.signed))


def _stretched(values: Values, blank: NDArray[np.bool_] | None) -> Values:
    """Return brightness from 0 to 1, from the lowest to the highest value that shows something."""
    shown = values if blank is None or blank.all() else values[~blank]
    lowest, highest = float(shown.min()), float(shown.max())
    return (values - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(values)


def _show_colour(header: Picture, stored: NDArray[np.generic], out: Values) -> None:
    """Write one frame as RGB from 0 to 255 (PS3.3 C.7.6.3.1.2)."""
    if header.palette is not None:
        np.copyto(out, header.palette[stored])
        return
    highest = (1 << header.layout.bits_stored) - 1
    np.copyto(out, stored, casting="unsafe")
    if header.photometric in _YBR:
        luminance, blue, red = (out[..., sample].copy() for sample in range(3))
        middle = (highest + 1) / 2
        blue, red = blue - middle, red - middle
        out[..., 0] = luminance + 1.402 * red
        out[..., 1] = luminance - 0.344136 * blue - 0.714136 * red
        out[..., 2] = luminance + 1.772 * blue
        np.clip(out, 0, highest, out=out)
    if highest != 255:
        np.multiply(out, 255 / highest, out=out)


def _remarks(headers: Sequence[Picture], voi: Voi, *, mixed_spacing: bool) -> dict[str, str]:
    """Return what was done to the pixels, and what is to be known of them."""
    remarks: dict[str, str] = {}
    if any(each.inverted for each in headers):
        remarks["inverted"] = "inverse grey was turned round"
    if voi is Voi.WINDOW and any(each.modalities and None in each.windows for each in headers):
        remarks["voi"] = "no VOI LUT in the image: from its lowest to its highest value"
    if any(each.lossy for each in headers):
        remarks["lossy"] = "the images were compressed with loss"
    if mixed_spacing:
        remarks["spacing"] = "the images have different pixel spacings"
    for doubt in {each.doubt for each in headers if each.doubt}:
        remarks["spacing"] = doubt
    return remarks
