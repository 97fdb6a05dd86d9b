"""Some rows of another pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastbadge.pools.interface import GradientPool


@dataclass(frozen=True, eq=False, slots=True)
class SubsetPool:
    """The gradients at some positions of a pool, whose factors stay where they are.

    Args:
        pool: the whole.
        row_M: LongTensor[M], positions in it; on its device.

    >>> from fastbadge.gradients import GradientEmbedding
    >>> whole = GradientEmbedding(torch.eye(4), torch.ones(4, 2))
    >>> SubsetPool(whole, torch.tensor([3, 1])).factors(slice(0, 1))
    (tensor([[0., 0., 0., 1.]]), tensor([[1., 1.]]))
    """

    pool: GradientPool
    row_M: Tensor

    def __len__(self) -> int:
        return len(self.row_M)

    @property
    def num_classes(self) -> int:
        """C, as of the whole."""
        return self.pool.num_classes

    @property
    def num_features(self) -> int:
        """D, as of the whole."""
        return self.pool.num_features

    @property
    def device(self) -> torch.device:
        """Where `factors` puts what it returns."""
        return self.pool.device

    def factors(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Errors [B, C] and features [B, D] of some rows of the subset."""
        return self.pool.factors(self.row_M[index])
