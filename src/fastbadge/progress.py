"""How far a long job is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TypeAlias

Advance: TypeAlias = Callable[[int], object]

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_bar(
    total: int, title: str, unit: str, *, show: bool | None, delay_seconds: float = 2.0
) -> Iterator[Advance]:
    """Gives a function to call with how many more are done.

    Args:
        total: how many there are.
        title: what is going on.
        unit: what is counted.
        show: whether to show anything; None stands for "on a terminal only".
        delay_seconds: a job that takes less shows nothing.
    """
    if not wanted(show):
        yield lambda count: None
    elif sys.stderr.isatty() or "ipykernel" in sys.modules:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=title, unit=unit, delay=delay_seconds, leave=False) as bar:
            yield bar.update
    else:
        yield _lines(total, title, unit, delay_seconds)


def wanted(show: bool | None) -> bool:
    """What `show` stands for here."""
    return sys.stderr.isatty() if show is None else show


def _lines(total: int, title: str, unit: str, delay_seconds: float) -> Advance:
    done, next_line = 0, monotonic() + delay_seconds

    def advance(count: int) -> None:
        nonlocal done, next_line
        done += count
        if monotonic() >= next_line:
            next_line = monotonic() + _SECONDS_BETWEEN_LINES
            print(f"{title}: {done:,} of {total:,} {unit}", file=sys.stderr, flush=True)

    return advance
