"""The baseline every strategy has to beat."""

import torch
from torch import Generator, Tensor

from fastbadge.strategies.registry import PoolView, register


@register("random")
def random(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Uniform without replacement; the model is not run."""
    return torch.randperm(view.size, generator=generator, device="cpu")[:k]
