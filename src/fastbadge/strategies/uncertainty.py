"""The k examples the model is least sure of, by one of three measures; deterministic.

Ties go to the lowest position. A binary output p counts as the two classes (1 - p, p); of several
independent outputs (multilabel) each does, and the measure is averaged over them.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor

from fastbadge.distributed import Job, Shard
from fastbadge.gradients import Task
from fastbadge.strategies.registry import PoolView, register

Measure: TypeAlias = Literal["least_confidence", "margin", "entropy"]

# Probabilities are read so many rows at a time: 8 MB for 1,000 classes.
_ROWS_AT_ONCE = 1024


@register("least_confidence", needs=("probabilities",), sharded=True)
def least_confidence(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Lowest probability of the predicted class.

    Least confidence (Settles 2009, section 3.1; the BADGE paper's Conf).

    Cost: N C, and N log N to sort. Ties, and so duplicates, go to the lowest position; k = N gives
    every row; with one class all tie.
    """
    return least_sure(view, k, "least_confidence")


@register("margin", needs=("probabilities",), sharded=True)
def margin(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Smallest difference between the two most probable classes.

    Margin sampling (Settles 2009, section 3.1; the BADGE paper's Marg).

    Cost: N C, and N log N to sort. Ties, and so duplicates, go to the lowest position; k = N gives
    every row; with one class all tie.
    """
    return least_sure(view, k, "margin")


@register("entropy", needs=("probabilities",), sharded=True)
def entropy(view: PoolView, k: int, *, generator: Generator) -> Tensor:
    """Highest entropy of the predicted probabilities, 0 log 0 being 0.

    Entropy sampling (Settles 2009, section 3.1; the BADGE paper's Entropy).

    Cost: N C, and N log N to sort. Ties, and so duplicates, go to the lowest position; k = N gives
    every row; with one class all tie.
    """
    return least_sure(view, k, "entropy")


def least_sure(view: PoolView, k: int, measure: Measure) -> Tensor:
    """LongTensor[k]: the rows of which the model is least sure, the least sure first."""
    shard = view.shard
    if shard is None:
        shard = Shard.of(Job(group=False), view.size, step=1)
    with shard.job.together():
        sureness_N = sureness(view, measure)
    return shard.lowest(sureness_N, k)


def sureness(view: PoolView, measure: Measure) -> Tensor:
    """How sure the model is of each row by a measure, the higher the surer: float64 [N].

    Of a view with a `shard`, of its rows alone.
    """
    N = view.size if view.shard is None else view.shard.num_rows
    measured = [torch.empty(0, dtype=torch.float64, device="cpu")]  # a shard may have no row
    for start in range(0, N, _ROWS_AT_ONCE):
        assert view.probabilities is not None and view.task is not None
        prob_BC = view.probabilities(slice(start, min(start + _ROWS_AT_ONCE, N)))
        measured.append(_SURENESS[measure](distributions(prob_BC, view.task)).cpu())
    return torch.cat(measured)


def distributions(prob_BC: Tensor, task: Task) -> Tensor:
    """[B, L, C]: L distributions over C classes an example; L = 1 unless multilabel."""
    if task == "multiclass":
        return prob_BC[:, None, :]
    return torch.stack([1 - prob_BC, prob_BC], dim=2)


def _confidence(prob_BLC: Tensor) -> Tensor:
    return prob_BLC.amax(dim=2).mean(dim=1)


def _margin(prob_BLC: Tensor) -> Tensor:
    top_BL2 = prob_BLC.topk(2, dim=2).values
    return (top_BL2[..., 0] - top_BL2[..., 1]).mean(dim=1)


def _negative_entropy(prob_BLC: Tensor) -> Tensor:
    entropy_BL: Tensor = torch.special.entr(prob_BLC).sum(dim=2)
    return -entropy_BL.mean(dim=1)


_SURENESS: dict[Measure, Callable[[Tensor], Tensor]] = {
    "least_confidence": _confidence,
    "margin": _margin,
    "entropy": _negative_entropy,
}
