"""A binary tree of partial sums: draws rows with probability proportional to their weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SumTree:
    """Weights of N rows and all their partial sums by halves, float64 and in pool order.

    Every inner node is the sum of its two children and nothing else, so the sums, and the row a
    uniform number leads to, depend on the weights alone: not on threads, devices, processes or the
    order of updates. An error of log2(N) roundings; a running sum would have N.

    A tree may hold only some of the rows, and be told the sums above the others (`share_out`).

    Args:
        weight_N: float64 [N], not negative, finite: of rows `start` to `start` + N - 1. Memory for
            other rows is address space only, but for the few that are heard of.
        start: the first of these rows.
        num_rows: how many rows there are in all; by default those given.

    >>> tree = SumTree(np.array([1.0, 0.0, 3.0]))
    >>> tree.total
    4.0
    >>> tree.draw(np.array([0.0, 0.24, 0.26, 0.99]))
    array([0, 0, 2, 2])
    """

    def __init__(
        self, weight_N: NDArray[np.float64], start: int = 0, num_rows: int | None = None
    ) -> None:
        self.num_rows = start + len(weight_N) if num_rows is None else num_rows
        self._depth = max(self.num_rows - 1, 0).bit_length()
        self._first_leaf = 1 << self._depth
        self._node = np.zeros(2 * self._first_leaf)  # node i has children 2i and 2i + 1; root is 1
        self._held = slice(start, start + len(weight_N))
        self.weight_N = self._node[self._first_leaf :][self._held]
        self.weight_N[:] = weight_N
        self._between: list[NDArray[np.int64]] = []
        self.refresh()

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._node[1])

    def refresh(self) -> None:
        """Recompute every sum, after `weight_N` was written to in place."""
        if len(self.weight_N) == 0:
            return
        first, last = self._held.start + self._first_leaf, self._held.stop - 1 + self._first_leaf
        while first > 1:
            first, last = first >> 1, last >> 1
            below = self._node[2 * first : 2 * last + 2]
            np.add(below[0::2], below[1::2], out=self._node[first : last + 1])

    def lower(self, rows: NDArray[np.int64], weight_B: NDArray[np.float64]) -> None:
        """Lower the weights of some rows (repeats allowed) and mend the sums above them.

        Rows that are not held here must have been heard of (`hear`) since the last change.
        """
        node = rows + self._first_leaf
        np.minimum.at(self._node, node, weight_B)
        for _ in range(self._depth):
            node = node >> 1
            self._node[node] = self._node[2 * node] + self._node[2 * node + 1]

    def draw(self, uniform_B: NDArray[np.float64]) -> NDArray[np.int64]:
        """One row per uniform number in [0, 1). Rows of weight 0 are never drawn; total > 0.

        Where the row is not held here, some row of the same holder stands for it.
        """
        node = np.ones(len(uniform_B), dtype=np.int64)
        target_B = uniform_B * self._node[1]
        for _ in range(self._depth):
            node *= 2
            left_B = self._node[node]
            # Rounding may leave a target past the end of a half that has no mass to its right.
            right = (target_B >= left_B) & (self._node[node + 1] > 0)
            target_B -= np.where(right, left_B, 0.0)
            node += right
        return node - self._first_leaf

    def share_out(self, starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Let each part of the rows be held by another tree; the parts begin at `starts`.

        Returns:
            The nodes that must be told: the largest whose rows lie in one part, log2 N at most for
            each side of a border; and the first row of each.
        """
        border = starts[(starts > 0) & (starts < self.num_rows)] + self._first_leaf
        # Nodes with rows of several parts, from the lowest level up: sums of what is told.
        self._between = [
            np.unique(border[border % (1 << height) > 0] >> height)
            for height in range(1, self._depth + 1)
        ]
        between = np.concatenate([*self._between, np.empty(0, dtype=np.int64)])
        children = np.concatenate([2 * between, 2 * between + 1])
        told = np.setdiff1d(children, between) if len(between) else np.ones(1, dtype=np.int64)
        height = self._depth + 1 - np.frexp(told)[1].astype(np.int64)
        first_row = (told << height) - self._first_leaf
        inside = first_row < self.num_rows
        return told[inside], first_row[inside]

    def sums(self, nodes: NDArray[np.int64]) -> NDArray[np.float64]:
        """The sums at some nodes."""
        return self._node[nodes]

    def tell(self, nodes: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        """Set the sums at the nodes of `share_out`, and mend those above them."""
        self._node[nodes] = sums
        for level in self._between:
            self._node[level] = self._node[2 * level] + self._node[2 * level + 1]

    @property
    def path_length(self) -> int:
        """1 + log2 N, the columns of `path`."""
        return 1 + self._depth

    def path(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """What `lower` needs to know of rows held here: float64 [B, 1 + log2 N].

        The weight of each, and the sums at the nodes beside those above it.
        """
        node = rows + self._first_leaf
        above_BL = node[:, None] >> np.arange(self._depth)
        return np.concatenate([self._node[node][:, None], self._node[above_BL ^ 1]], axis=1)

    def hear(self, rows: NDArray[np.int64], path_BL: NDArray[np.float64]) -> None:
        """Take in the paths of rows that other trees hold."""
        node = rows + self._first_leaf
        self._node[node] = path_BL[:, 0]
        self._node[(node[:, None] >> np.arange(self._depth)) ^ 1] = path_BL[:, 1:]
