"""What Ctrl-C must not cut in two, and what must not cut off a Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A short block that is finished before Ctrl-C counts.

    >>> with uninterrupted():
    ...     pass
    """
    # Only the main thread is interrupted; None is a handler that was not set from Python.
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def none_lost() -> Iterator[None]:
    """A block that hears of each Ctrl-C, also of one that Python makes something else of.

    What is raised in a `__del__`, or in what follows each import, it shows and forgets. What is
    raised as a class is made, as while a module is loaded, becomes a RuntimeError.

    Raises:
        KeyboardInterrupt: for these too.

    >>> with none_lost():
    ...     pass
    """
    before = sys.unraisablehook

    def hear(lost: UnraisableHookArgs) -> None:
        if lost.exc_type is KeyboardInterrupt:
            # A moment later and by another thread: what is raised in here is forgotten as well. A
            # real signal, which ends a wait; Windows has none, and ends the process.
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(lost)

    sys.unraisablehook = hear
    try:
        yield
    except Exception as error:
        if any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error)):
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = before


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what it was raised for, and so on, each once."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    return chain
