"""Data sets that are no slices of a volume, read attribute by attribute: what is missing or malformed has a name.

Few files of this kind make a study, so pydicom reads them. Everything in them is hostile until checked; what a value
says is never quoted in an error, because it may name a patient.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pydicom import config as pydicom_config
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError

from meddaemon.domain.errors import ContradictoryIdentity, InputRefused

# What pydicom is known to raise on damaged or hostile input, also when a value is first looked at.
_READ_ERRORS = (
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

_IDENTITY = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")


@contextmanager
def opened(path: Path, *, whole: bool = False, only: Sequence[str] = ()) -> Iterator[FileDataset]:
    """Give the data set of a file, without its pixels unless it is asked for `whole`, or `only` some attributes.

    Raises `InputRefused` (`unreadable`) for whatever goes wrong with it as long as the context lasts, because values
    are converted when they are first looked at.
    """
    try:
        # Values that break their VR are judged by us, by name; pydicom's warnings would quote them.
        with pydicom_config.disable_value_validation():
            yield dcmread(path, stop_before_pixels=not whole, specific_tags=list(only) or None)
    except _READ_ERRORS as error:
        raise InputRefused(
            "unreadable", f"not a readable DICOM file ({type(error).__name__})", numbers={"file": path.name}
        ) from error


def refuse(dataset: Dataset, reason: str, message: str, **numbers: object) -> NoReturn:
    """Raise `InputRefused` for the instance."""
    raise InputRefused(reason, message, sop_instance_uid=text(dataset, "SOPInstanceUID"), numbers=numbers)


def text(dataset: Dataset, keyword: str) -> str:
    """Return a text of one component; empty where it is absent."""
    return str(dataset.get(keyword) or "").strip()


def components(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the components of a value as texts; none where it is absent."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    several = not isinstance(value, str | bytes) and isinstance(value, Sequence)
    return tuple(str(each).strip() for each in (value if several else [value]))


def integer(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """Return a whole number. Raises `InputRefused` where it is malformed, or absent without a default."""
    value = dataset.get(keyword)
    if value is None or value == "":
        if default is None:
            refuse(dataset, "missing_attribute", f"has no {keyword}")
        return default
    if not isinstance(value, int):
        refuse(dataset, "malformed", f"{keyword} is not one whole number")
    return int(value)


def number(dataset: Dataset, keyword: str, default: float) -> float:
    """Return a number, or the default where it is absent. Raises `InputRefused` where it is none."""
    values = numbers(dataset, keyword)
    if len(values) > 1:
        refuse(dataset, "malformed", f"{keyword} has {len(values)} components instead of 1")
    return values[0] if values else default


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """Return all components of a numeric attribute; none where it is absent."""
    return tuple(float(each) for each in components(dataset, keyword))


def refuse_other_study(first: Path, *others: Path) -> None:
    """Refuse files of more than one patient or study: raises `ContradictoryIdentity`."""
    expected = _identity(first)
    for path in others:
        found, uid = _identity(path), _uid(path)
        if found != expected:
            level = "patient" if found[:2] != expected[:2] else "study"
            raise ContradictoryIdentity(
                f"mixed_{level}", f"belongs to another {level} than another input", sop_instance_uid=uid
            )


def _identity(path: Path) -> tuple[str, ...]:
    with opened(path, only=_IDENTITY) as dataset:
        return tuple(text(dataset, keyword) for keyword in _IDENTITY)


def _uid(path: Path) -> str:
    with opened(path, only=("SOPInstanceUID",)) as dataset:
        return text(dataset, "SOPInstanceUID")
