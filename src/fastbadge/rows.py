"""A few gradients in hand: factors with their squared norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Factors of B gradients with their squared norms.

    Args:
        error_BC: float32 or float64 [B, C].
        feature_BD: the same [B, D].
        sqnorm_B: squared norms of the gradients, float64 [B].
    """

    error_BC: Tensor
    feature_BD: Tensor
    sqnorm_B: Tensor

    def __len__(self) -> int:
        return len(self.error_BC)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return Rows(self.error_BC[index], self.feature_BD[index], self.sqnorm_B[index])


class GrowingRows:
    """Rows that are appended to; storage doubles, so that each is copied about once."""

    def __init__(self) -> None:
        self._store: Rows | None = None
        self._count = 0

    @property
    def rows(self) -> Rows:
        """All rows so far; there must have been an append."""
        assert self._store is not None
        return self._store[slice(self._count)]

    def append(self, new: Rows) -> None:
        """Add rows at the end."""
        start, self._count = self._count, self._count + len(new)
        if self._store is None or self._count > len(self._store):
            room = max(2 * self._count, 64)
            old = new[:0] if self._store is None else self._store[slice(start)]
            self._store = Rows(
                *(
                    torch.cat([x, x.new_empty(room - len(x), *x.shape[1:])])
                    for x in (old.error_BC, old.feature_BD, old.sqnorm_B)
                )
            )
        place = slice(start, self._count)
        self._store.error_BC[place] = new.error_BC
        self._store.feature_BD[place] = new.feature_BD
        self._store.sqnorm_B[place] = new.sqnorm_B
