"""A pool over probabilities and features as their owner keeps them, files larger than memory too.

The errors p - e_y are computed from the probabilities whenever rows are read, so nothing of the
size of the pool is ever in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastbadge.gradients import (
    Task,
    check_finite,
    check_probabilities,
    check_shapes,
    error_of_probabilities,
    resolve_task,
    with_bias,
)
from fastbadge.inputs import ArrayLike, check_real
from fastbadge.progress import progress_bar

# Rows are read for the checks so many entries at a time: 16 MB in float32.
_BLOCK_ENTRIES = 1 << 22


@dataclass(frozen=True, eq=False, slots=True)
class ArrayPool:
    """What `GradientEmbedding.from_probabilities` gives, bit for bit, read a few rows at a time.

    Args:
        prob_NC: probabilities in any real dtype, usually an np.memmap.
        feature_NF: the inputs of the last layer, without the column for the bias.
        task: what the probabilities mean.
        include_bias: whether that column is to be appended.
        dtype: of the factors, float32 or float64.
    """

    prob_NC: ArrayLike
    feature_NF: ArrayLike
    task: Task
    include_bias: bool
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        probabilities: ArrayLike,
        features: ArrayLike,
        *,
        task: Task | None = None,
        include_bias: bool = False,
        progress: bool | None = False,
    ) -> ArrayPool:
        """Read both arrays once, to check them.

        Arguments, result and errors are as of `GradientEmbedding.from_probabilities`.

        >>> probs = np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float16)
        >>> ArrayPool.of(probs, np.ones((2, 3))).factors(slice(1, 2))
        (tensor([[ 0.2500, -0.2500]]), tensor([[1., 1., 1.]]))
        """
        prob_NC = probabilities[:, None] if probabilities.ndim == 1 else probabilities
        check_real(prob_NC, "probabilities")
        check_real(features, "features")
        check_shapes(prob_NC, "probabilities", features, "features")
        task = resolve_task(task, prob_NC.shape[1])
        double = _is_double(prob_NC) and _is_double(features)
        pool = cls(
            prob_NC, features, task, include_bias, torch.float64 if double else torch.float32
        )
        check_probabilities(pool._blocks(prob_NC, "probabilities", progress), task)
        check_finite(pool._blocks(features, "features", progress), "features")
        return pool

    def __len__(self) -> int:
        return len(self.prob_NC)

    @property
    def num_classes(self) -> int:
        """C, the number of the model's outputs."""
        return self.prob_NC.shape[1]

    @property
    def num_features(self) -> int:
        """D, the number of the last layer's inputs, a bias column included."""
        return self.feature_NF.shape[1] + self.include_bias

    @property
    def device(self) -> torch.device:
        """Where `factors` puts what it returns: where the probabilities are."""
        return self.prob_NC.device if isinstance(self.prob_NC, Tensor) else torch.device("cpu")

    def factors(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Errors [B, C] and features [B, D] of some rows."""
        error_BC = error_of_probabilities(_rows(self.prob_NC, index, self.dtype), self.task)
        feature_BF = _rows(self.feature_NF, index, self.dtype).to(self.device)
        return error_BC, with_bias(feature_BF, self.include_bias)

    def probabilities(self, index: Tensor | slice) -> Tensor:
        """Probabilities of some rows as they were given: float64 [B, C]."""
        return _rows(self.prob_NC, index, torch.float64)

    def _blocks(self, array_NX: ArrayLike, name: str, progress: bool | None) -> Iterator[Tensor]:
        N, rows = len(array_NX), max(1, _BLOCK_ENTRIES // array_NX.shape[1])
        with progress_bar(N, f"checking {name}", "rows", show=progress) as advance:
            for start in range(0, N, rows):
                block_BX = _rows(array_NX, slice(start, start + rows), self.dtype)
                yield block_BX
                advance(len(block_BX))


class DenseWhenRead:
    """A matrix of SciPy's sparse kinds that gives dense rows, as an np.memmap gives rows in memory.

    10,000 texts over 30,000 words would be 1.2 GB in float32; a query for 100 of them spends a
    tenth of its 3 s making rows dense.
    """

    ndim = 2

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.shape: tuple[int, int] = matrix.shape
        self.dtype: np.dtype[Any] = matrix.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        dense: NDArray[Any] = self.matrix[rows].toarray()
        return dense

    def take(self, rows: NDArray[np.int64], **axis_out_mode: Any) -> NDArray[Any]:
        """What np.take(self, rows, axis=0) calls."""
        return self[rows]


def read_rows(array_NX: NDArray[Any], index: Tensor | slice) -> NDArray[Any]:
    """A copy of some rows: torch shares no read-only memory without a warning.

    The order of `index` is kept, and neither sorting it nor madvise(2) paid: 10,000 random rows
    of a cold file took 0.39 s unsorted, 0.45 s sorted, 0.75 s with MADV_RANDOM.
    """
    if isinstance(index, slice):
        return np.array(array_NX[index])
    return np.take(array_NX, index.cpu().numpy(), axis=0)


def _rows(array_NX: ArrayLike, index: Tensor | slice, dtype: torch.dtype) -> Tensor:
    if isinstance(array_NX, Tensor):
        place = index.to(array_NX.device) if isinstance(index, Tensor) else index
        return array_NX.detach()[place].to(dtype)
    double = dtype == torch.float64
    rows_BX = read_rows(array_NX, index).astype(np.float64 if double else np.float32, copy=False)
    return torch.from_numpy(rows_BX)


def _is_double(array: ArrayLike) -> bool:
    if isinstance(array, Tensor):
        return array.dtype == torch.float64
    return array.dtype.newbyteorder("=") == np.float64
