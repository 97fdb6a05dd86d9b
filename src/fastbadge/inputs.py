"""What users pass: arrays of any kind become tensors, and what cannot be used is told apart."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.masked import MaskedTensor

from fastbadge.errors import InputError

ArrayLike: TypeAlias = "Tensor | NDArray[Any]"


def as_tensor(array: ArrayLike, name: str = "the array") -> Tensor:
    """A dense tensor of the same memory where torch can share it, else a copy; without gradient.

    Raises:
        InputError: no real numbers of at most 64 bits, a masked array, a tensor that is sparse,
            quantized or without data.

    >>> as_tensor(np.arange(3, dtype=">i4")[::-1])
    tensor([2, 1, 0], dtype=torch.int32)
    """
    if isinstance(array, Tensor):
        check_real(array, name)
        return array.detach().resolve_neg()
    try:
        values = array if isinstance(array, np.ndarray) else np.asarray(array)
    except (RuntimeError, TypeError, ValueError) as error:  # ragged lists, lists of tensors
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name} makes no array: {reason}; pass a tensor or an array") from error
    check_real(values, name)
    # torch warns about read-only memory (an .npy file opened with mmap_mode="r") and refuses
    # foreign byte order, negative strides and those of records' fields, even along an axis of 1.
    if values.flags.carray and values.dtype.isnative:
        with suppress(ValueError):
            return torch.from_numpy(np.asarray(values))
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))


def check_real(array: ArrayLike, name: str) -> None:
    """Refuse what holds no real numbers of at most 64 bits, or not one for each entry."""
    check_unmasked(array, name)
    if isinstance(array, Tensor):
        odd = array.is_nested or array.is_quantized or array.is_meta
        dense = array.layout == torch.strided and not odd
        if array.is_complex() or not dense:
            raise InputError(
                f"{name} is {array.dtype} of layout {array.layout} on {array.device}; "
                "expected real numbers in a dense tensor"
            )
        return
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:  # 16: long double
        raise InputError(
            f"{name} has dtype {array.dtype}; expected real numbers of at most 64 bits"
        )


def check_unmasked(array: object, name: str) -> None:
    """Refuse a masked array, whose mask would be lost."""
    if isinstance(array, np.ma.MaskedArray | MaskedTensor):
        raise InputError(
            f"{name} is a masked array, whose mask would be ignored; "
            "fill its gaps, or pass the rows that have none"
        )


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, which True is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
