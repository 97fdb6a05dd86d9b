"""FastbadgeError and its few kinds. Each message is one line: what was got, what was expected."""

import sys
from types import FrameType


class FastbadgeError(Exception):
    """Base of everything fastbadge raises on purpose; the command line shows no traceback."""


class InputError(FastbadgeError, ValueError):
    """An argument or an array cannot be used as it is."""


class DataError(FastbadgeError):
    """A data set cannot be found, downloaded or read."""


class RunError(FastbadgeError):
    """A run directory cannot be used: another configuration, another schema, no permission."""


class ProjectError(FastbadgeError):
    """A labelling project cannot be used: none there, another schema, other data, no permission."""


class DistributedError(FastbadgeError):
    """Another process of the job has failed, is gone, or does not answer in time."""


class MassExhaustedWarning(UserWarning):
    """Every remaining gradient equals a chosen one: the rest of the batch was drawn uniformly."""


class OutOfMemoryWarning(UserWarning):
    """The device had no memory for a batch: it was halved, and so are those that follow."""


def level_outside() -> int:
    """The caller's stacklevel for the nearest frame outside this package: the user's own line."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith("fastbadge."):
        frame, level = frame.f_back, level + 1
    return level
