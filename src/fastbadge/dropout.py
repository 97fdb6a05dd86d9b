"""Monte-Carlo dropout with masks that stay: one draw makes one function for the whole pool.

Dropout as trained draws a mask for every example, so predictions of two examples say nothing about
each other. Bayesian strategies that look at a batch as a whole (BatchBALD) need them to: a sample
of the weights is one function, applied to all examples (Kirsch et al., NeurIPS 2019, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Generator, Tensor, nn

from fastbadge.errors import InputError

# Their masks leave out whole channels: one number for [channels, ...].
_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@contextmanager
def fixed_dropout(model: nn.Module, generator: Generator) -> Iterator[None]:
    """One sample of a model's dropout while the block lasts, the same for every row and batch.

    In eval mode the output of each nn.Dropout (1d to 3d too) is multiplied by a mask of 0 and
    1 / (1 - p), drawn once for the shape of one example when the module is first called. Training
    flags are not touched; the hooks are gone when the block ends.

    Args:
        model: run in eval mode within the block, on any device.
        generator: on the CPU; the masks are drawn from it.

    Raises:
        InputError: the model has no dropout with p > 0.

    >>> model = nn.Sequential(nn.Dropout(0.5)).eval()
    >>> with fixed_dropout(model, torch.Generator().manual_seed(4)):
    ...     model(torch.ones(2, 4))
    tensor([[0., 2., 0., 2.],
            [0., 2., 0., 2.]])
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
        and module.p > 0
    ]
    if not layers:
        raise InputError(
            f"the model ({type(model).__name__}) has no nn.Dropout with p > 0, whose samples this "
            "strategy needs; add one and train with it, or choose another strategy"
        )
    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(_masking(layer.p, generator)).remove)
        yield


def _masking(p: float, generator: Generator) -> Callable[[nn.Module, object, Tensor], Tensor]:
    masks: dict[torch.Size, Tensor] = {}

    def mask(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        shape = output.shape[1:]
        if shape not in masks:
            drawn = shape
            if isinstance(layer, _BY_CHANNEL):
                drawn = torch.Size([*shape[:1], *[1] * len(shape[1:])])
            kept = torch.rand(drawn, dtype=torch.float64, generator=generator) >= p
            masks[shape] = kept.to(output) / max(1 - p, 1e-9)
        return output * masks[shape]

    return mask
