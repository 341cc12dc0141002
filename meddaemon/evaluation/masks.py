"""Masks from files: DICOM Segmentations (PS3.3 A.51, A.52: BINARY and LABELMAP) and NIfTI label maps.

A Segmentation is read as what lies in the patient, or as what lies on the images that its frames name.
"""

import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, RLELossless

from meddaemon.domain.errors import ReferenceRefused
from meddaemon.evaluation.concepts import concept
from meddaemon.evaluation.grid import Grid, grid_of_affine, grid_of_planes

SEGMENTATIONS = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
"""Segmentation Storage and Label Map Segmentation Storage."""
NIFTI_SUFFIXES = (".nii", ".nii.gz")
Image: TypeAlias = tuple[str, int]
"""SOP Instance UID and frame, from 1; 0 where the object does not say which frame."""
_Read = TypeVar("_Read")
_PixelsOf: TypeAlias = Callable[[int, int], NDArray[np.bool_] | None]
"""The pixels [row, column] of a segment number on a plane or an image; None where there is no frame of it."""
_MOST_LABEL = 65535
_PARALLEL = 1e-4


@dataclass(frozen=True, kw_only=True)
class Named:
    """One segment of an object: its number, and what it is called and coded as (`scheme:value[:laterality]`)."""

    number: int
    label: str
    code: str = ""
    meaning: str = ""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a file draws, and where. `mask_of` gives the mask [plane, row, column] of a segment number on `grid`.

    `series` are the series that it was drawn on, as far as it says so; a frame of reference that is "" is not known.
    """

    study_instance_uid: str
    series: tuple[str, ...]
    frame_of_reference_uid: str
    grid: Grid
    segments: tuple[Named, ...]
    mask_of: Callable[[int], NDArray[np.bool_]]

    def mask(self, numbers: Iterable[int]) -> NDArray[np.bool_]:
        """Return where any of these segments lies."""
        together = np.zeros(self.grid.shape, dtype=np.bool_)
        for number in numbers:
            together |= self.mask_of(number)
        return together


@dataclass(frozen=True, kw_only=True)
class DrawnOnPictures:
    """What a Segmentation draws on images of `size` (rows, columns).

    `images` are those that its frames name, `instances` all that it names, also those on which nothing is drawn.
    """

    images: tuple[Image, ...]
    instances: frozenset[str]
    size: tuple[int, int]
    segments: tuple[Named, ...]
    pixels_of: _PixelsOf

    def mask(self, numbers: Iterable[int], image: Image | None) -> NDArray[np.bool_]:
        """Return where any of these segments lies on an image, [row, column]; on none, nothing is drawn."""
        together = np.zeros(self.size, dtype=np.bool_)
        if image is not None:
            for number in numbers:
                drawn = self.pixels_of(number, self.images.index(image))
                together |= False if drawn is None else drawn
        return together


class LiesNowhere(ReferenceRefused):
    """The frames of a Segmentation are pictures, which have no place in the patient."""


def is_nifti(path: Path) -> bool:
    """Return whether a file is named as NIfTI files are."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_segmentation(path: Path) -> Drawn:
    """Read a DICOM Segmentation of what lies in the patient. Raises ReferenceRefused, LiesNowhere for pictures."""
    return _read(path, _in_patient)


def read_pictures(path: Path) -> DrawnOnPictures:
    """Read a DICOM Segmentation of the images that its frames name. Raises ReferenceRefused."""
    return _read(path, _on_pictures)


def _read(path: Path, of: Callable[[Dataset, Path], _Read]) -> _Read:
    try:
        return of(dcmread(path), path)
    except InvalidDicomError:
        raise ReferenceRefused(f"{path}: it is no DICOM file") from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, NotImplementedError, EOFError) as wrong:
        said = f"{type(wrong).__name__}: {wrong}"
        raise ReferenceRefused(f"{path}: it is not a Segmentation that can be read ({said}): export it anew") from wrong


def read_label_map(path: Path, names: Sequence[Named] = ()) -> Drawn:
    """Read a NIfTI label map: one number for each voxel, 0 for background. Raises ReferenceRefused.

    `names` say what the numbers mean; any other number that is in the file is a segment without a name.
    """
    import nibabel  # noqa: PLC0415  belongs to the extra `evaluate`
    from nibabel.filebasedimages import ImageFileError  # noqa: PLC0415
    from nibabel.spatialimages import HeaderDataError  # noqa: PLC0415

    try:
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj)
        header = image.header
    except (ImageFileError, HeaderDataError, OSError, OverflowError, ValueError, EOFError, zlib.error) as wrong:
        if isinstance(wrong, FileNotFoundError):
            raise ReferenceRefused(f"{path}: there is no such file") from wrong
        raise ReferenceRefused(f"{path}: it is not a NIfTI file that can be read ({type(wrong).__name__})") from wrong
    if voxels.dtype.kind not in "iuf":
        raise ReferenceRefused(f"{path}: its values are no numbers but {voxels.dtype}: write labels")
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise ReferenceRefused(f"{path}: it has {voxels.ndim} axes; a label map has 3: write one volume a file")
    if not voxels.size:
        raise ReferenceRefused(f"{path}: it has no voxel: write it anew")
    if not int(header.get("sform_code", 0)) and not int(header.get("qform_code", 0)):
        raise ReferenceRefused(
            f"{path}: it does not say where it lies (sform_code and qform_code are 0): write it anew"
        )
    if not np.isfinite(voxels).all() or (voxels != np.rint(voxels)).any() or voxels.min() < 0:
        raise ReferenceRefused(f"{path}: its values are not labels (whole numbers from 0 on): threshold it first")
    if voxels.max() > _MOST_LABEL:
        raise ReferenceRefused(f"{path}: it has label {int(voxels.max())}; labels end at {_MOST_LABEL}")
    # [x, y, z] of the file to [plane, row, column], RAS to LPS.
    labels = voxels.transpose(2, 1, 0).astype(np.uint16)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(image.affine, dtype=np.float64)
    affine[:, :3] = affine[:, 2::-1]
    try:
        grid = grid_of_affine(affine, (labels.shape[0], labels.shape[1], labels.shape[2]))
    except ValueError as wrong:
        raise ReferenceRefused(f"{path}: {wrong}: write it anew with a valid sform or qform") from wrong
    known = {each.number: each for each in names}
    there = [int(number) for number in np.unique(labels) if number]
    return Drawn(
        study_instance_uid="",
        series=(),
        frame_of_reference_uid="",
        grid=grid,
        segments=tuple(known.get(each) or Named(number=each, label="") for each in sorted({*known, *there})),
        mask_of=lambda number: labels == number,
    )


def _in_patient(dataset: Dataset, path: Path) -> Drawn:
    segments = _segments(dataset, path)
    frames = dataset.PerFrameFunctionalGroupsSequence
    if not any("PlanePositionSequence" in each for each in (*frames, *dataset.SharedFunctionalGroupsSequence)):
        raise LiesNowhere(f"{path}: its frames are pictures that lie nowhere in the patient")
    grid, planes = _grid_of(dataset)
    pixels_of = _pixels(dataset, planes, path, "plane")

    def mask_of(number: int) -> NDArray[np.bool_]:
        mask = np.zeros(grid.shape, dtype=np.bool_)
        for plane in range(len(mask)):
            drawn = pixels_of(number, plane)
            if drawn is not None:
                mask[plane] = drawn
        return mask

    return Drawn(
        study_instance_uid=str(dataset.StudyInstanceUID),
        series=tuple(str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence") or ()),
        frame_of_reference_uid=str(dataset.get("FrameOfReferenceUID") or ""),
        grid=grid,
        segments=segments,
        mask_of=mask_of,
    )


def _on_pictures(dataset: Dataset, path: Path) -> DrawnOnPictures:
    segments = _segments(dataset, path)
    named = {str(each.ReferencedSOPInstanceUID) for each in dataset.get("SourceImageSequence") or ()}
    for series in dataset.get("ReferencedSeriesSequence") or ():
        named |= {str(each.ReferencedSOPInstanceUID) for each in series.get("ReferencedInstanceSequence") or ()}
    shared = _derivations(dataset.SharedFunctionalGroupsSequence[0])
    found = [
        _image(_derivations(frame) or shared, named, f"{path}: its frame {number}")
        for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence, 1)
    ]
    place_of = {image: place for place, image in enumerate(dict.fromkeys(found))}
    places = np.array([place_of[each] for each in found], dtype=np.intp)
    return DrawnOnPictures(
        images=tuple(place_of),
        instances=frozenset(named | {uid for uid, _ in place_of}),
        size=(int(dataset.Rows), int(dataset.Columns)),
        segments=segments,
        pixels_of=_pixels(dataset, places, path, "image"),
    )


def _derivations(groups: Dataset) -> list[Dataset]:
    """Return the images that functional groups name as those which a frame was made from (PS3.3 C.7.6.16.2.6)."""
    return [
        image for each in groups.get("DerivationImageSequence") or () for image in each.get("SourceImageSequence", ())
    ]


def _image(derived: Sequence[Dataset], named: Collection[str], frame: str) -> Image:
    """Return the one image that a frame lies on, pixel for pixel; an object may be of one instance and say so once."""
    if not derived and len(named) == 1:
        return next(iter(named)), 0
    if len(derived) != 1:
        raise ReferenceRefused(f"{frame} names {len(derived)} images that it was drawn on: nobody can tell which one")
    (image,) = derived
    if str(image.get("SpatialLocationsPreserved") or "YES") != "YES":
        raise ReferenceRefused(f"{frame} does not lie on its image pixel for pixel (Spatial Locations Preserved)")
    number = image.get("ReferencedFrameNumber") or 0
    if isinstance(number, MultiValue):
        raise ReferenceRefused(f"{frame} names {len(number)} frames of its image: nobody can tell which one")
    return str(image.ReferencedSOPInstanceUID), int(number)


def _segments(dataset: Dataset, path: Path) -> tuple[Named, ...]:
    """Return what a Segmentation draws. Raises ReferenceRefused where it is none, or not one that has edges."""
    if str(dataset.get("SOPClassUID", "")) not in SEGMENTATIONS:
        raise ReferenceRefused(f"{path}: it is a {UID(str(dataset.get('SOPClassUID', ''))).name}, no Segmentation")
    kind = str(dataset.SegmentationType)
    if kind not in {"BINARY", "LABELMAP"}:
        raise ReferenceRefused(f"{path}: it is {kind}: it has no edge before somebody has chosen a threshold")
    described = len(dataset.PerFrameFunctionalGroupsSequence)
    if described != int(dataset.NumberOfFrames):
        raise ReferenceRefused(f"{path}: it describes {described} frames and has {dataset.NumberOfFrames}")
    segments = tuple(_named(item) for item in dataset.SegmentSequence if kind == "BINARY" or int(item.SegmentNumber))
    if len({each.number for each in segments}) < len(segments):
        raise ReferenceRefused(f"{path}: two of its segments have one number")
    return segments


def _named(item: Dataset) -> Named:
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence") or ()
    parts = [concept([each]) for each in (kind, *modifiers)]
    return Named(
        number=int(item.SegmentNumber),
        label=str(item.get("SegmentLabel") or ""),
        code="/".join(parts),
        meaning=", ".join(str(each.get("CodeMeaning") or "") for each in (kind, *modifiers)),
    )


def _grid_of(dataset: Dataset) -> tuple[Grid, NDArray[np.intp]]:
    """Return the grid of an object, and which of its planes each frame lies on."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    frames = dataset.PerFrameFunctionalGroupsSequence

    def macro(frame: Dataset, name: str) -> Dataset:
        item: Dataset = (frame.get(name) or shared[name].value)[0]
        return item

    positions = np.array(
        [macro(each, "PlanePositionSequence").ImagePositionPatient for each in frames], dtype=np.float64
    ).reshape(-1, 3)
    directions = np.array(
        [macro(each, "PlaneOrientationSequence").ImageOrientationPatient for each in frames], dtype=np.float64
    ).reshape(-1, 6)
    measures = [macro(each, "PixelMeasuresSequence") for each in frames]
    spacing = np.array([each.PixelSpacing for each in measures], dtype=np.float64)
    if np.abs(directions - directions[0]).max() > _PARALLEL or np.abs(spacing - spacing[0]).max() > _PARALLEL:
        raise ValueError("its frames have different orientations or pixel spacings")
    return grid_of_planes(
        positions,
        directions[0][3:] * spacing[0][0],
        directions[0][:3] * spacing[0][1],
        (int(dataset.Rows), int(dataset.Columns)),
        spacing_mm=_length(measures[0], "SpacingBetweenSlices"),
        thickness_mm=_length(measures[0], "SliceThickness"),
    )


def _length(measures: Dataset, keyword: str) -> float | None:
    value = measures.get(keyword)
    return None if value is None else abs(float(value))


def _pixels(dataset: Dataset, places: NDArray[np.intp], path: Path, place: str) -> _PixelsOf:
    """Return what gives the pixels of a segment on a place; `places` says of each frame on which one it lies."""
    return (_binary if str(dataset.SegmentationType) == "BINARY" else _labelled)(dataset, places, path, place)


def _binary(dataset: Dataset, places: NDArray[np.intp], path: Path, place: str) -> _PixelsOf:
    shared = dataset.SharedFunctionalGroupsSequence[0]
    frame_of: dict[tuple[int, int], int] = {}
    for frame, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        said = item.get("SegmentIdentificationSequence") or shared["SegmentIdentificationSequence"].value
        if frame_of.setdefault((int(said[0].ReferencedSegmentNumber), int(places[frame])), frame) != frame:
            raise ReferenceRefused(f"{path}: two frames draw one segment on one {place}")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    area, frames = rows * columns, int(dataset.NumberOfFrames)
    if UID(str(dataset.file_meta.TransferSyntaxUID)).is_compressed:
        decoded = _decoded(dataset, path)
    else:
        packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
        if len(packed) * 8 < area * frames:
            raise ReferenceRefused(f"{path}: its pixel data is shorter than {frames} frames: it is damaged")

        def decoded(frame: int) -> NDArray[np.bool_]:
            # Frames follow each other bit by bit (PS3.5 8.1.1), least significant first.
            first, skipped = divmod(frame * area, 8)
            bits = np.unpackbits(packed[first : first + (skipped + area + 7) // 8], bitorder="little")
            return bits[skipped : skipped + area].reshape(rows, columns).view(np.bool_)

    def pixels_of(number: int, on: int) -> NDArray[np.bool_] | None:
        frame = frame_of.get((number, on))
        return None if frame is None else decoded(frame)

    return pixels_of


def _labelled(dataset: Dataset, places: NDArray[np.intp], path: Path, place: str) -> _PixelsOf:
    if len(set(places.tolist())) < len(places):
        raise ReferenceRefused(f"{path}: two of its frames lie on one {place}")
    labels = {int(on): _frame(dataset, frame, path) for frame, on in enumerate(places)}
    return lambda number, on: labels[on] == number if on in labels else None


def _decoded(dataset: Dataset, path: Path) -> Callable[[int], NDArray[np.bool_]]:
    return lambda frame: _frame(dataset, frame, path) > 0


def _frame(dataset: Dataset, frame: int, path: Path) -> NDArray[np.integer]:
    """Return the pixels of a frame; run lengths are decoded in Python: a library in C may take the process with it."""
    run_lengths = str(dataset.file_meta.TransferSyntaxUID) == RLELossless
    try:
        return np.asarray(pixel_array(dataset, index=frame, decoding_plugin="pydicom" if run_lengths else ""))
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, ValueError) as wrong:
        raise ReferenceRefused(f"{path}: its frame {frame + 1} cannot be decoded: export it uncompressed") from wrong
