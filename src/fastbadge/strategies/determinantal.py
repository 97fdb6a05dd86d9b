"""Batches of large volume: determinants of gradients, sampled exactly or in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fastbadge.errors import InputError
from fastbadge.pools import GradientPool
from fastbadge.strategies.greedy import with_uniform_rest
from fastbadge.strategies.registry import PoolView, register

# Matrices of C D x C D are held and, for kdpp, decomposed: 134 MB and 20 s for this many.
_MOST_COLUMNS = 4096
# Where kdpp's rows stand in the span of k eigenvectors, in float64: 2 GB for this many, enough for
# 60,000 rows of the most columns.
_MOST_IN_SPAN = 1 << 28
_TILE_ENTRIES = 1 << 22


@register("kdpp", needs=("gradients",))
def kdpp(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Large volume: k gradients drawn with probability proportional to their squared volume.

    k-DPP on the last layer's gradients (Kulesza & Taskar, ICML 2011; the BADGE paper's sampler
    comparison), exact: k eigenvectors of the dual kernel (C D x C D) are drawn by elementary
    symmetric polynomials, and rows from their span one by one.

    Cost: N (C D)^2 + (C D)^3 + N k (C D + k) in float64; memory (C D)^2 and N k. C D beyond 4,096
    is refused, and N k beyond 268 million (k counts up to C D).

    Duplicates are never drawn together: their volume is 0. Beyond the rank of the gradients, where
    every volume is 0 (k > C D always), a set of full rank is drawn and the rest uniformly; so
    k = N gives every row. With one class all gradients are 0 and the draw is uniform.
    """
    assert view.embedding is not None
    pool = view.embedding
    check_columns("kdpp", pool)
    columns = pool.num_classes * pool.num_features
    entries = view.size * min(k, columns)
    if entries > _MOST_IN_SPAN:
        raise InputError(
            f"strategy 'kdpp' holds k numbers for every example, N k = {entries:,}; at most "
            f"{_MOST_IN_SPAN:,} fit: lower k, pass a part of the pool, or use badge"
        )
    dual = torch.zeros(columns, columns, dtype=torch.float64, device=pool.device)
    for _, gradient_BP in _gradients(pool):
        dual += gradient_BP.T @ gradient_BP
    value_P, vector_PP = torch.linalg.eigh(dual)
    top = float(value_P[-1])
    kept = (value_P > top * len(value_P) * 2.0**-50).nonzero()[:, 0] if top > 0 else []
    rank = len(kept)
    if rank == 0:
        return with_uniform_rest([], view.size, k, generator)
    drawn = _eigenvectors(value_P[kept].cpu().numpy(), min(k, rank), generator)
    index = kept[torch.from_numpy(drawn).to(pool.device)]
    basis_PK = vector_PP[:, index] / value_P[index].sqrt()
    span_NK = torch.empty(view.size, len(drawn), dtype=torch.float64)
    for rows, gradient_BP in _gradients(pool):
        span_NK[rows] = (gradient_BP @ basis_PK).cpu()
    picks = _from_span(span_NK, generator)
    return with_uniform_rest(picks, view.size, k, generator)


def _eigenvectors(value_R: NDArray[np.float64], k: int, generator: Generator) -> NDArray[np.int64]:
    """K indices drawn with probability proportional to the product of their eigenvalues."""
    R, log_R = len(value_R), np.log(value_R)
    # log_e[l, r]: of the elementary symmetric polynomial of degree l in the first r values.
    log_e = np.full((k + 1, R + 1), -np.inf)
    log_e[0] = 0.0
    for r in range(1, R + 1):
        log_e[1:, r] = np.logaddexp(log_e[1:, r - 1], log_R[r - 1] + log_e[:-1, r - 1])
    uniform_R = torch.rand(R, dtype=torch.float64, generator=generator).numpy()
    drawn: list[int] = []
    for r in range(R, 0, -1):
        left = k - len(drawn)
        if left == 0:
            break
        share = np.exp(log_R[r - 1] + log_e[left - 1, r - 1] - log_e[left, r])
        if left == r or uniform_R[r - 1] < share:
            drawn.append(r - 1)
    return np.array(drawn)


def _from_span(span_NK: Tensor, generator: Generator) -> list[int]:
    """K rows of the elementary DPP whose kernel is span span^T (orthonormal columns)."""
    N, K = span_NK.shape
    weight_N = span_NK.square().sum(dim=1)
    direction_KK = torch.zeros(K, K, dtype=torch.float64)  # of the picks, orthonormal rows
    picks: list[int] = []
    for uniform in torch.rand(K, dtype=torch.float64, generator=generator).tolist():
        cumulative_N = weight_N.cumsum(dim=0)
        target = uniform * cumulative_N[-1]
        row = min(int(torch.searchsorted(cumulative_N, target, right=True)), N - 1)
        taken_JK = direction_KK[: len(picks)]
        residual_K = span_NK[row].clone()
        for _ in range(2):  # twice is enough: Gram-Schmidt again for what rounding has left
            residual_K -= taken_JK.T @ (taken_JK @ residual_K)
        direction_KK[len(picks)] = residual_K / residual_K.norm()
        weight_N = (weight_N - (span_NK @ direction_KK[len(picks)]).square_()).clamp_min_(0)
        picks.append(row)
        weight_N[torch.tensor(picks)] = 0.0
    return picks


def _check(regularization: float) -> None:
    if not 0 < regularization < float("inf"):
        raise InputError(f"vessal: regularization is {regularization}; expected a positive number")


@register("vessal", needs=("gradients",), check=_check)
def vessal(view: PoolView, k: int, *, generator: Generator, regularization: float = 0.01) -> Tensor:
    """Large volume in one pass: each example is taken or left as it comes; regularization=0.01.

    VeSSAL (Saran et al., ICML 2023, Algorithm 1): example t of the stream, the pool in its order,
    is taken with probability rate * g' S^-1 g / tr(S^-1 A), S being the regularised sum of g g' of
    the taken ones, A the mean of g g' of those met so far, it included, and rate the picks still
    to make over the examples still to come. One pass, one uniform number an example. Where the
    stream ends before k are taken, the rest is drawn uniformly from those left.

    Cost: 2 (N + k) (C D)^2 in float64, memory (C D)^2; C D beyond 4,096 is refused.

    A duplicate of a taken example has a small chance, none is excluded; k = N gives every row; with
    one class all gradients are 0, none is taken and the draw is uniform. There are no ties.
    """
    assert view.embedding is not None
    pool = view.embedding
    check_columns("vessal", pool)
    _check(regularization)
    N, columns = view.size, pool.num_classes * pool.num_features
    uniform_N = torch.rand(N, dtype=torch.float64, generator=generator).numpy()
    inverse = torch.eye(columns, dtype=torch.float64, device=pool.device) / regularization
    met = torch.zeros_like(inverse)  # the sum of g g' so far
    picks: list[int] = []
    for rows, gradient_BP in _gradients(pool):
        start = rows.start
        sqnorm_B = ((gradient_BP @ inverse) * gradient_BP).sum(dim=1)  # g' S^-1 g
        while len(gradient_BP) and len(picks) < k:
            own_B = sqnorm_B.cpu().numpy()
            trace_B = float((inverse * met).sum()) + own_B.cumsum()
            time_B = np.arange(start, start + len(own_B))
            rate_B = (k - len(picks)) / (N - time_B)
            # Where all was 0 so far, 0 is what the probability is.
            share_B = own_B * (time_B + 1) / np.maximum(trace_B, 1e-300)
            taken = np.flatnonzero(uniform_N[time_B] < rate_B * share_B)
            end = int(taken[0]) + 1 if len(taken) else len(own_B)
            met += gradient_BP[:end].T @ gradient_BP[:end]
            last_P, start = gradient_BP[end - 1], start + end
            gradient_BP, sqnorm_B = gradient_BP[end:], sqnorm_B[end:]
            if len(taken):
                picks.append(start - 1)
                lifted_P = inverse @ last_P
                lifted_P /= (1 + last_P @ lifted_P).sqrt()
                inverse -= torch.outer(lifted_P, lifted_P)
                sqnorm_B = (sqnorm_B - (gradient_BP @ lifted_P).square_()).clamp_min_(0)
    return with_uniform_rest(picks, N, k, generator)


def check_columns(name: str, pool: GradientPool) -> None:
    """Refuse gradients too long for matrices of their length squared."""
    columns = pool.num_classes * pool.num_features
    if columns > _MOST_COLUMNS:
        raise InputError(
            f"strategy {name!r} holds matrices of C D x C D, and C D is {columns:,}; at most "
            f"{_MOST_COLUMNS:,} here: use badge, which needs none"
        )


def _gradients(pool: GradientPool) -> Iterator[tuple[slice, Tensor]]:
    """The gradients themselves, float64 [B, C D], a few rows at a time."""
    B = max(1, _TILE_ENTRIES // (pool.num_classes * pool.num_features))
    for start in range(0, len(pool), B):
        rows = slice(start, min(start + B, len(pool)))
        error_BC, feature_BD = pool.factors(rows)
        yield rows, torch.einsum("bc,bd->bcd", error_BC.double(), feature_BD.double()).flatten(1)
