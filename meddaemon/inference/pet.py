"""PET images to standardised uptake values: what `suv` must know, read from the headers (PS3.3 C.8.9)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from meddaemon.domain.volume import Volume
from meddaemon.inference.dataset import components, numbers, opened, text
from meddaemon.inference.suv import Acquisition, factor

_ANY_DAY = "19000101"
_MINUTES_PER_HOUR = 60

Allocate: TypeAlias = Callable[[tuple[int, ...], type[np.float32]], NDArray[np.float32]]


def as_uptake(volume: Volume, paths: Sequence[Path], *, allocate: Allocate = np.empty) -> Volume:
    """Return the volume in SUVbw (g/mL), each plane by the header of its own image.

    Raises what `suv.factor` raises: each input that is missing or contradicts itself has a name.
    """
    factors = {each.sop_instance_uid: factor(each) for each in map(acquisition, paths)}
    voxels = allocate(volume.voxels.shape, np.float32)
    for plane, uid in enumerate(volume.geometry.sop_instance_uids):
        np.multiply(volume.voxels[plane], np.float64(factors[uid]), out=voxels[plane], casting="same_kind")
    return replace(volume, voxels=voxels)


def acquisition(path: Path) -> Acquisition:
    """Return what the header of one PET image says; raises `InputRefused` (`unreadable`)."""
    with opened(path) as dataset:
        given = list(dataset.get("RadiopharmaceuticalInformationSequence") or ())
        # Of several, nobody says which one the activity is of.
        drug = given[0] if len(given) == 1 else Dataset()
        zone = _zone(text(dataset, "TimezoneOffsetFromUTC"))
        meta_uid = dataset.file_meta.get("MediaStorageSOPInstanceUID")
        return Acquisition(
            sop_instance_uid=text(dataset, "SOPInstanceUID") or str(meta_uid or ""),
            units=text(dataset, "Units"),
            corrections=components(dataset, "CorrectedImage"),
            decay_correction=text(dataset, "DecayCorrection"),
            weight_kg=_only(dataset, "PatientWeight"),
            dose_bq=_only(drug, "RadionuclideTotalDose"),
            half_life_s=_only(drug, "RadionuclideHalfLife"),
            injected=_moment(text(drug, "RadiopharmaceuticalStartDateTime"), zone),
            injected_at=_at(_ANY_DAY, text(drug, "RadiopharmaceuticalStartTime")),
            series=_at(text(dataset, "SeriesDate"), text(dataset, "SeriesTime")),
            acquired=_at(text(dataset, "AcquisitionDate"), text(dataset, "AcquisitionTime")),
        )


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
