"""Stochastic batch acquisition: the top k of noisy scores (Kirsch et al., TMLR 2023)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastbadge.errors import InputError
from fastbadge.strategies.bald import check_samples, informations
from fastbadge.strategies.registry import PoolView, register
from fastbadge.strategies.uncertainty import sureness


def _check_beta(beta: float) -> None:
    if not 0 < beta < float("inf"):
        raise InputError(f"beta is {beta}; expected a positive number")


def _check(samples: int, beta: float) -> None:
    check_samples(samples)
    _check_beta(beta)


@register("power_margin", needs=("probabilities",), check=_check_beta)
def power_margin(view: PoolView, k: int, *, generator: Generator, beta: float = 1.0) -> Tensor:
    """Drawn in proportion to 1 - margin, so a batch does not crowd one place; beta=1.

    Power acquisition (Kirsch et al., "Stochastic batch acquisition", TMLR 2023): without
    replacement, with probability proportional to (1 - margin)^beta, by Gumbel top-k.

    Cost: N C and a sort. Rows of equal score are equally likely, duplicates too; k = N gives every
    row in random order; with one class (all margins 1) the draw is uniform.
    """
    return _gumbel_top_k(1 - sureness(view, "margin"), k, beta, generator)


@register("power_bald", needs=("samples",), check=_check)
def power_bald(
    view: PoolView, k: int, *, generator: Generator, samples: int = 20, beta: float = 1.0
) -> Tensor:
    """Drawn in proportion to BALD's mutual information; samples=20, beta=1.

    Power acquisition (Kirsch et al., TMLR 2023) on BALD's score: without replacement, with
    probability proportional to score^beta, by Gumbel top-k. Needs a model with dropout.

    Cost: S forward passes and S N C. Rows of equal score are equally likely, duplicates too; k = N
    gives every row in random order; with one class (all scores 0) the draw is uniform.
    """
    return _gumbel_top_k(informations(view, samples, generator), k, beta, generator)


def _gumbel_top_k(score_N: Tensor, k: int, beta: float, generator: Generator) -> Tensor:
    """K rows drawn one after the other in proportion to score^beta (Kool et al., ICML 2019)."""
    _check_beta(beta)
    uniform_N = torch.rand(len(score_N), dtype=torch.float64, generator=generator)
    gumbel_N = -torch.log(-torch.log(uniform_N.clamp_(1e-300, 1 - 2.0**-53)))
    # A score of 0 is drawn only when nothing else is left, and then uniformly.
    none_N = score_N.cpu() <= 0
    key_N = beta * score_N.cpu().masked_fill(none_N, 1.0).log() + gumbel_N
    order_N = key_N.argsort(descending=True, stable=True)
    return order_N[none_N[order_N].byte().argsort(stable=True)][:k]
