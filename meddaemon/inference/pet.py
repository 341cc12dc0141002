"""PET images to standardised uptake values: what `suv` must know, read from the headers (PS3.3 C.8.9)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.valuerep import DA, DT, TM

from meddaemon.domain.volume import Volume, VoxelMeaning
from meddaemon.inference.dataset import components, numbers, opened, text
from meddaemon.inference.suv import Acquisition, factor

_ANY_DAY = "19000101"
_MINUTES_PER_HOUR = 60

Allocate: TypeAlias = Callable[[tuple[int, ...], type[np.float32]], NDArray[np.float32]]


def as_uptake(volume: Volume, paths: Sequence[Path], *, allocate: Allocate = np.empty) -> Volume:
    """Return the volume in SUVbw (g/mL), each plane by the header of its own image or frame.

    Raises what `suv.factor` raises: each input that is missing or contradicts itself has a name.
    """
    geometry, wanted = volume.geometry, set(volume.geometry.sop_instance_uids)
    frames = {
        (each[0].sop_instance_uid, number): each[number - 1]
        for each in map(acquisitions, paths)
        for number in range(1, len(each) + 1)
        if each[0].sop_instance_uid in wanted
    }
    factors = [
        factor(frames[source]) for source in zip(geometry.sop_instance_uids, geometry.frame_numbers, strict=True)
    ]
    voxels = allocate(volume.voxels.shape, np.float32)
    for plane, by in enumerate(factors):
        np.multiply(volume.voxels[plane], np.float64(by), out=voxels[plane], casting="same_kind")
    ends = " to ".join(dict.fromkeys(f"{each:.6g}" for each in (min(factors), max(factors))))
    return replace(
        volume,
        voxels=voxels,
        remarks={**volume.remarks, "unit": f"SUVbw: the values of the series × {ends}"},
        meaning=VoxelMeaning.UPTAKE,
    )


def acquisition(path: Path) -> Acquisition:
    """Return what the header of one PET image says, or of the first of its frames; see `acquisitions`."""
    return acquisitions(path)[0]


def acquisitions(path: Path) -> list[Acquisition]:
    """Return what a file says of each of its frames; raises `InputRefused` (`unreadable`).

    That of an enhanced image stands in its functional groups (PS3.3 C.8.22), that of a converted one where the
    converter has put what it has no place for (C.7.6.16.2.25 and C.7.6.16.2.26).
    """
    with opened(path) as dataset:
        per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
        shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
        frames = [
            _Said([*_parts(each), *(part for item in shared for part in _parts(item)), dataset]) for each in per_frame
        ]
        return [_acquisition(said, dataset) for said in frames or [_Said([dataset])]]


_MACROS = (
    "FrameContentSequence",
    "PixelValueTransformationSequence",
    "RealWorldValueMappingSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
    "UnassignedSharedConvertedAttributesSequence",
)


def _parts(group: Dataset) -> list[Dataset]:
    """Return the items of a functional group in which something is looked for."""
    return [item for macro in _MACROS for item in list(group.get(macro) or ())[:1]]


@dataclass(frozen=True)
class _Said:
    """Where attributes of one frame are looked for, nearest first."""

    holders: Sequence[Dataset]

    def holder(self, keyword: str) -> Dataset:
        """Return the first that says something of an attribute."""
        return next((each for each in self.holders if keyword in each and not each[keyword].is_empty), Dataset())

    def text(self, keyword: str) -> str:
        return text(self.holder(keyword), keyword)

    def only(self, keyword: str) -> float | None:
        return _only(self.holder(keyword), keyword)


def _acquisition(said: _Said, dataset: FileDataset) -> Acquisition:
    given = list(
        said.holder("RadiopharmaceuticalInformationSequence").get("RadiopharmaceuticalInformationSequence") or ()
    )
    # Of several, nobody says which one the activity is of.
    drug = given[0] if len(given) == 1 else Dataset()
    zone = _zone(said.text("TimezoneOffsetFromUTC"))
    meta_uid = dataset.file_meta.get("MediaStorageSOPInstanceUID")
    corrected_to = _moment(said.text("DecayCorrectionDateTime"), zone)
    corrections = components(said.holder("CorrectedImage"), "CorrectedImage")
    for keyword, name in (("AttenuationCorrected", "ATTN"), ("DecayCorrected", "DECY")):
        corrections += (name,) if said.text(keyword) == "YES" else ()
    decay_correction = said.text("DecayCorrection")
    return Acquisition(
        sop_instance_uid=text(dataset, "SOPInstanceUID") or str(meta_uid or ""),
        units=said.text("Units") or _mapped_units(said),
        corrections=corrections,
        decay_correction=decay_correction or ("START" if corrected_to else ""),
        weight_kg=said.only("PatientWeight"),
        dose_bq=_only(drug, "RadionuclideTotalDose"),
        half_life_s=_only(drug, "RadionuclideHalfLife"),
        injected=_moment(text(drug, "RadiopharmaceuticalStartDateTime"), zone),
        injected_at=_at(_ANY_DAY, text(drug, "RadiopharmaceuticalStartTime")),
        series=_at(text(dataset, "SeriesDate"), text(dataset, "SeriesTime")),
        acquired=_moment(said.text("FrameAcquisitionDateTime"), zone)
        or _at(said.text("AcquisitionDate"), said.text("AcquisitionTime")),
        corrected_to=corrected_to if not decay_correction else None,
        suv_type=said.text("SUVType"),
    )


def _mapped_units(said: _Said) -> str:
    """Return the Units that a Real World Value Mapping amounts to, where it maps as the rescale does.

    What it calls otherwise, or maps otherwise, has its code as units, which are refused by it.
    """
    mapping = said.holder("MeasurementUnitsCodeSequence")
    code = next((text(item, "CodeValue") for item in mapping.get("MeasurementUnitsCodeSequence") or ()), "")
    if not code:
        return said.text("RescaleType")
    pairs = (("RealWorldValueSlope", "RescaleSlope", 1.0), ("RealWorldValueIntercept", "RescaleIntercept", 0.0))
    for mapped, rescaled, default in pairs:
        ours = said.only(rescaled)
        if not math.isclose(
            _only(mapping, mapped) or 0.0, default if ours is None else ours, rel_tol=1e-5, abs_tol=1e-12
        ):
            return f"{code} by another mapping"
    return _UNITS.get(code, code)


_UNITS = {"Bq/ml": "BQML", "Bq/mL": "BQML", "g/ml{SUVbw}": "GML", "{SUVbw}g/ml": "GML"}
"""Codes of UCUM, and what they are called in Units (0054,1001)."""


def _only(dataset: Dataset, keyword: str) -> float | None:
    values = numbers(dataset, keyword)
    return values[0] if len(values) == 1 else None


def _at(date: str, time: str) -> datetime | None:
    """Return date and time of the clock on the wall, None where one is missing."""
    day, clock = DA(date) if date else None, TM(time) if time else None
    return datetime.combine(day, clock) if day is not None and clock is not None else None


def _moment(value: str, zone: tzinfo | None) -> datetime | None:
    """Return a date time by the same clock on the wall as the other times of the data set, which say no offset."""
    if not value:
        return None
    moment = DT(value)
    local = moment if zone is None or moment.tzinfo is None else moment.astimezone(zone)
    return datetime.combine(local.date(), local.time())


def _zone(offset: str) -> tzinfo | None:
    """Return the time zone of `&ZZXX` (PS3.5 6.2, VR DT); None where none is said."""
    if len(offset) != 5 or offset[0] not in "+-" or not offset[1:].isdecimal():
        return None
    minutes = int(offset[1:3]) * _MINUTES_PER_HOUR + int(offset[3:])
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
