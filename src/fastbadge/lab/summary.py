"""A run in words and one table: what stands on the screen when it is finished."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from fastbadge.lab.statistics import (
    Difference,
    Point,
    labels_saved,
    learning_curve,
    paired_difference,
)
from fastbadge.lab.store import Run


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
    """
    trials = run.config.trials
    table = Table(box=box.SIMPLE_HEAD)
    curves = {
        name: {p.labels: p for p in curve} for name, curve in learning_curve(run.rows).items()
    }
    pair = compared(list(curves))
    differences = {d.labels: d for d in paired_difference(run.rows, *pair)} if pair else {}
    table.add_column("labels", justify="right")
    for strategy in curves:
        table.add_column(strategy, justify="right")
    if pair:
        interval = " (95 % interval)" if trials > 1 else ""
        table.add_column(f"{pair[0]} - {pair[1]}{interval}", justify="right")
    for labels in sorted({row.labels for row in run.rows}):
        cells = [_accuracy(curve.get(labels), trials) for curve in curves.values()]
        if pair:
            cells.append(_difference(differences.get(labels), trials))
        table.add_row(str(labels), *cells)
    return table


def savings_sentence(run: Run) -> str:
    """How many labels the compared strategy saves, in one sentence; empty for a lone strategy."""
    pair = compared(run.config.strategies)
    if pair is None:
        return ""
    a, b = pair
    saved = labels_saved(run.rows, a, b)
    if saved is None:
        return f"Labels saved: no finished trial of both in which {b} improves on its first round."
    target = f"the {100 * saved.accuracy:.1f} % that {b} ends with"
    if saved.labels_a is None:
        return f"{a} does not reach {target}."
    fewer = saved.labels_b - saved.labels_a
    share = f"{abs(fewer):.0f} ({100 * abs(fewer) / saved.labels_b:.0f} %)"
    return (
        f"{a} needs {saved.labels_a:.0f} labels for {target}, {b} itself {saved.labels_b:.0f}: "
        f"{share} {'saved' if fewer >= 0 else 'more'}."
    )


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
