"""Slow, short and independent: what the package is held against."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats
import torch


def dense_gradients(error_NC: torch.Tensor, feature_ND: torch.Tensor) -> np.ndarray:
    return np.stack(
        [np.outer(a, h).ravel() for a, h in zip(error_NC.numpy(), feature_ND.numpy(), strict=True)]
    ).astype(np.float64)


def sqdist_matrix(points_NP: np.ndarray) -> np.ndarray:
    return ((points_NP[:, None, :] - points_NP[None, :, :]) ** 2).sum(axis=2)


def sequence_probabilities(
    points_NP: np.ndarray, k: int, first: Sequence[float]
) -> dict[tuple[int, ...], float]:
    """Probability of every sequence of k centres under D2 sampling, by enumeration."""
    sqdist_NN = sqdist_matrix(points_NP)
    table = {}
    for sequence in itertools.permutations(range(len(points_NP)), k):
        probability = first[sequence[0]]
        for step in range(1, k):
            weight_N = sqdist_NN[list(sequence[:step])].min(axis=0)
            probability *= weight_N[sequence[step]] / weight_N.sum()
        if probability > 0:
            table[sequence] = probability
    return table


def chi_square_p_value(
    draw: Callable[[int], Sequence[int]], table: dict[tuple[int, ...], float], draws: int
) -> float:
    """p-value of `draws` seeded sequences against their probabilities.

    Sequences expected fewer than five times share one cell; an impossible one gives 0.
    """
    seen = Counter(tuple(draw(seed)) for seed in range(draws))
    if any(sequence not in table for sequence in seen):
        return 0.0
    common = [s for s in table if table[s] * draws >= 5]
    observed = [seen[s] for s in common]
    expected = [table[s] * draws for s in common]
    if len(common) < len(table):
        observed.append(draws - sum(observed))
        expected.append(draws - sum(expected))
    return float(scipy.stats.chisquare(observed, expected).pvalue)


def literal_d2_sampling(
    points_NP: np.ndarray,
    k: int,
    rng: np.random.Generator,
    *,
    power: float = 2.0,
    trials: int = 1,
    origin_is_centre: bool = False,
) -> list[int]:
    """One centre at a time on the dense matrix; the options are the classic mistakes.

    power=1 uses distances for squared distances; trials > 1 is greedy k-means++;
    origin_is_centre counts the origin as chosen.
    """
    picks = [int((points_NP**2).sum(axis=1).argmax())]
    weight_N = np.linalg.norm(points_NP - points_NP[picks[0]], axis=1) ** power
    if origin_is_centre:
        weight_N = np.minimum(weight_N, np.linalg.norm(points_NP, axis=1) ** power)
    while len(picks) < k:
        candidates = rng.choice(len(points_NP), size=trials, p=weight_N / weight_N.sum())
        after = [
            np.minimum(weight_N, np.linalg.norm(points_NP - points_NP[c], axis=1) ** power)
            for c in candidates
        ]
        best = int(np.argmin([w.sum() for w in after]))
        picks.append(int(candidates[best]))
        weight_N = after[best]
        weight_N[picks] = 0.0
    return picks
