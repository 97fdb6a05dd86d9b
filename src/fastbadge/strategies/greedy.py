"""What several strategies share: lazy greedy maximisation, and what to do when nothing is left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

_BLOCK = 64


def lazy_greedy(
    gain_N: NDArray[np.float64],
    k: int,
    gains_of: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    take: Callable[[int], None],
    *,
    floor: float,
    tie: float,
) -> list[int]:
    """Up to k rows, each of the largest gain given those before; of equal ones the lowest.

    A gain can only shrink as rows are taken (submodularity), so one that is out of date is an
    upper bound, and rows whose bound lies under a gain that is up to date need no look (Minoux
    1978). The rows are those of the plain greedy algorithm.

    Args:
        gain_N: float64 [N], gains before anything is taken; written to.
        k: stop after so many.
        gains_of: gains of some rows, now.
        take: called with each row taken.
        floor: stop when no gain exceeds it; at least 0.
        tie: gains that differ by no more than this share are equal. Those of two equal rows need
            not be the same number: how a product is summed depends on where in it a row stands.
    """
    free_N = np.ones(len(gain_N), dtype=bool)
    fresh_N = free_N.copy()  # at first all are
    taken: list[int] = []
    while len(taken) < k:
        while True:
            fresh = np.flatnonzero(fresh_N & free_N)
            most = gain_N[fresh].max(initial=-np.inf)
            least = most * (1 - tie)
            best = int(fresh[gain_N[fresh] >= least].min(initial=len(gain_N)))
            rivals = np.flatnonzero(free_N & ~fresh_N & (gain_N >= least))
            rivals = rivals[(gain_N[rivals] > most) | (rivals < best)]
            if not len(rivals):
                break
            block = rivals[np.argsort(-gain_N[rivals], kind="stable")[:_BLOCK]]
            gain_N[block] = gains_of(block)
            fresh_N[block] = True
        if most <= floor:
            break
        taken.append(best)
        free_N[best] = False
        fresh_N[:] = False
        take(best)
    return taken


def with_uniform_rest(picks: list[int], N: int, k: int, generator: Generator) -> torch.Tensor:
    """LongTensor[k]: the picks, and what is missing to k drawn uniformly from the others."""
    left = np.setdiff1d(np.arange(N), picks)
    order = torch.randperm(len(left), generator=generator)[: k - len(picks)].numpy()
    return torch.tensor([*picks, *left[order].tolist()], dtype=torch.int64)
