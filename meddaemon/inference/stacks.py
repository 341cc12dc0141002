"""Which planes of a series make the one stack that a model is given. Pure.

A series may hold more than one: orientations, sizes and localizers beside each other; echoes, b-values, phases or
acquisitions at each place; planes that were sent twice. By default all of that is refused, by `geometry.arrange`. Where
the contract takes it, the series is taken apart, never put together: planes of two stacks are never mixed, what is left
out is named, and what nothing tells apart is refused all the same.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from meddaemon.domain.contract import MOMENTS, Duplicates, GeometryPolicy, Mixed, Times, Unevenness
from meddaemon.domain.errors import UnsoundVolume
from meddaemon.domain.volume import Geometry
from meddaemon.inference.geometry import (
    SAME_PLACE_MM,
    STRICT,
    TOLERANCE_MM,
    Difference,
    Plane,
    arrange,
    arrival_order,
    difference,
    refuse_unusable,
)

_COUNTED = frozenset({"TriggerTime"})
"""Of what the order counts where values differ: the heart does not beat evenly, and the tenth phase of one slice has
another trigger time than that of the next."""

_SAME_VALUE = 1e-3
"""Values of attributes that differ by less, of themselves, are equal."""

_MOST_STACKS = 64
"""A series that falls into more stacks than this holds none."""
_NAMED = 8
"""So many instances are named of each stack that is left out."""


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A plane that is left out because it lies where another one does, which must have the same pixels."""

    plane: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One stack of a series: its grid, which planes it is made of in that order, and what was done for it."""

    geometry: Geometry
    order: tuple[int, ...]
    twins: tuple[Twin, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Pile:
    """The planes that are still taken, by their indices, in an order that does not depend on how they arrived."""

    planes: Sequence[Plane]
    taken: list[int]
    twins: list[Twin] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)

    def uids(self, indices: Sequence[int]) -> str:
        """Name the instances of planes, the first ones at least."""
        uids = list(dict.fromkeys(self.planes[index].sop_instance_uid for index in indices))
        return ", ".join(uids[:_NAMED]) + (f" and {len(uids) - _NAMED} more" if len(uids) > _NAMED else "")

    def moment(self, index: int) -> dict[str, float]:
        """Return the numbers that tell a plane apart from others of its place."""
        return dict(self.planes[index].moment)

    def refuse(self, reason: str, message: str, plane: int, **numbers: object) -> UnsoundVolume:
        return UnsoundVolume(
            reason, message, sop_instance_uid=self.planes[plane].sop_instance_uid, numbers=dict(numbers)
        )


def select(planes: Sequence[Plane], policy: GeometryPolicy = STRICT) -> Stack:
    """Return the one stack that a model is given of the planes of a series; their order does not matter.

    Raises `UnsoundVolume` with what `geometry.arrange` raises for the planes that are taken, `localizer`, the reason
    of the first difference where two stacks are equally large, and `temporal` where nothing tells the times apart.
    """
    if _is_plain(policy) and not any(plane.is_localizer for plane in planes):
        geometry, order = arrange(planes, policy)
        return Stack(geometry=geometry, order=order)
    pile = _Pile(planes, arrival_order(planes))
    _leave_localizers(pile, policy)
    if policy.mixed is Mixed.LARGEST and pile.taken:
        _take_largest(pile)
    if policy.at:
        _take_at(pile, policy.at)
    if Times.REFUSE is not policy.time or policy.duplicates is not Duplicates.REFUSE:
        _take_one_of_each_place(pile, policy)
    geometry, order = arrange([planes[index] for index in pile.taken], policy)
    if policy.gap is Unevenness.RESAMPLE:
        _remark_gaps(pile, geometry)
    taken = set(pile.taken)
    return Stack(
        geometry=geometry,
        order=tuple(pile.taken[index] for index in order),
        # Twins of what is left out, too, prove nothing and need no proof.
        twins=tuple(twin for twin in pile.twins if twin.kept in taken),
        remarks=pile.remarks,
    )


def _is_plain(policy: GeometryPolicy) -> bool:
    """Whether a policy leaves nothing out, and nothing to be said."""
    return policy == GeometryPolicy(tilt=policy.tilt, irregular=policy.irregular)


def _leave_localizers(pile: _Pile, policy: GeometryPolicy) -> None:
    localizers = [index for index in pile.taken if pile.planes[index].is_localizer]
    if not localizers:
        return
    if policy.mixed is not Mixed.LARGEST or len(localizers) == len(pile.taken):
        raise pile.refuse("localizer", "is a localizer", localizers[0])
    pile.taken = [index for index in pile.taken if not pile.planes[index].is_localizer]
    pile.remarks["localizers_left_out"] = f"{len(localizers)} planes: {pile.uids(localizers)}"


def _take_largest(pile: _Pile) -> None:
    """Keep the planes that could lie on one grid with each other, of the most that there are."""
    for index in pile.taken:
        refuse_unusable(pile.planes[index])
    stacks: list[list[int]] = []
    for index in pile.taken:
        plane = pile.planes[index]
        home = next((stack for stack in stacks if difference(pile.planes[stack[0]], plane) is None), None)
        if home is None:
            stacks.append([index])
            if len(stacks) > _MOST_STACKS:
                raise _mixed(pile, stacks[0], stacks[-1], f"and there are more than {_MOST_STACKS} stacks")
        else:
            home.append(index)
    if len(stacks) == 1:
        return
    largest, second, *_ = sorted(stacks, key=len, reverse=True)
    if len(largest) == len(second):
        raise _mixed(pile, largest, second, f"and no stack is the largest: two have {len(largest)} planes")
    rest = [stack for stack in stacks if stack is not largest]
    pile.taken = largest
    pile.remarks["stacks_left_out"] = "; ".join(
        f"{len(stack)} planes of another {_apart(pile, stack, largest).attribute}: {pile.uids(stack)}" for stack in rest
    )


def _mixed(pile: _Pile, stack: Sequence[int], other: Sequence[int], why: str) -> UnsoundVolume:
    found = _apart(pile, other, stack)
    return pile.refuse(
        found.reason,
        f"{found.attribute} {found.here} differs from {found.elsewhere} of instance "
        f"{pile.planes[stack[0]].sop_instance_uid}, {why}",
        other[0],
        here=found.here,
        elsewhere=found.elsewhere,
    )


def _apart(pile: _Pile, here: Sequence[int], elsewhere: Sequence[int]) -> Difference:
    """Return in what two stacks differ."""
    found = difference(pile.planes[elsewhere[0]], pile.planes[here[0]])
    if found is None:
        raise ValueError("the planes of two stacks could lie on one grid")
    return found


def _take_at(pile: _Pile, at: Mapping[str, float]) -> None:
    """Keep the planes of which the header says these numbers."""
    for name, wanted in at.items():
        said = {index: pile.moment(index).get(name) for index in pile.taken}
        kept = [
            index
            for index, value in said.items()
            if value is not None and math.isclose(value, wanted, rel_tol=_SAME_VALUE)
        ]
        left = [index for index in pile.taken if index not in set(kept)]
        if not kept:
            there = sorted({value for value in said.values() if value is not None})[:_NAMED]
            raise pile.refuse(
                "temporal",
                f"no plane has {name} {wanted:g}; there are {', '.join(f'{value:g}' for value in there) or 'none'}",
                pile.taken[0],
                wanted=wanted,
                there=there,
            )
        if left:
            pile.remarks[f"other_{name}_left_out"] = f"{len(left)} planes: {pile.uids(left)}"
        pile.taken = kept


def _take_one_of_each_place(pile: _Pile, policy: GeometryPolicy) -> None:
    """Take one of the planes in each place, as the policy says; what it says nothing of is left to be refused."""
    if policy.duplicates is not Duplicates.REFUSE:
        # Planes that nothing but their UID tells apart, before times are: those are of one time.
        _leave_twins(pile, policy.duplicates, of_one_time=True)
    places = _places(pile)
    if policy.time is not Times.REFUSE and places is not None and len(places) < len(pile.taken):
        _take_time(pile, places, policy.time)
    if policy.duplicates is not Duplicates.REFUSE:
        _leave_twins(pile, policy.duplicates, of_one_time=False)


def _places(pile: _Pile) -> list[list[int]] | None:
    """Return which planes lie in one place; None where that cannot be told, which `arrange` will refuse."""
    planes = [pile.planes[index] for index in pile.taken]
    if not planes:
        return None
    for plane in planes:
        refuse_unusable(plane)
    if any(difference(planes[0], plane) for plane in planes):
        return None
    row, column = (np.array(half) for half in (planes[0].orientation[:3], planes[0].orientation[3:]))
    positions = np.array([plane.position for plane in planes])
    heights = positions @ np.cross(row, column)
    order = np.argsort(heights, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(heights[order]) >= SAME_PLACE_MM) + 1)
    if any(np.ptp(positions[group], axis=0).max() > TOLERANCE_MM for group in groups):
        return None
    return [[pile.taken[index] for index in sorted(group.tolist())] for group in groups]


def _leave_twins(pile: _Pile, policy: Duplicates, *, of_one_time: bool) -> None:
    """Leave out all but the first of the planes in one place, only of one time at first.

    Where most places have several, they may be a series over time: then only pixels can prove that they are not.
    """
    places = _places(pile)
    if places is None:
        return
    groups: list[list[int]] = []
    for place in places:
        by_moment: dict[object, list[int]] = defaultdict(list)
        for index in place:
            by_moment[pile.planes[index].moment if of_one_time else ()].append(index)
        groups += by_moment.values()
    crowded = sum(len(group) > 1 for group in groups)
    proven = policy is Duplicates.DROP and of_one_time
    if not crowded or (2 * crowded > len(groups) and not proven):
        return
    dropped: list[int] = []
    for group in groups:
        kept, *others = sorted(group, key=lambda index: pile.planes[index].instance_number)
        dropped += others
        if policy is Duplicates.DROP:
            # What had been left out for one of these is a twin of the one that is kept.
            pile.twins = [replace(twin, kept=kept) if twin.kept in others else twin for twin in pile.twins]
            pile.twins += [Twin(plane=other, kept=kept) for other in others]
    gone = set(dropped)
    pile.taken = [index for index in pile.taken if index not in gone]
    same = "the same pixels" if policy is Duplicates.DROP else "pixels that were not compared"
    said = f"{len(dropped)} planes in the place of another, with {same}: {pile.uids(dropped)}"
    pile.remarks["duplicates_left_out"] = "; ".join(filter(None, (pile.remarks.get("duplicates_left_out"), said)))


@dataclass(frozen=True, kw_only=True)
class _Way:
    """One way to tell the planes of each place apart: the stacks that it makes, in rising order, with their labels."""

    by: str
    stacks: Sequence[tuple[str, list[int]]]

    def is_whole(self, positions: int) -> bool:
        """Whether every stack has a plane in every position."""
        return all(len(stack) == positions for _, stack in self.stacks)


def _take_time(pile: _Pile, places: Sequence[Sequence[int]], policy: Times) -> None:
    """Keep one plane of each place: those of the first or last time, by the attribute that tells times apart."""
    ways = list(_ways(pile, places))
    if not ways:
        return
    way = next((each for each in ways if each.is_whole(len(places))), ways[0])
    label, chosen = way.stacks[0 if policy is Times.FIRST else -1]
    if len(chosen) != len(places):
        raise pile.refuse(
            "temporal",
            f"of {label} there are {len(chosen)} planes for {len(places)} positions",
            chosen[0],
            planes=len(chosen),
            positions=len(places),
            by=way.by,
        )
    left = set(pile.taken) - set(chosen)
    pile.remarks["times_left_out"] = (
        f"{label} was taken, the {policy.value} of {len(way.stacks)}; left out are {len(left)} planes: "
        + pile.uids([index for index in pile.taken if index in left])
    )
    pile.taken = [index for index in pile.taken if index not in left]


def _ways(pile: _Pile, places: Sequence[Sequence[int]]) -> Iterator[_Way]:
    """Yield the ways in which no two planes of a place are of one time: by one attribute, then by all together."""
    varying = [
        name
        for name in MOMENTS
        if all(name in pile.moment(index) for index in pile.taken)
        and any(len({pile.moment(index)[name] for index in place}) > 1 for place in places)
    ]
    for names in [*((name,) for name in varying), *([tuple(varying)] if len(varying) > 1 else [])]:
        by = " and ".join(names)
        values = {index: tuple(pile.moment(index)[name] for name in names) for index in pile.taken}
        if any(len({values[index] for index in place}) < len(place) for place in places):
            continue
        stacks: dict[tuple[float, ...], list[int]] = defaultdict(list)
        for index in pile.taken:
            stacks[values[index]].append(index)
        label = " and ".join(f"{name} {{:g}}" for name in names)
        yield _Way(by=by, stacks=[(label.format(*value), stack) for value, stack in sorted(stacks.items())])
        if not _COUNTED.isdisjoint(names) and len({len(place) for place in places}) == 1:
            ranked = zip(*(sorted(place, key=values.__getitem__) for place in places), strict=True)
            yield _Way(by=by, stacks=[(f"number {n} by {by}", list(stack)) for n, stack in enumerate(ranked, start=1)])


def _remark_gaps(pile: _Pile, geometry: Geometry) -> None:
    """Say how many planes are interpolated for the model, and where."""
    missing = np.rint(np.diff(geometry.heights) / geometry.spacing[0]).astype(int) - 1
    if missing.max() < 1:
        return
    where = [
        f"{missing[plane]} between {geometry.sop_instance_uids[plane]} and {geometry.sop_instance_uids[plane + 1]}"
        for plane in np.flatnonzero(missing > 0)
    ]
    pile.remarks["planes_missing"] = (
        f"{missing[missing > 0].sum()} beside {geometry.shape[0]}, interpolated for the model; "
        f"what it says lies on the planes that are there: {', '.join(where[:_NAMED])}"
    )
