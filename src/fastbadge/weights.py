"""What the sampler needs of a pool, wherever its rows lie: weights to draw from and to lower."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fastbadge.pools import ScaledPool
from fastbadge.rows import Rows
from fastbadge.sumtree import SumTree


@dataclass(frozen=True, eq=False, slots=True)
class Proposals:
    """B rows drawn in proportion to their weights, in the order of drawing.

    Args:
        row_B: int64 [B], which they are.
        bar_B: float64 [B], shares of the weights they were drawn from, which they must exceed.
        weight_B: float64 [B], those weights lowered to what the centres since then leave of them.
        rows: their gradients.
        place_B: int64 [B], their places among all that were drawn, where some are left out.
        hopeless: those left out that this process holds: below the bar whatever is accepted.
    """

    row_B: NDArray[np.int64]
    bar_B: NDArray[np.float64]
    weight_B: NDArray[np.float64]
    rows: Rows
    place_B: NDArray[np.int64]
    hopeless: Proposals | None = None

    def __getitem__(self, index: NDArray[np.int64]) -> Proposals:
        return Proposals(
            self.row_B[index],
            self.bar_B[index],
            self.weight_B[index],
            self.rows[torch.from_numpy(index).to(self.rows.sqnorm_B.device)],
            self.place_B[index],
        )


class Weights(Protocol):
    """A weight for each gradient of a pool: its squared distance to the nearest centre, or more."""

    def __len__(self) -> int: ...

    @property
    def num_columns(self) -> int:
        """C + D, the numbers held for each gradient."""

    @property
    def arithmetic(self) -> ModuleType:
        """`screen` or its compiled twin."""

    @property
    def total(self) -> float:
        """The sum of all weights."""

    def largest(self) -> int:
        """The row of largest norm, the first of them."""

    def rows(self, row_B: NDArray[np.int64]) -> Rows:
        """Some gradients, where they are computed with."""

    def update(self, centres: Rows) -> None:
        """Lower every weight to the squared distance to the nearest of these centres."""

    def take(self, row: int) -> None:
        """Let a row weigh nothing, before the first update."""

    def draw(
        self, uniform_B: NDArray[np.float64], share_B: NDArray[np.float64], centres: Rows | None
    ) -> Proposals:
        """One row per uniform number in [0, 1), and its weight after these centres.

        The bar is a share of the weight it is drawn from. Hopeless ones may be left out.
        """

    def lower(
        self, proposals: Proposals, weight_B: NDArray[np.float64], taken: NDArray[np.int64]
    ) -> None:
        """Lower the weights of all rows drawn to those after a walk that took some of them."""


class LocalWeights:
    """Weights of a pool in one process; infinite at first."""

    def __init__(self, pool: ScaledPool) -> None:
        self._pool = pool
        self._tree = SumTree(np.full(len(pool), np.inf))
        self.num_columns = pool.num_columns
        self.arithmetic = pool.arithmetic

    def __len__(self) -> int:
        return len(self._pool)

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return self._tree.total

    def largest(self) -> int:
        """The row of largest norm, the first of them."""
        return int(self._pool.sqnorm_N.argmax())

    def rows(self, row_B: NDArray[np.int64]) -> Rows:
        """Some gradients, where they are computed with."""
        return self._pool.rows(row_B)

    def update(self, centres: Rows) -> None:
        """Lower every weight to the squared distance to the nearest of these centres."""
        bring_up_to_date(self._tree, self._pool, centres)

    def take(self, row: int) -> None:
        """Let a row weigh nothing, before the first update."""
        self._tree.lower(np.array([row]), np.zeros(1))

    def draw(
        self, uniform_B: NDArray[np.float64], share_B: NDArray[np.float64], centres: Rows | None
    ) -> Proposals:
        """One row per uniform number in [0, 1), and its weight after these centres."""
        row_B = self._tree.draw(uniform_B)
        return propose(self._pool, row_B, self._tree.weight_N[row_B], share_B, centres)

    def lower(
        self, proposals: Proposals, weight_B: NDArray[np.float64], taken: NDArray[np.int64]
    ) -> None:
        """Lower the weights of all rows drawn to those after a walk that took some of them."""
        self._tree.lower(proposals.row_B, weight_B)


def bring_up_to_date(tree: SumTree, pool: ScaledPool, centres: Rows) -> None:
    """Lower the weights of a pool's rows, those that the tree holds."""
    for tile in pool.tiles(len(centres)):
        tree.weight_N[tile] = pool.arithmetic.lower(tree.weight_N[tile], pool.rows(tile), centres)
    tree.refresh()


def propose(
    pool: ScaledPool,
    row_B: NDArray[np.int64],
    drawn_from_B: NDArray[np.float64],
    share_B: NDArray[np.float64],
    centres: Rows | None,
) -> Proposals:
    """Some rows of a pool, with what these centres leave of the weights they were drawn from."""
    rows, weight_B = pool.rows(row_B), drawn_from_B
    if centres is not None and len(row_B):
        weight_B = pool.arithmetic.lower(drawn_from_B, rows, centres)
    return Proposals(row_B, share_B * drawn_from_B, weight_B, rows, np.arange(len(row_B)))
