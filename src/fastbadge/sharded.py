"""A pool over several processes, each of which holds some of its rows and nothing of the others'.

Each holds the weights of its own rows and knows, of the others', the sums of the few largest
subtrees whose rows lie in one process: so all draw the same rows with the same random numbers. Of a
block of proposals each first says how many of its own may be accepted, being above the bar after
the centres so far. These it brings to all, and all accept alike, to the bit as one process alone.
Then each lowers its own rows, the hopeless ones too, and tells the sums. That is three exchanges a
block, each of which costs the latency of the network; but traffic grows with what is accepted, not
with the rows of the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

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
        counts = np.bincount(self._holder(row_B), minlength=self._job.size).tolist()
        share_B = np.ones(len(row_B))
        return self._bring(counts, lambda: self._propose(row_B, share_B, None)).rows

    def update(self, centres: Rows) -> None:
        """Lower every weight to the squared distance to the nearest of these centres."""
        self._tell(lambda: bring_up_to_date(self._tree, self._pool, centres))

    def take(self, row: int) -> None:
        """Let a row weigh nothing, before the first update."""
        if self._holder(np.array([row]))[0] == self._job.rank:
            self._tree.lower(np.array([row]), np.zeros(1))

    def draw(
        self, uniform_B: NDArray[np.float64], share_B: NDArray[np.float64], centres: Rows | None
    ) -> Proposals:
        """One row per uniform number in [0, 1), and its weight after these centres.

        Those that are hopeless stay where they are.
        """
        row_B = self._tree.draw(uniform_B)
        parts: list[Proposals] = []  # of what this process holds: with hope, without

        def count() -> Tensor:
            ours = self._propose(row_B, share_B, centres)
            hope = ours.bar_B < ours.weight_B
            parts.extend(ours[np.flatnonzero(some)] for some in (hope, ~hope))
            return torch.tensor([hope.sum()], dtype=torch.int32, device="cpu")

        counts = self._job.share([1] * self._job.size, count).tolist()
        return replace(self._bring(counts, lambda: parts[0]), hopeless=parts[1])

    def lower(
        self, proposals: Proposals, weight_B: NDArray[np.float64], taken: NDArray[np.int64]
    ) -> None:
        """Lower the weights of all rows drawn to those after a walk that took some of them."""

        def work() -> None:
            ours = self._holder(proposals.row_B) == self._job.rank
            self._tree.lower(proposals.row_B[ours], weight_B[ours])
            left = proposals.hopeless
            assert left is not None
            self._tree.lower(left.row_B, _after(left, proposals[taken], self.arithmetic))

        self._tell(work)

    def _tell(self, work: Callable[[], None]) -> None:
        """Do some work on the weights of this process's rows, and let all know the sums."""

        def sums() -> Tensor:
            work()
            ours = self._told[self._told_by[self._job.rank]]
            return torch.from_numpy(self._tree.sums(ours).view(np.int32))

        counts = [2 * (part.stop - part.start) for part in self._told_by]
        words = self._job.share(counts, sums)
        self._tree.tell(self._told, words.cpu().view(torch.float64).numpy())

    def _holder(self, row_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rank that holds each row; a rank without rows starts where the next one does."""
        return np.searchsorted(self._starts, row_B, side="right") - 1

    def _by_holder(self, row_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[slice]]:
        """An order in which each rank's rows come together, and where they then are."""
        holder_B = self._holder(row_B)
        ends = np.cumsum(np.bincount(holder_B, minlength=self._job.size)).tolist()
        return np.argsort(holder_B, kind="stable"), list(map(slice, [0, *ends[:-1]], ends))

    def _propose(
        self, row_B: NDArray[np.int64], share_B: NDArray[np.float64], centres: Rows | None
    ) -> Proposals:
        """Those of the rows drawn that this process holds."""
        place_B = np.flatnonzero(self._holder(row_B) == self._job.rank)
        ours_B = row_B[place_B]
        own_B = ours_B - self._start
        ours = propose(self._pool, own_B, self._tree.weight_N[own_B], share_B[place_B], centres)
        return replace(ours, row_B=ours_B, place_B=place_B)

    def _bring(self, counts: list[int], ours: Callable[[], Proposals]) -> Proposals:
        """The proposals of all processes, so many of each, in the order of drawing."""
        none = self._pool.rows(slice(0, 0))
        # Its place, row, bar, weight, squared norm and factors.
        columns = [*5 * [1], self._pool.pool.num_classes, self._pool.pool.num_features]
        dtypes = [*2 * [torch.int64], *3 * [torch.float64]]
        dtypes += [none.error_BC.dtype, none.feature_BD.dtype]
        widths = [n * t.itemsize // 4 for n, t in zip(columns, dtypes, strict=True)]

        def work() -> Tensor:
            p = ours()
            numbers = map(torch.from_numpy, (p.place_B, p.row_B, p.bar_B, p.weight_B))
            values = (*numbers, p.rows.sqnorm_B, p.rows.error_BC, p.rows.feature_BD)
            device = self._job.device
            return torch.cat([_reread(x, torch.int32).to(device) for x in values], dim=1).flatten()

        words = self._job.share([count * sum(widths) for count in counts], work)
        words_BW = words.view(sum(counts), sum(widths))
        found = list(map(_reread, torch.split(words_BW, widths, dim=1), dtypes))
        place_B, row_B, bar_B, weight_B = (column[:, 0].cpu().numpy() for column in found[:4])
        sqnorm_B1, error_BC, feature_BD = (matrix.to(none.sqnorm_B.device) for matrix in found[4:])
        rows = Rows(error_BC, feature_BD, sqnorm_B1[:, 0])
        return Proposals(row_B, bar_B, weight_B, rows, place_B)[np.argsort(place_B)]


def _after(left: Proposals, taken: Proposals, arithmetic: ModuleType) -> NDArray[np.float64]:
    """Weights of rejected proposals after the accepted ones that were drawn before them."""
    if len(left.row_B) == 0 or len(taken.row_B) == 0:
        return left.weight_B
    order = np.argsort(np.concatenate([left.place_B, taken.place_B]))
    # The walk once more, with bars that all of the ones and none of the others exceed.
    bars = np.concatenate([np.full(len(left.row_B), np.inf), np.full(len(taken.row_B), -1.0)])
    weights = np.concatenate([left.weight_B, taken.weight_B])
    factors = zip(
        (left.rows.error_BC, left.rows.feature_BD, left.rows.sqnorm_B),
        (taken.rows.error_BC, taken.rows.feature_BD, taken.rows.sqnorm_B),
        strict=True,
    )
    rows = Rows(*map(torch.cat, factors))[torch.from_numpy(order).to(left.rows.sqnorm_B.device)]
    _, lowered = arithmetic.accept(bars[order], weights[order], rows, len(order))
    weights[order] = lowered
    return weights[: len(left.row_B)]


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
