"""What is asked of an encoder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from meddaemon.domain.character_sets import UTF_8, CharacterSets
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.outlet import Edition, ObjectKind, go_together
from meddaemon.domain.picture import Pictures
from meddaemon.domain.result import Analysis, EncodedObject
from meddaemon.domain.volume import Volume
from meddaemon.results.scene import Scene, scene_of
from meddaemon.results.source import SourceSeries, read_source

SERIES_NUMBERS = 100
"""So many SeriesNumbers are those of results: more than there are kinds of them."""


@dataclass(frozen=True, kw_only=True)
class ObjectReference:
    """A DICOM object by its identifiers, for references to what was sent before, and what it was of its result."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    part: str = ""
    edition: str = ""


@dataclass(frozen=True, kw_only=True)
class EncodingRequest:
    """One analysis to be written as result objects.

    `sources` are the files of the instances that the result lies on, `others` those of the further inputs of the
    model, series by series. `series_number` begins the range of
    SeriesNumber that the results take (one each), apart from the numbers most scanners use. `configuration` is entropy
    for the UIDs: whatever besides input and model may change the result. `predecessors` are the reports that these
    replace, when a late instance made the study run again. `editions` and `kinds` are what is asked for: what every
    destination together takes. With `in_source_set` text is written in the character set of the source where that has
    all of it, else in ISO_IR 192. `shown` is the input that the result lies on, None where it is not in memory
    any more.
    """

    analysis: Analysis
    contract: ModelContract
    sources: Sequence[Path]
    series_number: int = 9000
    configuration: str = ""
    predecessors: tuple[ObjectReference, ...] = ()
    editions: tuple[Edition, ...] = (Edition(),)
    kinds: frozenset[str] = frozenset({ObjectKind.SEG, ObjectKind.SR})
    shown: Volume | Pictures | None = None
    others: Sequence[Sequence[Path]] = ()
    in_source_set: bool = False

    @property
    def first_series_number(self) -> int:
        """The first SeriesNumber of the results: beyond their range where the number of the source lies in it."""
        taken = self.source.series_number
        moved = taken is not None and 0 <= taken - self.series_number < SERIES_NUMBERS
        return self.series_number + SERIES_NUMBERS * moved

    @property
    def character_sets(self) -> CharacterSets:
        """In which text is to be written: an object of which these lack a character is written in ISO_IR 192."""
        wanted = self.source.character_sets
        return wanted if self.in_source_set and wanted.is_known else CharacterSets((UTF_8,))

    @cached_property
    def source(self) -> SourceSeries:
        """The normalised headers of `sources` and `others`, read once."""
        return read_source(self.sources, self.analysis.geometry, others=self.others)

    @cached_property
    def scene(self) -> Scene:
        """What there is to show on which image, counted once."""
        return scene_of(self.analysis, self.shown)


def find(objects: Iterable[EncodedObject], kind: str, edition: str = "", part: str = "") -> EncodedObject | None:
    """Return the object of a kind to which one that is marked with `edition` may refer; None where there is none."""
    found = (each for each in objects if (each.kind, each.part) == (kind, part) and go_together(each.edition, edition))
    return next(found, None)
