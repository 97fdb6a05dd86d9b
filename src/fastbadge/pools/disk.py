"""A pool on disk: two .npy files written while a forward pass runs, mapped while it is sampled.

A directory with error.npy, feature.npy and pool.json. The last says what the others hold and is
put there when they are whole, so its presence means a finished pool; until then all three are
called *.partial.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastbadge.errors import DataError, InputError
from fastbadge.gradients import Task, resolve_task
from fastbadge.pools.arrays import read_rows

Storage: TypeAlias = Literal["float32", "float64", "float16", "bfloat16"]
Append: TypeAlias = Callable[[Tensor, Tensor], None]
PathLike: TypeAlias = "str | os.PathLike[str]"

# NumPy knows no bfloat16: its bits are stored as uint16.
_STORED: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "float32": (torch.float32, np.float32),
    "float64": (torch.float64, np.float64),
    "float16": (torch.float16, np.float16),
    "bfloat16": (torch.bfloat16, np.uint16),
}
_FACTORS, _INDEX = ("error.npy", "feature.npy"), "pool.json"
_VERSION = 1


@dataclass(frozen=True, eq=False, slots=True)
class DiskPool:
    """Gradients whose factors lie in files: what `kmeans_pp` samples; made by `DiskPool.open`.

    Memory is what is asked for at a time; the files' pages are the system's, to keep or to drop.

    Args:
        path: the directory.
        dtype: of the files; float16 and bfloat16 are read as float32.
        task: what the model's outputs mean.
        include_bias: whether the last column of the features is the bias's 1.
        device: where `factors` puts what it returns.
    """

    path: Path
    dtype: Storage
    task: Task
    include_bias: bool
    device: torch.device
    _error_NC: NDArray[Any]
    _feature_ND: NDArray[Any]

    @classmethod
    def open(cls, path: PathLike, *, device: str | torch.device = "cpu") -> DiskPool:
        """The finished pool in a directory.

        Args:
            path: what was passed to `compute_gradient_embedding(out=...)` or to `write_pool`.
            device: where the sampling is to run.

        Raises:
            DataError: no pool there, a half-written one, or files cut short or exchanged.
        """
        path = Path(path)
        index = _read_index(path)
        factors = [_map(path / name, index) for name in _FACTORS]
        place = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
        return cls(path, index.dtype, index.task, index.include_bias, place, *factors)

    def __len__(self) -> int:
        return len(self._error_NC)

    def __repr__(self) -> str:
        N, C, D = len(self), self.num_classes, self.num_features
        return f"DiskPool(N={N}, C={C}, D={D}, {self.dtype}, {str(self.path)!r})"

    @property
    def num_classes(self) -> int:
        """C, the number of the model's outputs."""
        return int(self._error_NC.shape[1])

    @property
    def num_features(self) -> int:
        """D, the number of the last layer's inputs, a bias column included."""
        return int(self._feature_ND.shape[1])

    def factors(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Errors [B, C] and features [B, D] of some rows: float32, or float64 if so stored."""
        return self._read(self._error_NC, index), self._read(self._feature_ND, index)

    def _read(self, array_NX: NDArray[Any], index: Tensor | slice) -> Tensor:
        rows_BX = torch.from_numpy(read_rows(array_NX, index)).view(_STORED[self.dtype][0])
        wide = torch.float64 if self.dtype == "float64" else torch.float32
        return rows_BX.to(self.device).to(wide)  # in this order: half the bytes to a GPU


@contextmanager
def write_pool(
    path: PathLike,
    num_rows: int,
    *,
    dtype: Storage | None = None,
    task: Task | None = None,
    include_bias: bool = False,
) -> Iterator[Append]:
    """Gives `append(error_BC, feature_BD)`, to be called with a pool's rows, batch by batch.

    When the block ends the pool is there, whole, on the disk; if it raises, nothing is. What a
    killed process has left is written over, other files never.

    Args:
        path: a directory, which is made if need be.
        num_rows: N, how many rows there will be.
        dtype: how to store them: "float32", "float64", "float16" (3 digits, 6e-8 to 65,504) or
            "bfloat16" (2 digits, any size); by default as they come.
        task: what the model's outputs mean; by default binary for one, multiclass for more.
        include_bias: whether the last column of the features is the bias's 1.

    Raises:
        InputError: a finished pool or other files of these names in the directory, a full disk,
            a number of rows other than N, an entry that is not finite in that dtype.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     with write_pool(directory, 3, dtype="float16") as append:
    ...         append(torch.eye(3)[:2], torch.ones(2, 2))
    ...         append(torch.eye(3)[2:], torch.ones(1, 2))
    ...     DiskPool.open(directory).factors(slice(1, 3))
    (tensor([[0., 1., 0.],
            [0., 0., 1.]]), tensor([[1., 1.],
            [1., 1.]]))
    """
    if dtype is not None and dtype not in _STORED:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(_STORED)}")
    if num_rows < 1:
        raise InputError(f"num_rows is {num_rows}; expected at least 1")
    directory = Path(path)
    made = not directory.exists()
    writer = None
    try:
        with _disk_errors(directory):
            writer = _Writer(directory, num_rows, dtype)
        yield writer.append
        with _disk_errors(directory):
            writer.finish(task, include_bias)
    except BaseException:
        with suppress(OSError):
            if writer is not None:
                writer.remove()
            if made:
                directory.rmdir()
        raise


class _Writer:
    """The files of a pool that is not finished.

    Ordinary writes, because a full disk makes these raise OSError, where a map gets SIGBUS.
    """

    def __init__(self, directory: Path, num_rows: int, dtype: Storage | None) -> None:
        self.directory, self.num_rows, self.dtype = directory, num_rows, dtype
        self.files: list[io.FileIO] = []
        self.shapes: list[tuple[int, int]] = []
        self.rows = 0
        directory.mkdir(exist_ok=True)
        index = directory / _INDEX
        if index.exists():
            raise InputError(f"{directory} holds a finished pool; remove it or pass another name")
        # The marker is the first file made and the last renamed: beside it, our names are ours.
        marker = _partial(index)
        for name in _FACTORS:
            if (directory / name).exists() and not marker.exists():
                raise InputError(
                    f"{directory / name} is there and was not written by fastbadge; "
                    "pass another directory"
                )
        self._unlink_factors()
        marker.unlink(missing_ok=True)
        self.marker = marker.open("xb", buffering=0)
        self.identity = os.fstat(self.marker.fileno())

    def append(self, error_BC: Tensor, feature_BD: Tensor) -> None:
        factors = (error_BC, feature_BD)
        if not self.files:
            self.dtype = self.dtype or cast(Storage, str(error_BC.dtype).removeprefix("torch."))
            if self.dtype not in _STORED:
                raise InputError(f"got {self.dtype} factors; expected {' or '.join(_STORED)}")
            self.shapes = [(self.num_rows, factor.shape[1]) for factor in factors]
        shapes = [(len(error_BC), width) for _, width in self.shapes]
        if [tuple(factor.shape) for factor in factors] != shapes:
            raise InputError(
                f"got factors of shapes {tuple(error_BC.shape)} and {tuple(feature_BD.shape)}; "
                f"expected {shapes[0]} and {shapes[1]}"
            )
        data = [self._stored(x, n) for x, n in zip(factors, _FACTORS, strict=True)]
        self.rows += len(error_BC)
        if self.rows > self.num_rows:
            raise InputError(f"got {self.rows} rows; expected {self.num_rows}")
        with _disk_errors(self.directory):
            if not self.files:
                self._start()
            for file, part in zip(self.files, data, strict=True):
                while part:
                    part = part[file.write(part) :]

    def finish(self, task: Task | None, include_bias: bool) -> None:
        if self.rows != self.num_rows:
            raise InputError(f"got {self.rows} rows; expected {self.num_rows}")
        assert self.dtype is not None
        widths = [width for _, width in self.shapes]
        index = _Index(
            version=_VERSION,
            rows=self.num_rows,
            num_classes=widths[0],
            num_features=widths[1],
            dtype=self.dtype,
            task=resolve_task(task, widths[0]),
            include_bias=include_bias,
            bytes={name: file.tell() for name, file in zip(_FACTORS, self.files, strict=True)},
        )
        self.marker.write(json.dumps(asdict(index), indent=1).encode() + b"\n")
        if not self._is_ours():
            raise InputError(f"another process has begun to write {self.directory}; wait for it")
        for file in (*self.files, self.marker):
            os.fsync(file.fileno())
            file.close()
        for name in (*_FACTORS, _INDEX):
            _partial(self.directory / name).replace(self.directory / name)
        _fsync_directory(self.directory)

    def remove(self) -> None:
        ours = self._is_ours()
        for file in (*self.files, self.marker):
            file.close()
        if ours:
            self._unlink_factors()
            _partial(self.directory / _INDEX).unlink()

    def _start(self) -> None:
        stored = np.dtype(_STORED[str(self.dtype)][1])
        needed = sum(N * width for N, width in self.shapes) * stored.itemsize
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise InputError(
                f"{self.directory} has {free / 1e6:,.0f} MB free but the pool takes "
                f"{needed / 1e6:,.0f} MB; pass another directory or a smaller dtype"
            )
        for name, shape in zip(_FACTORS, self.shapes, strict=True):
            file = _partial(self.directory / name).open("xb", buffering=0)
            self.files.append(file)
            header = {"descr": stored.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)

    def _stored(self, rows_BX: Tensor, name: str) -> memoryview:
        stored_BX = rows_BX.to(_STORED[str(self.dtype)][0]).contiguous().cpu()
        bad_B = ~stored_BX.isfinite().all(dim=1)
        if bool(bad_B.any()):
            row = int(bad_B.int().argmax())
            peak = float(rows_BX[row].abs().max())
            raise InputError(
                f"row {self.rows + row} has an entry of size {peak:.3g} in its {Path(name).stem}, "
                f"which is not finite in {self.dtype}; expected finite entries"
                + (", or pass dtype='bfloat16'" if self.dtype == "float16" else "")
            )
        return stored_BX.view(torch.uint8).reshape(-1).numpy().data

    def _is_ours(self) -> bool:
        """Whether no other process has cleared our files away to write its own."""
        with suppress(OSError):
            return os.path.samestat(self.identity, _partial(self.directory / _INDEX).stat())
        return False

    def _unlink_factors(self) -> None:
        for name in _FACTORS:
            (self.directory / name).unlink(missing_ok=True)
            _partial(self.directory / name).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Index:
    """pool.json."""

    version: int
    rows: int
    num_classes: int
    num_features: int
    dtype: Storage
    task: Task
    include_bias: bool
    bytes: dict[str, int]


def _read_index(directory: Path) -> _Index:
    path = directory / _INDEX
    if not path.exists():
        if _partial(path).exists():
            raise DataError(
                f"{directory} holds a half-written pool, its writer was stopped; write it again"
            )
        raise DataError(f"{directory} holds no pool (no {_INDEX}); check the path")
    try:
        index = _Index(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); write the pool again") from error
    if index.version != _VERSION or index.dtype not in _STORED:
        raise DataError(
            f"{path} is of version {index.version} with dtype {index.dtype}; this fastbadge reads "
            f"version {_VERSION} with {', '.join(_STORED)}: write the pool again"
        )
    return index


def _map(path: Path, index: _Index) -> NDArray[Any]:
    width = index.num_classes if path.name == _FACTORS[0] else index.num_features
    shape, dtype = (index.rows, width), np.dtype(_STORED[index.dtype][1])
    try:
        found, expected = path.stat().st_size, index.bytes[path.name]
        if found != expected:
            raise DataError(
                f"{path} has {found} bytes, expected {expected}; "
                "it was cut short or exchanged: write the pool again"
            )
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); write the pool again") from error
    if array.shape != shape or array.dtype != dtype:
        raise DataError(
            f"{path} holds {array.dtype} {array.shape}, expected {dtype} {shape}; "
            "it was exchanged: write the pool again"
        )
    return cast("NDArray[Any]", array)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{directory} cannot be written: {error.strerror}; pass another directory"
        ) from error


def _fsync_directory(directory: Path) -> None:
    with suppress(OSError):  # not every system can
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
