"""The `[[inputs]]` of a contract file: which series fill them, as what, and within which limits."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from meddaemon.config.conditions import complaint_about, parse_condition
from meddaemon.config.contract_terms import Limits, LongString, Strict, check_unique
from meddaemon.config.problems import Problems
from meddaemon.config.toml_file import Keys
from meddaemon.domain.conditions import ALWAYS, Condition
from meddaemon.domain.contract import (
    MOMENTS,
    Duplicates,
    GeometryPolicy,
    InputContract,
    InputKind,
    InputLimits,
    Mixed,
    ModelKind,
    Range,
    Times,
    Unevenness,
    Voi,
)

_IN_SPACE = frozenset({InputKind.VOLUME, InputKind.SLICES})


class LimitsTable(Strict):
    """What an input must be for the model to say anything about it."""

    modalities: tuple[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_ ]{0,15}$")], ...] = ()
    attributes: Mapping[str, Annotated[tuple[LongString, ...], Field(min_length=1)]] = Field(default_factory=dict)
    spacing_mm: Limits | None = None
    extent_mm: Limits | None = None
    planes: Limits | None = None
    intensity: Limits | None = None


class GeometryTable(Strict):
    """What becomes of a stack of planes that is no box of voxels, and of a series that holds more than one stack."""

    tilt: Annotated[Unevenness, Field(strict=False)] = Unevenness.REFUSE
    irregular: Annotated[Unevenness, Field(strict=False)] = Unevenness.REFUSE
    gap: Annotated[Unevenness, Field(strict=False)] = Unevenness.REFUSE
    mixed: Annotated[Mixed, Field(strict=False)] = Mixed.REFUSE
    at: Mapping[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    time: Annotated[Times, Field(strict=False)] = Times.REFUSE
    duplicates: Annotated[Duplicates, Field(strict=False)] = Duplicates.REFUSE


class InputTable(Strict):
    """One of `[[inputs]]`; its conditions are read by `parse_conditions`."""

    key: Annotated[str, Field(min_length=1, max_length=64)]
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    series: Any
    prefer: tuple[Any, ...] = ()
    kind: Annotated[InputKind, Field(strict=False)] = InputKind.VOLUME
    voi: Annotated[Voi, Field(strict=False)] = Voi.NONE
    unit: Literal["", "SUVbw"] = ""
    padding: Literal["keep"] | Annotated[float, Field(allow_inf_nan=False, ge=-3e38, le=3e38)] = "keep"
    limits: LimitsTable = LimitsTable()
    geometry: GeometryTable = GeometryTable()
    extra: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def slot(self) -> str:
        """See `InputContract.slot`."""
        return self.name or self.key

    def as_contract(self, series: Condition, prefer: tuple[Condition, ...]) -> InputContract:
        """Return the input as the domain speaks of it."""
        return InputContract(
            key=self.key,
            series=series,
            prefer=prefer,
            name=self.slot,
            kind=self.kind,
            voi=self.voi,
            unit=self.unit,
            limits=InputLimits(
                modalities=self.limits.modalities,
                attributes=dict(self.limits.attributes),
                spacing_mm=_range(self.limits.spacing_mm),
                extent_mm=_range(self.limits.extent_mm),
                planes=_range(self.limits.planes),
                intensity=_range(self.limits.intensity),
            ),
            padding=None if self.padding == "keep" else float(self.padding),
            geometry=GeometryPolicy(
                tilt=self.geometry.tilt,
                irregular=self.geometry.irregular,
                gap=self.geometry.gap,
                mixed=self.geometry.mixed,
                at=dict(self.geometry.at),
                time=self.geometry.time,
                duplicates=self.geometry.duplicates,
            ),
            extra={key: _thawed(value) for key, value in self.extra.items()},
        )


def parse_conditions(
    raw: Mapping[str, object], keys: Keys, problems: Problems
) -> tuple[Condition, tuple[Condition, ...]]:
    """Return what an input asks of a series, and what it prefers; what is wrong is added to `problems`."""
    prefer = raw.get("prefer", ())
    return (
        parse_condition(raw["series"], (*keys, "series"), problems) if "series" in raw else ALWAYS,
        tuple(
            parse_condition(each, (*keys, "prefer", index), problems)
            for index, each in enumerate(prefer if isinstance(prefer, list) else ())
        ),
    )


def check_inputs(inputs: Sequence[InputTable], kind: ModelKind, problems: Problems) -> None:
    """Note inputs that cannot be told apart or put together, and settings that their kind does not have."""
    _check_names(inputs, problems)
    for index, each in enumerate(inputs):
        keys: Keys = ("inputs", index)
        _check_channels(each, inputs[:index], keys, problems)
        _check_settings(each, keys, problems)
        _check_plain(each.extra, (*keys, "extra"), problems)
    if kind is ModelKind.SEGMENTATION and inputs[0].kind not in {*_IN_SPACE, InputKind.PICTURES}:
        problems.add(
            ("inputs", 0, "kind"),
            f"segments lie in the volume or on the pictures of the first input, and {inputs[0].kind.value!r} has none",
        )


def _check_names(inputs: Sequence[InputTable], problems: Problems) -> None:
    if any(each.name for each in inputs):
        check_unique("inputs", "name", [each.slot for each in inputs], problems)
    else:
        hint = "; channels of one key have names of their own"
        check_unique("inputs", "key", [each.key for each in inputs], problems, hint=hint)


def _check_channels(each: InputTable, before: Sequence[InputTable], keys: Keys, problems: Problems) -> None:
    first = next((other for other in before if other.key == each.key), None)
    if first is None or first.slot == each.slot:
        return
    if InputKind.VOLUME not in {first.kind, each.kind} or first.kind is not each.kind:
        problems.add((*keys, "kind"), f"the channels of {each.key!r} must be volumes")
    if each.extra:
        problems.add((*keys, "extra"), f"stands with the first channel of {each.key!r}")


def _check_settings(each: InputTable, keys: Keys, problems: Problems) -> None:
    if each.voi is not Voi.NONE and each.kind in {*_IN_SPACE, InputKind.WAVEFORM}:
        problems.add((*keys, "voi"), f"is of pictures, not of kind {each.kind.value!r}")
    if each.unit and each.kind not in _IN_SPACE:
        problems.add((*keys, "unit"), f"is of volumes and slices, not of kind {each.kind.value!r}")
    for keyword in each.geometry.at:
        if keyword not in MOMENTS:
            problems.add((*keys, "geometry", "at", keyword), f"should be one of {', '.join(MOMENTS)}")
    if each.padding != "keep" and each.kind is InputKind.WAVEFORM:
        problems.add((*keys, "padding"), f"is of images, not of kind {each.kind.value!r}")
    if each.padding != "keep" and each.unit:
        problems.add((*keys, "padding"), f"stands for real-world values, not for {each.unit}")
    for keyword in each.limits.attributes:
        if complaint := complaint_about(keyword):
            problems.add((*keys, "limits", "attributes", keyword), complaint)
    if each.geometry != GeometryTable() and each.kind is not InputKind.VOLUME:
        problems.add((*keys, "geometry"), f"is of volumes, not of kind {each.kind.value!r}")
    for name in ("spacing_mm", "extent_mm", "planes"):
        if each.kind is InputKind.WAVEFORM and getattr(each.limits, name) is not None:
            problems.add((*keys, "limits", name), "a waveform has none")


def _check_plain(value: object, keys: Keys, problems: Problems) -> None:
    """Note what cannot stand in JSON, which is how it reaches the process of the model: dates and times."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_plain(part, (*keys, key), problems)
    elif isinstance(value, tuple):
        for index, part in enumerate(value):
            _check_plain(part, (*keys, index), problems)
    elif not isinstance(value, str | int | float | bool):
        problems.add(keys, "must be text, a number, true or false, or arrays and tables of them")


def _thawed(value: object) -> object:
    """Return a value as it stands in the file, with arrays as lists: bundles are used to those."""
    if isinstance(value, Mapping):
        return {key: _thawed(part) for key, part in value.items()}
    return [_thawed(part) for part in value] if isinstance(value, tuple) else value


def _range(limits: Limits | None) -> Range | None:
    return limits.as_range() if limits else None
