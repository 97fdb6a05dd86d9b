"""Labelled data sets by name: normalised once, as tensors on the device."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastbadge.errors import DataError, InputError
from fastbadge.lab.arrays import Array, Arrays, check_arrays, digest_of
from fastbadge.lab.mnist import read_mnist
from fastbadge.lab.npz import read_npz

NPZ_PREFIX = "npz:"
_DIGITS_TEST_SIZE = 500


@dataclass(frozen=True, eq=False, slots=True)
class Dataset:
    """A pool to choose from and a test set, as tensors on one device.

    Args:
        x_pool_NF: float32 [N, F], normalised; an image is the row of its pixels.
        y_pool_N: int64 [N], classes from 0: what the oracle answers.
        x_test_MF: float32 [M, F].
        y_test_M: int64 [M].
        num_classes: C.
        digest: SHA-256 of the values before normalising.
    """

    x_pool_NF: Tensor
    y_pool_N: Tensor
    x_test_MF: Tensor
    y_test_M: Tensor
    num_classes: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Source:
    summary: str
    read: Callable[[Path | None, int], Arrays]  # (data_dir, split_seed)
    scale: float  # x / scale - mean, over std
    mean: float
    std: float
    resplit: bool = False


def _read_digits(data_dir: Path | None, split_seed: int) -> Arrays:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_pool, x_test, y_pool, y_test = train_test_split(
        x, y, test_size=_DIGITS_TEST_SIZE, stratify=y, random_state=split_seed
    )
    return Arrays(x_pool, y_pool, x_test, y_test)


_SOURCES = {
    "digits": _Source(
        "1,797 handwritten digits of 8 x 8 from scikit-learn: nothing to download, "
        "500 of them for the test, drawn anew each trial",
        _read_digits,
        scale=16,
        mean=0,
        std=1,
        resplit=True,
    ),
    "mnist": _Source(
        "70,000 handwritten digits of 28 x 28, 10,000 of them for the test: "
        "IDX files from --data-dir or a download of 11 MB",
        lambda data_dir, _: read_mnist("mnist", data_dir),
        scale=255,
        mean=0.1307,
        std=0.3081,
    ),
    "fashion_mnist": _Source(
        "70,000 pieces of clothing of 28 x 28, 10,000 of them for the test: "
        "IDX files from --data-dir or a download of 30 MB",
        lambda data_dir, _: read_mnist("fashion_mnist", data_dir),
        scale=255,
        mean=0.2860,
        std=0.3530,
    ),
}
_NPZ_SUMMARY = (
    "your own: x_train, y_train, x_test, y_test in one .npz file; "
    "each feature is standardised by its mean and deviation over x_train"
)


def dataset_names() -> list[tuple[str, str]]:
    """Name and one-line description of each data set.

    >>> [name for name, _ in dataset_names()]
    ['digits', 'mnist', 'fashion_mnist', 'npz:PATH']
    """
    known = [(name, source.summary) for name, source in _SOURCES.items()]
    return [*known, (f"{NPZ_PREFIX}PATH", _NPZ_SUMMARY)]


def check_dataset_name(name: str) -> None:
    """Refuse a name that `load_dataset` does not know.

    Raises:
        InputError: with the nearest known name.

    >>> check_dataset_name("mnits")
    Traceback (most recent call last):
        ...
    fastbadge.errors.InputError: dataset is 'mnits'; did you mean mnist? \
(known: digits, mnist, fashion_mnist, npz:PATH)
    """
    if name in _SOURCES or name.startswith(NPZ_PREFIX):
        return
    near = difflib.get_close_matches(name, _SOURCES, n=1)
    hint = f"did you mean {near[0]}? (known: {{}})" if near else "expected one of {}"
    known = ", ".join(name for name, _ in dataset_names())
    raise InputError(f"dataset is {name!r}; {hint.format(known)}")


def is_resplit(name: str) -> bool:
    """Whether pool and test set are drawn anew by `split_seed`; others come divided."""
    return name in _SOURCES and _SOURCES[name].resplit


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    device: str | torch.device = "cpu",
    split_seed: int = 0,
) -> Dataset:
    """Read a data set and normalise it.

    Args:
        name: digits, mnist, fashion_mnist or npz:PATH.
        data_dir: where files of mnist and fashion_mnist are looked for before the user's cache
            and the network: directly, or in torchvision's folders (MNIST/raw, FashionMNIST/raw).
        device: where the tensors go.
        split_seed: divides digits, stratified, into pool and test set; others come divided.

    Raises:
        InputError: an unknown name.
        DataError: files that are missing, broken or do not fit; no network.

    >>> digits = load_dataset("digits")
    >>> digits.x_pool_NF.shape, digits.x_test_MF.shape, digits.num_classes
    (torch.Size([1297, 64]), torch.Size([500, 64]), 10)
    """
    check_dataset_name(name)
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is not a directory; expected one with data files")
    if name.startswith(NPZ_PREFIX):
        arrays = read_npz(Path(name.removeprefix(NPZ_PREFIX)).expanduser())
        x_pool, x_test = _standardised(arrays)
    else:
        source = _SOURCES[name]
        arrays = source.read(data_dir, split_seed)
        check_arrays(arrays, name)
        x_pool, x_test = arrays.x_pool, arrays.x_test
    dataset = Dataset(
        _rows(x_pool, device),
        torch.tensor(arrays.y_pool, dtype=torch.int64, device=device),
        _rows(x_test, device),
        torch.tensor(arrays.y_test, dtype=torch.int64, device=device),
        int(arrays.y_pool.max()) + 1,
        digest_of(arrays),
    )
    if name in _SOURCES:
        for x in (dataset.x_pool_NF, dataset.x_test_MF):
            x.div_(source.scale).sub_(source.mean).div_(source.std)
    return dataset


def _rows(x: Array, device: str | torch.device) -> Tensor:
    # Bytes are moved as they are, being a quarter of float32. A copy in any case.
    kept = x if x.dtype == np.uint8 else x.astype(np.float32)
    return torch.tensor(kept.reshape(len(x), -1), device=device).to(torch.float32)


def _standardised(arrays: Arrays) -> tuple[Array, Array]:
    """Each feature by mean and deviation of the pool; a constant one is only centred."""
    pool_NF = arrays.x_pool.reshape(len(arrays.x_pool), -1).astype(np.float64)
    test_MF = arrays.x_test.reshape(len(arrays.x_test), -1).astype(np.float64)
    mean_F, std_F = pool_NF.mean(axis=0), pool_NF.std(axis=0)
    # Not std == 0: the mean of many 0.1 is not 0.1, and its error would be blown up to 1.
    std_F[pool_NF.max(axis=0) == pool_NF.min(axis=0)] = 1.0
    return (pool_NF - mean_F) / std_F, (test_MF - mean_F) / std_F
