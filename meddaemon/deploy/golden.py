"""Golden cases: an input, what a model must make of it, and the same input turned in every way that changes nothing.

    golden/CASE/case.toml      the inputs, the expected result, and how near to it a run must come
                *.npz          voxels and where they lie, or labels

A case lies in the folder `golden` of the bundle, or beside the contract, where the operator adds it. A turned input
is the same voxels at the same places in the patient, stored along other axes: a model that looks at the patient says
the same of it, one that looks at the array does not.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from meddaemon.config import toml_file
from meddaemon.config.problems import Problems, frozen
from meddaemon.deploy.places import NotThere, Place
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import BundleRefused
from meddaemon.domain.result import Labels
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derived_uid

CASE_NAME = "case.toml"
MAXIMUM_ARRAY_BYTES = 2**31
_SOP_CLASSES = {"MR": MRImageStorage, "CT": CTImageStorage, "PT": PositronEmissionTomographyImageStorage}

_File = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""A name in the folder of the case, which leads nowhere else."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Input(_Strict):
    key: Annotated[str, Field(min_length=1)]
    array: _File = ""
    files: _File = ""
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] = "MR"


_Point = Annotated[tuple[float, ...], Field(min_length=2, max_length=3)]


class _Place(_Strict):
    """`image` and `frame` name the picture, where the points are [row, column]; else they are [x, y, z] in LPS mm."""

    label: Annotated[int, Field(ge=0)]
    score: Annotated[float, Field(ge=0, le=1)] = 1.0
    image: Annotated[str, Field(pattern=r"^[0-9.]{0,64}$")] = ""
    frame: Annotated[int, Field(ge=1)] = 1

    def place(self, *points: tuple[float, ...]) -> Place:
        """Return the place as results are compared with it."""
        image = (self.image, self.frame) if self.image else None
        return Place(label=self.label, score=self.score, points=points, image=image)


class _Box(_Place):
    corners: tuple[_Point, _Point]


class _Landmark(_Place):
    point: _Point


class _Expected(_Strict):
    labels: _File = ""
    scores: tuple[float, ...] = ()
    boxes: tuple[_Box, ...] | None = None
    landmarks: tuple[_Landmark, ...] | None = None
    dice: Annotated[float, Field(gt=0, le=1)] = 0.99
    difference: Annotated[float, Field(ge=0)] = 0.01
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.9
    distance: Annotated[float, Field(ge=0)] = 1.0

    @property
    def places(self) -> tuple[Place, ...] | None:
        """What must be found where; None where the case is about something else."""
        if self.boxes is not None:
            return tuple(each.place(*each.corners) for each in self.boxes)
        if self.landmarks is not None:
            return tuple(each.place(each.point) for each in self.landmarks)
        return None


class _Case(_Strict):
    inputs: Annotated[tuple[_Input, ...], Field(min_length=1)]
    expected: _Expected


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Voxels [plane, row, column] and the affine that maps (plane, row, column, 1) of their centres to LPS mm."""

    voxels: NDArray[np.float32]
    affine_lps: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input of a case: files as they came, or a grid, from which files are written."""

    key: str
    modality: str
    files: tuple[Path, ...] = ()
    grid: Grid | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A golden case; `dice`, `difference` (of scores), `overlap` and `distance` are how near is near enough.

    `labels` [plane, row, column] lie on the grid of `affine_lps`; [segment, plane, row, column] where segments overlap;
    on pictures [frame, row, column] without an affine, in the order of their Instance Numbers. `places` are boxes,
    whose overlap is intersection over union, or landmarks, whose distance is in mm, on a picture in pixels; they may be
    none at all, and are None where the case is about something else.
    """

    name: str
    sources: tuple[Source, ...]
    labels: Labels | None
    affine_lps: NDArray[np.float64] | None
    scores: tuple[float, ...]
    dice: float = 0.99
    difference: float = 0.01
    places: tuple[Place, ...] | None = None
    is_of_landmarks: bool = False
    overlap: float = 0.9
    distance: float = 1.0

    @property
    def measure(self) -> Literal["dice", "difference", "overlap", "distance"]:
        """By what a result is compared with the case."""
        if self.places is not None:
            return "distance" if self.is_of_landmarks else "overlap"
        return "difference" if self.labels is None else "dice"

    @property
    def limit(self) -> float:
        """How near is near enough, in that measure."""
        return {
            "dice": self.dice,
            "difference": self.difference,
            "overlap": self.overlap,
            "distance": self.distance,
        }[self.measure]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Another way to store the same voxels: axes in this order, then these axes from the other end."""

    name: str
    order: tuple[int, int, int]
    flips: tuple[int, ...] = ()


AS_GIVEN = Turn(name="as given", order=(0, 1, 2))
TURNS = (
    Turn(name="planes from the other end", order=(0, 1, 2), flips=(0,)),
    Turn(name="rows from the other end", order=(0, 1, 2), flips=(1,)),
    Turn(name="columns from the other end", order=(0, 1, 2), flips=(2,)),
    Turn(name="rows and columns exchanged", order=(0, 2, 1)),
    Turn(name="cut along the rows", order=(1, 0, 2)),
    Turn(name="cut along the columns", order=(2, 1, 0)),
    Turn(name="turned about every axis", order=(1, 2, 0), flips=(0, 2)),
)
"""Of the 48 ways to store a volume, so many that no axis keeps its place or its direction in all of them."""


def find_cases(contract: ModelContract) -> list[Path]:
    """Return the folders of a model's cases: those that its bundle carries, then those that lie beside its contract."""
    folders = dict.fromkeys((contract.bundle / "golden", contract.contract_file.parent / "golden"))
    return [file.parent for folder in folders for file in sorted(folder.glob(f"*/{CASE_NAME}"))]


def read_case(folder: Path) -> Case:
    """Read one case. Raises InvalidConfiguration with the lines that are wrong, BundleRefused for its arrays."""
    document = toml_file.read(folder / CASE_NAME)
    problems = Problems(document)
    try:
        raw = _Case.model_validate(frozen(document.data))
    except ValidationError as error:
        problems.add_invalid(error, _Case)
        raise problems.error from error
    for index, each in enumerate(raw.inputs):
        if bool(each.array) is bool(each.files):
            problems.add(("inputs", index), "needs either array or files")
        if each.array and each.modality not in _SOP_CLASSES:
            problems.add(("inputs", index, "modality"), f"an array can be written as {', '.join(_SOP_CLASSES)}")
    expected = raw.expected
    given = [bool(expected.labels), bool(expected.scores), expected.boxes is not None, expected.landmarks is not None]
    if given.count(True) != 1:
        problems.add(("expected",), "needs either labels, scores, boxes or landmarks")
    for section in ("boxes", "landmarks"):
        for index, each in enumerate(getattr(expected, section) or ()):
            points = each.corners if isinstance(each, _Box) else (each.point,)
            if any(len(point) != (2 if each.image else 3) for point in points):
                wanted = "[row, column] on an image" if each.image else "[x, y, z] in LPS mm, or names its image"
                problems.add(("expected", section, index), f"is {wanted}")
    problems.raise_if_any()
    sources = tuple(_source(folder, each) for each in raw.inputs)
    labels, affine = _labels(folder / raw.expected.labels, sources[0]) if raw.expected.labels else (None, None)
    return Case(
        name=folder.name,
        sources=sources,
        labels=labels,
        affine_lps=affine,
        scores=raw.expected.scores,
        dice=raw.expected.dice,
        difference=raw.expected.difference,
        places=expected.places,
        is_of_landmarks=expected.landmarks is not None,
        overlap=expected.overlap,
        distance=expected.distance,
    )


def write_case(folder: Path, case: Case) -> None:
    """Write a case of grids as its folder; it names no patient. Raises OSError when it is there already."""
    folder.mkdir(parents=True)
    lines = []
    for index, source in enumerate(case.sources):
        if source.grid is None:
            raise ValueError("only grids are written")
        np.savez_compressed(
            folder / f"input{index}.npz", voxels=_smallest(source.grid.voxels), affine_lps=source.grid.affine_lps
        )
        lines += ["[[inputs]]", f'key = "{source.key}"', f'array = "input{index}.npz"']
        lines += [f'modality = "{source.modality}"', ""]
    lines += ["[expected]"]
    if case.labels is not None and case.affine_lps is not None:
        np.savez_compressed(folder / "labels.npz", labels=case.labels, affine_lps=case.affine_lps)
        lines += ['labels = "labels.npz"', f"dice = {case.dice!r}"]
    elif case.places is not None:
        lines += [f"{case.measure} = {case.limit!r}", f"difference = {case.difference!r}"]
        section = "landmarks" if case.is_of_landmarks else "boxes"
        lines += ([] if case.places else [f"{section} = []"]) + [
            line for each in case.places for line in ("", f"[[expected.{section}]]", *_written(each))
        ]
    else:
        lines += [f"scores = {list(case.scores)!r}", f"difference = {case.difference!r}"]
    (folder / CASE_NAME).write_text("\n".join([*lines, ""]))


def _written(place: Place) -> list[str]:
    points = [[round(float(value), 4) for value in point] for point in place.points]
    return [
        f"label = {place.label}",
        f"score = {round(place.score, 6)!r}",
        f"corners = {points!r}" if len(points) == 2 else f"point = {points[0]!r}",
        *([f'image = "{place.image[0]}"', f"frame = {place.image[1]}"] if place.image else []),
    ]


def turned(grid: Grid, turn: Turn) -> Grid:
    """Return the same voxels at the same places, stored in another way."""
    voxels = grid.voxels.transpose(turn.order)
    affine = grid.affine_lps[:, [*turn.order, 3]].copy()
    for axis in turn.flips:
        affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
        affine[:3, axis] *= -1
    return Grid(voxels=np.ascontiguousarray(np.flip(voxels, turn.flips)), affine_lps=affine)


def files_of(case: Case, turn: Turn, folder: Path) -> dict[str, list[Path]]:
    """Return the files of a case's inputs by their keys: files as they are, grids turned and written below `folder`.

    Raises BundleRefused when a grid cannot be turned.
    """
    given: dict[str, list[Path]] = {}
    for index, source in enumerate(case.sources):
        if source.grid is None:
            given[source.key] = list(source.files)
        else:
            identity = (case.name, turn.name)
            written = turned(source.grid, turn)
            given[source.key] = _write_series(written, folder / str(index), source.modality, identity, index)
    return given


def onto(labels: Labels, affine: NDArray[np.float64], shape: Sequence[int], wanted: NDArray[np.float64]) -> Labels:
    """Return labels that lie by `affine` as an array of `shape` that lies by `wanted`, voxel for voxel.

    Raises NotThere when they are not the same voxels.
    """
    between = np.linalg.inv(affine) @ wanted
    axes = np.round(between[:3, :3])
    if np.abs(between[:3, :3] - axes).max() > 1e-3 or not (np.abs(axes).sum(0) == 1).all() or (axes == 0).sum() != 6:
        raise NotThere("the result does not lie along the axes of the case")
    order = np.abs(axes).argmax(0)
    backwards = tuple(axis for axis in range(3) if axes[order[axis], axis] < 0)
    moved = np.flip(labels.transpose(tuple(map(int, order))), backwards)
    if moved.shape != tuple(shape):
        raise NotThere(f"the result has {moved.shape} voxels along the axes of the case, which has {tuple(shape)}")
    start = [labels.shape[order[axis]] - 1 if axis in backwards else 0 for axis in range(3)]
    away = np.abs(between[order, 3] - start).max()
    if away > 0.01:
        raise NotThere(f"the result lies {away:.2f} voxels away from the case")
    return moved


def layers(labels: Labels) -> list[Labels]:
    """Return what is drawn as one map of labels, or one mask for each segment."""
    return [labels] if labels.ndim == 3 else list(labels)


def worst_dice(found: Labels, expected: Labels) -> float:
    """Return the smallest Dice of all labels that either has; 1 when neither has any."""
    named = np.union1d(np.unique(found), np.unique(expected))
    overlaps = []
    for label in named[named != 0]:
        one, other = found == label, expected == label
        overlaps.append(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))
    return float(min(overlaps, default=1.0))


def _source(folder: Path, raw: _Input) -> Source:
    if raw.array:
        return Source(key=raw.key, modality=raw.modality, grid=_grid(folder / raw.array))
    below = folder / raw.files
    files = sorted(path for path in below.rglob("*") if path.is_file()) if below.is_dir() else [below]
    if not files or not files[0].is_file():
        raise BundleRefused(f"{below} has no files")
    return Source(key=raw.key, modality=raw.modality, files=tuple(files))


def _grid(path: Path) -> Grid:
    arrays = _arrays(path, ("voxels", "affine_lps"))
    voxels = arrays["voxels"]
    if voxels.ndim != 3 or voxels.dtype.kind not in "iuf" or not np.isfinite(voxels).all():
        raise BundleRefused(f"{path}: voxels are [plane, row, column] of finite numbers")
    return Grid(voxels=voxels.astype(np.float32), affine_lps=_affine(arrays["affine_lps"], path))


def _labels(path: Path, first: Source) -> tuple[Labels, NDArray[np.float64] | None]:
    arrays = _arrays(path, ("labels",))
    raw = arrays["labels"]
    if raw.ndim not in {3, 4} or raw.dtype.kind not in "bu" or raw.dtype.itemsize > 2:
        raise BundleRefused(f"{path}: labels are [plane, row, column], or a mask for each segment, of 8 or 16 bits")
    labels: Labels = raw.astype(np.uint16) if raw.dtype.itemsize == 2 else raw.astype(np.uint8)
    if "affine_lps" in arrays:
        return labels, _affine(arrays["affine_lps"], path)
    if first.grid is None:
        # Those of pictures, which lie nowhere in the patient: frame by frame, in the order of the pictures.
        return labels, None
    if first.grid.voxels.shape != labels.shape[-3:]:
        raise BundleRefused(f"{path}: labels have the shape of the first input, or an affine_lps of their own")
    return labels, first.grid.affine_lps


def _affine(array: NDArray[np.generic], path: Path) -> NDArray[np.float64]:
    if array.shape != (4, 4) or array.dtype.kind not in "iuf":
        raise BundleRefused(f"{path}: affine_lps is 4 × 4")
    affine = array.astype(np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9 or list(affine[3]) != [0, 0, 0, 1]:
        raise BundleRefused(f"{path}: affine_lps does not say where voxels lie")
    return affine


def _arrays(path: Path, wanted: Sequence[str]) -> Mapping[str, NDArray[np.generic]]:
    """Return the arrays of an .npz, which claims no more than it has and pickles nothing. Raises BundleRefused."""
    found: dict[str, NDArray[np.generic]] = {}
    try:
        with zipfile.ZipFile(path) as opened:
            members = {member.filename.removesuffix(".npy"): member for member in opened.infolist()}
            if sum(member.file_size for member in members.values()) > MAXIMUM_ARRAY_BYTES:
                raise BundleRefused(f"{path} has more than {MAXIMUM_ARRAY_BYTES} bytes")
            for name in {*wanted, "affine_lps"} & members.keys():
                with opened.open(members[name]) as file:
                    head = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = head(file)
                    if dtype.hasobject or np.prod(shape, dtype=float) * dtype.itemsize > members[name].file_size:
                        raise BundleRefused(f"{path}: {name} is not what it claims to be")
                with opened.open(members[name]) as file:
                    found[name] = npy.read_array(file, allow_pickle=False)
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleRefused(f"{path} cannot be read: {error}") from error
    if missing := set(wanted) - found.keys():
        raise BundleRefused(f"{path} has no array {', '.join(sorted(missing))}")
    return found


def _write_series(grid: Grid, folder: Path, modality: str, identity: tuple[str, str], number: int) -> list[Path]:
    """Write a grid as one file for each plane; voxels are kept exactly where 16 bits can hold them."""
    folder.mkdir(parents=True)
    spacing = np.linalg.norm(grid.affine_lps[:3, :3], axis=0)
    axes = grid.affine_lps[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4:
        raise BundleRefused("the axes of a case are not at right angles to each other: it cannot be turned")
    stored, slope, intercept = _as_stored(grid.voxels)
    paths = []
    for plane, pixels in enumerate(stored):
        header = _header(modality, identity, number, plane)
        header.ImageOrientationPatient = _decimals([*axes[:, 2], *axes[:, 1]])
        header.ImagePositionPatient = _decimals(grid.affine_lps[:3, 3] + plane * grid.affine_lps[:3, 0])
        header.PixelSpacing = _decimals([spacing[1], spacing[2]])
        header.SliceThickness = _decimals([spacing[0]])[0]
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        header.Rows, header.Columns = pixels.shape
        header.PixelRepresentation = int(stored.dtype.kind == "i")
        header.PixelData = np.ascontiguousarray(pixels).tobytes()
        # Neither the names nor the order of the files say anything of the order of the planes.
        paths.append(folder / f"{(plane * 7919) % 100003:06d}.dcm")
        header.save_as(paths[-1], enforce_file_format=True)
    return paths


def _header(modality: str, identity: tuple[str, str], number: int, plane: int) -> Dataset:
    meta = FileMetaDataset()
    header = Dataset()
    header.file_meta = meta
    header.SOPClassUID = meta.MediaStorageSOPClassUID = _SOP_CLASSES.get(modality, MRImageStorage)
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID(
        derived_uid("golden", *identity, str(number), str(plane))
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    header.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    header.PatientName, header.PatientID = "Golden^Case", "GOLDEN"
    header.StudyInstanceUID = derived_uid("golden", *identity, "study")
    header.SeriesInstanceUID = derived_uid("golden", *identity, str(number))
    header.FrameOfReferenceUID = derived_uid("golden", *identity, "frame of reference")
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = "20260101"
    header.StudyTime = header.SeriesTime = header.AcquisitionTime = "080000"
    header.Modality, header.SeriesNumber, header.InstanceNumber = modality, number + 1, plane + 1
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    return header


def _as_stored(voxels: NDArray[np.float32]) -> tuple[NDArray[np.int16] | NDArray[np.uint16], str, str]:
    """Return 16 bits for each voxel, slope and intercept: values that are whole numbers are kept exactly."""
    low, high = float(voxels.min()), float(voxels.max())
    if low >= -32768 and high <= 32767 and (voxels == np.round(voxels)).all():
        return voxels.astype(np.int16), "1", "0"
    slope = float(f"{max(high - low, 1e-30) / 65000:.9g}")
    intercept = float(f"{low - slope:.9g}")
    stored = np.round((voxels.astype(np.float64) - intercept) / slope).clip(0, 65535)
    return stored.astype(np.uint16), f"{slope:.9g}", f"{intercept:.9g}"


def _smallest(voxels: NDArray[np.float32]) -> NDArray[np.generic]:
    """Return whole numbers as such, which pack better."""
    whole = voxels.min() >= -32768 and voxels.max() <= 32767 and (voxels == np.round(voxels)).all()
    return voxels.astype(np.int16) if whole else voxels


def _decimals(values: object) -> list[str]:
    """Return numbers as Decimal Strings of at most 16 characters (PS3.5 6.2)."""
    return [f"{value:.10f}"[:16] for value in np.asarray(values, dtype=np.float64).tolist()]
