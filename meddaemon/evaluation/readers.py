"""Files of a reference, each told by what it is: table (CSV), Segmentation, report (SR), label map (NIfTI)."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from meddaemon.domain.errors import ReferenceRefused
from meddaemon.evaluation.masks import SEGMENTATIONS, Named, is_nifti
from meddaemon.evaluation.references import (
    Case,
    Cuboid,
    Labels,
    Masks,
    Place,
    Rectangle,
    Reference,
    Sphere,
    Target,
    Targets,
    Value,
    Values,
)
from meddaemon.evaluation.reports import REPORTS, report_references

_CASE = ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "frame_number")
_SPHERE = ("x", "y", "z", "diameter_mm")
_RECTANGLE = ("low_row", "low_column", "high_row", "high_column")
_CUBOID = ("low_plane", "low_row", "low_column", "high_plane", "high_row", "high_column")
_VALUE = ("measurement", "value", "unit")
COLUMNS = tuple(dict.fromkeys((*_CASE, "finding", "present", "mask", *_SPHERE, *_RECTANGLE, *_CUBOID, *_VALUE)))
"""Every column that a table may have."""
_TRUTH: Mapping[str, bool] = MappingProxyType(
    {"1": True, "yes": True, "true": True, "present": True, "0": False, "no": False, "false": False, "absent": False}
)
_MOST_BYTES = 256 * 2**20


def read_references(paths: Sequence[Path], names: Sequence[Named] = ()) -> list[Reference]:
    """Read files, and folders whole, in the order of their names.

    `names` say what the numbers of NIfTI label maps mean. Raises ReferenceRefused, which names the file.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise ReferenceRefused(f"{', '.join(map(str, paths))}: there is no file in it")
    found = [reference for file in files for reference in _read(file, tuple(names))]
    # What a table names by `mask` may lie in the folder that was given, too.
    masks = {each.says.path.resolve() for each in found if isinstance(each.says, Masks) and each.origin != _own(each)}
    kept = [each for each in found if not (each.origin == _own(each) and _path(each).resolve() in masks)]
    for each in kept:
        if not each.case.study_instance_uid:
            raise ReferenceRefused(
                f"{each.origin}: a NIfTI file does not say whose it is: call it <Study Instance UID>.nii.gz or "
                "<Series Instance UID>.nii.gz, or name it in a table with the columns study_instance_uid and mask"
            )
    return kept


def _own(reference: Reference) -> str:
    return str(reference.says.path) if isinstance(reference.says, Masks) else ""


def _path(reference: Reference) -> Path:
    return reference.says.path if isinstance(reference.says, Masks) else Path()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith("."))
    if not path.is_file():
        raise ReferenceRefused(f"{path}: there is no such file or folder")
    return [path]


def _read(path: Path, names: tuple[Named, ...]) -> list[Reference]:
    if path.suffix.lower() == ".csv":
        return _Table(path, names).references()
    if is_nifti(path):
        return [Reference(case=_named_case(path), origin=str(path), says=Masks(path=path, names=names))]
    try:
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=None)
    except InvalidDicomError:
        raise ReferenceRefused(
            f"{path}: it is no DICOM file, no NIfTI file (.nii, .nii.gz) and no table (.csv): leave it out"
        ) from None
    sop_class_uid = str(dataset.get("SOPClassUID") or "")
    if sop_class_uid in SEGMENTATIONS:
        return [Reference(case=_case_of_segmentation(dataset, path), origin=str(path), says=Masks(path=path))]
    if sop_class_uid in REPORTS:
        return report_references(dataset, path)
    raise ReferenceRefused(
        f"{path}: it is a {UID(sop_class_uid).name}, neither a Segmentation nor a report: leave it out"
    )


def _named_case(path: Path) -> Case:
    """Return the case of a label map that is named after its study or series; which of both is found out later."""
    uid = path.name.lower().removesuffix(".gz").removesuffix(".nii")
    return Case(study_instance_uid=uid if _is_uid(uid) else "")


def _is_uid(text: str) -> bool:
    return bool(text) and len(text) <= 64 and UID(text).is_valid and "." in text


def _case_of_segmentation(dataset: Dataset, path: Path) -> Case:
    study = str(dataset.get("StudyInstanceUID") or "")
    if not study:
        raise ReferenceRefused(f"{path}: it has no Study Instance UID: nobody can tell whose it is")
    series = {str(item.get("SeriesInstanceUID") or "") for item in dataset.get("ReferencedSeriesSequence") or ()}
    return Case(study_instance_uid=study, series_instance_uid=series.pop() if len(series) == 1 else "")


@dataclass(frozen=True)
class _Line:
    """One line of a table."""

    where: str
    cells: Mapping[str, str]
    case: Case

    def number(self, column: str) -> float:
        """Return a number. Raises ReferenceRefused where there is none."""
        try:
            value = float(self.cells[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ReferenceRefused(f"{self.where}: {column} is {self.cells[column]!r}, which is no number")
        return value


class _Table:
    """A table: which columns it has says what kind it is."""

    def __init__(self, path: Path, names: tuple[Named, ...]) -> None:
        self._path = path
        self._names = names
        self._columns: tuple[str, ...] = ()

    def references(self) -> list[Reference]:
        lines = list(self._lines())
        if not lines:
            raise ReferenceRefused(f"{self._path}: it has no line but its heading")
        return self._reading()(lines)

    def _reading(self) -> Callable[[list[_Line]], list[Reference]]:
        said = set(self._columns) - set(_CASE)
        kinds: dict[frozenset[str], Callable[[list[_Line]], list[Reference]]] = {
            frozenset({"mask"}): self._masks,
            frozenset({"finding"}): self._there,
            frozenset({"finding", "present"}): self._judged,
            frozenset({"finding", *_SPHERE}): lambda lines: self._targets(lines, self._sphere),
            frozenset({"finding", *_RECTANGLE}): lambda lines: self._targets(lines, self._rectangle),
            frozenset({"finding", *_CUBOID}): lambda lines: self._targets(lines, self._cuboid),
            frozenset({"finding", "value", "unit"}): self._values,
            frozenset({"finding", *_VALUE}): self._values,
        }
        if frozenset(said) not in kinds:
            forms = "; ".join(sorted(", ".join(sorted(each)) for each in kinds))
            raise ReferenceRefused(
                f"{self._path}: its columns are {', '.join(self._columns)}; beside {', '.join(_CASE)} a table has one "
                f"of: {forms}"
            )
        return kinds[frozenset(said)]

    def _lines(self) -> Iterator[_Line]:
        if self._path.stat().st_size > _MOST_BYTES:
            raise ReferenceRefused(f"{self._path}: a table of more than {_MOST_BYTES >> 20} MB: cut it into several")
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                heading = file.readline()
                file.seek(0)
                # Spreadsheets of half of Europe have semicolons between columns.
                delimiter = ";" if ";" in heading and "," not in heading else ","
                reader = csv.DictReader(file, strict=True, delimiter=delimiter)
                self._columns = tuple(column.strip() for column in reader.fieldnames or ())
                reader.fieldnames = self._columns
                self._check_heading()
                for cells in reader:
                    yield self._line(reader.line_num, cells)
        except UnicodeDecodeError:
            raise ReferenceRefused(f"{self._path}: it is not UTF-8: save it anew as CSV UTF-8") from None
        except csv.Error as wrong:
            raise ReferenceRefused(f"{self._path}: {wrong}: save it anew with commas between the columns") from None

    def _check_heading(self) -> None:
        unknown = [column for column in self._columns if column not in COLUMNS]
        if unknown or "study_instance_uid" not in self._columns or len(set(self._columns)) < len(self._columns):
            said = f"unknown column {unknown[0]!r}" if unknown else "no column study_instance_uid, or one column twice"
            raise ReferenceRefused(f"{self._path}:1: {said}; the columns of a table are {', '.join(COLUMNS)}")

    def _line(self, number: int, cells: Mapping[str | None, object]) -> _Line:
        where = f"{self._path}:{number}"
        if None in cells or None in cells.values():
            raise ReferenceRefused(f"{where}: it has not as many cells as the heading")
        told = {str(column): str(value).strip() for column, value in cells.items()}
        for column in _CASE[:3]:
            if told.get(column) and not _is_uid(told[column]):
                raise ReferenceRefused(f"{where}: {column} is {told[column]!r}, which is no UID")
        if not told["study_instance_uid"]:
            raise ReferenceRefused(f"{where}: study_instance_uid is empty")
        image, frame = told.get("sop_instance_uid", ""), told.get("frame_number", "")
        if frame and not (frame.isdecimal() and int(frame) > 0 and image):
            raise ReferenceRefused(f"{where}: frame_number is {frame!r}; frames count from 1, of a sop_instance_uid")
        case = Case(
            study_instance_uid=told["study_instance_uid"],
            series_instance_uid=told.get("series_instance_uid", ""),
            sop_instance_uid=image,
            frame_number=int(frame or 1) if image else 0,
        )
        return _Line(where, told, case)

    def _masks(self, lines: list[_Line]) -> list[Reference]:
        found = []
        for line in lines:
            path = self._path.parent / line.cells["mask"]
            if not line.cells["mask"] or not path.is_file():
                raise ReferenceRefused(f"{line.where}: there is no file {path}")
            found.append(Reference(case=line.case, origin=line.where, says=Masks(path=path, names=self._names)))
        return found

    def _there(self, lines: list[_Line]) -> list[Reference]:
        """Every line names what is there; a line without a finding says that nothing is."""
        return [
            Reference(
                case=case,
                origin=of_case[0].where,
                says=Labels(
                    present={each.cells["finding"]: True for each in of_case if each.cells["finding"]}, closed=True
                ),
            )
            for case, of_case in _by_case(lines).items()
        ]

    def _judged(self, lines: list[_Line]) -> list[Reference]:
        found = []
        for case, of_case in _by_case(lines).items():
            present: dict[str, bool] = {}
            for line in of_case:
                truth = _TRUTH.get(line.cells["present"].lower())
                if truth is None or not line.cells["finding"]:
                    raise ReferenceRefused(f"{line.where}: name a finding, and say 1 or 0 whether it is present")
                if present.setdefault(line.cells["finding"], truth) != truth:
                    raise ReferenceRefused(f"{line.where}: {line.cells['finding']!r} is present and absent in one case")
            found.append(Reference(case=case, origin=of_case[0].where, says=Labels(present=present, closed=False)))
        return found

    def _values(self, lines: list[_Line]) -> list[Reference]:
        """Every line is a number of a finding, or, of a regression, the number that it finds."""
        for line in lines:
            if not line.cells["finding"] or not line.cells["unit"]:
                raise ReferenceRefused(f"{line.where}: name a finding and a unit (UCUM; 1 for a number without one)")
        return [
            Reference(
                case=case,
                origin=of_case[0].where,
                says=Values(
                    values=tuple(
                        Value(
                            finding=line.cells["finding"],
                            measurement=line.cells.get("measurement", ""),
                            number=line.number("value"),
                            unit=line.cells["unit"],
                            origin=line.where,
                        )
                        for line in of_case
                    )
                ),
            )
            for case, of_case in _by_case(lines).items()
        ]

    def _targets(self, lines: list[_Line], place: Callable[[_Line], Place]) -> list[Reference]:
        """Every line is a lesion; a line without a finding says that there is none."""
        found = []
        cases = _by_case(
            lines,
            lambda case: Case(study_instance_uid=case.study_instance_uid, series_instance_uid=case.series_instance_uid),
        )
        for case, of_case in cases.items():
            targets = tuple(
                Target(finding=line.cells["finding"], place=place(line)) for line in of_case if line.cells["finding"]
            )
            if targets and len(targets) < len(of_case):
                raise ReferenceRefused(
                    f"{of_case[0].where}: this case has lesions, and a line that says that it has none"
                )
            found.append(Reference(case=case, origin=of_case[0].where, says=Targets(targets=targets)))
        return found

    def _sphere(self, line: _Line) -> Sphere:
        diameter = line.number("diameter_mm")
        if diameter <= 0:
            raise ReferenceRefused(f"{line.where}: diameter_mm is {diameter:g}; it must be more than 0")
        centre = (line.number("x"), line.number("y"), line.number("z"))
        return Sphere(centre_lps=centre, radius_mm=diameter / 2)

    def _rectangle(self, line: _Line) -> Rectangle:
        if not line.case.sop_instance_uid:
            raise ReferenceRefused(f"{line.where}: rows and columns are those of an image: name its sop_instance_uid")
        low = (line.number("low_row"), line.number("low_column"))
        high = (line.number("high_row"), line.number("high_column"))
        _refuse_reversed(line, low, high)
        return Rectangle(
            sop_instance_uid=line.case.sop_instance_uid, frame_number=line.case.frame_number, low=low, high=high
        )

    def _cuboid(self, line: _Line) -> Cuboid:
        low = (line.number("low_plane"), line.number("low_row"), line.number("low_column"))
        high = (line.number("high_plane"), line.number("high_row"), line.number("high_column"))
        _refuse_reversed(line, low, high)
        return Cuboid(low=low, high=high)


def _refuse_reversed(line: _Line, low: Sequence[float], high: Sequence[float]) -> None:
    if any(first > last for first, last in zip(low, high, strict=True)):
        raise ReferenceRefused(f"{line.where}: its low corner lies beyond its high one")


def _by_case(lines: Sequence[_Line], case_of: Callable[[Case], Case] = lambda case: case) -> dict[Case, list[_Line]]:
    cases: dict[Case, list[_Line]] = {}
    for line in lines:
        cases.setdefault(case_of(line.case), []).append(line)
    return cases
