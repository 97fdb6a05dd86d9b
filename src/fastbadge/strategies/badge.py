"""BADGE: batch active learning by diverse gradient embeddings (Ash et al., ICLR 2020)."""

from torch import Generator, Tensor

from fastbadge.kmeanspp import kmeans_pp
from fastbadge.pools import GradientPool
from fastbadge.sharded import ShardedPool
from fastbadge.strategies.registry import PoolView, register


@register("badge", needs=("gradients",), sharded=True)
def badge(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Uncertain and diverse: k-means++ seeding on the last layer's gradients.

    BADGE (Ash et al., ICLR 2020, Algorithm 1): after the gradient of largest norm each is drawn
    with probability proportional to its squared distance to the nearest one so far (`kmeans_pp`).

    Cost: N k (C + D) multiplications at most, of which bounds save most, in a few passes over the
    pool; memory N (C + D).

    Of the largest norms the lowest position is first. A duplicate of a pick is drawn only where
    nothing else is left; then, as with one class, where all gradients are 0, the rest is uniform
    and a warning tells how many. k = N gives every row.
    """
    emb: GradientPool | ShardedPool | None = view.embedding
    if view.shard is not None:
        emb = ShardedPool(view.embedding, view.shard.job.group, sizes=view.shard.sizes)
    assert emb is not None
    return kmeans_pp(emb, k, generator=generator, progress=view.progress)
