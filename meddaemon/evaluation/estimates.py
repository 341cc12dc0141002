"""Numbers with their uncertainty: Wilson's interval for proportions, the bootstrap over cases for everything else."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
ONE_PATIENT = "an interval needs two patients or more"
_ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
_Z = 1.959963984540054
"""The standard normal quantile of 1 - (1 - CONFIDENCE) / 2."""
LIMITS = _Z
"""Limits of agreement are so many standard deviations from the bias (Bland and Altman 1986)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, its 95 % confidence interval and how many things it is about.

    Where `value` is None it is not defined, and `reason` says why; where only the interval is None, `reason` says why
    there is none.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How often cases are drawn again, with replacement, and the seed that makes this the same each time.

    `patients` names for a study the one that stands for all of its patient; one that is not there stands for itself.
    """

    resamples: int = 1000
    seed: int = 0
    patients: Mapping[str, str] = field(default_factory=dict)


def undefined(reason: str, count: int = 0) -> Estimate:
    """Return the estimate of what cannot be told."""
    return Estimate(value=None, count=count, reason=reason)


def proportion(part: int, whole: int, *, without: str) -> Estimate:
    """Return part of a whole with Wilson's score interval (Wilson 1927); `without` is the reason where all is 0."""
    if whole == 0:
        return undefined(without)
    share, spread = part / whole, _Z**2 / whole
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / whole + spread / (4 * whole)) / (1 + spread)
    # Wilson's interval ends at 0 and at 1 exactly where nothing or all is part of it; rounding must not move that.
    low = 0.0 if part == 0 else max(centre - half, 0.0)
    high = 1.0 if part == whole else min(centre + half, 1.0)
    return Estimate(value=share, low=low, high=high, count=whole)


def resampled(
    value: float | None,
    statistic: Callable[[NDArray[np.intp]], float | None],
    studies: Sequence[str],
    bootstrap: Bootstrap,
    *,
    reason: str = "",
) -> Estimate:
    """Return a value with the percentile interval of what `statistic` says of cases that are drawn again.

    `studies` names the study of each case: cases of one patient are drawn together, for they are not independent of
    each other. `statistic` gets indices of cases, and returns None for a sample of which it cannot be told; such
    samples are left out, and where they are more than half there is no interval.
    """
    count = len(studies)
    if value is None:
        return undefined(reason, count)
    members = _members(studies, bootstrap)
    if len(members) < 2:
        return Estimate(value=value, count=count, reason=ONE_PATIENT)
    generator = np.random.default_rng(bootstrap.seed)
    found: list[float] = []
    for _ in range(bootstrap.resamples):
        drawn = generator.integers(len(members), size=len(members))
        told = statistic(np.concatenate([members[each] for each in drawn]))
        if told is not None:
            found.append(told)
    if 2 * len(found) < bootstrap.resamples or not found:
        return Estimate(value=value, count=count, reason="most samples of the cases do not define it")
    low, high = np.quantile(found, _ENDS)
    return Estimate(value=value, low=float(low), high=float(high), count=count)


def mean(values: Sequence[float | None], studies: Sequence[str], bootstrap: Bootstrap, *, without: str) -> Estimate:
    """Return the mean of the values that are there; `without` is the reason where none is."""
    known = [(value, study) for value, study in zip(values, studies, strict=True) if value is not None]
    if not known:
        return undefined(without)
    numbers = np.array([value for value, _ in known])
    members = _members([study for _, study in known], bootstrap)
    if len(members) < 2:
        return Estimate(value=float(numbers.mean()), count=len(known), reason=ONE_PATIENT)
    sums, counts = (np.array([each(numbers[own]) for own in members]) for each in (np.sum, len))
    drawn = np.random.default_rng(bootstrap.seed).integers(len(members), size=(bootstrap.resamples, len(members)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, _ENDS)
    return Estimate(value=float(numbers.mean()), low=float(low), high=float(high), count=len(known))


def _members(studies: Sequence[str], bootstrap: Bootstrap) -> list[NDArray[np.intp]]:
    """Return which cases are of each patient."""
    of_each: dict[str, list[int]] = {}
    for index, study in enumerate(studies):
        of_each.setdefault(bootstrap.patients.get(study, study), []).append(index)
    return [np.array(of_each[name], dtype=np.intp) for name in sorted(of_each)]
