"""The model of a round: a head on fixed features, trained anew from the labels there are.

From scratch, not warm: a network trained further on new labels generalises worse than one trained
on all of them from the start (Ash & Adams, NeurIPS 2020), and a few hundred labels take half a
second. So a round depends on its labels and its seed, not on how they came.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional

from fastbadge.label.project import Arrays

# Measured on MNIST's pixels, BADGE, batches of 20: labels to 90 % test accuracy are 1,224 with a
# linear head and 408 to 476 with 128 hidden units, 256 bring nothing more. benchmarks/label.py
_STEPS = 200
_BATCH = 128
_LEARNING_RATE = 0.08  # divided by sqrt(D): 3e-3 for MNIST's pixels
_WEIGHT_DECAY = 0.01

# The pool is read so many rows at a time: 25 MB of 768 features.
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """logits = W h + b, with h = relu(U z + a), or h = z where there is no hidden layer.

    z = (features - mean_D) / scale_D. All float32.
    """

    mean_D: Tensor
    scale_D: Tensor
    layers: tuple[Tensor, ...]  # (U, a,) W, b

    def hidden(self, feature_BD: Tensor) -> Tensor:
        """What the last layer reads, [B, H]."""
        z_BD = (feature_BD - self.mean_D) / self.scale_D
        return _hidden(z_BD, self.layers)

    def outputs(
        self, feature_ND: NDArray[np.float32], row_M: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Logits [M, C] and inputs of the last layer [M, H] for some rows of features on disk."""
        logits, hiddens = [], []
        with torch.inference_mode():
            for start in range(0, len(row_M), _ROWS_AT_ONCE):
                rows = row_M[start : start + _ROWS_AT_ONCE]
                hidden_BH = self.hidden(torch.from_numpy(np.take(feature_ND, rows, axis=0)))
                hiddens.append(hidden_BH)
                logits.append(functional.linear(hidden_BH, *self.layers[-2:]))
        width = self.layers[-2].shape
        if not logits:
            return torch.empty(0, width[0]), torch.empty(0, width[1])
        return torch.cat(logits), torch.cat(hiddens)

    def arrays(self) -> Arrays:
        """The weights by name, to be kept: mean, scale, weight_1, bias_1 (, weight_2, bias_2)."""
        names = [f"{kind}_{i}" for i in (1, 2) for kind in ("weight", "bias")]
        tensors = dict(zip(names, self.layers, strict=False))
        return {
            n: t.numpy()
            for n, t in ({"mean": self.mean_D, "scale": self.scale_D} | tensors).items()
        }


def feature_scale(feature_ND: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Mean [D], and what to divide by [D]: sqrt(s_d² + mean s²) with standard deviations s.

    The second term keeps columns that hardly vary small (a pixel at the border that is set in one
    image of 10,000 would else be a hundred deviations away). At most 5,000 rows are read, drawn
    with a fixed seed: every twelfth may all be of one kind.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(feature_ND))[:5000])
    sample = np.take(feature_ND, rows, axis=0)
    sample = sample[np.isfinite(sample).all(axis=1)].astype(np.float64)
    mean_D, var_D = sample.mean(axis=0), sample.var(axis=0)
    scale_D = np.sqrt(var_D + (var_D.mean() or 1.0))
    return torch.from_numpy(mean_D).float(), torch.from_numpy(scale_D).float()


def train_head(
    feature_LD: Tensor,
    label_L: Tensor,
    num_classes: int,
    *,
    scale: tuple[Tensor, Tensor],
    hidden: int,
    seed: int,
) -> Head:
    """Train on all labels: AdamW, 200 steps of at most 128 examples, the rate falling to 0.

    Args:
        feature_LD: float32 [L, D].
        label_L: int64 [L], 0 to C - 1.
        num_classes: C, of which some may have no label yet.
        scale: of `feature_scale`, for the whole pool.
        hidden: width of the hidden layer; 0 for none.
        seed: of the initial weights and of the batches.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> head = train_head(x, y, 2, scale=feature_scale(x.numpy()), hidden=0, seed=0)
    >>> head.outputs(x.numpy(), np.arange(4))[0].argmax(dim=1)
    tensor([0, 0, 1, 1])
    """
    draw = Generator().manual_seed(seed)
    mean_D, scale_D = scale
    z_LD = (feature_LD - mean_D) / scale_D
    layers = list(_initial_layers(z_LD.shape[1], hidden, num_classes, draw))
    for layer in layers:
        layer.requires_grad_()
    optimizer = _AdamW(layers, min(_LEARNING_RATE / z_LD.shape[1] ** 0.5, 0.03))
    for row_B in _batches(len(label_L), draw):
        logit_BC = functional.linear(_hidden(z_LD[row_B], layers), layers[-2], layers[-1])
        loss = functional.cross_entropy(logit_BC, label_L[row_B])
        optimizer.step(torch.autograd.grad(loss, layers))
    return Head(mean_D, scale_D, tuple(layer.detach() for layer in layers))


class _AdamW:
    """Loshchilov & Hutter (ICLR 2019), the rate falling to 0 by a cosine over _STEPS.

    As torch.optim.AdamW, which to be made loads torch's compiler: 3 s at a server's first round.
    """

    def __init__(self, layers: list[Tensor], rate: float) -> None:
        self.layers, self.rate, self.steps = layers, rate, 0
        self.means = [torch.zeros_like(layer) for layer in layers]
        self.squares = [torch.zeros_like(layer) for layer in layers]

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, ...]) -> None:
        rate = self.rate * (1 + math.cos(math.pi * self.steps / _STEPS)) / 2
        self.steps += 1
        unbias_mean, unbias_square = 1 - 0.9**self.steps, 1 - 0.999**self.steps
        for layer, mean, square, gradient in zip(
            self.layers, self.means, self.squares, gradients, strict=True
        ):
            mean.lerp_(gradient, 0.1)
            square.lerp_(gradient**2, 0.001)
            layer.mul_(1 - rate * _WEIGHT_DECAY)
            deviation = (square / unbias_square).sqrt_().add_(1e-8)
            layer.addcdiv_(mean, deviation, value=-rate / unbias_mean)


def _hidden(z_BD: Tensor, layers: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return z_BD if len(layers) == 2 else functional.linear(z_BD, layers[0], layers[1]).relu()


def _initial_layers(D: int, hidden: int, C: int, draw: Generator) -> Iterator[Tensor]:
    widths = [D, hidden, C] if hidden else [D, C]
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        gain = 2.0 if i + 2 < len(widths) else 1.0  # He, then plain
        yield torch.randn(outputs, inputs, generator=draw) * (gain / inputs) ** 0.5
        yield torch.zeros(outputs)


def _batches(L: int, draw: Generator) -> Iterator[Tensor]:
    """Rows of each step: passes over all labels, each in an order of its own."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(_STEPS):
        if len(order) < min(L, _BATCH):
            order = torch.cat([order, torch.randperm(L, generator=draw)])
        yield order[:_BATCH]
        order = order[_BATCH:]
