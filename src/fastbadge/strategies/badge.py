"""BADGE: batch active learning by diverse gradient embeddings (Ash et al., ICLR 2020)."""

from torch import Generator, Tensor

from fastbadge.kmeanspp import kmeans_pp
from fastbadge.pools import GradientPool
from fastbadge.sharded import ShardedPool
from fastbadge.strategies.registry import PoolView, register


@register("badge", needs=("gradients",), sharded=True)
def badge(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Uncertain and diverse: k-means++ seeding on the last layer's gradients."""
    emb: GradientPool | ShardedPool | None = view.embedding
    if view.shard is not None:
        emb = ShardedPool(view.embedding, view.shard.job.group, sizes=view.shard.sizes)
    assert emb is not None
    return kmeans_pp(emb, k, generator=generator, progress=view.progress)
