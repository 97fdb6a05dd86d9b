"""Functions of the user's own, named on the command line as MODULE:FUNCTION."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from fastbadge.errors import InputError


def import_function(name: str, what: str) -> Callable[..., Any]:
    """The function of that name.

    Args:
        name: "MODULE:FUNCTION"; the module in the current directory or installed. The directory
            stays importable, so that the function may import what lies beside it when it is called.
        what: what it is for; begins the message of an error.

    Raises:
        InputError: no such function, or a module that cannot be imported.

    >>> import_function("math:hypot", "model")(3, 4)
    5.0
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:  # a script's own folder is there already, the command's not
        sys.path.append(os.getcwd())
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, SyntaxError, AttributeError, ValueError) as error:
        raise InputError(
            f"{what} is {name!r}, which cannot be imported: {error}; expected MODULE:FUNCTION, "
            "with the module in this directory or installed"
        ) from error
    if not callable(found):
        raise InputError(f"{what} is {name!r}, which is no function; expected MODULE:FUNCTION")
    return found
