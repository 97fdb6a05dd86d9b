"""The baseline every strategy has to beat."""

import torch
from torch import Generator, Tensor

from fastbadge.strategies.registry import PoolView, register


@register("random")
def random(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Uniform without replacement; the model is not run.

    Cost: N. Duplicates, ties and classes do not matter; k = N gives every row in random order.
    """
    return torch.randperm(view.size, generator=generator, device="cpu")[:k]
