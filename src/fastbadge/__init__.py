"""BADGE and its neighbours: which examples to label next."""

from importlib.metadata import version

from fastbadge.errors import (
    DataError,
    DistributedError,
    FastbadgeError,
    InputError,
    MassExhaustedWarning,
    OutOfMemoryWarning,
    RunError,
)
from fastbadge.gradients import GradientEmbedding
from fastbadge.kmeanspp import kmeans_pp
from fastbadge.pools import DiskPool
from fastbadge.select import compute_gradient_embedding, select, select_from_arrays
from fastbadge.sharded import ShardedPool
from fastbadge.strategies import PoolView, register, strategy_names

__version__ = version("fastbadge")

__all__ = [
    "DataError",
    "DiskPool",
    "DistributedError",
    "FastbadgeError",
    "GradientEmbedding",
    "InputError",
    "MassExhaustedWarning",
    "OutOfMemoryWarning",
    "PoolView",
    "RunError",
    "ShardedPool",
    "__version__",
    "compute_gradient_embedding",
    "kmeans_pp",
    "register",
    "select",
    "select_from_arrays",
    "strategy_names",
]
