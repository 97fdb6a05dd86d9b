"""A pool over several processes, each of which holds some of its rows and nothing of the others'.

A pass over the pool ends with an exchange of the sums of the few largest subtrees whose rows lie in
one process. So all draw the same rows with the same random numbers. The process that holds a row
brings it to all, with its weight and the sums beside the way up from it, so that all lower it alike
and know the new sums without another exchange: one for each block of proposals, as each costs the
latency of the network. Acceptance is computed by each, to the bit as by one process alone. Traffic
grows with what is drawn, not with the rows of the pool.
"""

from __future__ import annotations

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
        # What this process tells of its rows: their kind and the sizes of entries.
        kind: tuple[int, int, torch.dtype] | None = None
        peaks = (0.0, 0.0)
        with self._job.together():
            if whole.shard is not None:
                unscaled, peaks = ScaledPool.read(whole.shard, tile_mb)
                error_BC, feature_BD = whole.shard.factors(slice(0, 1))
                kind = (error_BC.shape[1], feature_BD.shape[1], error_BC.dtype)
        said = self._job.gather((kind, peaks))
        kinds = {kind for kind, _ in said if kind is not None}
        if len(kinds) > 1:
            raise InputError(
                "the processes hold factors of (C, D, dtype) "
                f"{' and '.join(sorted(map(str, kinds)))}; expected the same model in each"
            )
        longest, row = -1.0, 0
        with self._job.together():
            if kind is None:
                unscaled, _ = ScaledPool.read(_no_rows(*kinds.pop()), tile_mb)
            self._pool = unscaled.scaled_for(
                *(max(peaks[factor] for _, peaks in said) for factor in (0, 1))
            )
            if len(self._pool):
                row = int(self._pool.sqnorm_N.argmax())
                longest = float(self._pool.sqnorm_N[row])
        # Of equal norms the first process's is the first row: max() keeps the first.
        firsts = self._job.gather((longest, self._start + row))
        self._largest = max(firsts, key=lambda words: words[0])[1]
        self.num_columns, self.arithmetic = self._pool.num_columns, self._pool.arithmetic
        self._tree = SumTree(np.full(len(self._pool), np.inf), self._start, self._num_rows)
        told, first_row = self._tree.share_out(self._starts)
        order, self._told_by = self._by_holder(first_row)
        self._told = told[order]

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
        return self._bring(row_B, None)[0].rows

    def update(self, centres: Rows) -> None:
        """Lower every weight to the squared distance to the nearest of these centres."""

        def work() -> Tensor:
            bring_up_to_date(self._tree, self._pool, centres)
            ours = self._told[self._told_by[self._job.rank]]
            return torch.from_numpy(self._tree.sums(ours).view(np.int32))

        counts = [2 * (part.stop - part.start) for part in self._told_by]
        words = self._job.share(counts, work)
        self._tree.tell(self._told, words.cpu().view(torch.float64).numpy())

    def draw(self, uniform_B: NDArray[np.float64], centres: Rows | None) -> Proposals:
        """One row per uniform number in [0, 1), and its weight after these centres."""
        proposals, path_BL = self._bring(self._tree.draw(uniform_B), centres)
        self._tree.hear(proposals.row_B, path_BL)
        return proposals

    def lower(self, row_B: NDArray[np.int64], weight_B: NDArray[np.float64]) -> None:
        """Lower the weights of rows just drawn; repeats allowed. Each process does so alone."""
        self._tree.lower(row_B, weight_B)

    def _holder(self, row_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rank that holds each row; a rank without rows starts where the next one does."""
        return np.searchsorted(self._starts, row_B, side="right") - 1

    def _by_holder(self, row_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[slice]]:
        """An order in which each rank's rows come together, and where they then are."""
        holder_B = self._holder(row_B)
        ends = np.cumsum(np.bincount(holder_B, minlength=self._job.size)).tolist()
        return np.argsort(holder_B, kind="stable"), list(map(slice, [0, *ends[:-1]], ends))

    def _bring(
        self, row_B: NDArray[np.int64], centres: Rows | None
    ) -> tuple[Proposals, NDArray[np.float64]]:
        """Rows of all processes and their paths, sent by the process that holds each."""
        order, parts = self._by_holder(row_B)
        none = self._pool.rows(slice(0, 0))
        # Its number, path, weight, squared norm and factors.
        columns = [1, self._tree.path_length, 1, 1, self._pool.pool.num_classes]
        columns.append(self._pool.pool.num_features)
        dtypes = [torch.int64, *3 * [torch.float64], none.error_BC.dtype, none.feature_BD.dtype]
        widths = [n * t.itemsize // 4 for n, t in zip(columns, dtypes, strict=True)]

        def work() -> Tensor:
            ours_B = row_B[order[parts[self._job.rank]]]
            if len(ours_B) == 0:
                return torch.empty(0, dtype=torch.int32, device="cpu")
            path_BL = self._tree.path(ours_B)
            p = propose(self._pool, ours_B - self._start, path_BL[:, 0].copy(), centres)
            numbers = map(torch.from_numpy, (ours_B, path_BL, p.weight_B))
            values = (*numbers, p.rows.sqnorm_B, p.rows.error_BC, p.rows.feature_BD)
            device = self._job.device
            return torch.cat([_reread(x, torch.int32).to(device) for x in values], dim=1).flatten()

        counts = [(part.stop - part.start) * sum(widths) for part in parts]
        words_BW = self._job.share(counts, work).view(len(row_B), -1)
        words_BW = words_BW[torch.from_numpy(np.argsort(order)).to(words_BW.device)]
        found = map(_reread, torch.split(words_BW, widths, dim=1), dtypes)
        place = none.sqnorm_B.device
        row_B1, path, weight_B1, sqnorm_B1, error_BC, feature_BD = found
        path_BL = path.cpu().numpy()
        proposals = Proposals(
            row_B1[:, 0].cpu().numpy(),
            path_BL[:, 0].copy(),
            weight_B1[:, 0].cpu().numpy(),
            Rows(error_BC.to(place), feature_BD.to(place), sqnorm_B1[:, 0].to(place)),
        )
        return proposals, path_BL


def _reread(values_BX: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of a matrix, or of a column, as a matrix of another type."""
    matrix_BX = values_BX if values_BX.ndim == 2 else values_BX[:, None]
    # A copy, as contiguous() leaves a single row its stride, which view() may refuse.
    return matrix_BX.clone(memory_format=torch.contiguous_format).view(dtype)


def _no_rows(num_classes: int, num_features: int, dtype: torch.dtype) -> GradientPool:
    """The pool of a process that holds none."""
    some = GradientEmbedding(
        torch.zeros(1, num_classes, dtype=dtype, device="cpu"),
        torch.zeros(1, num_features, dtype=dtype, device="cpu"),
    )
    return SubsetPool(some, torch.empty(0, dtype=torch.int64, device="cpu"))
