"""One command at a time: a lock of the system's, which dies with the process that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastbadge.errors import RunError


@contextmanager
def held(path: Path, taken: str) -> Iterator[None]:
    """Hold a file or directory, which is not written to, against other commands.

    Nothing is held on Windows, nor on file systems without locks, some of a network.

    Args:
        path: is there.
        taken: what to say if somebody else holds it.

    Raises:
        RunError: somebody else does.
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
        except BlockingIOError as error:
            raise RunError(taken) from error
        except OSError:  # no such locks here
            pass
        yield
    finally:
        os.close(descriptor)
