"""A data set as it was read, before normalising, and what must be true of it."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import DataError

Array: TypeAlias = NDArray[Any]


class Arrays(NamedTuple):
    """Values [N, ...] and labels [N] of the pool and of the test set."""

    x_pool: Array
    y_pool: Array
    x_test: Array
    y_test: Array


def check_arrays(arrays: Arrays, source: str) -> None:
    """Refuse what no classifier could be trained and tested on.

    Args:
        arrays: as read.
        source: what messages call the origin, a path as a rule.

    Raises:
        DataError: the first fault found.

    >>> x, y = np.ones((4, 2)), np.array([1, 2, 1, 2])
    >>> check_arrays(Arrays(x, y, x, y), "d.npz")
    Traceback (most recent call last):
        ...
    fastbadge.errors.DataError: d.npz: y_train has labels 1 to 2 but no 0; expected classes 0 to \
C - 1, each with an example
    """
    for part, x, y in (
        ("train", arrays.x_pool, arrays.y_pool),
        ("test", arrays.x_test, arrays.y_test),
    ):
        _check_values(x, f"{source}: x_{part}")
        _check_labels(y, f"{source}: y_{part}")
        if len(x) != len(y):
            raise DataError(
                f"{source}: x_{part} has {len(x)} rows but y_{part} has {len(y)}; "
                "expected one label a row"
            )
    shape, test_shape = arrays.x_pool.shape[1:], arrays.x_test.shape[1:]
    if shape != test_shape:
        raise DataError(
            f"{source}: an example of x_train has shape {shape} but one of x_test {test_shape}; "
            "expected the same"
        )
    classes = np.unique(arrays.y_pool)
    if len(classes) != int(classes[-1]) + 1:
        # One more than the classes found is enough to find a gap among, however large the labels.
        missing = np.setdiff1d(np.arange(len(classes) + 1), classes)
        raise DataError(
            f"{source}: y_train has labels {classes[0]} to {classes[-1]} but no {missing[0]}; "
            "expected classes 0 to C - 1, each with an example"
        )
    if len(classes) < 2:
        raise DataError(f"{source}: y_train has class 0 only; expected at least two classes")
    if arrays.y_test.max() > classes[-1]:
        raise DataError(
            f"{source}: y_test has class {arrays.y_test.max()}, which y_train has not; "
            f"expected 0 to {classes[-1]}"
        )


def check_range(x: Array, name: str) -> None:
    """Refuse numbers that float32, in which models compute, has no place for; NaN passes.

    Raises:
        DataError: with the first row that has one.
    """
    if x.dtype.kind != "f":
        return
    most = np.finfo(np.float32).max
    # Not abs, which is a copy of the whole.
    if max(np.fmax.reduce(x, axis=None), -np.fmin.reduce(x, axis=None)) > most:
        x_NF = x.reshape(len(x), -1)
        row = int((np.abs(x_NF) > most).any(axis=1).argmax())
        value = np.fmax.reduce(np.abs(x_NF[row]))
        raise DataError(
            f"{name} has {value:.3g} in row {row}, beyond float32 (at most {most:.1e}); rescale it"
        )


def digest_of(arrays: Arrays) -> str:
    """SHA-256 over the shapes, types and values of the four arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check_values(x: Array, name: str) -> None:
    if x.dtype.kind not in "fiub":
        raise DataError(f"{name} has dtype {x.dtype}; expected real numbers")
    if x.ndim < 2 or x.size == 0:
        raise DataError(f"{name} has shape {x.shape}; expected a row of values for each example")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        row = int(np.isfinite(x.reshape(len(x), -1)).all(axis=1).argmin())
        raise DataError(f"{name} has NaN or inf in row {row}; every value must be finite")
    check_range(x, name)


def _check_labels(y: Array, name: str) -> None:
    if y.ndim != 1:
        raise DataError(f"{name} has shape {y.shape}; expected one axis of class numbers")
    if y.dtype.kind not in "iu":
        raise DataError(f"{name} has dtype {y.dtype}; expected integers 0 to C - 1")
    if len(y) and y.min() < 0:
        raise DataError(f"{name} has label {y.min()}; expected integers 0 to C - 1")
