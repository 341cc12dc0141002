"""What a series is, told from the headers of its instances (pure)."""

import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from pydicom.uid import (
    AmbulatoryECGWaveformStorage,
    ArterialPulseWaveformStorage,
    CardiacElectrophysiologyWaveformStorage,
    ElectromyogramWaveformStorage,
    ElectrooculogramWaveformStorage,
    EnhancedXRayRadiationDoseSRStorage,
    General32bitECGWaveformStorage,
    GeneralECGWaveformStorage,
    HemodynamicWaveformStorage,
    MultichannelRespiratoryWaveformStorage,
    PatientRadiationDoseSRStorage,
    RadiopharmaceuticalRadiationDoseSRStorage,
    RespiratoryWaveformStorage,
    RoutineScalpElectroencephalogramWaveformStorage,
    RTDoseStorage,
    SegmentationStorage,
    SleepElectroencephalogramWaveformStorage,
    TwelveLeadECGWaveformStorage,
    XRayRadiationDoseSRStorage,
)

from meddaemon.domain.conditions import Attributes, Value
from meddaemon.domain.series import Instance, Series, SeriesKind, Study

_DOSE_REPORTS = frozenset(
    {
        XRayRadiationDoseSRStorage,
        EnhancedXRayRadiationDoseSRStorage,
        PatientRadiationDoseSRStorage,
        RadiopharmaceuticalRadiationDoseSRStorage,
    }
)
_WAVEFORMS = frozenset(
    {
        AmbulatoryECGWaveformStorage,
        ArterialPulseWaveformStorage,
        CardiacElectrophysiologyWaveformStorage,
        ElectromyogramWaveformStorage,
        ElectrooculogramWaveformStorage,
        General32bitECGWaveformStorage,
        GeneralECGWaveformStorage,
        HemodynamicWaveformStorage,
        MultichannelRespiratoryWaveformStorage,
        RespiratoryWaveformStorage,
        RoutineScalpElectroencephalogramWaveformStorage,
        SleepElectroencephalogramWaveformStorage,
        TwelveLeadECGWaveformStorage,
    }
)
_HAVE_ROWS_BUT_SHOW_NOTHING_NEW = frozenset({SegmentationStorage, RTDoseStorage})
_OF_SOP_CLASS: Mapping[str, SeriesKind] = {
    **dict.fromkeys(_DOSE_REPORTS, SeriesKind.DOSE_REPORT),
    **dict.fromkeys(_WAVEFORMS, SeriesKind.WAVEFORM),
    **dict.fromkeys(_HAVE_ROWS_BUT_SHOW_NOTHING_NEW, SeriesKind.NON_IMAGE),
}
_LOCALIZER_WORDS = re.compile(
    r"(?<![a-z])(localizer|localiser|scout|topogram|surview|scanogram|scano|pilot|survey)(?![a-z])", re.IGNORECASE
)
_LEAST_LIKE_AN_IMAGE_FIRST = (
    SeriesKind.NON_IMAGE,
    SeriesKind.DOSE_REPORT,
    SeriesKind.WAVEFORM,
    SeriesKind.MOSAIC,
    SeriesKind.LOCALIZER,
)
_DOSE_WORDS = re.compile(r"dose (report|info|record|summary)|(patient|exam) protocol", re.IGNORECASE)
_NONE: Mapping[str, str] = MappingProxyType({})
_AXES = ("sagittal", "coronal", "axial")
_MAINLY = 0.8
"""Cosine between the slice normal and a body axis from which on a series counts as lying in that plane."""


def describe_study(
    *,
    study_id: int,
    study_instance_uid: str,
    generation: int,
    instances: Mapping[str, tuple[Instance, ...]],
    labels: Mapping[str, str] = _NONE,
) -> Study:
    """Return the study as the rules see it; `labels` are those of our AE titles."""
    series = tuple(describe_series(uid, members, labels) for uid, members in instances.items())
    everything = [instance for members in instances.values() for instance in members]
    return Study(
        id=study_id,
        study_instance_uid=study_instance_uid,
        generation=generation,
        attributes=_attributes(everything, labels, orientation="none"),
        series=series,
    )


def describe_series(
    series_instance_uid: str, instances: tuple[Instance, ...], labels: Mapping[str, str] = _NONE
) -> Series:
    """Return the series as the rules see it: its kind, and the distinct values of each attribute."""
    kind = _kind_of_series(kind_of(instance) for instance in instances)
    attributes = dict(_attributes(instances, labels, orientation=orientation_of(instances)))
    attributes["kind"] = ((kind.value,),)
    return Series(series_instance_uid=series_instance_uid, kind=kind, attributes=attributes, instances=instances)


def kind_of(instance: Instance) -> SeriesKind:
    """Return what one instance is for."""
    header = instance.header
    image_type = {component.upper() for component in header.get("ImageType", ())}
    words = " ".join((*header.get("SeriesDescription", ()), *header.get("ProtocolName", ())))
    if kind := _OF_SOP_CLASS.get(instance.sop_class_uid):
        return kind
    if not header.get("Rows"):
        return SeriesKind.NON_IMAGE
    if "SCREEN SAVE" in image_type or ("DERIVED" in image_type and _DOSE_WORDS.search(words)):
        return SeriesKind.DOSE_REPORT
    if "LOCALIZER" in image_type or "SCOUT" in image_type or _LOCALIZER_WORDS.search(words):
        return SeriesKind.LOCALIZER
    if "MOSAIC" in image_type:
        return SeriesKind.MOSAIC
    return SeriesKind.IMAGE


def orientation_of(instances: Iterable[Instance]) -> str:
    """Return axial, coronal or sagittal by the slice normal, oblique in between, mixed, or none where unknown."""
    found = {_plane(instance.header.get("ImageOrientationPatient", ())) for instance in instances}
    return found.pop() if len(found) == 1 else "mixed"


def _plane(cosines: Value) -> str:
    try:
        ax, ay, az, bx, by, bz = map(float, cosines)
    except ValueError:
        return "none"
    normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    length = math.hypot(*normal)
    if not (0 < length < math.inf):
        return "none"
    strongest = max(range(3), key=lambda axis: abs(normal[axis]))
    return _AXES[strongest] if abs(normal[strongest]) >= _MAINLY * length else "oblique"


def _kind_of_series(kinds: Iterable[SeriesKind]) -> SeriesKind:
    """One instance of another kind makes the series one of that kind: a model must not see it unasked."""
    found = set(kinds)
    return next((kind for kind in _LEAST_LIKE_AN_IMAGE_FIRST if kind in found), SeriesKind.IMAGE)


def _attributes(instances: Iterable[Instance], labels: Mapping[str, str], *, orientation: str) -> Attributes:
    distinct: dict[str, dict[Value, None]] = {}
    count = 0
    for instance in instances:
        count += 1
        for keyword, value in instance.header.items():
            distinct.setdefault(keyword, {})[value] = None
        distinct.setdefault("called_ae_title", {})[(instance.called_ae_title,)] = None
        label = labels.get(instance.called_ae_title)
        distinct.setdefault("called_label", {})[() if label is None else (label,)] = None
        distinct.setdefault("calling_ae_title", {})[(instance.calling_ae_title,)] = None
    attributes = {keyword: tuple(values) for keyword, values in distinct.items()}
    return {**attributes, "instances": ((str(count),),), "orientation": ((orientation,),)}
