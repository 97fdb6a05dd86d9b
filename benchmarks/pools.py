"""Pools that queries are timed on: a real model's, and synthetic ones of set confidence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from fastbadge import GradientEmbedding, compute_gradient_embedding
from fastbadge.lab.datasets import load_dataset
from fastbadge.lab.models import mlp
from fastbadge.lab.protocol import config_for
from fastbadge.lab.seeds import generator_for
from fastbadge.lab.training import train


def mnist_pool(data_dir: Path, labels: int = 1000) -> GradientEmbedding:
    """The 60,000 training images as an MLP of protocol **classic** sees them: 60,000 x (10, 64)."""
    dataset = load_dataset("mnist", data_dir=data_dir)
    config = config_for("mnist")
    model = mlp(784, config.hidden, 10, generator=generator_for(0, 0, 0, "weights"))
    known = torch.randperm(
        len(dataset.y_pool_N), generator=generator_for(0, 0, 0, "initial labels")
    )[:labels]
    shuffling = generator_for(0, 0, 0, "shuffling")
    train(model, dataset.x_pool_NF[known], dataset.y_pool_N[known], config, generator=shuffling)
    return compute_gradient_embedding(model, dataset.x_pool_NF)


def synthetic_pool(N: int, C: int, D: int, mean_top: float, *, seed: int = 0) -> GradientEmbedding:
    """Features around one centre a class, after a ReLU, under a linear head.

    The head's temperature is set so that the mean probability of the predicted class is
    `mean_top`: the higher, the heavier the tail of the gradient norms.
    """
    error_NC, feature_ND = torch.empty(N, C), torch.empty(N, D)
    start = 0
    for batch in synthetic_batches(N, C, D, mean_top, seed=seed):
        part = slice(start, start + len(batch))
        error_NC[part], feature_ND[part] = batch.error_NC, batch.feature_ND
        start = part.stop
    return GradientEmbedding(error_NC, feature_ND)


def synthetic_batches(
    N: int, C: int, D: int, mean_top: float, *, seed: int = 0, rows: int = 1 << 16
) -> Iterator[GradientEmbedding]:
    """The same pool a batch at a time, for those that do not fit into memory."""
    generator = torch.Generator().manual_seed(seed)
    centre_CD = torch.randn(C, D, generator=generator)
    temperature = None
    for start in range(0, N, rows):
        B = min(rows, N - start)
        class_B = torch.randint(C, (B,), generator=generator)
        feature_BD = torch.randn(B, D, generator=generator).mul_(1.5).add_(centre_CD[class_B])
        feature_BD.relu_()
        logit_BC = feature_BD @ centre_CD.T
        temperature = temperature or _temperature_for(logit_BC[:20_000], mean_top)
        yield GradientEmbedding.from_logits(logit_BC.mul_(temperature), feature_BD)


def _temperature_for(logit_BC: torch.Tensor, mean_top: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        top = float((logit_BC * middle).softmax(dim=1).amax(dim=1).mean())
        low, high = (middle, high) if top < mean_top else (low, middle)
    return low
