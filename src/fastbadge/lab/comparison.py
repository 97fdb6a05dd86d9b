"""Which of two strategies is better, how surely, and how many trials it would take to tell.

Strategies share the initial labels and weights of a trial, so everything here is about the
differences of pairs, trial by trial. Where all differences are equal their t statistic is taken
as its limit: infinite with the sign of the difference, or 0 where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import copysign, inf, sqrt
from statistics import fmean, stdev

from scipy.special import nctdtr, stdtr, stdtrit

from fastbadge.errors import InputError


@dataclass(frozen=True)
class PairTest:
    """Paired t test of one measure, strategy a against strategy b.

    Args:
        a: one strategy.
        b: the other.
        trials: how many both have.
        mean: mean of a - b over these trials; None without one.
        stdev: sample standard deviation of the differences; None below two trials, like the rest.
        interval: Student t interval of the mean difference (low, high).
        effect: Cohen's d_z, mean / stdev of the differences.
        p: two-sided p-value.
        p_holm: the same after Holm's correction over all pairs of the table.
    """

    a: str
    b: str
    trials: int
    mean: float | None
    stdev: float | None = None
    interval: tuple[float, float] | None = None
    effect: float | None = None
    p: float | None = None
    p_holm: float | None = None


def paired_tests(
    values: Mapping[str, Mapping[int, float]], *, confidence: float = 0.95
) -> list[PairTest]:
    """Test every pair of strategies on one measure, and correct for testing them all.

    Args:
        values: for each strategy its value in each trial; see `trial_areas`.
        confidence: coverage of the intervals, in (0, 1). They are not corrected.

    Returns:
        One entry a pair, in the order of `values`; a pair with fewer than two trials in common
        cannot be tested, and has None there.

    Raises:
        InputError: a confidence outside (0, 1).

    >>> (test,) = paired_tests({"badge": {0: 0.75, 1: 1.0}, "random": {0: 0.5, 1: 0.25}})
    >>> test.mean, round(test.effect, 3), round(test.p, 3)
    (0.5, 1.414, 0.295)
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; expected a number between 0 and 1")
    tests = []
    for a, b in combinations(values, 2):
        shared = sorted(values[a].keys() & values[b].keys())
        tests.append(_test(a, b, [values[a][t] - values[b][t] for t in shared], confidence))
    adjusted = iter(holm([test.p for test in tests if test.p is not None]))
    return [test if test.p is None else replace(test, p_holm=next(adjusted)) for test in tests]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p-values that may all be held against one level.

    >>> [round(p, 9) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def t_statistic(differences: Iterable[float]) -> float | None:
    """sqrt(T) mean / stdev of T paired differences of accuracies; None for fewer than two.

    >>> t_statistic([0.25, 0.75]), t_statistic([0.5, 0.5]), t_statistic([0.0, 0.0])
    (2.0, inf, 0.0)
    """
    values = _rounded(differences)
    if len(values) < 2:
        return None
    mean, spread = fmean(values), stdev(values)
    if spread == 0:
        return copysign(inf, mean) if mean else 0.0
    return sqrt(len(values)) * mean / spread


def critical_t(trials: int, *, level: float = 0.05) -> float:
    """What |t| of so many paired differences must exceed for a two-sided test at this level.

    >>> round(critical_t(5), 3)
    2.776
    """
    return float(stdtrit(trials - 1, 1 - level / 2))


def trials_needed(
    difference: float, stdev: float, *, power: float = 0.8, level: float = 0.05
) -> int | None:
    """How many trials a paired t test would need to detect a difference.

    The smallest number at which the test, two-sided at `level`, rejects with probability `power`:
    t is then noncentral with noncentrality sqrt(T) difference / stdev.

    Args:
        difference: that is there, in the unit of `stdev`.
        stdev: of the paired differences, as `PairTest` has it.
        power: probability of detecting it, in (0, 1).
        level: probability of an error of the first kind, in (0, 1).

    Returns:
        At least 2, the fewest that have a spread; None where there is no difference to detect.

    >>> trials_needed(0.01, 0.01), trials_needed(0.01, 0.02), trials_needed(0.0, 0.02)
    (10, 34, None)
    """
    if difference == 0:
        return None
    if stdev == 0:
        return 2
    effect = abs(difference) / stdev
    enough = 2
    while not _power(enough, effect, level) >= power:
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if _power(middle, effect, level) >= power:
            enough = middle
        else:
            too_few = middle
    return max(enough, 2)


def _test(a: str, b: str, differences: Sequence[float], confidence: float) -> PairTest:
    differences = _rounded(differences)
    trials = len(differences)
    t = t_statistic(differences)
    if t is None:
        return PairTest(a, b, trials, fmean(differences) if differences else None)
    mean, spread = fmean(differences), stdev(differences)
    margin = critical_t(trials, level=1 - confidence) * spread / sqrt(trials)
    return PairTest(
        a,
        b,
        trials,
        mean,
        spread,
        (mean - margin, mean + margin),
        t / sqrt(trials),
        2 * float(stdtr(trials - 1, -abs(t))),
    )


def _rounded(differences: Iterable[float]) -> list[float]:
    """Without the 1e-16 in which 0.9 - 0.8 and 0.8 - 0.7 differ, a spread that is none."""
    return [round(difference, 12) for difference in differences]


def _power(trials: int, effect: float, level: float) -> float:
    """Probability that |t| exceeds its critical value, t being noncentral."""
    noncentrality, critical = sqrt(trials) * effect, critical_t(trials, level=level)
    if noncentrality > 2 * critical + 30:  # beyond, nctdtr may be NaN; the power is 1 to 1e-16
        return 1.0
    # Both tails as upper ones: nctdtr of a far lower tail is NaN now and then (SciPy 1.17).
    return float(
        2
        - nctdtr(trials - 1, noncentrality, critical)
        - nctdtr(trials - 1, -noncentrality, critical)
    )
