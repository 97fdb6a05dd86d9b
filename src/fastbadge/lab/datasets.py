"""Labelled data sets by name: normalised once, as tensors on the device."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastbadge.errors import DataError, InputError
from fastbadge.lab.arrays import Array, Arrays, check_arrays, check_range, digest_of
from fastbadge.lab.cifar10 import read_cifar10
from fastbadge.lab.imagefolder import folder_and_size, is_divided, read_images
from fastbadge.lab.mnist import read_mnist
from fastbadge.lab.npz import read_npz
from fastbadge.lab.openml import read_openml
from fastbadge.lab.svhn import read_svhn
from fastbadge.lab.tables import Table, read_csv

_DIGITS_TEST_SIZE = 500
_TEST_SHARE = 0.2
_OPENML_TEST_SHARE = 0.1  # as in the code of Ash et al. 2020
_CLOTHING = "T-shirt trouser pullover dress coat sandal shirt sneaker bag boot"
_THINGS = "airplane automobile bird cat deer dog frog horse ship truck"


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
        shape: of one example: (channels, height, width) of an image, else (F,). Models for
            images begin with `nn.Unflatten(1, shape)`, so that rows are all that is passed about.
        classes: what each class is called, where it is not called by its number; else empty.
    """

    x_pool_NF: Tensor
    y_pool_N: Tensor
    x_test_MF: Tensor
    y_test_M: Tensor
    num_classes: int
    digest: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()


class _Raw(NamedTuple):
    """A data set as it was read, and how it is to be normalised: (x - mean) / std.

    Args:
        arrays: as read.
        shape: of one example.
        scale: what x is divided by first,
        mean: for each channel,
        std: for each channel.
        numeric_F: bool [F], for tables in place of the three: the columns that are standardised
            by the pool.
        classes: their names, empty where they have none.
    """

    arrays: Arrays
    shape: tuple[int, ...]
    scale: float = 1
    mean: tuple[float, ...] = (0,)
    std: tuple[float, ...] = (1,)
    numeric_F: NDArray[np.bool_] | None = None
    classes: tuple[str, ...] = ()


_Read = Callable[[str, Path | None, int], _Raw]  # (argument, data_dir, split_seed)


@dataclass(frozen=True, slots=True)
class _Source:
    summary: str
    read: _Read
    argument: str = ""  # what follows the name: PATH, ID
    resplit: Callable[[str], bool] = lambda argument: False
    images: bool = True

    def usage(self, name: str) -> str:
        return f"{name}:{self.argument}" if self.argument else name


def _read_digits(_: str, __: Path | None, split_seed: int) -> _Raw:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _Raw(_divided(x, y, _DIGITS_TEST_SIZE, split_seed, "digits"), (1, 8, 8), scale=16)


def _images(
    read: Callable[[Path | None], Arrays],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: str = "",
) -> _Read:
    """A divided set of images in bytes, each channel normalised by fixed numbers."""

    def read_images_of(_: str, data_dir: Path | None, __: int) -> _Raw:
        arrays = read(data_dir)
        shape = (len(mean), *arrays.x_pool.shape[-2:])
        return _Raw(arrays, shape, 255, mean, std, classes=tuple(classes.split()))

    return read_images_of


def _read_npz(argument: str, _: Path | None, __: int) -> _Raw:
    arrays = read_npz(Path(argument).expanduser())
    shape = arrays.x_pool.shape[1:]
    if len(shape) == 2:  # images without an axis for their one channel
        shape = (1, *shape)
    return _Raw(arrays, shape, numeric_F=np.ones(math.prod(shape), dtype=bool))


def _table(read: Callable[[str], Table], test_share: float) -> _Read:
    def read_table(argument: str, _: Path | None, split_seed: int) -> _Raw:
        table = read(argument)
        check_range(table.x_NF, argument)
        test_size = max(1, round(test_share * len(table.y_N)))
        arrays = _divided(table.x_NF, table.y_N, test_size, split_seed, argument)
        shape = table.x_NF.shape[1:]
        return _Raw(arrays, shape, numeric_F=table.numeric_F, classes=table.classes)

    return read_table


def _read_imagefolder(argument: str, data_dir: Path | None, split_seed: int) -> _Raw:
    folder, size = folder_and_size(argument)
    if is_divided(folder):
        x_pool, y_pool, classes = read_images(folder / "train", size)
        x_test, y_test, _ = read_images(folder / "test", size, classes)
        arrays = Arrays(x_pool, y_pool, x_test, y_test)
    else:
        x, y, classes = read_images(folder, size)
        arrays = _divided(x, y, max(1, round(_TEST_SHARE * len(y))), split_seed, argument)
    if len(classes) < 2:
        raise DataError(
            f"{folder} has one class, {classes[0]}; expected a folder for each of several"
        )
    mean, std = _channel_statistics(arrays.x_pool)
    return _Raw(arrays, (3, size, size), 1, mean, std, classes=tuple(classes))


_SOURCES = {
    "digits": _Source(
        "1,797 handwritten digits of 8 x 8 from scikit-learn: nothing to download, "
        "500 of them for the test, drawn anew each trial; pixels as 0 to 1",
        _read_digits,
        resplit=lambda _: True,
    ),
    "mnist": _Source(
        "70,000 handwritten digits of 28 x 28, 10,000 of them for the test: "
        "IDX files from --data-dir or a download of 11 MB; (pixels - 0.1307) / 0.3081",
        _images(partial(read_mnist, "mnist"), (0.1307,), (0.3081,)),
    ),
    "fashion_mnist": _Source(
        "70,000 pieces of clothing of 28 x 28, 10,000 of them for the test: "
        "IDX files from --data-dir or a download of 30 MB; (pixels - 0.2860) / 0.3530",
        _images(partial(read_mnist, "fashion_mnist"), (0.2860,), (0.3530,), _CLOTHING),
    ),
    "svhn": _Source(
        "99,289 house numbers of 32 x 32 in colour, 26,032 of them for the test: MATLAB files "
        "from --data-dir or a download of 246 MB; each channel by mean and deviation over the pool",
        _images(read_svhn, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    ),
    "cifar10": _Source(
        "60,000 pictures of 32 x 32 in colour, 10,000 of them for the test: either form of them "
        "from --data-dir or a download of 170 MB; each channel by mean and deviation over the pool",
        _images(read_cifar10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _THINGS),
    ),
    "openml": _Source(
        "a table of openml.org by its number; a tenth for the test, stratified, drawn anew each "
        "trial; columns as of csv",
        _table(read_openml, _OPENML_TEST_SHARE),
        "ID",
        lambda _: True,
        images=False,
    ),
    "csv": _Source(
        "your own table with a header, the class in the last column or in csv:PATH:target=NAME; "
        "a fifth for the test, stratified, drawn anew each trial; numbers are standardised by the "
        "pool (missing: its mean), texts one-hot (missing: a category)",
        _table(read_csv, _TEST_SHARE),
        "PATH",
        lambda _: True,
        images=False,
    ),
    "imagefolder": _Source(
        "your own images: PATH/train/CLASS/... and PATH/test/CLASS/..., or PATH/CLASS/... divided "
        "like csv; in colour, squeezed to 32 x 32 (or imagefolder:PATH:size=64), each channel "
        "standardised by the pool",
        _read_imagefolder,
        "PATH",
        lambda argument: not is_divided(folder_and_size(argument)[0]),
    ),
    "npz": _Source(
        "your own: x_train, y_train, x_test, y_test in one .npz file; "
        "each feature is standardised by its mean and deviation over x_train",
        _read_npz,
        "PATH",
        images=False,
    ),
}


def dataset_names() -> list[tuple[str, str]]:
    """Name and one-line description of each data set.

    >>> [name for name, _ in dataset_names()][-4:]
    ['openml:ID', 'csv:PATH', 'imagefolder:PATH', 'npz:PATH']
    """
    return [(source.usage(name), source.summary) for name, source in _SOURCES.items()]


def check_dataset_name(name: str) -> None:
    """Refuse a name that `load_dataset` does not know.

    Raises:
        InputError: with the nearest known name.

    >>> check_dataset_name("mnits")
    Traceback (most recent call last):
        ...
    fastbadge.errors.InputError: dataset is 'mnits'; did you mean mnist? (known: digits, mnist, \
fashion_mnist, svhn, cifar10, openml:ID, csv:PATH, imagefolder:PATH, npz:PATH)
    """
    _find(name)


def short_name(name: str) -> str:
    """What a data set is called where there is little room.

    >>> short_name("csv:tables/letter.csv"), short_name("csv:a.csv:target=y"), short_name("mnist")
    ('letter', 'a', 'mnist')
    >>> short_name("openml:6")
    'openml 6'
    """
    word, _, argument = name.partition(":")
    source = _SOURCES.get(word)
    if source is not None and source.argument == "PATH":
        return Path(argument.partition(":")[0]).stem or name
    return name.replace(":", " ")


def is_resplit(name: str) -> bool:
    """Whether pool and test set are drawn anew by `split_seed`; others come divided."""
    source, argument = _find(name)
    return source.resplit(argument)


def at_its_place(name: str) -> str:
    """The name with its path made absolute, for processes that may stand elsewhere, or move.

    >>> at_its_place("digits"), at_its_place("openml:6"), at_its_place("csv:/d/a.csv:target=x//y")
    ('digits', 'openml:6', 'csv:/d/a.csv:target=x//y')
    """
    source, argument = _find(name)
    if source.argument != "PATH":
        return name
    # Not pathlib, which would tidy up what follows the path.
    path = os.path.join(os.getcwd(), os.path.expanduser(argument))
    return f"{name.partition(':')[0]}:{path}"


def has_images(name: str) -> bool:
    """Whether a name is that of a set of images; False for an unknown one, and for npz."""
    source = _SOURCES.get(name.partition(":")[0])
    return source is not None and source.images


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    device: str | torch.device = "cpu",
    split_seed: int = 0,
) -> Dataset:
    """Read a data set and normalise it.

    Args:
        name: one of `dataset_names`.
        data_dir: where files of data sets that can be fetched are looked for before the user's
            cache and the network: directly, or in torchvision's folders.
        device: where the tensors go.
        split_seed: divides what does not come divided, stratified, into pool and test set.

    Raises:
        InputError: an unknown name.
        DataError: files that are missing, broken or do not fit; no network.

    >>> digits = load_dataset("digits")
    >>> digits.x_pool_NF.shape, digits.x_test_MF.shape, digits.num_classes, digits.shape
    (torch.Size([1297, 64]), torch.Size([500, 64]), 10, (1, 8, 8))
    """
    source, argument = _find(name)
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is not a directory; expected one with data files")
    raw = source.read(argument, data_dir, split_seed)
    arrays = raw.arrays
    x_pool, x_test = arrays.x_pool, arrays.x_test
    if raw.numeric_F is not None:
        x_pool, x_test = _standardised(x_pool, x_test, raw.numeric_F)
    check_arrays(Arrays(x_pool, arrays.y_pool, x_test, arrays.y_test), name)
    dataset = Dataset(
        _rows(x_pool, device),
        torch.tensor(arrays.y_pool, dtype=torch.int64, device=device),
        _rows(x_test, device),
        torch.tensor(arrays.y_test, dtype=torch.int64, device=device),
        int(arrays.y_pool.max()) + 1,
        digest_of(arrays),
        raw.shape,
        raw.classes,
    )
    if raw.numeric_F is None:
        for x in (dataset.x_pool_NF, dataset.x_test_MF):
            x_NCX = x.view(len(x), len(raw.mean), -1)
            for c, (mean, std) in enumerate(zip(raw.mean, raw.std, strict=True)):
                x_NCX[:, c].div_(raw.scale).sub_(mean).div_(std)
    return dataset


def _find(name: str) -> tuple[_Source, str]:
    """The source of a data set, and what follows its name."""
    word, _, argument = name.partition(":")
    source = _SOURCES.get(word)
    if source is not None and bool(argument) == bool(source.argument):
        return source, argument
    known = ", ".join(usage for usage, _ in dataset_names())
    near = difflib.get_close_matches(word, _SOURCES, n=1)
    if near:
        hint = f"did you mean {_SOURCES[near[0]].usage(near[0])}? (known: {known})"
    else:
        hint = f"expected one of {known}"
    raise InputError(f"dataset is {name!r}; {hint}")


def _divided(x: Array, y: Array, test_size: int, split_seed: int, source: str) -> Arrays:
    """Pool and test set with the same share of each class."""
    from sklearn.model_selection import train_test_split

    try:
        x_pool, x_test, y_pool, y_test = train_test_split(
            x, y, test_size=test_size, stratify=y, random_state=split_seed
        )
    except ValueError as error:  # a class of one, fewer tests than classes
        raise DataError(
            f"{source}: {len(y)} examples of {y.max() + 1} classes cannot be divided into pool and "
            f"test set: {error}"
        ) from error
    return Arrays(x_pool, y_pool, x_test, y_test)


def _rows(x: Array, device: str | torch.device) -> Tensor:
    # Bytes are moved as they are, being a quarter of float32. A copy in any case.
    kept = x if x.dtype == np.uint8 else x.astype(np.float32)
    return torch.tensor(kept.reshape(len(x), -1), device=device).to(torch.float32)


def _standardised(
    x_pool: Array, x_test: Array, numeric_F: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Numeric columns by mean and deviation of the pool; a constant one is only centred.

    NaN stands for a missing number, which becomes the pool's mean: 0.
    """
    pool_NF, test_MF = (x.reshape(len(x), -1).astype(np.float64) for x in (x_pool, x_test))
    known_NF = ~np.isnan(pool_NF)
    count_F = np.maximum(known_NF.sum(axis=0), 1)
    mean_F = pool_NF.sum(axis=0, where=known_NF) / count_F
    std_F = np.sqrt(((pool_NF - mean_F) ** 2).sum(axis=0, where=known_NF) / count_F)
    # Not std == 0: the mean of many 0.1 is not 0.1, and its error would be blown up to 1.
    low_F = pool_NF.min(axis=0, where=known_NF, initial=np.inf)
    high_F = pool_NF.max(axis=0, where=known_NF, initial=-np.inf)
    std_F[(high_F <= low_F) | (std_F == 0)] = 1.0  # 0 too where the tiniest numbers' squares vanish
    mean_F[~numeric_F], std_F[~numeric_F] = 0.0, 1.0
    for x_XF in (pool_NF, test_MF):
        x_XF -= mean_F
        x_XF /= std_F
        x_XF[np.isnan(x_XF)] = 0.0
    return pool_NF, test_MF


def _channel_statistics(x_NCHW: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel; of a constant one the deviation is 1."""
    value_V = np.arange(256)
    means, stds = [], []
    for c in range(x_NCHW.shape[1]):
        # By histogram: exact, and without a copy in float64.
        share_V = np.bincount(x_NCHW[:, c].ravel(), minlength=256) / x_NCHW[:, c].size
        means.append(float(share_V @ value_V))
        stds.append(float(share_V @ (value_V - means[-1]) ** 2) ** 0.5 or 1.0)
    return tuple(means), tuple(stds)
