"""Training many models at once: the MLPs of several trials as one stack of parameters.

On a GPU the small MLP of a trial leaves the device idle between launches; a stack of T takes hardly
longer than one. Each trial keeps what is its own: shuffling, the norm its gradient is clipped to,
Adam's moments and the epoch in which it stops. So this computes what `train` computes for each
model by itself, in the same order, up to the rounding of the matrix products: batched ones may add
up in another order than single ones, and on a GPU in one that depends on T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from fastbadge.lab.protocol import Config
from fastbadge.lab.training import batch_sizes, check_converging, train


def train_together(
    models: Sequence[nn.Module],
    xs_LF: Sequence[Tensor],
    ys_L: Sequence[Tensor],
    config: Config,
    *,
    generators: Sequence[Generator],
) -> list[int]:
    """Train each model in place on its own examples, as `train` would.

    MLPs of equal widths (nn.Linear and nn.ReLU in turn) are trained as one stack. A model that has
    reached the goal leaves it: its parameters stay as they are and the others go on without it.
    Other models (convolutions, BatchNorm, dropout) are trained one after the other.

    Args:
        models: T models on the device of the data.
        xs_LF: T times float32 [L, F], the labelled examples of each; L is the same for all.
        ys_L: T times int64 [L].
        config: as for `train`.
        generators: one a model, on the CPU; shuffles.

    Returns:
        The number of epochs of each.

    Raises:
        RunError: a loss is no longer finite.

    >>> from fastbadge.lab.models import mlp
    >>> generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    >>> models = [mlp(3, (4,), 2, generator=generator) for generator in generators]
    >>> x_LF, y_L = torch.ones(6, 3), torch.zeros(6, dtype=torch.int64)
    >>> len(train_together(models, [x_LF] * 2, [y_L] * 2, Config(), generators=generators))
    2
    """
    if len(models) > 1 and all(_is_plain_mlp(model) for model in models):
        x_TLF, y_TL = torch.stack(list(xs_LF)), torch.stack(list(ys_L))
        return _train_stack(models, x_TLF, y_TL, config, generators)
    return [
        train(model, x_LF, y_L, config, generator=generator)
        for model, x_LF, y_L, generator in zip(models, xs_LF, ys_L, generators, strict=True)
    ]


def _train_stack(
    models: Sequence[nn.Module],
    x_TLF: Tensor,
    y_TL: Tensor,
    config: Config,
    generators: Sequence[Generator],
) -> list[int]:
    """`train` with an axis in front: T models at first, A of which are still in training."""
    L = y_TL.shape[1]
    sizes = batch_sizes(L, config.train_batch)
    parameters = [
        torch.stack(same).detach().requires_grad_()
        for same in zip(*(model.parameters() for model in models), strict=True)
    ]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
    epochs = [config.max_epochs] * len(models)
    active_A = list(range(len(models)))
    for epoch in range(1, config.max_epochs + 1):
        order_AL = torch.stack([torch.randperm(L, generator=generators[t]) for t in active_A])
        order_AL = order_AL.to(y_TL.device)
        row_A1 = torch.tensor(active_A, device=y_TL.device)[:, None]
        # One gather an epoch; its batches are views.
        x_shuffled_ALF, y_shuffled_AL = x_TLF[row_A1, order_AL], y_TL[row_A1, order_AL]
        logits = []
        for x_ABF, y_AB in zip(
            torch.split(x_shuffled_ALF, sizes, dim=1),
            torch.split(y_shuffled_AL, sizes, dim=1),
            strict=True,
        ):
            logit_ABC = _forward(parameters, x_ABF)
            optimizer.zero_grad()
            # Each trial's mean, and their sum: no gradient of one reaches another.
            summed = functional.cross_entropy(
                logit_ABC.flatten(0, 1), y_AB.flatten(), reduction="sum"
            )
            torch.autograd.backward(summed / y_AB.shape[1])
            _clip(parameters, config.clip_norm)
            optimizer.step()
            logits.append(logit_ABC.detach())
        logit_ALC = torch.cat(logits, dim=1)
        check_converging(logit_ALC, epoch, config)
        accuracy_A = (logit_ALC.argmax(dim=2) == y_shuffled_AL).double().mean(dim=1)
        reached_A = (accuracy_A >= config.stop_accuracy).tolist()
        if any(reached_A):
            for a, t in enumerate(active_A):
                if reached_A[a]:
                    epochs[t] = epoch
                    _unstack(parameters, a, models[t])
            kept = [a for a, reached in enumerate(reached_A) if not reached]
            active_A = [active_A[a] for a in kept]
            if not active_A:
                break
            parameters = _kept(optimizer, torch.tensor(kept, device=y_TL.device))
    for a, t in enumerate(active_A):
        _unstack(parameters, a, models[t])
    return epochs


def _is_plain_mlp(model: nn.Module) -> bool:
    """nn.Linear with a bias and nn.ReLU in turn, from the one to the other end, all trained."""
    layers = list(model.children())
    return (
        type(model) is nn.Sequential
        and len(layers) % 2 == 1
        and all(type(layer) is (nn.ReLU if i % 2 else nn.Linear) for i, layer in enumerate(layers))
        and all(layer.bias is not None for layer in layers[::2])
        and all(parameter.requires_grad for parameter in model.parameters())
    )


def _forward(parameters: Sequence[Tensor], x_ABF: Tensor) -> Tensor:
    h_ABX = x_ABF
    for weight_AYX, bias_AY in zip(parameters[::2], parameters[1::2], strict=True):
        if h_ABX is not x_ABF:
            h_ABX = h_ABX.relu()
        h_ABX = torch.baddbmm(bias_AY[:, None], h_ABX, weight_AYX.mT)
    return h_ABX


@torch.no_grad()
def _clip(parameters: Sequence[Tensor], clip_norm: float) -> None:
    """As nn.utils.clip_grad_norm_, for each trial by itself."""
    if not clip_norm:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm_GA = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    scale_A = (clip_norm / (torch.linalg.vector_norm(norm_GA, dim=0) + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(scale_A.view(-1, *[1] * (g.ndim - 1)))


@torch.no_grad()
def _unstack(parameters: Sequence[Tensor], a: int, model: nn.Module) -> None:
    for parameter, stack in zip(model.parameters(), parameters, strict=True):
        parameter.copy_(stack[a])


def _kept(optimizer: torch.optim.Adam, kept: Tensor) -> list[Tensor]:
    """The part of the stack that goes on, with its moments; the count of steps is everyone's.

    New leaves, because autograd remembers the shape of those it has seen.
    """
    (group,) = optimizer.param_groups
    leaves = []
    for stack in group["params"]:
        leaf = stack.detach()[kept].requires_grad_()
        moments = optimizer.state.pop(stack)
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name][kept]
        optimizer.state[leaf] = moments
        leaves.append(leaf)
    group["params"] = leaves
    return leaves
