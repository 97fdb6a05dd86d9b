"""BALD: where draws of the model disagree about what each of them is sure of (Houlsby et al. 2011).

Draws are Monte-Carlo dropout (Gal et al. 2017), one mask for the whole pool each: `dropout.py`.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastbadge.errors import InputError
from fastbadge.gradients import resolve_task
from fastbadge.strategies.registry import PoolView, register
from fastbadge.strategies.uncertainty import distributions


def check_samples(samples: int) -> None:
    """Refuse a number of draws between which there is nothing to disagree about."""
    if samples < 2:
        raise InputError(f"samples is {samples}; expected at least 2 draws of the dropout")


@register("bald", needs=("samples",), check=check_samples)
def bald(view: PoolView, k: int, *, generator: Generator, samples: int = 20) -> Tensor:
    """Highest mutual information of label and weights, by dropout; samples=20.

    BALD (Houlsby et al. 2011; Gal et al., ICML 2017): the entropy of the mean prediction minus the
    mean entropy of the predictions of S draws of the model's dropout. Needs a model with dropout.

    Cost: S forward passes and S N C; memory N C.

    Ties, and so duplicates, go to the lowest position; k = N gives every row; with one class all
    scores are 0. Several outputs (multilabel) are averaged over.
    """
    return informations(view, samples, generator).argsort(descending=True, stable=True)[:k].cpu()


def informations(view: PoolView, samples: int, generator: Generator) -> Tensor:
    """Mutual information of each row's label and the weights, nats, not negative: float64 [N]."""
    check_samples(samples)
    assert view.samples is not None
    mean_NLC = entropy_N = None
    for prob_NC in view.samples(samples, generator):
        prob_NLC = distributions(prob_NC, resolve_task(view.task, prob_NC.shape[1]))
        share_NLC, share_N = prob_NLC / samples, _entropy(prob_NLC) / samples
        if mean_NLC is None or entropy_N is None:
            mean_NLC, entropy_N = share_NLC, share_N
        else:
            mean_NLC += share_NLC
            entropy_N += share_N
    assert mean_NLC is not None and entropy_N is not None
    # Where all draws agree the difference is rounding: far below any score worth the name.
    score_N: Tensor = _entropy(mean_NLC) - entropy_N
    return torch.where(score_N > 1e-12, score_N, 0.0)


def _entropy(prob_NLC: Tensor) -> Tensor:
    entropy_NL: Tensor = torch.special.entr(prob_NLC).sum(dim=2)
    return entropy_NL.mean(dim=1)
