"""A pool as the sampler reads it: norms known, entries in the range of float32 products."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastbadge import screen
from fastbadge.errors import InputError
from fastbadge.interrupts import uninterrupted
from fastbadge.pools.interface import GradientPool
from fastbadge.rows import Rows

# Numba and its cached code take 0.6 s to load, once a process, and save some 25 ns an entry of a
# pool: so it is loaded once this process has seen the entries that would have paid for it.
_ENTRIES_WORTH_COMPILING = 20_000_000

# A tile of the pool is as many rows as keep its factors, and its products with the centres, below
# so many entries. On a CPU 32 MB that are read once, and 4 MB that stay in the cache; on a GPU,
# which waits for the host once or twice a tile, as much as the tile budget allows.
_TILE_FACTORS = 1 << 23
_TILE_PRODUCTS = 1 << 20
_GPU_TILE_MB = 1024

# Of what a tile takes for each entry of its products: two products, their bounds, a mask.
_BYTES_A_PRODUCT = 13

# Squared norms of gradients with larger entries would overflow float64; float32 cannot hold them.
_MOST_EXPONENT = 200


@dataclass(frozen=True, eq=False, slots=True)
class ScaledPool:
    """A pool with its squared norms, each factor multiplied by a power of two where need be.

    A power of two changes no pick: every distance is scaled alike, and exactly. Scaled factors
    are float64, where small entries do not underflow.
    """

    pool: GradientPool
    error_scale: float
    feature_scale: float
    sqnorm_N: NDArray[np.float64]
    arithmetic: ModuleType
    tile_mb: int | None

    @classmethod
    def of(cls, pool: GradientPool, tile_mb: int | None = None) -> ScaledPool:
        """Read the whole pool, tiles of `tile_mb` MB at most; twice if it is to be scaled.

        Raises:
            InputError: a NaN, an infinite or a far too large entry; names the first bad row.
        """
        unscaled, peaks = cls.read(pool, tile_mb)
        return unscaled.scaled_for(*peaks)

    @classmethod
    def read(
        cls, pool: GradientPool, tile_mb: int | None = None
    ) -> tuple[ScaledPool, tuple[float, float]]:
        """The pool as it is, and the sizes of the largest entries of its two factors."""
        arithmetic = _arithmetic_for(pool)
        sqnorm_N = np.empty(len(pool))
        error_peak = feature_peak = 0.0
        for tile in _tiles(pool, 1, tile_mb):
            error_BC, feature_BD = _computable(*pool.factors(tile))
            sqnorm_N[tile] = arithmetic.sqnorms(error_BC, feature_BD)
            error_peak = max(error_peak, _peak(error_BC))
            feature_peak = max(feature_peak, _peak(feature_BD))
        if not math.isfinite(float(sqnorm_N.sum())):
            bad_N = ~np.isfinite(sqnorm_N)
            raise InputError(
                f"row {int(bad_N.argmax())} of the pool has a NaN, infinite or too large entry "
                f"({int(bad_N.sum())} such rows of {len(pool)}); every entry must be finite"
            )
        return cls(pool, 1.0, 1.0, sqnorm_N, arithmetic, tile_mb), (error_peak, feature_peak)

    def scaled_for(self, error_peak: float, feature_peak: float) -> ScaledPool:
        """This pool, unscaled so far, in the scale for largest entries of these sizes."""
        error_scale, feature_scale = _scale_for(error_peak), _scale_for(feature_peak)
        if error_scale == feature_scale == 1.0:
            return self
        scaled = replace(
            self,
            error_scale=error_scale,
            feature_scale=feature_scale,
            sqnorm_N=np.empty_like(self.sqnorm_N),
        )
        # Read once more: squares of unscaled entries may have underflowed, and a norm that was
        # rounded otherwise than the inner products leaves a row at a distance from itself.
        for tile in _tiles(self.pool, 1, self.tile_mb):
            rows = scaled.rows(tile)
            scaled.sqnorm_N[tile] = self.arithmetic.sqnorms(rows.error_BC, rows.feature_BD)
        return scaled

    def __len__(self) -> int:
        return len(self.sqnorm_N)

    @property
    def num_columns(self) -> int:
        """C + D, the numbers held for each gradient."""
        return self.pool.num_classes + self.pool.num_features

    def rows(self, index: NDArray[np.int64] | slice) -> Rows:
        """Some gradients, where they are computed with."""
        place = index if isinstance(index, slice) else torch.from_numpy(index).to(self.pool.device)
        error_BC, feature_BD = _computable(*self.pool.factors(place))
        return Rows(
            _scaled(error_BC, self.error_scale),
            _scaled(feature_BD, self.feature_scale),
            torch.from_numpy(self.sqnorm_N[index]).to(error_BC.device),
        )

    def tiles(self, num_centres: int) -> Iterator[slice]:
        """The pool in pieces fit for products with so many centres."""
        return _tiles(self.pool, num_centres, self.tile_mb)


def _tiles(pool: GradientPool, num_centres: int, tile_mb: int | None) -> Iterator[slice]:
    """Slices that cover the pool, in order."""
    columns = pool.num_classes + pool.num_features
    if tile_mb is None and pool.device.type != "cuda":
        rows = min(_TILE_FACTORS // columns, _TILE_PRODUCTS // num_centres)
    else:
        # Factors are counted at float64, as settling has them.
        bytes_a_row = 8 * columns + _BYTES_A_PRODUCT * num_centres
        rows = (tile_mb or _GPU_TILE_MB) * 2**20 // bytes_a_row
    rows = max(1, rows)
    for start in range(0, len(pool), rows):
        yield slice(start, min(start + rows, len(pool)))


def _computable(error_BC: Tensor, feature_BD: Tensor) -> tuple[Tensor, Tensor]:
    """On the CPU what lies on a device without float64 (Apple's), whose memory is the same."""
    if error_BC.device.type == "mps":
        return error_BC.cpu(), feature_BD.cpu()
    return error_BC, feature_BD


_entries_seen = 0


def load_arithmetic(entries: int) -> None:
    """Load the compiled arithmetic now if so many entries, N (C + D) a query, are to be sampled.

    For those who know what comes and time it: the load then is no part of some query's time.
    """
    global _entries_seen
    if entries < _ENTRIES_WORTH_COMPILING:
        return
    with uninterrupted():
        from fastbadge import screen_numba

    _entries_seen = max(_entries_seen, _ENTRIES_WORTH_COMPILING)
    screen_numba.load()


def _arithmetic_for(pool: GradientPool) -> ModuleType:
    """The compiled arithmetic where loading it pays: on a CPU, for large or many pools."""
    global _entries_seen
    if pool.device.type == "cuda":
        return screen
    _entries_seen += len(pool) * (pool.num_classes + pool.num_features)
    if _entries_seen < _ENTRIES_WORTH_COMPILING:
        return screen
    with uninterrupted():  # a numba that was imported by half fails in every later query
        from fastbadge import screen_numba

    return screen_numba


def _peak(matrix: Tensor) -> float:
    low, high = torch.aminmax(matrix)
    return max(-float(low), float(high))


def fit_for_float32(error_peak: float, feature_peak: float) -> bool:
    """Whether factors with largest entries of these sizes need no scale."""
    return _scale_for(error_peak) == _scale_for(feature_peak) == 1.0


def _scale_for(peak: float) -> float:
    """1, or the power of two that brings the largest entry near 1 if it is far from it."""
    exponent = math.frexp(peak)[1]
    if peak == 0 or abs(exponent) <= screen.SAFE_EXPONENT:
        return 1.0
    if exponent > _MOST_EXPONENT or exponent < -_MOST_EXPONENT:
        raise InputError(
            f"the largest entry of a factor is {peak:.3g}; expected 1e-60 to 1e60, rescale it"
        )
    return 2.0**-exponent


def _scaled(matrix: Tensor, scale: float) -> Tensor:
    return matrix if scale == 1.0 else matrix.double() * scale
