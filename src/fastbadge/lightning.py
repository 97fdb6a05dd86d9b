"""BADGE at the end of a Lightning fit: which examples to label next."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastbadge.batches import Pool
from fastbadge.select import select

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "fastbadge.lightning needs Lightning; pip install 'fastbadge[lightning]'"
    ) from error


class QueryCallback(Callback):
    """Chooses k examples of a pool with the model as `trainer.fit` leaves it.

    The query runs when training ends (the hook `on_train_end`): the model is still on its device,
    from which Lightning takes it before `on_fit_end`. In a distributed job each process calls
    `select`. A fit that fails or is interrupted makes no query; one that goes on makes a new one.

    Args:
        pool: as of `fastbadge.select`: a dataset or a DataLoader that does not shuffle. What the
            LightningModule's `forward` makes of it are the logits.
        k: how many to choose.
        select_options: what else `fastbadge.select` takes: strategy, labeled, head, seed, ...

    Attributes:
        picked: LongTensor[k], positions in `pool` in order of choice; None before there are any.

    >>> import torch
    >>> callback = QueryCallback(torch.randn(100, 8), k=10, seed=0)
    >>> callback.picked is None  # until Trainer(callbacks=[callback]).fit(module, loader)
    True
    """

    def __init__(self, pool: Pool, k: int, **select_options: Any) -> None:
        self.pool = pool
        self.k = k
        self.select_options = select_options
        self.picked: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an earlier fit chose."""
        self.picked = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose."""
        self.picked = select(pl_module, self.pool, self.k, **self.select_options)
