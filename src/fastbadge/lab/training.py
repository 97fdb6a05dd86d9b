"""Training from scratch, and testing: tensors on the device, no per-sample Python work."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastbadge.errors import RunError
from fastbadge.lab.models import drawing_from
from fastbadge.lab.protocol import Config

# Of the test set at a time: ResNet-18 holds 0.25 MB an image in each of its widest layers.
_EVALUATION_BATCH = 500


def train(
    model: nn.Module, x_LF: Tensor, y_L: Tensor, config: Config, *, generator: torch.Generator
) -> int:
    """Train in place until the accuracy of an epoch reaches the goal, or the epochs are over.

    Adam on shuffled batches, the gradient clipped to a norm, or as it is where that is 0. The
    accuracy of an epoch is that of its batches as they were met, each before its step: it costs no
    pass of its own.

    Args:
        model: on the device of the data.
        x_LF: float32 [L, F], the labelled examples.
        y_L: int64 [L].
        config: learning_rate, train_batch, max_epochs, stop_accuracy and clip_norm count here.
        generator: on the CPU; shuffles, and says what dropout drops.

    Returns:
        The number of epochs.

    Raises:
        RunError: the loss is no longer finite.
    """
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
    epoch, sizes = 0, batch_sizes(len(y_L), config.train_batch)
    # All from one generator: nn.Dropout knows no other than the global one.
    with drawing_from(generator, y_L.device):
        for epoch in range(1, config.max_epochs + 1):
            order_L = torch.randperm(len(y_L)).to(y_L.device)
            # One gather an epoch; its batches are views.
            x_shuffled_LF, y_shuffled_L = x_LF[order_L], y_L[order_L]
            logits = []
            for x_BF, y_B in zip(
                torch.split(x_shuffled_LF, sizes),
                torch.split(y_shuffled_L, sizes),
                strict=True,
            ):
                logit_BC = model(x_BF)
                optimizer.zero_grad()
                torch.autograd.backward(functional.cross_entropy(logit_BC, y_B))
                if config.clip_norm:
                    nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                optimizer.step()
                logits.append(logit_BC.detach())
            logit_LC = torch.cat(logits)
            check_converging(logit_LC, epoch, config)
            accuracy = (logit_LC.argmax(dim=1) == y_shuffled_L).double().mean()
            if float(accuracy) >= config.stop_accuracy:
                break
    return epoch


def batch_sizes(examples: int, most: int) -> list[int]:
    """Examples in each batch of an epoch; one that is left over joins the batch before it.

    BatchNorm cannot normalise a single example, and its gradient would weigh as a batch's.

    >>> batch_sizes(60, 25), batch_sizes(101, 50), batch_sizes(1, 50)
    ([25, 25, 10], [50, 51], [1])
    """
    full, rest = divmod(examples, most)
    if rest == 1 and full:
        return [most] * (full - 1) + [most + 1]
    return [most] * full + [rest] * (rest > 0)


def check_converging(logits: Tensor, epoch: int, config: Config) -> None:
    """Refuse to go on after an epoch with logits [..., L, C] that are not all finite.

    Raises:
        RunError: saying what to change.
    """
    if not bool(logits.isfinite().all()):
        raise RunError(
            f"training diverged in epoch {epoch} on {logits.shape[-2]} examples; "
            f"lower learning_rate (now {config.learning_rate})"
        )


@torch.inference_mode()
def evaluate(model: nn.Module, x_MF: Tensor, y_M: Tensor) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross-entropy (nats) on a test set.

    In float64, which holds the cross-entropy of any logits that float32 holds.

    Raises:
        RunError: logits that are not finite. No number would tell anything of such a model, nor
            could the next query be made with it.

    >>> evaluate(nn.Identity(), torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    (0.5, 1.1269280110429727)
    """
    model.eval()
    logit_MC = torch.cat([model(x_BF) for x_BF in torch.split(x_MF, _EVALUATION_BATCH)])
    if not bool(logit_MC.isfinite().all()):
        raise RunError(
            "the model's outputs on the test set are not finite; lower learning_rate, or look for "
            "extreme values in the test set"
        )
    accuracy = (logit_MC.argmax(dim=1) == y_M).double().mean()
    return float(accuracy), float(functional.cross_entropy(logit_MC.double(), y_M))
