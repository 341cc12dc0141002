"""Numbers against their reference: errors, limits of agreement, correlation and concordance (scipy, scikit-learn)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from meddaemon.evaluation.estimates import LIMITS, Bootstrap, Estimate, resampled, undefined

NO_SPREAD = "the values of the result or of the reference are all the same"
ONE_CASE = "it needs two cases or more"
_Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NumberCase:
    """One number of one case, in the unit of the result."""

    case: str
    study: str
    value: float
    reference: float
    error: float


@dataclass(frozen=True, kw_only=True)
class NumberTable:
    """One number over all cases, in its `unit` (UCUM); `bias` is the mean of result less reference.

    The limits of agreement are those of Bland and Altman (1986), `concordance` is Lin's coefficient (1989).
    """

    name: str
    unit: str
    bias: Estimate
    lower_limit: Estimate
    upper_limit: Estimate
    absolute_error: Estimate
    root_mean_square_error: Estimate
    pearson: Estimate
    spearman: Estimate
    concordance: Estimate
    cases: tuple[NumberCase, ...]


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Everything that is said of numbers."""

    numbers: tuple[NumberTable, ...]


def judge_number(name: str, unit: str, cases: Sequence[NumberCase], bootstrap: Bootstrap) -> NumberTable:
    """Return what is to be said of one number over all its cases, of which there is one at least."""
    found = np.array([each.value for each in cases], dtype=np.float64)
    expected = np.array([each.reference for each in cases], dtype=np.float64)
    studies = [each.study for each in cases]

    def told(statistic: Callable[[_Values, _Values], float], *, cases_needed: int, spread: bool = False) -> Estimate:
        def of(drawn: NDArray[np.intp]) -> float | None:
            mine, its = found[drawn], expected[drawn]
            if len(mine) < cases_needed or (spread and (_is_constant(mine) or _is_constant(its))):
                return None
            return statistic(mine, its)

        if len(cases) < cases_needed:
            return undefined(ONE_CASE, len(cases))
        return resampled(of(np.arange(len(cases))), of, studies, bootstrap, reason=NO_SPREAD)

    return NumberTable(
        name=name,
        unit=unit,
        bias=told(lambda mine, its: float((mine - its).mean()), cases_needed=1),
        lower_limit=told(lambda mine, its: limits(mine, its)[0], cases_needed=2),
        upper_limit=told(lambda mine, its: limits(mine, its)[1], cases_needed=2),
        absolute_error=told(lambda mine, its: float(mean_absolute_error(its, mine)), cases_needed=1),
        root_mean_square_error=told(lambda mine, its: float(root_mean_squared_error(its, mine)), cases_needed=1),
        pearson=told(lambda mine, its: float(pearsonr(mine, its).statistic), cases_needed=2, spread=True),
        spearman=told(lambda mine, its: float(spearmanr(mine, its).statistic), cases_needed=2, spread=True),
        concordance=told(concordance, cases_needed=2, spread=True),
        cases=tuple(cases),
    )


def limits(found: _Values, expected: _Values) -> tuple[float, float]:
    """Return between which differences 95 % of all lie, if they are normal (Bland and Altman 1986)."""
    errors = found - expected
    bias, deviation = float(errors.mean()), float(errors.std(ddof=1))
    return bias - LIMITS * deviation, bias + LIMITS * deviation


def concordance(found: _Values, expected: _Values) -> float:
    """Return how near pairs lie to the line on which both are equal, 1 being on it (Lin 1989)."""
    apart = float(found.mean() - expected.mean())
    together = float(((found - found.mean()) * (expected - expected.mean())).mean())
    return 2 * together / (float(found.var()) + float(expected.var()) + apart**2)


def _is_constant(values: _Values) -> bool:
    return bool((values == values[0]).all())
