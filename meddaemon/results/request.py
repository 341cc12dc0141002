"""What is asked of an encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from meddaemon.domain.contract import ModelContract
from meddaemon.domain.result import Analysis
from meddaemon.results.source import SourceSeries, read_source


@dataclass(frozen=True, kw_only=True)
class ObjectReference:
    """A DICOM object by its identifiers, for references to what was sent before."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class EncodingRequest:
    """One analysis to be written as result objects.

    `sources` are the files of the instances that the volume was built from. `series_number` begins the range of
    SeriesNumber that the results take (one each), apart from the numbers scanners use. `configuration` is entropy
    for the UIDs: whatever besides input and model may change the result. `predecessor` is the SR that this one
    replaces, when a late instance made the study run again.
    """

    analysis: Analysis
    contract: ModelContract
    sources: Sequence[Path]
    series_number: int = 9000
    configuration: str = ""
    predecessor: ObjectReference | None = None

    @cached_property
    def source(self) -> SourceSeries:
        """The normalised headers of `sources`, read once."""
        return read_source(self.sources, self.analysis.drawn[1])
