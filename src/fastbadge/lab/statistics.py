"""What the rows of a run say: learning curves, areas under them, paired differences, labels saved.

Pure functions on rows. A run that was killed has missing cells, so every figure carries the
number of trials behind it, and comparisons use only trials that both strategies have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import InputError
from fastbadge.lab.comparison import critical_t
from fastbadge.lab.store import RoundRow

_STEPS = 200  # of a curve between its first and last labels, where savings are tested


@dataclass(frozen=True)
class Point:
    """Mean accuracy of one strategy at one number of labels.

    Args:
        labels: what the models were trained on.
        mean: mean test accuracy over trials, 0..1.
        stderr: its standard error, sample standard deviation / sqrt(trials); None for one trial.
        trials: how many trials are behind it.
    """

    labels: int
    mean: float
    stderr: float | None
    trials: int


@dataclass(frozen=True)
class Difference:
    """Mean of accuracy(a) - accuracy(b) over trials, at one number of labels.

    Args:
        labels: what the models were trained on.
        mean: mean difference over the trials that both strategies have, in -1..1.
        interval: its Student t interval (low, high); None for one trial.
        trials: how many pairs are behind it.
    """

    labels: int
    mean: float
    interval: tuple[float, float] | None
    trials: int


@dataclass(frozen=True)
class QueryTime:
    """Seconds that one strategy took to choose a batch, at one number of labels.

    Args:
        labels: what the models were trained on when they chose.
        median: over trials, in seconds; low and high are the extremes.
        low: the fastest trial.
        high: the slowest trial.
    """

    labels: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class LabelsSaved:
    """How many labels strategy a needs for the accuracy that strategy b ends with.

    Args:
        accuracy: mean accuracy of b in its last round, 0..1.
        labels_b: where the mean curve of b first reaches it, interpolated: a curve that is flat at
            the end gets there before its last label, and later ones are not counted as saved.
        labels_a: where the mean curve of a first does; None if it never does.
        trials: how many trials (complete for both) the two mean curves rest on.
    """

    accuracy: float
    labels_b: float
    labels_a: float | None
    trials: int


@dataclass(frozen=True)
class SavedInterval:
    """Confidence interval of labels_b - labels_a of `LabelsSaved`.

    Args:
        low: its lower end, in labels; -inf where a may not reach the accuracy at all.
        high: its upper end; -inf where a does not, surely.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Area:
    """Mean accuracy over the budget: the area under the learning curve / the width of the budget.

    Args:
        mean: over complete trials, 0..1.
        stderr: its standard error; None for one trial.
        trials: how many trials are behind it.
    """

    mean: float
    stderr: float | None
    trials: int


def learning_curve(rows: Iterable[RoundRow]) -> dict[str, list[Point]]:
    """Mean accuracy and standard error per strategy and number of labels.

    Args:
        rows: of one run, in any order.

    Returns:
        For each strategy, in the order of its first row, its points by rising number of labels.

    >>> from fastbadge.lab.store import RoundRow
    >>> def row(trial, accuracy):
    ...     return RoundRow("badge", trial, 0, 20, accuracy, 0.5, 1.0, 0.1, 0.0, (3, 1))
    >>> learning_curve([row(0, 0.5), row(1, 0.75)])
    {'badge': [Point(labels=20, mean=0.625, stderr=0.125, trials=2)]}
    """
    return {
        strategy: [
            Point(labels, fmean(values), _stderr(values), len(values))
            for labels, values in sorted(cells.items())
        ]
        for strategy, cells in _accuracies(rows).items()
    }


def query_time(rows: Iterable[RoundRow]) -> dict[str, list[QueryTime]]:
    """Seconds per query and strategy; rounds that chose nothing (the last) are left out.

    >>> from fastbadge.lab.store import RoundRow
    >>> def row(trial, seconds, picks):
    ...     return RoundRow("badge", trial, 0, 20, 0.9, 0.5, 1.0, seconds, 0.0, picks)
    >>> query_time([row(0, 0.5, (3, 1)), row(1, 0.25, (2, 7)), row(2, 0.0, ())])
    {'badge': [QueryTime(labels=20, median=0.375, low=0.25, high=0.5)]}
    """
    cells: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row.picks:
            by_labels = cells.setdefault(row.strategy, {})
            by_labels.setdefault(row.labels, []).append(row.query_seconds)
    return {
        strategy: [
            QueryTime(labels, median(seconds), min(seconds), max(seconds))
            for labels, seconds in sorted(by_labels.items())
        ]
        for strategy, by_labels in cells.items()
    }


def paired_difference(
    rows: Iterable[RoundRow], a: str, b: str, *, confidence: float = 0.95
) -> list[Difference]:
    """Mean of accuracy(a) - accuracy(b), trial by trial, with its Student t interval.

    Strategies share the initial labels and weights of a trial, and what a trial owes to these
    cancels in its difference. The interval is that of the paired t test,
    mean +- t(n - 1) * stdev / sqrt(n).

    Args:
        rows: of one run, in any order.
        a: the strategy that is compared.
        b: what it is compared with.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        One entry per number of labels at which at least one trial has both strategies, rising.

    Raises:
        InputError: a confidence outside (0, 1).

    >>> from fastbadge.lab.store import RoundRow
    >>> def row(strategy, trial, accuracy):
    ...     return RoundRow(strategy, trial, 0, 20, accuracy, 0.5, 1.0, 0.1, 0.0, (3, 1))
    >>> rows = [row("badge", 0, 0.75), row("badge", 1, 1.0), row("random", 0, 0.5)]
    >>> paired_difference(rows, "badge", "random")
    [Difference(labels=20, mean=0.25, interval=None, trials=1)]
    """
    _check_confidence(confidence)
    accuracy_of = {(row.strategy, row.trial, row.labels): row.accuracy for row in rows}
    differences: dict[int, list[float]] = {}
    for (strategy, trial, labels), accuracy in accuracy_of.items():
        if strategy == a and (b, trial, labels) in accuracy_of:
            difference = accuracy - accuracy_of[b, trial, labels]
            differences.setdefault(labels, []).append(difference)
    return [
        Difference(labels, fmean(values), _interval(values, confidence), len(values))
        for labels, values in sorted(differences.items())
    ]


def labels_to_reach(curve: Sequence[Point], accuracy: float) -> float | None:
    """Where a mean curve first reaches an accuracy, by linear interpolation; None if it never does.

    >>> curve = [Point(100, 0.5, None, 1), Point(200, 0.75, None, 1)]
    >>> labels_to_reach(curve, 0.625), labels_to_reach(curve, 0.8)
    (150.0, None)
    """
    if curve and curve[0].mean >= accuracy:
        return float(curve[0].labels)
    for left, right in pairwise(curve):
        if left.mean < accuracy <= right.mean:
            share = (accuracy - left.mean) / (right.mean - left.mean)
            return left.labels + share * (right.labels - left.labels)
    return None


def labels_saved(rows: Iterable[RoundRow], a: str, b: str) -> LabelsSaved | None:
    """How many labels a needs for the accuracy b ends with, on the mean curves.

    Only trials in which both strategies reached the run's last number of labels count: a mean
    whose trials change along the curve would cross the accuracy by accident.

    Returns:
        The comparison, or None where no trial is complete for both, or where b ends no better than
        it began: the first models are the same, so there is nothing to save.

    >>> from fastbadge.lab.store import RoundRow
    >>> def row(strategy, round, accuracy):
    ...     return RoundRow(strategy, 0, round, 100 + 100 * round, accuracy, 0.5, 1, 0.1, 0, (3, 1))
    >>> rows = [row("badge", 0, 0.5), row("badge", 1, 0.75)]
    >>> labels_saved([*rows, row("random", 0, 0.5), row("random", 1, 0.625)], "badge", "random")
    LabelsSaved(accuracy=0.625, labels_b=200.0, labels_a=150.0, trials=1)
    """
    pair = [row for row in rows if row.strategy in (a, b)]
    finished = complete_trials(pair)
    complete = finished.get(a, set()) & finished.get(b, set())
    if not complete:
        return None
    curves = learning_curve(row for row in pair if row.trial in complete)
    accuracy = curves[b][-1].mean
    labels_b = labels_to_reach(curves[b], accuracy)
    assert labels_b is not None
    if labels_b <= curves[b][0].labels:
        return None
    return LabelsSaved(accuracy, labels_b, labels_to_reach(curves[a], accuracy), len(complete))


def labels_saved_interval(
    rows: Iterable[RoundRow], a: str, b: str, *, confidence: float = 0.95
) -> SavedInterval | None:
    """Interval of the labels that a saves against b: all savings that paired t tests do not reject.

    Saving s labels means that a has after x - s labels the accuracy that b has after x, where b has
    what it ends with. That x is not known either, as a curve may be flat at its end: it may be any
    at which b does not differ significantly from its end. For each of them the s are kept at which
    a and b do not differ significantly, trial by trial. The lower end is a number only if a ends
    significantly above b. As t tests do, this holds for two trials as for fifty; a bootstrap of
    three excludes 0 in 24 % of the cases where nothing is saved.

    Args:
        rows: of one run, in any order.
        a: the strategy that is compared.
        b: what it is compared with.
        confidence: coverage of the interval, in (0, 1); see docs/statistics.md for what it is.

    Returns:
        The interval; None where fewer than two trials are complete for both.

    Raises:
        InputError: a confidence outside (0, 1).

    >>> from fastbadge.lab.store import RoundRow
    >>> def rows(strategy, *curves):
    ...     return [RoundRow(strategy, trial, r, 100 + 100 * r, accuracy, 0.5, 1, 0.1, 0, (1,))
    ...             for trial, curve in enumerate(curves) for r, accuracy in enumerate(curve)]
    >>> badge = rows("badge", (0.5, 0.9), (0.5, 0.9))
    >>> labels_saved_interval([*badge, *rows("random", (0.5, 0.7), (0.5, 0.7))], "badge", "random")
    SavedInterval(low=50.0, high=50.0)
    """
    _check_confidence(confidence)
    pair = [row for row in rows if row.strategy in (a, b)]
    finished = complete_trials(pair)
    trials = sorted(finished.get(a, set()) & finished.get(b, set()))
    if len(trials) < 2:
        return None
    labels = sorted({row.labels for row in pair})
    accuracy_of = {(row.strategy, row.trial, row.labels): row.accuracy for row in pair}
    label_X = np.linspace(labels[0], labels[-1], _STEPS + 1)
    curve_a_TX, curve_b_TX = (
        np.array([np.interp(label_X, labels, [accuracy_of[name, t, n] for n in labels])
                  for t in trials])
        for name in (a, b)
    )  # fmt: skip
    low_X, high_X = _t_intervals(curve_b_TX - curve_b_TX[:, -1:], confidence)
    low, high = inf, -inf
    for i in np.flatnonzero((low_X <= 0) & (high_X >= 0)):
        low_X, high_X = _t_intervals(curve_a_TX - curve_b_TX[:, [i]], confidence)
        not_below_Y, not_above_Y = label_X[high_X >= 0], label_X[low_X <= 0]
        first = float(not_below_Y[0]) if len(not_below_Y) else inf
        last = float(not_above_Y[-1]) if len(not_above_Y) else label_X[0]
        low = min(low, label_X[i] - (inf if last == label_X[-1] else last))
        high = max(high, label_X[i] - first)
    return SavedInterval(float(low), float(high))


def trial_areas(rows: Iterable[RoundRow]) -> dict[str, dict[int, float]]:
    """Area under the learning curve of each complete trial, by strategy and trial.

    The trapezoidal rule over labels, divided by last - first labels: the mean accuracy over the
    budget, in 0..1. A curve of a single point has that point's accuracy.

    >>> from fastbadge.lab.store import RoundRow
    >>> def row(round, labels, accuracy):
    ...     return RoundRow("badge", 0, round, labels, accuracy, 0.5, 1.0, 0.1, 0.0, (3, 1))
    >>> trial_areas([row(0, 100, 0.5), row(1, 200, 0.75), row(2, 500, 0.75)])
    {'badge': {0: 0.71875}}
    """
    rows = list(rows)
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {
        strategy: {trial: [] for trial in sorted(trials)}
        for strategy, trials in complete_trials(rows).items()
    }
    for row in sorted(rows, key=lambda row: row.labels):
        if row.trial in curves[row.strategy]:
            curves[row.strategy][row.trial].append((row.labels, row.accuracy))
    return {
        strategy: {trial: _area(curve) for trial, curve in by_trial.items()}
        for strategy, by_trial in curves.items()
    }


def area_under_curve(rows: Iterable[RoundRow]) -> dict[str, Area | None]:
    """Mean and standard error of `trial_areas`; None for a strategy without a complete trial."""
    return {
        strategy: Area(fmean(values), _stderr(values), len(values)) if values else None
        for strategy, by_trial in trial_areas(rows).items()
        for values in [list(by_trial.values())]
    }


def complete_trials(rows: Iterable[RoundRow]) -> dict[str, set[int]]:
    """For each strategy the trials that have every number of labels found anywhere in the rows."""
    labels_of: dict[str, dict[int, set[int]]] = {}
    for row in rows:
        labels_of.setdefault(row.strategy, {}).setdefault(row.trial, set()).add(row.labels)
    every = set().union(*(found for trials in labels_of.values() for found in trials.values()))
    return {
        strategy: {trial for trial, found in trials.items() if found == every}
        for strategy, trials in labels_of.items()
    }


def _area(curve: Sequence[tuple[int, float]]) -> float:
    width = curve[-1][0] - curve[0][0]
    if width == 0:
        return curve[0][1]
    pieces = ((right - left) * (y + z) / 2 for (left, y), (right, z) in pairwise(curve))
    return sum(pieces) / width


def _t_intervals(
    difference_TX: NDArray[Any], confidence: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Student's interval of each column's mean: its low and its high ends, [X] each."""
    difference_TX = difference_TX.round(12)  # equal accuracies, interpolated, differ by 1e-16
    trials, mean_X = len(difference_TX), difference_TX.mean(axis=0)
    t = critical_t(trials, level=1 - confidence)
    margin_X = t * difference_TX.std(axis=0, ddof=1) / sqrt(trials)
    return mean_X - margin_X, mean_X + margin_X


def _accuracies(rows: Iterable[RoundRow]) -> dict[str, dict[int, list[float]]]:
    cells: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        cells.setdefault(row.strategy, {}).setdefault(row.labels, []).append(row.accuracy)
    return cells


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; expected a number between 0 and 1")


def _stderr(values: Sequence[float]) -> float | None:
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def _interval(values: Sequence[float], confidence: float) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    (low,), (high,) = _t_intervals(np.array(values)[:, None], confidence)
    return float(low), float(high)
