"""Which examples to choose: one file a family, one table."""

from fastbadge.strategies import badge, random, shortcuts, uncertainty
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
    "badge",
    "get_strategy",
    "random",
    "register",
    "shortcuts",
    "strategy_names",
    "uncertainty",
]
