"""k-center greedy: the pool covered by balls that are as small as can be (Sener & Savarese 2018).

Farthest-first traversal reads the pool once for every centre if done literally. Here distances to
the nearest centre are let go out of date, which makes them too large and never too small: as long
as the farthest of a few candidates, kept up to date, is farther than any other row was when all
were, it is the farthest of all. Only then are all distances brought up to date, by products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fastbadge.pools import ScaledPool
from fastbadge.strategies.registry import PoolView, RowsOf, register

# Rows kept up to date between two passes over the pool, and centres a pass is made with at once.
_CANDIDATES = 512
_CENTRES_AT_ONCE = 4096


@register("coreset", needs=("features", "labeled"))
def coreset(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Most spread out: each pick is the farthest from all labelled and picked examples.

    k-center greedy in the Euclidean distance of the last layer's inputs (Sener & Savarese, ICLR
    2018, Algorithm 1; the BADGE paper's Coreset). Deterministic and exact: distances are settled
    in float64.

    Cost: N (L + k) D multiplications for L labelled examples, in a few passes over the pool.

    Ties go to the lowest position, so with nothing labelled the first pick is position 0. Once
    every row equals a picked or labelled one, the rest are the lowest positions left; so k = N
    gives every row. Classes do not matter.
    """
    assert view.features is not None
    known = None if view.labeled is None else view.labeled.features
    labeled = 0 if view.labeled is None else view.labeled.size
    pool = ScaledPool.of(_Stacked.of(view.features, view.size, known, labeled))
    return torch.from_numpy(_k_center(pool, view.size, k))


def _k_center(pool: ScaledPool, N: int, k: int) -> NDArray[np.int64]:
    """K of the first N rows of the pool; those after them are centres already."""
    weight = np.full(len(pool), np.inf)  # squared distance to the nearest centre, or more
    for start in range(N, len(pool), _CENTRES_AT_ONCE):
        _lower_all(weight, pool, np.arange(start, min(start + _CENTRES_AT_ONCE, len(pool))))
    weight_N = weight[:N]
    picks: list[int] = []
    while len(picks) < k and weight_N.max() > 0:
        farthest_N = np.argsort(-weight_N, kind="stable")
        block_B = farthest_N[:_CANDIDATES]
        barrier = weight_N[farthest_N[_CANDIDATES]] if _CANDIDATES < N else 0.0
        rows, current_B = pool.rows(block_B), weight_N[block_B]
        new: list[int] = []
        while len(picks) < k:
            farthest_T = np.flatnonzero(current_B == current_B.max())
            i = int(farthest_T[block_B[farthest_T].argmin()])
            if new and current_B[i] <= barrier:
                break
            picks.append(int(block_B[i]))
            new.append(picks[-1])
            current_B = pool.arithmetic.lower(current_B, rows, rows[i : i + 1])
        if len(picks) < k:
            _lower_all(weight, pool, np.array(new))
    left_N = np.setdiff1d(np.arange(N), picks)
    return np.array(picks + left_N[: k - len(picks)].tolist(), dtype=np.int64)


def _lower_all(weight: NDArray[np.float64], pool: ScaledPool, centres: NDArray[np.int64]) -> None:
    centre_rows = pool.rows(centres)
    for tile in pool.tiles(len(centres)):
        weight[tile] = pool.arithmetic.lower(weight[tile], pool.rows(tile), centre_rows)


@dataclass(frozen=True, eq=False, slots=True)
class _Stacked:
    """Features of the pool, then of the labelled examples, as gradients 1 h: a GradientPool."""

    features: RowsOf
    size: int
    known: RowsOf | None
    labeled: int
    num_features: int
    device: torch.device
    num_classes: int = 1

    @classmethod
    def of(cls, features: RowsOf, size: int, known: RowsOf | None, labeled: int) -> _Stacked:
        sample_1D = features(slice(0, 1))
        return cls(features, size, known, labeled, sample_1D.shape[1], sample_1D.device)

    def __len__(self) -> int:
        return self.size + self.labeled

    def factors(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            feature_BD = self._rows(
                slice(min(start, self.size), min(stop, self.size)),
                slice(max(start - self.size, 0), max(stop - self.size, 0)),
            )
        else:
            # Rows of either part keep their order; sorting by part and back mends the mixture.
            order_B = (index >= self.size).long().argsort(stable=True)
            ordered_B = index[order_B]
            split = int((index < self.size).sum())
            feature_BD = self._rows(ordered_B[:split], ordered_B[split:] - self.size)
            feature_BD = feature_BD[order_B.argsort()]
        return feature_BD.new_ones(len(feature_BD), 1), feature_BD

    def _rows(self, free: Tensor | slice, known: Tensor | slice) -> Tensor:
        if self.known is None:
            return self.features(free)
        return torch.cat([self.features(free), self.known(known)])
