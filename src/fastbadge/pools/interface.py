"""What every pool of gradients can do, wherever its factors lie."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class GradientPool(Protocol):
    """N gradients of length C x D as factors that are read a few rows at a time.

    `GradientEmbedding` is the pool in memory.
    """

    def __len__(self) -> int: ...

    @property
    def num_classes(self) -> int:
        """C, the number of the model's outputs."""

    @property
    def num_features(self) -> int:
        """D, the number of the last layer's inputs, a bias column included."""

    @property
    def device(self) -> torch.device:
        """Where `factors` puts what it returns."""

    def factors(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Errors [B, C] and features [B, D] of some rows, both float32 or both float64.

        The same row gives the same bits however it is asked for.
        """
