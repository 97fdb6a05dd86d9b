"""BatchBALD: the batch whose labels, taken together, tell most about the weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fastbadge.errors import InputError
from fastbadge.gradients import resolve_task
from fastbadge.strategies.bald import check_samples
from fastbadge.strategies.greedy import lazy_greedy, with_uniform_rest
from fastbadge.strategies.registry import PoolView, register
from fastbadge.strategies.uncertainty import distributions

# The predictions of all draws, S N C numbers, are held in float64: 2 GB for this many.
_MOST_PREDICTIONS = 1 << 28
_TILE_ENTRIES = 1 << 22


def _check(samples: int, configurations: int) -> None:
    check_samples(samples)
    if configurations < 1:
        raise InputError(f"batchbald: configurations is {configurations}; expected at least 1")


@register("batchbald", needs=("samples",), check=_check)
def batchbald(
    view: PoolView,
    k: int,
    *,
    generator: Generator,
    samples: int = 20,
    configurations: int = 2000,
) -> Tensor:
    """Labels that together tell most about the weights; samples=20, configurations=2000.

    BatchBALD (Kirsch et al., NeurIPS 2019): greedy maximisation of the mutual information of all
    labels of the batch and S draws of the model's dropout. What a row adds is the expected entropy
    of its label given the labels of those before, less its mean entropy. The expectation runs over
    all C^n joint labels of n picks while they are at most `configurations`, and over as many
    sampled ones beyond (their section 3.3). Needs a model with dropout and one label an example.
    What a row adds never grows, so only rows that could still be the best are looked at; sampled,
    it is an estimate that may, and a row can be passed over that a look at all would have taken.

    Cost: S forward passes, then S C `configurations` for each row looked at: once all, at the
    price of BALD, then some dozens a pick. Memory 8 S N C bytes; more than 2 GB is refused.

    Ties go to the lowest position; a duplicate of a pick tells less than the pick did. Rows that
    no longer add anything (all of them with one class) are drawn uniformly; k = N gives every row.
    """
    _check(samples, configurations)
    prob_SNC = _predictions(view, samples, generator)
    C = prob_SNC.shape[2]
    own_N = torch.special.entr(prob_SNC).sum(dim=2).mean(dim=0)
    # Joint labels of the picks: their probabilities, and those of the draws given them.
    weight_M = prob_SNC.new_ones(1)
    posterior_MS = prob_SNC.new_full((1, samples), 1 / samples)
    picks: list[int] = []
    exact = True

    def gains_of(block: NDArray[np.int64]) -> NDArray[np.float64]:
        row_B = torch.from_numpy(block).to(prob_SNC.device)
        parts = []
        for part_B in torch.split(row_B, max(1, _TILE_ENTRIES // (len(weight_M) * C))):
            mean_MBC = posterior_MS @ prob_SNC[:, part_B].flatten(1)
            entropy_MBC = torch.special.entr(mean_MBC).view(len(weight_M), len(part_B), C)
            parts.append(weight_M @ entropy_MBC.sum(dim=2) - own_N[part_B])
        return torch.cat(parts).cpu().numpy()

    def take(row: int) -> None:
        nonlocal weight_M, posterior_MS, exact
        picks.append(row)
        if exact and len(weight_M) * C > configurations:
            exact = False
            weight_M, posterior_MS = _sampled(prob_SNC, picks, configurations, generator)
        elif exact:
            joint_MCS = posterior_MS[:, None, :] * prob_SNC[:, row].T
            share_MC = joint_MCS.sum(dim=2)
            weight = (weight_M[:, None] * share_MC).flatten()
            possible = weight > 0
            weight_M = weight[possible]
            posterior_MS = (joint_MCS.flatten(0, 1))[possible] / share_MC.flatten()[possible, None]
        else:
            weight_M, posterior_MS = _extended(prob_SNC[:, row], posterior_MS, generator)

    gain_N = gains_of(np.arange(view.size))
    taken = lazy_greedy(gain_N, k, gains_of, take, floor=1e-12, tie=1e-9)
    return with_uniform_rest(taken, view.size, k, generator)


def _sampled(
    prob_SNC: Tensor, picks: list[int], count: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """`count` joint labels of the picks, each of the label distribution of one draw."""
    S = len(prob_SNC)
    posterior_MS = prob_SNC.new_full((count, S), 1 / S)
    for row in picks:
        _, posterior_MS = _extended(prob_SNC[:, row], posterior_MS, generator)
    return prob_SNC.new_full((count,), 1 / count), posterior_MS


def _extended(prob_SC: Tensor, posterior_MS: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Each joint label with one more, drawn from its distribution given those it has."""
    cumulative_MC = (posterior_MS @ prob_SC).cumsum(dim=1)
    uniform_M1 = torch.rand(len(posterior_MS), 1, dtype=torch.float64, generator=generator)
    target_M1 = uniform_M1.to(prob_SC) * cumulative_MC[:, -1:]
    label_M = torch.searchsorted(cumulative_MC, target_M1, right=True)[:, 0]
    label_M = label_M.clamp_max_(prob_SC.shape[1] - 1)
    joint_MS = posterior_MS * prob_SC[:, label_M].T
    weight_M = prob_SC.new_full((len(joint_MS),), 1 / len(joint_MS))
    return weight_M, joint_MS / joint_MS.sum(dim=1, keepdim=True)


def _predictions(view: PoolView, samples: int, generator: Generator) -> Tensor:
    """The draws' probabilities, float64 [S, N, C]; a binary output is two classes."""
    assert view.samples is not None
    prob_SNC = None
    for s, prob_NC in enumerate(view.samples(samples, generator)):
        prob_NLC = distributions(prob_NC, resolve_task(view.task, prob_NC.shape[1]))
        if prob_NLC.shape[1] > 1:
            raise InputError(
                f"strategy 'batchbald' needs one label an example; this model has "
                f"{prob_NLC.shape[1]} independent ones (multilabel): use bald"
            )
        if prob_SNC is None:
            entries = samples * prob_NLC.numel()
            if entries > _MOST_PREDICTIONS:
                raise InputError(
                    f"batchbald would hold {8 * entries / 1e9:.1f} GB of predictions "
                    f"(samples x N x C = {entries:,}); at most {_MOST_PREDICTIONS:,} fit: lower "
                    "samples, or pass a part of the pool"
                )
            prob_SNC = prob_NLC.new_empty(samples, *prob_NLC[:, 0].shape)
        prob_SNC[s] = prob_NLC[:, 0]
    assert prob_SNC is not None
    return prob_SNC
