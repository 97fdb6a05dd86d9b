"""A pool over several processes, each of which holds some of its rows and nothing of the others'.

What a process needs of others comes in two exchanges. A pass over the pool, and each block of
proposals, ends with the sums of the few largest subtrees whose rows lie in one process, which are
known to all from then on. So all draw the same rows with the same random numbers; the process that
holds a row brings it, with its weight, to all. Acceptance is then computed by each, to the bit as
by one process alone: traffic grows with what is drawn, not with the rows of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastbadge.distributed import Group, Job
from fastbadge.errors import InputError
from fastbadge.gradients import GradientEmbedding
from fastbadge.pools import GradientPool, ScaledPool, SubsetPool
from fastbadge.rows import Rows
from fastbadge.sumtree import SumTree
from fastbadge.weights import Proposals, bring_up_to_date, propose


class ShardedPool:
    """N gradients, of which this process holds those that follow the ones of the ranks before it.

    Args:
        shard: this process's gradients, a GradientEmbedding or another pool; None for none.
        group: the torch.distributed process group; every process in it makes the same calls.

    Raises:
        InputError: no process has a row.

    >>> from fastbadge import GradientEmbedding, ShardedPool, kmeans_pp
    >>> emb = GradientEmbedding(torch.eye(4), torch.tensor([[1.0], [5.0], [2.0], [1.0]]))
    >>> kmeans_pp(ShardedPool(emb), k=1)  # a process alone holds all rows
    tensor([1])
    """

    def __init__(self, shard: GradientPool | None, group: Group = None) -> None:
        self.job = Job(group)
        self.shard = shard
        sizes = self.job.gather(0 if shard is None else len(shard))
        self.starts = np.cumsum([0, *sizes])[:-1]
        self._num_rows = sum(sizes)
        if self._num_rows == 0:
            raise InputError("no process has a row of the pool; expected at least one")

    def __len__(self) -> int:
        return self._num_rows

    def weights(self, tile_mb: int | None = None) -> ShardedWeights:
        """The pool as the sampler reads it; each process reads its own rows once.

        Raises:
            InputError: an entry that cannot be computed with, or factors of other widths or of
                another dtype than those of another process.
        """
        return ShardedWeights(self, tile_mb)


class ShardedWeights:
    """`weights.Weights` of a ShardedPool; its functions are called by all processes together."""

    def __init__(self, whole: ShardedPool, tile_mb: int | None) -> None:
        self._job, self._num_rows, self._starts = whole.job, len(whole), whole.starts
        self._start = int(whole.starts[self._job.rank])
        # What this process tells of its rows: their kind, sizes of entries, the largest.
        kind: tuple[int, int, torch.dtype] | None = None
        peaks, longest, row = (0.0, 0.0), -1.0, 0
        with self._job.together():
            if whole.shard is not None:
                unscaled, peaks = ScaledPool.read(whole.shard, tile_mb)
                error_BC, feature_BD = whole.shard.factors(slice(0, 1))
                kind = (error_BC.shape[1], feature_BD.shape[1], error_BC.dtype)
                row = int(unscaled.sqnorm_N.argmax())
                longest = float(unscaled.sqnorm_N[row])
        said = self._job.gather((kind, peaks, longest, self._start + row))
        kinds = {kind for kind, *_ in said if kind is not None}
        if len(kinds) > 1:
            raise InputError(
                "the processes hold factors of (C, D, dtype) "
                f"{' and '.join(sorted(map(str, kinds)))}; expected the same model in each"
            )
        if kind is None:
            unscaled, _ = ScaledPool.read(_no_rows(*kinds.pop()), tile_mb)
        self._pool = unscaled.scaled_for(
            *(max(peaks[factor] for _, peaks, *_ in said) for factor in (0, 1))
        )
        # Of equal norms the first process's is the first row: max() keeps the first.
        self._largest = max(said, key=lambda words: words[2])[3]
        self.num_columns, self.arithmetic = self._pool.num_columns, self._pool.arithmetic
        self._tree = SumTree(np.full(len(self._pool), np.inf), self._start, self._num_rows)
        told, first_row = self._tree.share_out(self._starts)
        self._told, self._told_by_us = told, self._holder(first_row) == self._job.rank

    def __len__(self) -> int:
        return self._num_rows

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return self._tree.total

    def largest(self) -> int:
        """The row of largest norm, the first of them."""
        return self._largest

    def rows(self, row_B: NDArray[np.int64]) -> Rows:
        """Some gradients, brought here from the processes that hold them."""
        return self._bring(row_B, None).rows

    def update(self, centres: Rows) -> None:
        """Lower every weight to the squared distance to the nearest of these centres."""
        with self._telling():
            bring_up_to_date(self._tree, self._pool, centres)

    def draw(self, uniform_B: NDArray[np.float64], centres: Rows | None) -> Proposals:
        """One row per uniform number in [0, 1), and its weight after these centres."""
        return self._bring(self._tree.draw(uniform_B), centres)

    def lower(self, row_B: NDArray[np.int64], weight_B: NDArray[np.float64]) -> None:
        """Lower the weights of some rows; repeats allowed."""
        ours = self._holder(row_B) == self._job.rank
        with self._telling():
            self._tree.lower(row_B[ours], weight_B[ours])

    def _holder(self, row_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rank that holds each row; a rank without rows starts where the next one does."""
        return np.searchsorted(self._starts, row_B, side="right") - 1

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """A block that lowers this process's weights; after it all know the new sums."""
        with self._job.adding(2 * len(self._told)) as words:
            yield
            sums = np.where(self._told_by_us, self._tree.sums(self._told), 0.0)
            words.copy_(torch.from_numpy(sums).view(torch.int32))
        self._tree.tell(self._told, words.cpu().view(torch.float64).numpy())

    def _bring(self, row_B: NDArray[np.int64], centres: Rows | None) -> Proposals:
        """Rows of all processes, each found, weighed and sent by the one that holds it."""
        B = len(row_B)
        ours_B = np.flatnonzero(self._holder(row_B) == self._job.rank)
        none = self._pool.rows(slice(0, 0))
        dtypes = [torch.int64, torch.float64, torch.float64, torch.float64]
        dtypes += [none.error_BC.dtype, none.feature_BD.dtype]
        columns = [1, 1, 1, 1, none.error_BC.shape[1], none.feature_BD.shape[1]]
        widths = [n * dtype.itemsize // 4 for n, dtype in zip(columns, dtypes, strict=True)]
        with self._job.adding(B * sum(widths)) as words:
            if len(ours_B):
                held_B = row_B[ours_B] - self._start
                p = propose(self._pool, held_B, self._tree.weight_N[held_B], centres)
                numbers = map(torch.from_numpy, (row_B[ours_B], p.drawn_from_B, p.weight_B))
                parts = (*numbers, p.rows.sqnorm_B, p.rows.error_BC, p.rows.feature_BD)
                ours_BW = [_reread(part, torch.int32).to(words.device) for part in parts]
                at = torch.from_numpy(ours_B).to(words.device)
                words.view(B, -1)[at] = torch.cat(ours_BW, dim=1)
        found = torch.split(words.view(B, -1), widths, dim=1)
        row_B1, drawn_from_B1, weight_B1, sqnorm_B1, error_BC, feature_BD = map(
            _reread, found, dtypes
        )
        place = none.sqnorm_B.device
        return Proposals(
            row_B1[:, 0].cpu().numpy(),
            drawn_from_B1[:, 0].cpu().numpy(),
            weight_B1[:, 0].cpu().numpy(),
            Rows(error_BC.to(place), feature_BD.to(place), sqnorm_B1[:, 0].to(place)),
        )


def _reread(values_BX: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of a matrix, or of a column, as a matrix of another type."""
    matrix_BX = values_BX if values_BX.ndim == 2 else values_BX[:, None]
    # A copy, as contiguous() leaves a single row its stride, which view() may refuse.
    return matrix_BX.clone(memory_format=torch.contiguous_format).view(dtype)


def _no_rows(num_classes: int, num_features: int, dtype: torch.dtype) -> GradientPool:
    """The pool of a process that holds none."""
    some = GradientEmbedding(
        torch.zeros(1, num_classes, dtype=dtype), torch.zeros(1, num_features, dtype=dtype)
    )
    return SubsetPool(some, torch.empty(0, dtype=torch.int64))
