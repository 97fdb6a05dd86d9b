"""BADGE: batch active learning by diverse gradient embeddings (Ash et al., ICLR 2020)."""

from torch import Generator, Tensor

from fastbadge.kmeanspp import kmeans_pp
from fastbadge.strategies.registry import PoolView, register


@register("badge", needs=("gradients",))
def badge(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Uncertain and diverse: k-means++ seeding on the last layer's gradients."""
    assert view.embedding is not None
    return kmeans_pp(view.embedding, k, generator=generator, progress=view.progress)
