"""The IDX format of MNIST's files: 4 bytes of magic, the sizes of the axes, then the values.

Format: http://yann.lecun.com/exdb/mnist/ ("THE IDX FILE FORMAT"); unsigned bytes only, which is
what the MNIST family uses.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, *, ndim: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, compressed by gzip or not.

    Args:
        path: the file; its content, not its name, tells whether it is compressed.
        ndim: how many axes are expected: 3 for images, 1 for labels.

    Returns:
        uint8 array, read-only.

    Raises:
        DataError: not such a file, or one that is cut short; the message names it.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch it again") from error
    magic = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    header_bytes = 4 + 4 * ndim
    if content[:4] != magic or len(content) < header_bytes:
        raise DataError(
            f"{path} begins with {content[:4].hex() or 'nothing'}; expected {magic.hex()}, "
            f"an IDX file of unsigned bytes with {ndim} axes"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, offset=4))
    if len(content) - header_bytes != math.prod(shape):
        raise DataError(
            f"{path} has {len(content) - header_bytes} bytes of values but its header promises "
            f"{math.prod(shape)} (shape {shape}); fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)
