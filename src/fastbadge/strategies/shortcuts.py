"""BADGE on a part of the pool: what people do to make it bearable, kept to measure what it costs.

Where the part is the whole (`candidates` >= N), both are BADGE itself, pick for pick: nothing is
drawn from the generator before.
"""

import torch
from torch import Generator, Tensor

from fastbadge.errors import InputError
from fastbadge.kmeanspp import kmeans_pp
from fastbadge.pools import SubsetPool
from fastbadge.strategies.registry import PoolView, register
from fastbadge.strategies.uncertainty import Measure, least_sure


def _check_candidates(k: int, candidates: int) -> None:
    if k > candidates:
        raise InputError(f"k is {k} but candidates is {candidates}; expected at least k")


@register("badge_subset", needs=("gradients",), check=_check_candidates)
def badge_subset(view: PoolView, k: int, *, generator: Generator, candidates: int = 5000) -> Tensor:
    """BADGE on a uniform random subset of the pool; candidates=5000.

    Cost: N, then that of BADGE (Ash et al., ICLR 2020) for `candidates` rows. Duplicates, ties and
    one class are as BADGE has them; k beyond `candidates` is refused.
    """
    _check_candidates(k, candidates)
    row_M = torch.arange(view.size)
    if candidates < view.size:
        row_M = torch.randperm(view.size, generator=generator)[:candidates]
    return _badge_among(row_M, view, k, generator)


@register("badge_proxy", needs=("probabilities", "gradients"), check=_check_candidates)
def badge_proxy(
    view: PoolView,
    k: int,
    *,
    generator: Generator,
    candidates: int = 5000,
    by: Measure = "least_confidence",
) -> Tensor:
    """BADGE on the rows the model is least sure of; candidates=5000, by=least_confidence.

    Cost: N C, then that of BADGE (Ash et al., ICLR 2020) for `candidates` rows. Rows as sure as
    each other become candidates from the lowest position; duplicates, ties and one class are then
    as BADGE has them; k beyond `candidates` is refused.
    """
    _check_candidates(k, candidates)
    return _badge_among(least_sure(view, candidates, by), view, k, generator)


def _badge_among(row_M: Tensor, view: PoolView, k: int, generator: Generator) -> Tensor:
    assert view.embedding is not None
    # Ascending, as in the pool: of equal norms the lowest position is the first centre.
    row_M = row_M.to(view.embedding.device).sort().values
    subset = SubsetPool(view.embedding, row_M)
    picks_K = kmeans_pp(subset, k, generator=generator, progress=view.progress)
    return row_M.cpu()[picks_K]
