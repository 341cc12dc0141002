"""Instances, series and studies as the rules see them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from meddaemon.domain.conditions import Attributes


class SeriesKind(StrEnum):
    """What a series is for; only `image` reaches a model unless a rule admits another kind by name.

    A `waveform` reaches the inputs that take one, and nothing else does.
    """

    IMAGE = "image"
    LOCALIZER = "localizer"
    MOSAIC = "mosaic"
    DOSE_REPORT = "dose_report"
    WAVEFORM = "waveform"
    NON_IMAGE = "non_image"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One stored instance: its identity, where it lies, and the header attributes that rules may ask for.

    `header` maps a keyword to the components of its value; an attribute that was looked for and not found maps to
    the empty tuple, so that "absent" and "not looked for" differ.
    """

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: Path
    sha256: str
    size: int
    header: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    called_ae_title: str = ""
    calling_ae_title: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of a study and what is known of it."""

    series_instance_uid: str
    kind: SeriesKind
    attributes: Attributes
    instances: tuple[Instance, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study in one generation: the instances that were there when the quiet time had passed."""

    id: int
    study_instance_uid: str
    generation: int
    attributes: Attributes
    series: tuple[Series, ...]
