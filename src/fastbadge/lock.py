"""One command at a time: a lock of the system's, which dies with the process that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastbadge.errors import FastbadgeError, RunError


@contextmanager
def held(path: Path, taken: str, error: type[FastbadgeError] = RunError) -> Iterator[None]:
    """Hold a file or directory, which is not written to, against other commands.

    Nothing is held on Windows, nor on file systems without locks, some of a network.

    Args:
        path: is there.
        taken: what to say if somebody else holds it.
        error: and as what to raise it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    # Not inherited by workers, which may outlive a command that is killed.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as reason:
            raise error(taken) from reason
        except OSError:  # no such locks here
            pass
        yield
    finally:
        os.close(descriptor)
