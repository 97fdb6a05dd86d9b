"""FastbadgeError and its few kinds. Each message is one line: what was got, what was expected."""


class FastbadgeError(Exception):
    """Base of everything fastbadge raises on purpose; the command line shows no traceback."""


class InputError(FastbadgeError, ValueError):
    """An argument or an array cannot be used as it is."""


class DataError(FastbadgeError):
    """A data set cannot be found, downloaded or read."""


class RunError(FastbadgeError):
    """A run directory cannot be used: another configuration, another schema, no permission."""


class DistributedError(FastbadgeError):
    """Another process of the job has failed, is gone, or does not answer in time."""


class MassExhaustedWarning(UserWarning):
    """Every remaining gradient equals a chosen one: the rest of the batch was drawn uniformly."""
