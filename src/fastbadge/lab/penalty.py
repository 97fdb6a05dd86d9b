"""The analysis of the BADGE paper over many settings: penalty matrix and CDF of errors.

Ash et al. (ICLR 2020), section 4. A setting is a data set, a model and a batch size: one run. Two
slips of the authors' script are not repeated: it takes the first repeat instead of the mean for
the CDF, and counts the diagonal in the column means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import inf, sqrt
from statistics import fmean
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastbadge.lab.comparison import critical_t, t_statistic
from fastbadge.lab.statistics import complete_trials, learning_curve
from fastbadge.lab.store import RoundRow

# Accuracy by strategy, labels and trial.
_Accuracies: TypeAlias = dict[tuple[str, int], dict[int, float]]


@dataclass(frozen=True)
class Penalty:
    """How often each strategy beats each other one.

    Args:
        strategies: names of rows and columns.
        cells: cells[i][j]: over the settings, the summed share of budgets at which i beats j;
            None where they were never compared, and on the diagonal.
        compared: compared[i][j]: in how many settings they were.
        column_means: how often j is beaten, the diagonal left out; lower is better. None where j
            lacks a comparison in some setting: it would look better than it is.
        budgets: of each setting, in labels.
    """

    strategies: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]
    compared: tuple[tuple[int, ...], ...]
    column_means: tuple[float | None, ...]
    budgets: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Step:
    """A step of a cumulative distribution: this share of the weight is at most at this error."""

    error: float
    share: float


def budgets(rows: Iterable[RoundRow], *, baseline: str = "random") -> tuple[int, ...]:
    """The numbers of labels at which the strategies of one setting are compared.

    L = M + 2^(m-1) B for m = 1 ... floor(log2((n0 - M) / B)), where M are the initial labels, B
    is the batch and n0 the first recorded number of labels at which the baseline's mean accuracy
    is 99 % of its final one or more. Later than half of n0 - M nothing is compared: there all
    curves are flat.

    Args:
        rows: of one run, whose numbers of labels are evenly spaced.
        baseline: the strategy that sets n0.

    Returns:
        Rising numbers of labels; empty where no trial of the baseline is complete, or where it is
        there after one batch.

    >>> from fastbadge.lab.store import RoundRow
    >>> def row(round, accuracy):
    ...     return RoundRow("random", 0, round, 100 + 10 * round, accuracy, 0.5, 1, 0.1, 0, (1,))
    >>> budgets([row(i, 0.1 * i) for i in range(9)])  # n0 = 180, so m = 1, 2, 3
    (110, 120, 140)
    """
    rows = list(rows)
    complete = complete_trials(rows).get(baseline, set())
    curve = learning_curve(
        row for row in rows if row.strategy == baseline and row.trial in complete
    ).get(baseline, [])
    if len(curve) < 2:
        return ()
    start, batch = curve[0].labels, curve[1].labels - curve[0].labels
    n0 = next(point.labels for point in curve if point.mean >= 0.99 * curve[-1].mean)
    # bit_length - 1 is floor(log2) of a whole number, without rounding; of 0 it is -1.
    doublings = ((n0 - start) // batch).bit_length() - 1
    return tuple(start + 2**m * batch for m in range(doublings))


def penalty_matrix(settings: Sequence[Sequence[RoundRow]], *, baseline: str = "random") -> Penalty:
    """Which strategies beat which, over settings and their budgets.

    At a budget, i beats j if sqrt(T) mean / stdev of the T paired differences of their accuracy
    exceeds the two-sided 5 % critical value of Student's t for T - 1 degrees of freedom (2.776
    for the paper's five repeats). Each win adds 1 / (number of budgets of that setting), so
    settings count alike.

    Two strategies are compared in a setting if at every budget they share at least two trials.
    Settings without a budget add nothing.

    Args:
        settings: the rows of one run each.
        baseline: the strategy that sets the budgets.
    """
    names = _strategies(settings)
    wins = dict.fromkeys(permutations(names, 2), 0.0)
    compared = dict.fromkeys(product(names, repeat=2), 0)
    budgets_of = tuple(budgets(rows, baseline=baseline) for rows in settings)
    for rows, labels in zip(settings, budgets_of, strict=True):
        accuracies = _accuracies(rows)
        for i, j in wins:
            share = _share_won(accuracies, i, j, labels)
            if share is not None:
                compared[i, j] += 1
                wins[i, j] += share
    count = sum(map(bool, budgets_of))
    means: list[float | None] = []
    for j in names:
        column = [wins[i, j] for i in names if i != j and compared[i, j] == count]
        complete = count > 0 and 0 < len(column) == len(names) - 1
        means.append(fmean(column) if complete else None)
    return Penalty(
        names,
        tuple(tuple(wins[i, j] if compared[i, j] else None for j in names) for i in names),
        tuple(tuple(compared[i, j] for j in names) for i in names),
        tuple(means),
        budgets_of,
    )


def error_cdf(
    settings: Sequence[Sequence[RoundRow]], *, baseline: str = "random"
) -> dict[str, list[Step]]:
    """For each strategy the cumulative distribution of its error relative to the baseline's.

    At each budget of each setting the mean error of a strategy is divided by that of the
    baseline, both over the trials they share. Settings weigh alike, and so do the budgets of one.
    Where the baseline makes no error the ratio is 1 for a strategy that makes none, else inf.

    Returns:
        Its steps, rising in both; empty for a strategy that was nowhere beside the baseline. A
        strategy that some settings lack is described over the others.
    """
    weighted: dict[str, list[tuple[float, float]]] = {name: [] for name in _strategies(settings)}
    for rows in settings:
        accuracies, labels = _accuracies(rows), budgets(rows, baseline=baseline)
        for name, pairs in weighted.items():
            ratios = [_error_ratio(accuracies, name, baseline, budget) for budget in labels]
            known = [ratio for ratio in ratios if ratio is not None]
            if len(known) == len(labels):
                pairs += [(ratio, 1 / len(labels)) for ratio in known]
    return {name: _steps(pairs) for name, pairs in weighted.items()}


def penalty_tie(
    settings: Sequence[Sequence[RoundRow]],
    a: str,
    b: str,
    *,
    baseline: str = "random",
    exchanges: int = 4_999,
    seed: int = 0,
) -> float | None:
    """How well chance alone explains that the column means of two strategies differ.

    A paired permutation test: were a and b alike, each trial might as well have had their curves
    exchanged. So they are, at random and trial by trial, and the matrix is made anew. The budgets
    stay as they are.

    Args:
        settings: the rows of one run each.
        a: one strategy.
        b: the other.
        baseline: the strategy that sets the budgets.
        exchanges: how many random ones.
        seed: of them.

    Returns:
        The two-sided p-value; None without a budget, or where some strategy lacks a trial of a
        setting: column means then rest on unlike trials.
    """
    names, rng = _strategies(settings), np.random.default_rng(seed)
    # Exchange 0 leaves all as it is.
    difference_R = np.zeros(exchanges + 1)
    compared = False
    for rows in settings:
        accuracies, labels = _accuracies(rows), budgets(rows, baseline=baseline)
        if not labels:
            continue
        compared = True
        trials = sorted({row.trial for row in rows})
        exchanged_RT1 = rng.random((exchanges + 1, len(trials), 1)) < 0.5
        exchanged_RT1[0] = False
        try:
            accuracy_of = {
                name: np.array([[accuracies[name, n][trial] for n in labels] for trial in trials])
                for name in names
            }
        except KeyError:
            return None
        if len(trials) < 2 or not {a, b} <= accuracy_of.keys():
            return None
        a_RTL = np.where(exchanged_RT1, accuracy_of[b], accuracy_of[a])
        b_RTL = np.where(exchanged_RT1, accuracy_of[a], accuracy_of[b])
        difference_R += _shares_lost(a_RTL - b_RTL, -1) - _shares_lost(a_RTL - b_RTL, 1)
        for name in set(names) - {a, b}:
            difference_R += _shares_lost(accuracy_of[name] - a_RTL, 1)
            difference_R -= _shares_lost(accuracy_of[name] - b_RTL, 1)
    if not compared:
        return None
    # Sums of the same shares in another order differ by rounding.
    as_large = np.abs(difference_R) >= abs(difference_R[0]) - 1e-9
    return float(as_large.mean())


def _shares_lost(difference_RTL: NDArray[np.float64], sign: int) -> NDArray[np.float64]:
    """For each exchange the share of budgets at which sign x difference is significant."""
    trials = difference_RTL.shape[1]
    mean_RL = sign * difference_RTL.mean(axis=1)
    stderr_RL = difference_RTL.std(axis=1, ddof=1) / sqrt(trials)
    return np.asarray((mean_RL > critical_t(trials) * stderr_RL).mean(axis=1))


def in_every_setting(settings: Sequence[Sequence[RoundRow]]) -> list[list[RoundRow]]:
    """The rows of those strategies that every setting has; all rows where these are fewer than two.

    Without the others column means are complete, and compare like with like.

    >>> def row(strategy):
    ...     return RoundRow(strategy, 0, 0, 100, 0.5, 0.5, 1.0, 0.1, 0.0, (1,))
    >>> kept = in_every_setting([[row("a"), row("b"), row("c")], [row("b"), row("a")]])
    >>> [[row.strategy for row in rows] for rows in kept]
    [['a', 'b'], ['b', 'a']]
    """
    names = [{row.strategy for row in rows} for rows in settings]
    common = set.intersection(*names) if names else set()
    if len(common) < 2:
        return [list(rows) for rows in settings]
    return [[row for row in rows if row.strategy in common] for rows in settings]


def _strategies(settings: Sequence[Sequence[RoundRow]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.strategy for rows in settings for row in rows))


def _accuracies(rows: Iterable[RoundRow]) -> _Accuracies:
    found: _Accuracies = {}
    for row in rows:
        found.setdefault((row.strategy, row.labels), {})[row.trial] = row.accuracy
    return found


def _shared(accuracies: _Accuracies, i: str, j: str, labels: int) -> list[tuple[float, float]]:
    """Accuracies of i and j in each trial that has both at this number of labels."""
    of_i, of_j = accuracies.get((i, labels), {}), accuracies.get((j, labels), {})
    return [(of_i[trial], of_j[trial]) for trial in sorted(of_i.keys() & of_j.keys())]


def _share_won(accuracies: _Accuracies, i: str, j: str, labels: Sequence[int]) -> float | None:
    """Share of the budgets at which i beats j; None without one, or where one cannot be tested."""
    wins = []
    for budget in labels:
        pairs = _shared(accuracies, i, j, budget)
        t = t_statistic(a - b for a, b in pairs)
        if t is None:
            return None
        wins.append(t > critical_t(len(pairs)))
    return fmean(wins) if wins else None


def _error_ratio(accuracies: _Accuracies, name: str, baseline: str, labels: int) -> float | None:
    pairs = _shared(accuracies, name, baseline, labels)
    if not pairs:
        return None
    error = fmean(1 - a for a, _ in pairs)
    baseline_error = fmean(1 - b for _, b in pairs)
    if baseline_error == 0:
        return 1.0 if error == 0 else inf
    return error / baseline_error


def _steps(weighted: Iterable[tuple[float, float]]) -> list[Step]:
    pairs = sorted(weighted)
    total = sum(weight for _, weight in pairs)
    share_at: dict[float, float] = {}
    below = 0.0
    for error, weight in pairs:
        below += weight
        share_at[error] = min(1.0, below / total)
    return [Step(error, share) for error, share in share_at.items()]
