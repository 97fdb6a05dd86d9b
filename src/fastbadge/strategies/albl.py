"""Active learning by learning: a bandit chooses which strategy to ask (Hsu & Lin, AAAI 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from fastbadge.errors import InputError
from fastbadge.strategies.coreset import coreset
from fastbadge.strategies.registry import PoolView, register
from fastbadge.strategies.uncertainty import least_confidence

_ARMS: tuple[Callable[..., Tensor], ...] = (coreset, least_confidence)


# Queries a bandit that nobody told otherwise expects.
_HORIZON = 10


def _check(horizon: int, delta: float) -> None:
    if horizon < 0 or not 0 < delta < 1:
        raise InputError(
            f"albl: horizon is {horizon} and delta {delta}; expected at least 0 and within 0 to 1"
        )


@register("albl", needs=("probabilities", "features", "labeled", "memory"), check=_check)
def albl(
    view: PoolView, k: int, *, generator: Generator, horizon: int = 0, delta: float = 0.1
) -> Tensor:
    """Coreset or least_confidence, whichever a bandit has seen do better; delta=0.1.

    EXP4.P (Beygelzimer et al. 2011) over two arms, as Hsu & Lin (AAAI 2015) use it and with whole
    batches as in the BADGE paper: arm j is drawn with probability
    p_j = (1 - 2 p_min) w_j / sum w + p_min and chooses the batch. At the next query its reward r
    is an importance-weighted accuracy of the model on the labelled examples, and
    w_j *= exp(p_min / 2 (r [j drawn] / p_j + sqrt(ln(2 / delta) / (2 horizon)) / p_j)),
    p_min = sqrt(ln 2 / (2 horizon)).

    `horizon` is how many queries there will be; 0 takes `memory["horizon"]`, which an experiment
    sets to its rounds, or else 10.

    What differs from Hsu & Lin: r is a mean over all labelled examples, the initial ones with
    weight 1, where they sum over the queried ones and divide by pool size and horizon, which for
    batches leaves next to nothing beside the bonus; so r can exceed 1. A weight is 1 / p of the arm
    that chose the example, also where the other arm would have chosen it too.

    `memory` holds the weights and every past query (arm, probabilities, positions); `labels` of
    what is labelled are needed from the second query on. Cost: that of the arm drawn, and
    L C for L labelled examples.

    Duplicates, ties, k = N and one class are as the arm has them.
    """
    if view.memory is None:
        raise InputError(
            "strategy 'albl' learns from its queries; pass memory={} at the first and the same "
            "dictionary at later ones, with labels="
        )
    assert view.positions is not None
    _check(horizon, delta)
    memory = view.memory
    horizon = horizon or int(memory.get("horizon", 0)) or _HORIZON
    least = min(0.5, math.sqrt(math.log(2) / (2 * horizon)))
    queries: list[dict[str, Any]] = memory.setdefault("queries", [])
    # Weights grow without bound and only their ratio counts, so logarithms are kept.
    log_weights: list[float] = memory.setdefault("log_weights", [0.0, 0.0])
    if queries:
        last = queries[-1]
        reward = _reward(view, queries)
        bonus = math.sqrt(math.log(2 / delta) / (2 * horizon))
        for j, p in enumerate(last["probabilities"]):
            log_weights[j] += least / 2 * ((reward * (j == last["arm"]) + bonus) / p)
    highest = max(log_weights)
    weights = [math.exp(log - highest) for log in log_weights]
    probabilities = [(1 - 2 * least) * w / sum(weights) + least for w in weights]
    uniform = float(torch.rand((), dtype=torch.float64, generator=generator))
    arm = int(uniform >= probabilities[0])
    picks_K = _ARMS[arm](view, k, generator=generator)
    positions = view.positions[picks_K].tolist()
    queries.append({"arm": arm, "probabilities": probabilities, "positions": positions})
    return picks_K


def _reward(view: PoolView, queries: list[dict[str, Any]]) -> float:
    known = view.labeled
    if known is None or known.labels is None:
        raise InputError(
            "strategy 'albl' has queried before; pass labeled= and labels= with what came back"
        )
    assert known.probabilities is not None and known.positions is not None
    weight_of = {
        position: 1 / query["probabilities"][query["arm"]]
        for query in queries
        for position in query["positions"]
    }
    weights = [weight_of.get(position, 1.0) for position in known.positions.tolist()]
    prob_LC = known.probabilities(slice(0, known.size)).cpu()
    if known.task == "multilabel":
        raise InputError("strategy 'albl' needs one label an example; the task is multilabel")
    guess_L = prob_LC.argmax(dim=1) if prob_LC.shape[1] > 1 else (prob_LC[:, 0] > 0.5).long()
    weight_L = torch.tensor(weights, dtype=torch.float64)
    return float((weight_L * (guess_L == known.labels)).mean())
