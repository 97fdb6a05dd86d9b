"""The classifiers of the experiments."""

from __future__ import annotations

import itertools

import torch
from torch import nn


def mlp(
    num_features: int, hidden: tuple[int, ...], num_classes: int, *, generator: torch.Generator
) -> nn.Sequential:
    """A multi-layer perceptron with ReLU, its weights drawn from `generator` alone.

    Weights and biases are uniform within 1 / sqrt(inputs), as `nn.Linear` draws them by default
    (He et al. 2015 with a = sqrt(5)), but without the global generator.

    Args:
        num_features: F, the width of an example.
        hidden: widths of the hidden layers; the last is what gradients are made of.
        num_classes: C, the number of logits.
        generator: on the CPU; so are the weights.

    >>> mlp(4, (3,), 2, generator=torch.Generator().manual_seed(0))
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise((num_features, *hidden, num_classes)):
        # By way of meta: the default initialisation would draw from the global generator.
        linear = nn.Linear(width_in, width_out, device="meta").to_empty(device="cpu")
        bound = width_in**-0.5
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
