"""A run in words and one table: what stands on the screen when it is finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.table import Table

from fastbadge.lab.statistics import (
    Difference,
    Point,
    labels_saved,
    labels_saved_interval,
    learning_curve,
    paired_difference,
)
from fastbadge.lab.store import RoundRow, Run

_MOST_COLUMNS = 4  # strategies side by side within 120 characters


def compared(strategies: Sequence[str]) -> tuple[str, str] | None:
    """Which two strategies a run sets against each other: the first against random, or the last.

    >>> compared(["badge", "random", "margin"]), compared(["random", "badge"])
    (('badge', 'random'), ('badge', 'random'))
    >>> compared(["badge", "margin", "entropy"]), compared(["badge"])
    (('badge', 'entropy'), None)
    """
    if len(strategies) < 2:
        return None
    baseline = "random" if "random" in strategies else strategies[-1]
    return next(name for name in strategies if name != baseline), baseline


def heading(run: Run) -> str:
    """What stands above the table."""
    trials = run.config.trials
    shown = f"mean ± standard error of {trials} trials" if trials > 1 else "one trial"
    return f"{run.config.dataset}: test accuracy in %, {shown}"


def summary_table(run: Run) -> Table:
    """Labels, mean accuracy and standard error of each strategy, and the paired difference.

    All figures but the labels are percent or percentage points. Where a figure rests on fewer
    trials than the run asks for (it was killed, or is still going), their number is in brackets.
    More than four strategies are rows, at few numbers of labels: as columns they would not fit.
    """
    curves = {
        name: {p.labels: p for p in curve} for name, curve in learning_curve(run.rows).items()
    }
    every = sorted({row.labels for row in run.rows})
    if len(curves) > _MOST_COLUMNS:
        return _table_by_strategy(run, curves, every)
    trials, table, pair = run.config.trials, Table(box=box.SIMPLE_HEAD), compared(list(curves))
    differences = {d.labels: d for d in paired_difference(run.rows, *pair)} if pair else {}
    table.add_column("labels", justify="right")
    for strategy in curves:
        table.add_column(strategy, justify="right")
    if pair:
        table.add_column(f"{pair[0]} - {pair[1]}{_interval_of(trials)}", justify="right")
    for labels in every:
        cells = [_accuracy(curve.get(labels), trials) for curve in curves.values()]
        if pair:
            cells.append(_difference(differences.get(labels), trials))
        table.add_row(str(labels), *cells)
    return table


def _table_by_strategy(
    run: Run, curves: Mapping[str, Mapping[int, Point]], every: Sequence[int]
) -> Table:
    """A quarter and half of the queries on, and at the end, with the difference that is there."""
    trials, pair = run.config.trials, compared(list(curves))
    assert pair is not None
    last, baseline = len(every) - 1, pair[1]
    shown = [every[i] for i in sorted({last // 4, last // 2, last})]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("strategy")
    for labels in shown:
        table.add_column(f"{labels} labels", justify="right")
    table.add_column(f"- {baseline} at {every[-1]}{_interval_of(trials)}", justify="right")
    for name, curve in curves.items():
        differences = paired_difference(run.rows, name, baseline) if name != baseline else []
        at_end = next((d for d in differences if d.labels == every[-1]), None)
        accuracies = [_accuracy(curve.get(labels), trials) for labels in shown]
        table.add_row(name, *accuracies, _difference(at_end, trials))
    return table


def savings_sentence(run: Run) -> str:
    """`saving_in_words` of what the run compares; empty for a lone strategy."""
    pair = compared(run.config.strategies)
    return "" if pair is None else saving_in_words(run.rows, *pair)


def saving_in_words(
    rows: Sequence[RoundRow], a: str, b: str, *, called: Callable[[str], str] = str
) -> str:
    """How many labels a saves against b, in one sentence that says how sure that is.

    Args:
        rows: of one run.
        a: the strategy that is compared.
        b: what it is compared with.
        called: what a sentence calls a strategy.
    """
    saved, interval = labels_saved(rows, a, b), labels_saved_interval(rows, a, b)
    a, b = called(a), called(b)
    if saved is None:
        return (
            f"How many labels {a} saves against {b} cannot be said: there is no finished trial of "
            f"both in which {b} improves on its first round."
        )
    sentence = f"{a} does not reach"
    if saved.labels_a is not None:
        sentence = f"{a} needs {saved.labels_a:.0f} labels for"
    sentence += f" the {100 * saved.accuracy:.1f} % that {b} ends with"
    if saved.labels_a is not None:
        fewer = saved.labels_b - saved.labels_a
        sure = interval is not None and interval.low > 0
        sentence += (
            f", {b} itself {saved.labels_b:.0f}: {abs(fewer):.0f} "
            f"({100 * abs(fewer) / saved.labels_b:.0f} %) "
            f"{'more' if fewer < 0 else 'saved' if sure else 'fewer'}"
        )
    if interval is None:
        return f"{sentence} (there is one trial, so the uncertainty is not known)."
    doubt = ", which is not sure" if interval.low <= 0 <= interval.high else ""
    ends = saving_ends(interval.low, interval.high)
    return f"{sentence}{doubt} (95 % interval of the saving {ends}, {saved.trials} paired trials)."


def saving_ends(low: float, high: float) -> str:
    """The interval of a saving, in labels; "none" stands for an accuracy that is not reached.

    >>> saving_ends(31.2, 66.6), saving_ends(-math.inf, 12.0), saving_ends(-math.inf, -math.inf)
    ('31 to 67', 'none to 12', 'none')
    """
    if math.isinf(high):
        return "none"
    return f"{'none' if math.isinf(low) else f'{low:.0f}'} to {high:.0f}"


def _interval_of(trials: int) -> str:
    return " (95 % interval)" if trials > 1 else ""


def _accuracy(point: Point | None, trials: int) -> str:
    if point is None:
        return ""
    spread = "" if point.stderr is None else f" ± {100 * point.stderr:.1f}"
    return f"{100 * point.mean:.1f}{spread}{_count(point.trials, trials)}"


def _difference(difference: Difference | None, trials: int) -> str:
    if difference is None:
        return ""
    interval = ""
    if difference.interval is not None:
        low, high = difference.interval
        interval = f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * difference.mean:+.1f}{interval}{_count(difference.trials, trials)}"


def _count(trials: int, wanted: int) -> str:
    return f" ({trials})" if trials < wanted else ""
