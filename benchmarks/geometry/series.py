"""Series of the real DICOM files beside the checkout: sound ones, and some that are no volume."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import CTImageStorage

from meddaemon.domain.contract import Duplicates, GeometryPolicy, Unevenness


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder or file, why it is refused as it is (empty: it is not), and under which policy it is taken."""

    name: str
    refused: str = ""
    policy: GeometryPolicy | None = field(default_factory=GeometryPolicy)
    nameless: bool = False
    """Its instances have no identity, and are given one."""


CASES = (
    Case(name="series/ct_chest_P001"),
    Case(name="series/mr_brain_sag_anon"),
    Case(name="series/ct_abdomen_totalseg", nameless=True),
    Case(name="derived/japanese_name"),
    Case(name="nonimage/ct-3slice"),
    Case(name="multiframe/eCT_Supplemental.dcm"),
    Case(
        name="series/ct_phantom_tilt_m18_5",
        refused="tilt",
        policy=GeometryPolicy(tilt=Unevenness.RESAMPLE),
    ),
    Case(name="derived/missing_slice", refused="gap", policy=GeometryPolicy(gap=Unevenness.RESAMPLE)),
    Case(
        name="derived/duplicate_position",
        refused="duplicate_position",
        policy=GeometryPolicy(duplicates=Duplicates.DROP),
    ),
    Case(name="multiframe/MOVEKNEE.dcm", refused="temporal", policy=None),
    Case(name="multiframe/emri_small.dcm", refused="missing_functional_groups", policy=None),
)
SOUND = tuple(case for case in CASES if not case.refused)


def files(case: Case, shared: Path, folder: Path) -> Sequence[Path]:
    """Put the files of a case into an empty folder of their own, and return them."""
    source = shared / case.name
    found = []
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        target = folder / path.name
        if case.nameless:
            dataset = dcmread(path)
            dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, dataset.file_meta.MediaStorageSOPInstanceUID
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.5"
            dataset.save_as(target)
        else:
            target.write_bytes(path.read_bytes())
        found.append(target)
    return found
