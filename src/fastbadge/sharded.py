"""A pool over several processes, each of which holds some of its rows and nothing of the others'.

Each holds the weights of its own rows and knows, of the others', the sums of the few largest
subtrees whose rows lie in one process: so all draw the same rows with the same random numbers, and
accept alike, to the bit as one process alone. An exchange costs the latency of the network, so a
block of proposals has one where most of it will be accepted: each process brings all rows drawn of
its own, with their weights and the sums beside their ways up the tree, and all lower them alike.
Where most will be rejected, each brings only those of its own that may be accepted, being above the
bar after the centres so far; then each lowers its own rows, the hopeless ones too, and tells the
sums: two exchanges, but traffic grows with what is accepted, not with the rows of the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastbadge.distributed import Group, Job
from fastbadge.errors import InputError
from fastbadge.gradients import GradientEmbedding
from fastbadge.pools import GradientPool, ScaledPool, SubsetPool, fit_for_float32
from fastbadge.rows import Rows
from fastbadge.sumtree import SumTree
from fastbadge.weights import Proposals, bring_up_to_date, propose

# Where such a share of the last block was taken, all rows of the next one travel, for one exchange
# less. Else those with hope do, in room for so many times as many as are expected and one more: in
# two blocks of a hundred a process has more of them, which take another exchange.
_SHARE_WORTH_ALL = 1 / 4
_ROOM = 2


class ShardedPool:
    """N gradients, of which this process holds those that follow the ones of the ranks before it.

    Args:
        shard: this process's gradients, a GradientEmbedding or another pool; None for none.
        group: the torch.distributed process group; every process in it makes the same calls.
        sizes: how many rows each process holds, where all know it: saves an exchange.

    Raises:
        InputError: no process has a row; sizes are not those of the shards.

    >>> from fastbadge import GradientEmbedding, ShardedPool, kmeans_pp
    >>> emb = GradientEmbedding(torch.eye(4), torch.tensor([[1.0], [5.0], [2.0], [1.0]]))
    >>> kmeans_pp(ShardedPool(emb), k=1)  # a process alone holds all rows
    tensor([1])
    """

    def __init__(
        self,
        shard: GradientPool | None,
        group: Group = None,
        *,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.job = Job(group)
        self.shard = shard
        size = 0 if shard is None else len(shard)
        if sizes is None:
            sizes = self.job.gather(size)
        elif len(sizes) != self.job.size or sizes[self.job.rank] != size:
            raise InputError(
                f"sizes is {list(sizes)}, but process {self.job.rank} of {self.job.size} holds "
                f"{size} rows; leave it out"
            )
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
        # What this process tells of its rows: their kind, the sizes of entries, the largest norm.
        kind: tuple[int, int, torch.dtype] | None = None
        with self._job.together() as said:
            if whole.shard is not None:
                unscaled, peaks = ScaledPool.read(whole.shard, tile_mb)
                error_BC, feature_BD = whole.shard.factors(slice(0, 1))
                kind = (error_BC.shape[1], feature_BD.shape[1], error_BC.dtype)
                said.here = kind, peaks, self._longest(unscaled)
        shards = [here for here in said.everywhere if here is not None]
        kinds = {kind for kind, _, _ in shards}
        if len(kinds) > 1:
            raise InputError(
                "the processes hold factors of (C, D, dtype) "
                f"{' and '.join(sorted(map(str, kinds)))}; expected the same model in each"
            )
        if kind is None:
            unscaled, _ = ScaledPool.read(_no_rows(*kinds.pop()), tile_mb)
        most = [max(peaks[factor] for _, peaks, _ in shards) for factor in (0, 1)]
        self._pool, firsts = unscaled, [first for _, _, first in shards]
        if not fit_for_float32(*most):
            with self._job.together() as said:
                self._pool = unscaled.scaled_for(*most)
                said.here = self._longest(self._pool)
            firsts = said.everywhere
        # Of equal norms the first process's is the first row: max() keeps the first.
        self._largest: int = max(firsts, key=lambda first: first[0])[1]
        self.num_columns, self.arithmetic = self._pool.num_columns, self._pool.arithmetic
        # Of the last block drawn: how many, and the share that was taken.
        self._num_drawn, self._share_taken = 0, 1.0
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
        share_B = np.ones(len(row_B))
        return self._bring(self._held(row_B), lambda: self._propose(row_B, share_B, None)).rows

    def update(self, centres: Rows) -> None:
        """Lower every weight to the squared distance to the nearest of these centres."""
        self._tell(lambda: bring_up_to_date(self._tree, self._pool, centres))
        self._share_taken = 1.0

    def take(self, row: int) -> None:
        """Let a row weigh nothing, before the first update."""
        if self._holder(np.array([row]))[0] == self._job.rank:
            self._tree.lower(np.array([row]), np.zeros(1))

    def draw(
        self, uniform_B: NDArray[np.float64], share_B: NDArray[np.float64], centres: Rows | None
    ) -> Proposals:
        """One row per uniform number in [0, 1), and its weight after these centres.

        Where few were taken of the last ones, those that are hopeless stay where they are.
        """
        row_B = self._tree.draw(uniform_B)
        self._num_drawn = len(row_B)
        room = self._held(row_B)
        whole = self._share_taken >= _SHARE_WORTH_ALL
        if not whole:
            expected = np.ceil(_ROOM * self._share_taken * room).astype(np.int64)
            room = np.minimum(room, expected + 1)
        left: list[Proposals] = []

        def ours() -> Proposals:
            drawn = self._propose(row_B, share_B, centres)
            hope = whole | (drawn.bar_B < drawn.weight_B)
            left.append(drawn[np.flatnonzero(~hope)])
            return drawn[np.flatnonzero(hope)]

        proposals = self._bring(room, ours, with_paths=whole)
        return proposals if whole else replace(proposals, hopeless=left[0])

    def lower(
        self, proposals: Proposals, weight_B: NDArray[np.float64], taken: NDArray[np.int64]
    ) -> None:
        """Lower the weights of all rows drawn to those after a walk that took some of them."""
        self._share_taken = len(taken) / self._num_drawn
        left = proposals.hopeless
        if left is None:  # all were brought with their paths: each process does so alone
            self._tree.lower(proposals.row_B, weight_B)
            return

        def work() -> None:
            ours = self._holder(proposals.row_B) == self._job.rank
            self._tree.lower(proposals.row_B[ours], weight_B[ours])
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

    def _longest(self, pool: ScaledPool) -> tuple[float, int]:
        """The largest squared norm of this process's rows and the first row that has it."""
        if len(pool) == 0:
            return -1.0, 0
        row = int(pool.sqnorm_N.argmax())
        return float(pool.sqnorm_N[row]), self._start + row

    def _held(self, row_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the rows each rank holds."""
        return np.bincount(self._holder(row_B), minlength=self._job.size)

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

    def _bring(
        self, room: NDArray[np.int64], ours: Callable[[], Proposals], *, with_paths: bool = False
    ) -> Proposals:
        """The proposals of all processes, in the order of drawing.

        Of each process at once as many as there is room for; where it has more, those take a
        second exchange. With their paths, the tree can lower them as if it held them.
        """
        none = self._pool.rows(slice(0, 0))
        layout = self._layout(none, with_paths)
        width = sum(columns for columns, _ in layout)
        room_here = int(room[self._job.rank])
        rest: list[Tensor] = []

        def first() -> Tensor:
            p = ours()
            numbers = map(torch.from_numpy, (p.place_B, p.row_B, p.bar_B, p.weight_B))
            values = [*numbers, p.rows.sqnorm_B, p.rows.error_BC, p.rows.feature_BD]
            if with_paths:
                values.append(torch.from_numpy(self._tree.path(p.row_B)))
            device = self._job.device
            packed_BW = torch.cat([_reread(x, torch.int32).to(device) for x in values], dim=1)
            fitting = packed_BW[:room_here].flatten()
            rest.append(packed_BW[room_here:].flatten())
            words = packed_BW.new_zeros(1 + room_here * width)  # their number, and as many as fit
            words[0] = len(packed_BW)
            words[1 : 1 + len(fitting)] = fitting
            return words

        room_R = room.tolist()
        lengths = [1 + n * width for n in room_R]
        parts = torch.split(self._job.share(lengths, first), lengths)
        num_R = torch.stack([part[0] for part in parts]).tolist()
        words = [part[1 : 1 + n * width] for part, n in zip(parts, num_R, strict=True)]
        lengths = [max(0, n - r) * width for n, r in zip(num_R, room_R, strict=True)]
        if any(lengths):
            words.append(self._job.share(lengths, lambda: rest[0]))
        words_BW = torch.cat(words).view(-1, width)
        columns = torch.split(words_BW, [columns for columns, _ in layout], dim=1)
        found = [_reread(x, dtype) for x, (_, dtype) in zip(columns, layout, strict=True)]
        place_B, row_B, bar_B, weight_B = (column[:, 0].cpu().numpy() for column in found[:4])
        if with_paths:
            self._tree.hear(row_B, found.pop().cpu().numpy())
        sqnorm_B1, error_BC, feature_BD = (x.to(none.sqnorm_B.device) for x in found[4:])
        rows = Rows(error_BC, feature_BD, sqnorm_B1[:, 0])
        return Proposals(row_B, bar_B, weight_B, rows, place_B)[np.argsort(place_B)]

    def _layout(self, none: Rows, with_paths: bool) -> list[tuple[int, torch.dtype]]:
        """What travels of a proposal: words of 32 bits for each of its parts, and what they are."""
        # Its place and row; its bar, weight and squared norm; its factors; its path.
        parts = [*2 * [(1, torch.int64)], *3 * [(1, torch.float64)]]
        parts += [(x.shape[1], x.dtype) for x in (none.error_BC, none.feature_BD)]
        if with_paths:
            parts.append((self._tree.path_length, torch.float64))
        return [(length * dtype.itemsize // 4, dtype) for length, dtype in parts]


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
