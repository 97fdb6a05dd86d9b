"""Slow, short and independent: what the package is held against."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import nn
from torch.nn import functional as F

import fastbadge as fb


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


def images(count: int = 6, channels: int = 3, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, size, size, generator=generator)


def loss_of(logits: torch.Tensor, task: str) -> torch.Tensor:
    """Cross-entropy of one example's logits against the model's own prediction."""
    if task == "multiclass":
        return F.cross_entropy(logits, logits.argmax(dim=1))
    return F.binary_cross_entropy_with_logits(logits, (logits > 0).to(logits), reduction="sum")


def assert_gradients(
    model: nn.Module,
    pool: Any,
    weight: torch.Tensor,
    logits_of: Callable[[nn.Module, Any], torch.Tensor],
    *,
    examples: Sequence[Any] | None = None,
    task: str = "multiclass",
    **options: Any,
) -> None:
    """The embedding's gradients are those of autograd, one backward pass an example.

    `logits_of(model, example)` are the logits of a batch of one, `examples` those batches.
    """
    emb = fb.compute_gradient_embedding(model, pool, task=task, **options)
    examples = [row[None] for row in pool] if examples is None else examples
    assert len(emb) == len(examples)
    training = model.training
    model.eval()
    frozen = weight.requires_grad
    weight.requires_grad_(True)
    rows = [
        torch.autograd.grad(loss_of(logits_of(model, example), task), weight)[0].flatten()
        for example in examples
    ]
    weight.requires_grad_(frozen)
    model.train(training)
    expected = torch.stack(rows)
    assert float(expected.abs().amax()) > 0
    scale = float(expected.abs().amax())
    torch.testing.assert_close(emb.dense(), expected, rtol=1e-3, atol=1e-4 * scale)


def plain(model: nn.Module, example: torch.Tensor) -> torch.Tensor:
    return model(example)
