"""Standardised uptake values of PET: activity by what was given and by body weight (pure).

SUVbw is the activity concentration in a voxel divided by the dose that was given, decayed to the time that the voxels
are corrected to, and multiplied by the body weight: 1 g/mL everywhere, had the dose spread evenly. One wrong time makes
it wrong by any factor, and it looks right. So every input is named when it is missing, and none is guessed.

After the vendor-neutral algorithm of the QIBA profile FDG-PET/CT, appendix G, without its vendors' private elements.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from meddaemon.domain.errors import InputRefused

UNIT = "g/ml"
"""UCUM."""
_LIKELY_DOSE_BQ = (1e6, 1e11)
_LIKELY_WEIGHT_KG = (0.3, 650.0)
_LONGEST_UPTAKE = timedelta(days=3)
_GRAMS_PER_KILOGRAM = 1000.0


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """What the header of one PET image says (PS3.3 C.8.9.1, C.8.9.2); None where it says nothing.

    `injected` is the Radiopharmaceutical Start Date Time; where only a time is given, `injected_at` is that, with any
    date. `series` and `acquired` are date and time of the series and of this image's acquisition; `corrected_to` is the
    moment that enhanced images say instead (Decay Correction Date Time). `suv_type` is that of values which are SUV.
    """

    sop_instance_uid: str
    units: str
    corrections: tuple[str, ...]
    decay_correction: str
    weight_kg: float | None
    dose_bq: float | None
    half_life_s: float | None
    injected: datetime | None
    injected_at: datetime | None
    series: datetime | None
    acquired: datetime | None
    corrected_to: datetime | None = None
    suv_type: str = ""


def factor(image: Acquisition) -> float:
    """Return what the image's real-world values are multiplied by to be SUVbw in g/mL.

    Raises InputRefused with one of: `suv_units`, `suv_not_corrected`, `suv_decay_correction`, `suv_weight`,
    `suv_dose`, `suv_half_life`, `suv_injection_time`, `suv_series_time`, `suv_uptake_time`.
    """
    if image.units == "GML":
        # By lean body mass it is in g/mL, too; what does not say is by body weight (PS3.3 C.8.9.1.1.3).
        if image.suv_type not in {"", "BW"}:
            reason = f"SUV Type (0054,1006) is {image.suv_type!r}, not BW"
            raise _refused(image, "suv_units", reason, suv_type=image.suv_type)
        return 1.0
    if image.units != "BQML":
        raise _refused(image, "suv_units", f"Units (0054,1001) are {image.units!r}, not BQML", units=image.units)
    lacking = [each for each in ("ATTN", "DECY") if each not in image.corrections]
    if lacking:
        reason = f"Corrected Image (0028,0051) does not name {' and '.join(lacking)}"
        raise _refused(image, "suv_not_corrected", reason, corrections=image.corrections)
    weight = _within(image, "suv_weight", "Patient's Weight (0010,1030)", image.weight_kg, *_LIKELY_WEIGHT_KG)
    dose = _within(image, "suv_dose", "Radionuclide Total Dose (0018,1074) in Bq", image.dose_bq, *_LIKELY_DOSE_BQ)
    if image.decay_correction == "ADMIN":
        return weight * _GRAMS_PER_KILOGRAM / dose
    if image.decay_correction != "START":
        raise _refused(
            image, "suv_decay_correction", f"Decay Correction (0054,1102) is {image.decay_correction!r}, not START"
        )
    half_life = _within(image, "suv_half_life", "Radionuclide Half Life (0018,1075)", image.half_life_s, 1.0, 1e9)
    uptake = _start(image) - _injection(image)
    if not timedelta(0) <= uptake <= _LONGEST_UPTAKE:
        raise _refused(
            image,
            "suv_uptake_time",
            f"the scan began {uptake} after the injection",
            seconds=uptake.total_seconds(),
        )
    remaining = dose * math.exp2(-uptake.total_seconds() / half_life)
    return weight * _GRAMS_PER_KILOGRAM / remaining


def _start(image: Acquisition) -> datetime:
    """Return when the scan began, to which the voxels are corrected."""
    if image.corrected_to is not None:
        return image.corrected_to
    if image.series is None:
        raise _refused(image, "suv_series_time", "Series Date and Time are missing")
    # Software that makes a new series of an old one gives it a time of its own.
    if image.acquired is not None and image.series > image.acquired:
        raise _refused(
            image,
            "suv_series_time",
            f"the series is of {image.series:%H:%M:%S}, later than its acquisition at {image.acquired:%H:%M:%S}: "
            "when the scan began is not known",
        )
    return image.series


def _injection(image: Acquisition) -> datetime:
    if image.injected is not None:
        return image.injected
    if image.injected_at is None:
        raise _refused(image, "suv_injection_time", "Radiopharmaceutical Start Date Time and Time are missing")
    scan = _start(image)
    injected = datetime.combine(scan.date(), image.injected_at.time(), scan.tzinfo)
    # Only a time is said: an injection before midnight seems to come after the scan.
    return injected if injected <= scan else injected - timedelta(days=1)


def _within(image: Acquisition, reason: str, name: str, value: float | None, smallest: float, largest: float) -> float:
    if value is None:
        raise _refused(image, reason, f"{name} is missing")
    if not smallest <= value <= largest:
        raise _refused(image, reason, f"{name} is {value:g}, not from {smallest:g} to {largest:g}", value=value)
    return value


def _refused(image: Acquisition, reason: str, message: str, **numbers: object) -> InputRefused:
    return InputRefused(reason, f"no SUV: {message}", sop_instance_uid=image.sop_instance_uid, numbers=numbers)
