"""Exact D2 sampling (k-means++ seeding) of gradients, in a handful of passes over the pool.

Arthur & Vassilvitskii (2007), Algorithm 1: the first centre, then each next one drawn with
probability proportional to its squared distance to the nearest centre so far. Drawn literally,
k centres cost k passes. Here a proposal is drawn from weights that may be out of date and accepted
with probability (true weight) / (weight it was drawn from). Out-of-date weights are only ever too
large, so this is rejection sampling, and exact whatever happened before (docs/exact.md). The true
weight of one proposal costs one product with the centres that are newer than its weight: 1/N of
bringing all weights up to date, which is done only when rejections have cost as much.

Screen, then settle: products in float32 decide which distances can matter; those few are computed
again in float64 from the definition, in a fixed order. Weights, and so picks, do not depend on
tiles, threads, device or the dtype of the screen.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastbadge.distributed import Job, Terms
from fastbadge.errors import InputError, MassExhaustedWarning, level_outside
from fastbadge.inputs import is_whole
from fastbadge.pools import GradientPool, ScaledPool
from fastbadge.progress import Advance, progress_bar
from fastbadge.rows import GrowingRows, Rows
from fastbadge.sharded import ShardedPool
from fastbadge.weights import LocalWeights, Weights

First: TypeAlias = Literal["max_norm", "uniform"]

# Proposals are drawn in blocks that double from the first to the second size.
_BLOCK_SIZES = (32, 256)

# What things cost, in multiply-adds of a product; only their order of magnitude matters, and they
# are constants, not timings, because the course of the sampling must not depend on the machine.
_COST_OF_PROPOSAL = 100_000
_COST_OF_NUMBER = 40  # of the pool, which is read: memory bounds that, not multiplication
_COST_OF_PAIR = 30


def kmeans_pp(
    emb: GradientPool | ShardedPool,
    k: int,
    *,
    first: First = "max_norm",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    tile_mb: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw k distinct rows of a pool by exact D2 sampling, BADGE's batch.

    Args:
        emb: N gradients, a GradientEmbedding or another pool. With a ShardedPool every process
            of its job calls this and gets the same picks, those of a single process.
        k: how many to draw, 1 <= k <= N.
        first: "max_norm", the gradient of largest norm (the authors' code; ties go to the lowest
            position), or "uniform" (Algorithm 1 of the paper).
        seed: seeds a generator of its own; the same seed gives the same picks for any tile size,
            thread count and device.
        generator: a CPU generator to draw from instead; with neither, the draw is not repeatable.
        tile_mb: MB that the work on one tile of the pool may take, for a card that the pool nearly
            fills; by default 1,024 on a GPU and what fits the cache on a CPU. It changes no pick.
        progress: show how far it is on stderr, once two seconds have passed.

    Returns:
        LongTensor[k] on the CPU: positions in order of choice, never repeated.

    Raises:
        InputError: k outside 1..N, an unknown `first`, both seed and generator.

    Warns:
        MassExhaustedWarning: every remaining gradient equals a chosen one; the rest is uniform.

    Source: Ash et al. (ICLR 2020), Algorithm 1; Arthur & Vassilvitskii (2007), Algorithm 1.

    >>> from fastbadge.gradients import GradientEmbedding
    >>> emb = GradientEmbedding(torch.eye(4), torch.tensor([[1.0], [5.0], [2.0], [1.0]]))
    >>> kmeans_pp(emb, k=4, seed=0).sort().values
    tensor([0, 1, 2, 3])
    >>> int(kmeans_pp(emb, k=1)[0])  # the largest norm comes first
    1
    """
    job = emb.job if isinstance(emb, ShardedPool) else Job(group=False)
    with job.together() as said:
        if not isinstance(emb, ShardedPool) and not hasattr(emb, "factors"):
            raise InputError(
                f"emb is a {type(emb).__name__}; expected a pool of gradients, such as "
                "GradientEmbedding.from_probabilities(probabilities, features)"
            )
        _check_arguments(k, len(emb), first, tile_mb)
        draw = resolve_generator(seed, generator)
        said.here = Terms.of(draw, k=k, first=first, seed=seed)
    job.align(draw, said.everywhere)
    weights: Weights
    if isinstance(emb, ShardedPool):
        weights = emb.weights(tile_mb)
    else:
        weights = LocalWeights(ScaledPool.of(emb, tile_mb))
    return _kmeans_pp(weights, int(k), first, draw, progress)


def _check_arguments(k: int, N: int, first: First, tile_mb: int | None) -> None:
    if not is_whole(k):
        raise InputError(f"k is {k!r}; expected a whole number")
    if not 1 <= k <= N:
        raise InputError(f"k is {k}; expected 1 to {N}, the number of rows in the pool")
    if first not in ("max_norm", "uniform"):
        raise InputError(f"first is {first!r}; expected 'max_norm' or 'uniform'")
    if tile_mb is not None and not (is_whole(tile_mb) and tile_mb >= 1):
        raise InputError(f"tile_mb is {tile_mb!r}; expected a whole number, at least 1")


def resolve_generator(seed: int | None, generator: torch.Generator | None) -> torch.Generator:
    """The CPU generator that `seed` or `generator` stands for; a fresh one for neither.

    >>> resolve_generator(7, None).initial_seed()
    7
    """
    if generator is not None:
        if seed is not None:
            raise InputError(f"got both seed={seed} and a generator; pass one of them")
        if not isinstance(generator, torch.Generator):
            raise InputError(f"generator is a {type(generator).__name__}; expected torch.Generator")
        if generator.device.type != "cpu":
            raise InputError(f"the generator is on {generator.device}; expected one on the CPU")
        return generator
    fresh = torch.Generator("cpu")
    if seed is None:
        fresh.seed()
        return fresh
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed!r}; expected a whole number from 0 to 2**63 - 1")
    return fresh.manual_seed(_seed_of_32_bits(int(seed)))


def _seed_of_32_bits(seed: int) -> int:
    """The seed, or what all of its bits make: torch's CPU generator would use the lowest 32."""
    if seed < 2**32:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4])


def _kmeans_pp(
    pool: Weights, k: int, first: First, generator: torch.Generator, progress: bool
) -> Tensor:
    if first == "max_norm":
        picks = [pool.largest()]
    else:
        picks = [int(torch.randint(len(pool), (1,), generator=generator, device="cpu"))]
    new_centres = pool.rows(np.array(picks))
    # That no pick is repeated rests on no arithmetic: here and in `_walk` what is taken weighs 0.
    pool.take(picks[0])
    acceptance = 0.7  # of proposals from weights that are up to date; measured as we go
    with progress_bar(k, "k-means++", "picks", show=progress) as advance:
        advance(1)
        while len(picks) < k:
            pool.update(new_centres)
            if pool.total == 0:
                picks += _uniform_rest(len(pool), k, picks, generator)
                break
            accepted, new_centres, acceptance = _walk(
                pool, k - len(picks), generator, acceptance, advance
            )
            picks += accepted
    return torch.tensor(picks, device="cpu")


def _walk(
    pool: Weights,
    need: int,
    generator: torch.Generator,
    fresh_acceptance: float,
    advance: Advance,
) -> tuple[list[int], Rows, float]:
    """Draw centres by rejection until enough are found or bringing weights up to date is cheaper.

    Returns the accepted positions, their gradients, and the share of proposals accepted while the
    weights were fresh.
    """
    accepted: list[int] = []
    centres = GrowingRows()
    wasted, size = 0.0, _BLOCK_SIZES[0]
    while pool.total > 0:
        uniform_B, share_B = _uniform(size, generator), _uniform(size, generator)
        proposals = pool.draw(uniform_B, share_B, centres.rows if accepted else None)
        rows, row_B = proposals.rows, proposals.row_B
        taken, weight_B = pool.arithmetic.accept(
            proposals.bar_B, proposals.weight_B, rows, need - len(accepted)
        )
        # A row may be proposed twice in a block: taken once, it is at distance 0 from itself.
        taken = taken[np.sort(np.unique(row_B[taken], return_index=True)[1])]
        centres.append(rows[torch.from_numpy(taken).to(rows.sqnorm_B.device)])
        accepted += row_B[taken].tolist()
        advance(len(taken))
        if len(accepted) == need:
            break
        pool.lower(proposals, weight_B, taken)

        share = (len(taken) + 0.5) / (size + 0.5)
        if size == _BLOCK_SIZES[0]:
            fresh_acceptance = share
        pair = pool.num_columns + _COST_OF_PAIR
        left = need - len(accepted)
        cost_of_update = len(pool) * (_COST_OF_NUMBER * pool.num_columns + pair * len(accepted))
        cost_now = _COST_OF_PROPOSAL + pair * (len(accepted) + left / 2)
        cost_then = _COST_OF_PROPOSAL + pair * left / 2
        wasted += (size - len(taken)) * (_COST_OF_PROPOSAL + pair * len(accepted))
        saved = left * (cost_now / share - cost_then / fresh_acceptance)
        if accepted and max(wasted, saved) > cost_of_update:
            break
        size = min(2 * size, _BLOCK_SIZES[1])
    return accepted, centres.rows, fresh_acceptance


def _uniform(size: int, generator: torch.Generator) -> NDArray[np.float64]:
    # The CPU by name, here and elsewhere: torch.set_default_device may say otherwise.
    uniform_B = torch.rand(size, dtype=torch.float64, generator=generator, device="cpu")
    return uniform_B.numpy()


def _uniform_rest(num_rows: int, k: int, picks: list[int], generator: torch.Generator) -> list[int]:
    """What is missing to k, drawn uniformly from the unchosen; the caller is told how many."""
    unchosen = np.setdiff1d(np.arange(num_rows), picks)
    missing = k - len(picks)
    warnings.warn(
        f"every remaining gradient equals a chosen one after {len(picks)} picks; "
        f"the last {missing} of {k} were drawn uniformly",
        MassExhaustedWarning,
        stacklevel=level_outside(),
    )
    order = torch.randperm(len(unchosen), generator=generator, device="cpu")[:missing].numpy()
    picked: list[int] = unchosen[order].tolist()
    return picked
