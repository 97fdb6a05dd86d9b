"""MNIST and Fashion-MNIST: where their four files are looked for, and where fetched from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastbadge.errors import DataError
from fastbadge.lab.arrays import Arrays
from fastbadge.lab.fetch import fetch_files
from fastbadge.lab.idx import read_idx

# In the order of `Arrays`.
_FILES = ("train-images", "train-labels", "t10k-images", "t10k-labels")


@dataclass(frozen=True, slots=True)
class _Source:
    folders: tuple[str, ...]  # below the data directory, torchvision's first
    mirrors: tuple[str, ...]
    md5s: tuple[str, ...]  # of the .gz files, in the order of _FILES
    first_labels: bytes  # of the training set: both sets use the same file names


SOURCES = {
    "mnist": _Source(
        folders=("MNIST/raw", "mnist", "."),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        md5s=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        first_labels=bytes([5, 0, 4, 1, 9, 2, 1, 3, 1, 4]),
    ),
    "fashion_mnist": _Source(
        folders=("FashionMNIST/raw", "fashion_mnist", "."),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        md5s=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        first_labels=bytes([9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
    ),
}


def read_mnist(name: str, data_dir: Path | None) -> Arrays:
    """Read the four files from `data_dir`, else from the cache, else fetch them into the cache.

    Args:
        name: mnist or fashion_mnist.
        data_dir: holds the files, with or without .gz, directly or in torchvision's folders.

    Raises:
        DataError: an incomplete or broken set of files, the other set's files, or no network.
    """
    paths = find_files(name, data_dir) if data_dir else None
    if paths is None:
        source = SOURCES[name]
        md5s = dict(zip(map(_gz_name, _FILES), source.md5s, strict=True))
        paths = fetch_files(
            name, source.mirrors, md5s, data_dir=data_dir, what="its four IDX files"
        )
    x_pool, y_pool, x_test, y_test = (
        read_idx(path, ndim=3 if "images" in path.name else 1) for path in paths
    )
    first_labels = y_pool[:10].tobytes()
    for other, source in SOURCES.items():
        if other != name and first_labels == source.first_labels:
            raise DataError(
                f"{paths[1]} holds the labels of {other}, not of {name}; "
                f"pass --dataset {other} or another --data-dir"
            )
    return Arrays(x_pool, y_pool, x_test, y_test)


def find_files(name: str, data_dir: Path) -> tuple[Path, ...] | None:
    """The four files in the first folder that has any of them, or None.

    Raises:
        DataError: a folder has some of them only.
    """
    for folder in SOURCES[name].folders:
        found = [_find(data_dir / folder, file) for file in _FILES]
        if all(found):
            return tuple(path for path in found if path)
        if any(found):
            missing = _FILES[found.index(None)]
            raise DataError(
                f"{data_dir / folder} has no {_gz_name(missing)} (nor without .gz) but other files "
                f"of {name}; add it or pass another --data-dir"
            )
    return None


def _find(folder: Path, file: str) -> Path | None:
    name = _gz_name(file).removesuffix(".gz")
    # The second spelling is what some unpackers make of the first.
    names = (name, f"{name}.gz", name.replace("-idx", ".idx"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _gz_name(file: str) -> str:
    return f"{file}-idx{3 if 'images' in file else 1}-ubyte.gz"
