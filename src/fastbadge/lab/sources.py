"""How a process comes by a data set: it has it, maps what another has, or loads it itself."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

import torch

from fastbadge.errors import DataError
from fastbadge.lab.datasets import Dataset, load_dataset

# Can be sent to another process, and called there.
Source: TypeAlias = Callable[[], Dataset]

# Of the trials that are under way a process meets few at a time.
_KEPT = 8

_names = itertools.count()


def can_share(dataset: Dataset) -> bool:
    """Whether `Shared` works: for tensors on the CPU, where there is nameless memory (Linux)."""
    return hasattr(os, "memfd_create") and dataset.x_pool_NF.device.type == "cpu"


class Shared:
    """A source whose data lie in memory once, for all processes of this host.

    The memory is a file without a name: it is given back when the last process that uses it ends,
    even if that is killed. The `Shared` must live until others have called what they were sent. A
    process that writes to its tensors changes its own copy.

    >>> digits = load_dataset("digits")
    >>> bool((Shared(digits)().x_pool_NF == digits.x_pool_NF).all())
    True
    """

    def __init__(self, dataset: Dataset) -> None:
        descriptor = os.memfd_create("fastbadge")
        weakref.finalize(self, os.close, descriptor)
        # Descriptors are used again, so a path may stand for other data later: hence the number.
        self._key = f"/proc/{os.getpid()}/fd/{descriptor}", next(_names)
        torch.save({f.name: getattr(dataset, f.name) for f in fields(dataset)}, self._key[0])

    def __call__(self) -> Dataset:
        """The data set; not a copy."""
        return _mapped(*self._key)

    def __reduce__(self) -> tuple[type[partial[Dataset]], tuple[object, ...]]:
        return partial, (_mapped, *self._key)


@lru_cache(maxsize=_KEPT)
def _mapped(path: str, _number: int) -> Dataset:
    return Dataset(**torch.load(path, mmap=True, weights_only=True))


@lru_cache(maxsize=_KEPT)
def loaded(
    name: str, data_dir: Path | None, device: str, split_seed: int, digest: str | None
) -> Dataset:
    """`load_dataset`, once a process.

    Args:
        name: as the others, see `load_dataset`.
        data_dir: on the host of this process.
        device: where the tensors go.
        split_seed: of the division.
        digest: what the data must have, where it is known.

    Raises:
        DataError: other data than those of the process that runs the command.
    """
    dataset = load_dataset(name, data_dir=data_dir, device=device, split_seed=split_seed)
    if digest not in (None, dataset.digest):
        raise DataError(
            f"{name} has other values in this process than in the one that runs the command; "
            "give all hosts the same files"
        )
    return dataset
