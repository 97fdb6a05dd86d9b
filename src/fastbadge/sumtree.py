"""A binary tree of partial sums: draws rows with probability proportional to their weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SumTree:
    """Weights of N rows and all their partial sums by halves, float64 and in pool order.

    Every inner node is the sum of its two children and nothing else, so the sums, and the row a
    uniform number leads to, depend on the weights alone: not on threads, devices or the order of
    updates. An error of log2(N) roundings; a running sum would have N.

    Args:
        weight_N: float64 [N], not negative, finite.

    >>> tree = SumTree(np.array([1.0, 0.0, 3.0]))
    >>> tree.total
    4.0
    >>> tree.draw(np.array([0.0, 0.24, 0.26, 0.99]))
    array([0, 0, 2, 2])
    """

    def __init__(self, weight_N: NDArray[np.float64]) -> None:
        self.num_rows = len(weight_N)
        self._depth = max(self.num_rows - 1, 0).bit_length()
        self._first_leaf = 1 << self._depth
        self._node = np.zeros(2 * self._first_leaf)  # node i has children 2i and 2i + 1; root is 1
        self.weight_N = self._node[self._first_leaf :][: self.num_rows]
        self.weight_N[:] = weight_N
        self.refresh()

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._node[1])

    def refresh(self) -> None:
        """Recompute every sum, after `weight_N` was written to in place."""
        width = self._first_leaf
        while width > 1:
            level = self._node[width : 2 * width]
            np.add(level[0::2], level[1::2], out=self._node[width // 2 : width])
            width //= 2

    def lower(self, rows: NDArray[np.int64], weight_B: NDArray[np.float64]) -> None:
        """Lower the weights of some rows (repeats allowed) and mend the sums above them."""
        np.minimum.at(self.weight_N, rows, weight_B)
        node = rows + self._first_leaf
        for _ in range(self._depth):
            node = node >> 1
            self._node[node] = self._node[2 * node] + self._node[2 * node + 1]

    def draw(self, uniform_B: NDArray[np.float64]) -> NDArray[np.int64]:
        """One row per uniform number in [0, 1). Rows of weight 0 are never drawn; total > 0."""
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
