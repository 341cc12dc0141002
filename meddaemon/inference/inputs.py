"""The files of a job to what its model takes: volumes, pictures or waveforms, within the limits of the contract.

For the process that reads (see `loader_child`): headers first, then memory by what they say, then pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from numpy.typing import DTypeLike, NDArray

from meddaemon.domain.contract import InputContract, InputKind
from meddaemon.domain.errors import NotEvaluable
from meddaemon.domain.volume import Volume
from meddaemon.inference import pictures, volume, waveforms
from meddaemon.inference.dataset import components, opened, refuse_other_study
from meddaemon.inference.guard import check_input
from meddaemon.inference.pet import as_uptake
from meddaemon.inference.pictures import Picture
from meddaemon.inference.values import Input
from meddaemon.inference.volume import Frames

_IN_SPACE = frozenset({InputKind.VOLUME, InputKind.SLICES})


class Header(Protocol):
    """The header of one file whose pixels are decoded."""

    @property
    def sop_instance_uid(self) -> str:
        """Name the instance."""
        ...


Allocate: TypeAlias = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]
Watch: TypeAlias = Callable[[Any], AbstractContextManager[object]]


class Inputs:
    """What a model takes, read in two steps; both mappings are by the slot of the input, in the contract's order."""

    def __init__(self, wanted: Sequence[InputContract], files: Mapping[str, Sequence[Path]]) -> None:
        """Read every header, and waveforms whole.

        Raises `InputRefused`: what `volume.read_inputs`, `pictures.read_header` and `waveforms.read` raise.
        """
        self._wanted = wanted
        self._files = files
        spatial = {each.slot: files[each.slot] for each in wanted if each.kind in _IN_SPACE}
        self._volumes: Mapping[str, Sequence[Frames]] = volume.read_inputs(spatial)
        self._pictures: dict[str, list[Picture]] = {}
        self._signals: dict[str, Input] = {}
        for each in wanted:
            if each.kind is InputKind.WAVEFORM:
                self._signals[each.slot] = waveforms.read(files[each.slot])
            elif each.kind not in _IN_SPACE:
                self._pictures[each.slot] = [pictures.read_header(path, each.voi) for path in files[each.slot]]
        if len(wanted) > 1 and len(spatial) < len(wanted):
            # Each reader keeps its own series together; here it is one study.
            refuse_other_study(*(files[each.slot][0] for each in wanted))

    @property
    def headers(self) -> list[Header]:
        """The files whose pixels will be decoded."""
        grouped: list[Sequence[Header]] = [*self._volumes.values(), *self._pictures.values()]
        return [header for each in grouped for header in each]

    @property
    def decoding_bytes(self) -> int:
        """How much memory decoding can honestly need."""
        # In another unit there are two of a volume for a while.
        twice = [each for wanted in self._wanted if wanted.unit for each in self._volumes[wanted.slot]]
        volumes = sum(map(volume.decoding_bytes, [*self._volumes.values(), twice]))
        return volumes + sum(map(pictures.decoding_bytes, self._pictures.values()))

    def read(self, *, allocate: Allocate, watch: Watch) -> dict[str, Input]:
        """Decode everything, each file within its `watch`, into memory of `allocate`.

        Raises `InputRefused`, and `NotEvaluable` with everything that is beyond the limits of the contract.
        """
        found: dict[str, Input] = {}
        for each in self._wanted:
            if each.slot in self._signals:
                found[each.slot] = self._signals[each.slot]
            elif each.slot in self._pictures:
                headers = self._pictures[each.slot]
                found[each.slot] = pictures.assemble(
                    headers, voi=each.voi, padding=each.padding, allocate=allocate, watch=watch
                )
            else:
                found[each.slot] = self._volume(each, allocate, watch)
        self._refuse_beyond(found)
        return found

    def _volume(self, wanted: InputContract, allocate: Allocate, watch: Watch) -> Volume:
        headers = self._volumes[wanted.slot]
        found = volume.assemble_read(headers, wanted.geometry, padding=wanted.padding, allocate=allocate, watch=watch)
        return as_uptake(found, self._files[wanted.slot], allocate=allocate) if wanted.unit else found

    def _refuse_beyond(self, found: Mapping[str, Input]) -> None:
        problems = [
            problem
            for each in self._wanted
            for problem in check_input(found[each.slot], each, self._header(each, found[each.slot]))
        ]
        if problems:
            first = found[self._wanted[0].slot].series_instance_uid
            raise NotEvaluable("beyond_limits", "; ".join(problems), numbers={"series_instance_uid": first})

    def _header(self, wanted: InputContract, value: Input) -> Mapping[str, Sequence[str]]:
        """Return what the limits name of the header of the series: of its first instance that is taken."""
        keywords = tuple(wanted.limits.values)
        if not keywords:
            return {}
        path = self._files[wanted.slot][0]
        if isinstance(value, Volume):
            # Others may be left out, and be a localizer.
            taken = value.geometry.sop_instance_uids[0]
            path = next(each.path for each in self._volumes[wanted.slot] if each.sop_instance_uid == taken)
        with opened(path, only=keywords) as dataset:
            return {keyword: components(dataset, keyword) for keyword in keywords}
