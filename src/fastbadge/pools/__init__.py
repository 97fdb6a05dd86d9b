"""Where an embedding lives, and what the sampler sees of it."""

from fastbadge.pools.arrays import ArrayPool, DenseWhenRead
from fastbadge.pools.disk import DiskPool, write_pool
from fastbadge.pools.interface import GradientPool
from fastbadge.pools.scaled import ScaledPool, fit_for_float32, load_arithmetic
from fastbadge.pools.subset import SubsetPool

__all__ = [
    "ArrayPool",
    "DenseWhenRead",
    "DiskPool",
    "GradientPool",
    "ScaledPool",
    "SubsetPool",
    "fit_for_float32",
    "load_arithmetic",
    "write_pool",
]
