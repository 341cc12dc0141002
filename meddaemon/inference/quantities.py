"""What the measures of a contract are called, in which units they are, and what they are of a segment."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

from meddaemon.domain.codes import (
    AREA,
    ATTENUATION,
    DIAMETER,
    HOUNSFIELD_UNIT,
    LONG_AXIS,
    MAXIMUM,
    MEAN,
    MILLILITRE,
    MILLIMETRE,
    MINIMUM,
    MR_SIGNAL,
    SHORT_AXIS,
    SQUARE_MILLIMETRE,
    STANDARD_DEVIATION,
    SURFACE,
    UNITY,
    UPTAKE,
    UPTAKE_UNIT,
    VOLUME,
    VOXEL_VALUE,
    Code,
)
from meddaemon.domain.contract import MeasurementKind
from meddaemon.domain.result import Drawing, Measurement
from meddaemon.domain.volume import Geometry, Volume, VoxelMeaning
from meddaemon.inference import measure
from meddaemon.inference.measure import Mask, Place, segment_places, segment_within

INTENSITIES: Mapping[MeasurementKind, Code] = MappingProxyType(
    {
        MeasurementKind.MEAN: MEAN,
        MeasurementKind.DEVIATION: STANDARD_DEVIATION,
        MeasurementKind.MINIMUM: MINIMUM,
        MeasurementKind.MAXIMUM: MAXIMUM,
    }
)
"""What is measured of the values within a segment, and what it is of them (PS3.16 CID 7464)."""

_SIZES: Mapping[MeasurementKind, tuple[Code, Code]] = {
    MeasurementKind.VOLUME: (VOLUME, MILLILITRE),
    # Only for pictures, and only where nobody could look: otherwise the picture says in which unit.
    MeasurementKind.AREA: (AREA, SQUARE_MILLIMETRE),
    MeasurementKind.SURFACE: (SURFACE, SQUARE_MILLIMETRE),
    MeasurementKind.DIAMETER: (DIAMETER, MILLIMETRE),
    MeasurementKind.LONG_AXIS: (LONG_AXIS, MILLIMETRE),
    MeasurementKind.SHORT_AXIS: (SHORT_AXIS, MILLIMETRE),
}
_VALUES: Mapping[VoxelMeaning, tuple[Code, Code]] = {
    VoxelMeaning.HOUNSFIELD: (ATTENUATION, HOUNSFIELD_UNIT),
    VoxelMeaning.UPTAKE: (UPTAKE, UPTAKE_UNIT),
    VoxelMeaning.MR_SIGNAL: (MR_SIGNAL, UNITY),
    VoxelMeaning.UNNAMED: (VOXEL_VALUE, UNITY),
}


def measurement(kind: MeasurementKind, value: float | None, meaning: VoxelMeaning) -> Measurement:
    """Return a value with its name and unit; `meaning` is that of the voxels."""
    derivation = INTENSITIES.get(kind)
    name, unit = _SIZES[kind] if derivation is None else _VALUES[meaning]
    return Measurement(name=name, value=value, unit=unit, derivation=derivation, key=kind.value)


def measured(
    drawing: Drawing, geometry: Geometry, wanted: Sequence[Collection[MeasurementKind]], voxels: Volume | None
) -> Iterator[dict[MeasurementKind, float]]:
    """Yield what is wanted of each segment, in the order of their numbers, but its volume.

    What cannot be measured is not there: anything of an empty segment, values where there are no `voxels`. Each
    segment is looked at within the box around it, and all boxes are found at once.
    """
    further = [[kind for kind in kinds if kind is not MeasurementKind.VOLUME] for kinds in wanted]
    places = segment_places(drawing, len(further)) if any(further) else [None] * len(further)
    for number, (kinds, place) in enumerate(zip(further, places, strict=True), 1):
        if place is None or not kinds:
            yield {}
        else:
            yield _of_one(segment_within(drawing, number, place), place, geometry, kinds, voxels)


def _of_one(
    mask: Mask, place: Place, geometry: Geometry, kinds: Collection[MeasurementKind], voxels: Volume | None
) -> dict[MeasurementKind, float]:
    found: dict[MeasurementKind, float] = {}
    first = place[0].start
    if MeasurementKind.SURFACE in kinds:
        found[MeasurementKind.SURFACE] = measure.surface(mask, geometry, first)
    if MeasurementKind.DIAMETER in kinds:
        found[MeasurementKind.DIAMETER] = measure.diameter(mask, geometry, first)
    if not {MeasurementKind.LONG_AXIS, MeasurementKind.SHORT_AXIS}.isdisjoint(kinds):
        found[MeasurementKind.LONG_AXIS], found[MeasurementKind.SHORT_AXIS] = measure.axes(mask, geometry)
    if voxels is not None and not INTENSITIES.keys().isdisjoint(kinds):
        values = measure.intensities(mask, voxels.voxels[place])
        if values is not None:
            found[MeasurementKind.MEAN] = values.mean
            found[MeasurementKind.DEVIATION] = values.deviation
            found[MeasurementKind.MINIMUM] = values.minimum
            found[MeasurementKind.MAXIMUM] = values.maximum
    return found
