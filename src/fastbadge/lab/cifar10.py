"""CIFAR-10 in either form its authors give it, unpacked or in its archive.

Format: https://www.cs.toronto.edu/~kriz/cifar.html. The Python form is a pickle, which is a program
and may be any program. It is run here with nothing to call: every name it asks for is answered by a
class that only remembers what it was given, so no code but this module's is reached, and what
comes out is bytes whose length is then checked against the shape.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import DataError
from fastbadge.lab.arrays import Arrays
from fastbadge.lab.fetch import fetch_files

_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_VALUES = 3 * 32 * 32
# Real batches are 31 MB; what is larger is no batch, and would only fill the memory.
_MOST_BYTES = 64_000_000

MIRRORS: tuple[str, ...] = ("https://www.cs.toronto.edu/~kriz/",)
MD5S = {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class _Form:
    folder: str  # in the archive, and where torchvision unpacks it
    archive: str
    suffix: str  # of a batch's file
    parse: Callable[[bytes, str], Batch]


def read_cifar10(data_dir: Path | None) -> Arrays:
    """Read the six batches from `data_dir`, else from the cache, else fetch them into the cache.

    Args:
        data_dir: holds cifar-10-batches-bin or cifar-10-batches-py (torchvision's), one of
            Toronto's archives of them, or the batches themselves; directly or in cifar10.

    Raises:
        DataError: an incomplete or broken set of files, or no network.
    """
    batches = _find(data_dir) if data_dir else None
    if batches is None:
        (archive,) = fetch_files(
            "cifar10",
            MIRRORS,
            MD5S,
            data_dir=data_dir,
            what="cifar-10-batches-bin or cifar-10-batches-py",
        )
        batches = _in_archive(archive, _FORMS[0])
    *pool, test = batches
    x_pool, y_pool = (np.concatenate(parts) for parts in zip(*pool, strict=True))
    return Arrays(x_pool, y_pool, *test)


def _find(data_dir: Path) -> list[Batch] | None:
    for parent in (data_dir, data_dir / "cifar10"):
        for form in _FORMS:
            for folder in (parent / form.folder, parent):
                if any((folder / f"{batch}{form.suffix}").is_file() for batch in _BATCHES):
                    return _in_folder(folder, form)
            if (parent / form.archive).is_file():
                return _in_archive(parent / form.archive, form)
    return None


def _in_folder(folder: Path, form: _Form) -> list[Batch]:
    batches = []
    for batch in _BATCHES:
        path = folder / f"{batch}{form.suffix}"
        if not path.is_file():
            raise DataError(
                f"{folder} has no {path.name} but other files of cifar10; add it or pass another "
                "--data-dir"
            )
        try:
            with path.open("rb") as file:
                content = file.read(_MOST_BYTES)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        batches.append(form.parse(content, str(path)))
    return batches


def _in_archive(archive: Path, form: _Form) -> list[Batch]:
    # Read, never unpacked: a name in it cannot lead anywhere, and nothing is left half written.
    wanted = {f"{form.folder}/{batch}{form.suffix}": batch for batch in _BATCHES}
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in _files_of(tar):
                if (batch := wanted.get(member.name)) and (file := tar.extractfile(member)):
                    found[batch] = form.parse(file.read(_MOST_BYTES), f"{archive}: {member.name}")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be read: {error}; fetch it again") from error
    missing = [name for name, batch in wanted.items() if batch not in found]
    if missing:
        raise DataError(f"{archive} has no {missing[0]}; fetch it again")
    return [found[batch] for batch in _BATCHES]


def _files_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in tar if member.isreg())


def _from_binary(content: bytes, source: str) -> Batch:
    """Rows of a byte that is the class and 3,072 that are red, green and blue."""
    if len(content) % (1 + _VALUES) or not content:
        raise DataError(
            f"{source} has {len(content)} bytes; expected {1 + _VALUES} for each image; "
            "fetch it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + _VALUES)
    return _batch(rows[:, 1:], rows[:, 0].astype(np.int64), source)


def _from_pickle(content: bytes, source: str) -> Batch:
    """A dictionary with `data`, uint8 [n, 3072], and the list `labels`."""
    try:
        found = _Inert(io.BytesIO(content), encoding="bytes").load()
        data, labels = found[b"data"], found[b"labels"]
        # What numpy.ndarray and numpy.dtype are given when an array is restored.
        _, shape, dtype, is_fortran, values = data.state
        if dtype.args[0] not in (b"u1", "u1") or is_fortran or shape != (len(labels), _VALUES):
            raise ValueError(f"data is no uint8 array of shape ({len(labels)}, {_VALUES})")
        x = np.frombuffer(values, np.uint8).reshape(len(labels), _VALUES)
        y = np.array(labels, dtype=np.int64)
    except Exception as error:  # whatever a foreign pickle makes of the machine that reads it
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{source} is no batch of CIFAR-10: {reason}; fetch it again") from error
    return _batch(x, y, source)


def _batch(x: NDArray[np.uint8], y: NDArray[np.int64], source: str) -> Batch:
    if not 0 <= y.min() <= y.max() <= 9:
        raise DataError(f"{source} has labels {y.min()} to {y.max()}; expected 0 to 9")
    return x.reshape(-1, 3, 32, 32), y


class _Remembered:
    """Stands for NumPy's constructors: keeps their arguments and calls nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Inert(pickle.Unpickler):
    """Reads a pickle of builtins and NumPy arrays without running any code of either."""

    def find_class(self, module: str, name: str) -> type[_Remembered]:
        if (module, name) in (
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ):
            # A class of its own each time: what a pickle sets on it, no other sees.
            return type("_Remembered", (_Remembered,), {})
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not run")


_FORMS = (
    _Form("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", _from_binary),
    _Form("cifar-10-batches-py", "cifar-10-python.tar.gz", "", _from_pickle),
)
