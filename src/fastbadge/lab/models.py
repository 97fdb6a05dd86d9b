"""The classifiers of the experiments: rows in, logits out, weights from the given generator alone.

Models for images are those for 32 x 32 pixels: a first convolution of 3 x 3 without a stride, and
no pooling before the first block. What their BatchNorm keeps for testing moves by a tenth each
step: give them train_batch so small that a round's training has some 30 steps.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastbadge.errors import InputError
from fastbadge.plugins import import_function

MODELS = ("mlp", "linear", "resnet18", "vgg11")


def build_model(
    name: str,
    shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden: tuple[int, ...] = (),
    dropout: float = 0.0,
    generator: torch.Generator,
) -> nn.Module:
    """A fresh model whose input is rows, whatever the shape of an example.

    Args:
        name: one of `MODELS`; or MODULE:FUNCTION, a function of yours, called with `shape` and
            `num_classes`, that returns a model of batches [B, *shape]. What it draws from torch's
            global generator comes from `generator` instead.
        shape: of one example: (channels, height, width) of an image, else (F,).
        num_classes: C, the number of logits.
        hidden: widths of the hidden layers; for mlp.
        dropout: share of each hidden layer that training drops; for mlp.
        generator: on the CPU; so are the weights.

    Raises:
        InputError: an unknown name, images that the model is not made for, hidden layers that do
            not fit into memory, a function that is not there or does not give a model with C
            logits.

    >>> build_model("linear", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0))
    Linear(in_features=64, out_features=10, bias=True)
    """
    check_model_name(name)
    num_features = math.prod(shape)
    if name == "mlp":
        _check_fits((num_features, *hidden, num_classes))
        return mlp(num_features, hidden, num_classes, dropout=dropout, generator=generator)
    if name == "resnet18":
        _check_images(name, shape, least=9)  # below, its last maps are single pixels
        return resnet18(shape, num_classes, generator=generator)
    if name == "vgg11":
        _check_images(name, shape, least=32)  # five halvings
        return vgg11(shape, num_classes, generator=generator)
    with drawing_from(generator):
        if name == "linear":
            return nn.Linear(num_features, num_classes)
        return _own(name, shape, num_classes)


def check_model_name(name: str) -> None:
    """Refuse a name that is neither known nor that of a function that can be imported.

    Raises:
        InputError: with the known names, or why the function cannot be had.

    >>> check_model_name("resnet")
    Traceback (most recent call last):
        ...
    fastbadge.errors.InputError: model is 'resnet'; expected mlp, linear, resnet18, vgg11 or \
MODULE:FUNCTION
    """
    if name in MODELS:
        return
    if ":" not in name:
        raise InputError(f"model is {name!r}; expected {', '.join(MODELS)} or MODULE:FUNCTION")
    import_function(name, "model")


@contextmanager
def drawing_from(generator: torch.Generator, device: str | torch.device = "cpu") -> Iterator[None]:
    """What draws from torch's global generator meanwhile draws from `generator`, and moves it on.

    That of a GPU, which no CPU generator can stand for, is seeded by `generator`. Afterwards the
    global generators are as before.

    >>> generator = torch.Generator().manual_seed(3)
    >>> with drawing_from(generator):
    ...     first = torch.rand(2)
    >>> bool((first == torch.rand(2, generator=torch.Generator().manual_seed(3))).all())
    True
    """
    gpus = [] if torch.device(device).type == "cpu" else [device]
    with torch.random.fork_rng(gpus):
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(generator.initial_seed())
        torch.set_rng_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(torch.get_rng_state())


def mlp(
    num_features: int,
    hidden: tuple[int, ...],
    num_classes: int,
    *,
    dropout: float = 0.0,
    generator: torch.Generator,
) -> nn.Sequential:
    """A multi-layer perceptron with ReLU, its weights drawn from `generator` alone.

    Weights and biases are uniform within 1 / sqrt(inputs), as `nn.Linear` draws them by default
    (He et al. 2015 with a = sqrt(5)).

    Args:
        num_features: F, the width of an example.
        hidden: widths of the hidden layers; the last is what gradients are made of.
        num_classes: C, the number of logits.
        dropout: share of each hidden layer that training drops.
        generator: on the CPU; so are the weights.

    >>> mlp(4, (3,), 2, generator=torch.Generator().manual_seed(0))
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    layers: list[nn.Module] = []
    with drawing_from(generator):
        for width_in, width_out in itertools.pairwise((num_features, *hidden)):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear((num_features, *hidden)[-1], num_classes))
    return nn.Sequential(*layers)


def resnet18(
    shape: tuple[int, ...], num_classes: int, *, generator: torch.Generator
) -> nn.Sequential:
    """ResNet-18 (He et al. 2016) for small images: four pairs of blocks, of 64 to 512 channels.

    Args:
        shape: (channels, height, width) of an image; rows of its pixels go in.
        num_classes: C, the number of logits.
        generator: on the CPU; so are the weights.

    >>> model = resnet18((3, 32, 32), 10, generator=torch.Generator().manual_seed(0))
    >>> sum(parameter.numel() for parameter in model.parameters())
    11173962
    """
    with drawing_from(generator):
        blocks = [
            _Block(channels_in, channels_out, stride)
            for channels_in, channels_out, stride in (
                *((64, 64, 1), (64, 64, 1)),
                *((64, 128, 2), (128, 128, 1)),
                *((128, 256, 2), (256, 256, 1)),
                *((256, 512, 2), (512, 512, 1)),
            )
        ]
        return nn.Sequential(
            nn.Unflatten(1, shape),
            *_convolution(shape[0], 64, stride=1),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(512, num_classes),
        )


def vgg11(shape: tuple[int, ...], num_classes: int, *, generator: torch.Generator) -> nn.Sequential:
    """VGG-11 (Simonyan & Zisserman 2015, A) with BatchNorm and one linear layer, for 32 x 32.

    Args:
        shape: (channels, height, width) of an image; rows of its pixels go in.
        num_classes: C, the number of logits.
        generator: on the CPU; so are the weights.

    >>> model = vgg11((3, 32, 32), 10, generator=torch.Generator().manual_seed(0))
    >>> sum(parameter.numel() for parameter in model.parameters())
    9228362
    """
    layers: list[nn.Module] = [nn.Unflatten(1, shape)]
    channels_in = shape[0]
    with drawing_from(generator):
        for group in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for channels in group:
                layers += [*_convolution(channels_in, channels, stride=1), nn.ReLU()]
                channels_in = channels
            layers.append(nn.MaxPool2d(2))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes)]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    """Two convolutions, added to what went in."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(channels_in, channels_out, stride=stride),
            nn.ReLU(),
            *_convolution(channels_out, channels_out, stride=1),
        )
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(*_convolution(channels_in, channels_out, stride, size=1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.relu(self.residual(x_BCHW) + self.shortcut(x_BCHW))


def _convolution(
    channels_in: int, channels_out: int, stride: int, *, size: int = 3
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    # No bias: BatchNorm subtracts the mean, and has its own.
    conv = nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False)
    return conv, nn.BatchNorm2d(channels_out)


def _check_fits(widths: tuple[int, ...]) -> None:
    """Refuse an MLP that could not be trained here: weights, gradients and Adam's two moments."""
    needed = 16 * sum(
        (width_in + 1) * width_out for width_in, width_out in itertools.pairwise(widths)
    )
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows: not known
        return
    if needed > memory:
        raise InputError(
            f"hidden is {','.join(map(str, widths[1:-1]))}, which takes {needed / 1e9:,.0f} GB to "
            f"train; this machine has {memory / 1e9:,.0f} GB: lower the widths"
        )


def _check_images(name: str, shape: tuple[int, ...], *, least: int) -> None:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise InputError(
            f"model {name} is for images of at least {least} x {least}, but an example has shape "
            f"{shape}; pass --model mlp"
        )


def _own(name: str, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    made = import_function(name, "model")(shape, num_classes)
    if not isinstance(made, nn.Module):
        raise InputError(f"{name} returned a {type(made).__name__}; expected a torch.nn.Module")
    model = made if len(shape) == 1 else nn.Sequential(nn.Unflatten(1, shape), made)
    model.eval()  # so that looking does not move what BatchNorm keeps
    with torch.no_grad():
        logits = model(torch.zeros(2, math.prod(shape)))
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{name} made a model that gives {got} for two examples; expected {(2, num_classes)}"
        )
    return model
