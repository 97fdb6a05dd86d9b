"""A user's own data set: one .npz file with x_train, y_train, x_test and y_test."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fastbadge.errors import DataError
from fastbadge.lab.arrays import Arrays, check_arrays

KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> Arrays:
    """Read and check the four arrays; x [N, ...] real numbers, y [N] integers 0 to C - 1.

    Raises:
        DataError: no such file, not an .npz, arrays that are missing or do not fit.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected an .npz with {', '.join(KEYS)}")
    try:
        with path.open("rb") as file:  # opened here: np.load leaves a damaged file open
            arrays = _arrays_in(np.load(file, allow_pickle=False), path)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read as .npz: {reason}") from error
    check_arrays(arrays, str(path))
    return arrays


def _arrays_in(content: object, path: Path) -> Arrays:
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds one array; expected an .npz with {', '.join(KEYS)}")
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise DataError(
            f"{path} has {', '.join(content.files) or 'no arrays'} but no {', '.join(missing)}; "
            f"expected {', '.join(KEYS)}"
        )
    arrays = (content[key] for key in KEYS)
    # torch takes no other order of bytes than the machine's, and a digest is of values.
    return Arrays(*(x.astype(x.dtype.newbyteorder("="), copy=False) for x in arrays))
