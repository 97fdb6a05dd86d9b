"""Where every random number of an experiment comes from."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import torch

Purpose: TypeAlias = Literal["split", "initial labels", "weights", "shuffling", "query"]


def seed_for(seed: int, trial: int, round: int, purpose: Purpose) -> int:
    """A seed of 32 bits that depends on its four arguments and on nothing else.

    So no number depends on the order or the process in which trials run, and the strategies of a
    trial, which do not enter here, share their initial labels, weights and shuffling.

    >>> seed_for(0, 1, 2, "weights") == seed_for(0, 1, 2, "query")
    False
    """
    key = f"{seed}/{trial}/{round}/{purpose}".encode()
    # 32 bits: torch's CPU generator uses no more of what it is seeded with.
    return int.from_bytes(hashlib.sha256(key).digest()[:4])


def generator_for(seed: int, trial: int, round: int, purpose: Purpose) -> torch.Generator:
    """A CPU generator seeded by `seed_for`.

    >>> generator_for(0, 0, 0, "query").initial_seed() == seed_for(0, 0, 0, "query")
    True
    """
    return torch.Generator().manual_seed(seed_for(seed, trial, round, purpose))
