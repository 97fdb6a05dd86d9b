"""Street View House Numbers, cropped digits (Netzer et al. 2011): two MATLAB files.

Format: http://ufldl.stanford.edu/housenumbers/ ("Format 2"); X is [32, 32, 3, N], y [N, 1] with
10 for the digit 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastbadge.errors import DataError
from fastbadge.lab.arrays import Array, Arrays
from fastbadge.lab.fetch import fetch_files

_FOLDERS = (".", "SVHN", "svhn")  # below the data directory, torchvision's first

MIRRORS: tuple[str, ...] = ("http://ufldl.stanford.edu/housenumbers/",)
MD5S = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def read_svhn(data_dir: Path | None) -> Arrays:
    """Read the two files from `data_dir`, else from the cache, else fetch them into the cache.

    Args:
        data_dir: holds train_32x32.mat and test_32x32.mat, directly or in SVHN.

    Raises:
        DataError: one file without the other, a broken one, or no network.
    """
    paths = _find(data_dir) if data_dir else None
    if paths is None:
        paths = fetch_files("svhn", MIRRORS, MD5S, data_dir=data_dir, what=" and ".join(MD5S))
    (x_pool, y_pool), (x_test, y_test) = (_read(path) for path in paths)
    return Arrays(x_pool, y_pool, x_test, y_test)


def _find(data_dir: Path) -> tuple[Path, ...] | None:
    for folder in _FOLDERS:
        paths = tuple(data_dir / folder / file for file in MD5S)
        missing = [path for path in paths if not path.is_file()]
        if not missing:
            return paths
        if len(missing) < len(paths):
            raise DataError(
                f"{data_dir / folder} has no {missing[0].name} but the other file of svhn; add it "
                "or pass another --data-dir"
            )
    return None


def _read(path: Path) -> tuple[Array, Array]:
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=("X", "y"))
        x, y = content["X"], content["y"].ravel()
    except Exception as error:  # SciPy's reader answers a broken file with errors of many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} cannot be read as SVHN: {reason}; fetch it again") from error
    if x.dtype != np.uint8 or x.shape != (32, 32, 3, len(y)) or y.dtype.kind not in "iu":
        raise DataError(
            f"{path} has X {x.dtype} {x.shape} and y {y.dtype} {y.shape}; expected uint8 "
            f"(32, 32, 3, {len(y)}) and a label for each image; fetch it again"
        )
    if len(y) and not 1 <= y.min() <= y.max() <= 10:
        raise DataError(f"{path} has labels {y.min()} to {y.max()}; expected 1 to 10")
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y.astype(np.int64) % 10
