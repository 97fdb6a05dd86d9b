"""Which examples to choose: one file a family, one table."""

from fastbadge.strategies import (
    albl,
    badge,
    bait,
    bald,
    batchbald,
    clusters,
    coreset,
    coverage,
    determinantal,
    power,
    random,
    shortcuts,
    uncertainty,
)
from fastbadge.strategies.registry import (
    PoolView,
    Registered,
    Strategy,
    get_strategy,
    register,
    strategy_names,
)

__all__ = [
    "PoolView",
    "Registered",
    "Strategy",
    "albl",
    "badge",
    "bait",
    "bald",
    "batchbald",
    "clusters",
    "coreset",
    "coverage",
    "determinantal",
    "get_strategy",
    "power",
    "random",
    "register",
    "shortcuts",
    "strategy_names",
    "uncertainty",
]
