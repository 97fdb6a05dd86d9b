"""How far a run is: live on a terminal, else one line a finished trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fastbadge.lab.protocol import Config
from fastbadge.lab.statistics import learning_curve
from fastbadge.lab.store import RoundRow

OnRound: TypeAlias = Callable[[RoundRow], None]


@contextmanager
def follow(config: Config, console: Console, *, jobs: int) -> Iterator[OnRound]:
    """A function to call with each row of a run as it is recorded, that shows where the run is.

    Args:
        config: of the run.
        console: where to show it.
        jobs: how many trials run at a time, for the time left.
    """
    if console.is_terminal:
        with _live(config, console, jobs) as on_round:
            yield on_round
    else:
        yield _lines(config, console)


def seconds_left(rows: list[RoundRow], config: Config, jobs: int) -> float:
    """What the rounds still to come will take, at the mean cost of those recorded.

    The cost is what the rows say they took, not the clock, so rounds found finished on resume
    count like any other.

    >>> row = RoundRow("badge", 0, 0, 20, 0.9, 0.5, 2.0, 0.5, 0.5, (1,))
    >>> seconds_left([row], Config(strategies=("badge",), trials=2, rounds=1), jobs=2)
    4.5
    """
    left = len(config.strategies) * config.trials * config.points - len(rows)
    if left == 0:
        return 0.0
    seconds = fmean(row.train_seconds + row.query_seconds + row.eval_seconds for row in rows)
    unfinished = -(-left // config.points)  # at least so many trials are not finished
    return left * seconds / min(jobs, unfinished)


def _lines(config: Config, console: Console) -> OnRound:
    rows: dict[tuple[str, int], int] = {}
    total = len(config.strategies) * config.trials

    def on_round(row: RoundRow) -> None:
        key = (row.strategy, row.trial)
        rows[key] = rows.get(key, 0) + 1
        if rows[key] == config.points:
            done = sum(count == config.points for count in rows.values())
            console.print(
                f"{row.strategy}, trial {row.trial + 1} of {config.trials}: "
                f"{100 * row.accuracy:.1f} % at {row.labels} labels ({done} of {total} done)",
                highlight=False,
                soft_wrap=True,
            )

    return on_round


@contextmanager
def _live(config: Config, console: Console, jobs: int) -> Iterator[OnRound]:
    rounds = config.trials * config.points
    rows: list[RoundRow] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[trials]}"),
        TextColumn("{task.fields[shown]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task_of = {
            name: progress.add_task(name, total=rounds, trials="", shown="")
            for name in config.strategies
        }
        everything = progress.add_task("all", total=rounds * len(task_of), trials="", shown="")

        def on_round(row: RoundRow) -> None:
            if row.strategy not in task_of:  # another command's, where nothing keeps it away
                return
            rows.append(row)
            mine = [other for other in rows if other.strategy == row.strategy]
            finished = sum(other.round == config.rounds for other in mine)
            last = learning_curve(mine)[row.strategy][-1]
            progress.update(
                task_of[row.strategy],
                advance=1,
                trials=f"{finished}/{config.trials} trials, {len(mine)}/{rounds} rounds",
                shown=f"{100 * last.mean:.1f} % at {last.labels} labels",
            )
            left = seconds_left(rows, config, jobs)
            progress.update(everything, advance=1, shown=f"{_clock(left)} left")

        yield on_round


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
