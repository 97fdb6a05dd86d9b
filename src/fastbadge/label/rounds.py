"""A round: train on the labels, measure on the slice, choose the next batch, record it all.

Two kinds of items never mix. The reserve (a share of all items, by their tickets) is for
validation: it is never trained on, never shown to a strategy, and is labelled in the order of its
tickets. All else is the strategy's. See `numbers` for why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fastbadge.errors import InputError
from fastbadge.gradients import GradientEmbedding
from fastbadge.label.features import open_features
from fastbadge.label.head import Head, feature_scale, train_head
from fastbadge.label.project import (
    Config,
    ModelState,
    Pick,
    Snapshot,
    record_round,
    take_snapshot,
)
from fastbadge.strategies import PoolView, get_strategy

# What chooses before there is a model, where the strategy needs one: typical and diverse, among so
# many drawn uniformly.
COLD_START = "typiclust"
_COLD_POOL = 2000

# Strategies may ask for anything but draws of a dropout, which the head has not, and notes from
# query to query, which the project does not keep.
_REFUSED = frozenset({"samples", "memory"})


def check_strategy(name: str) -> None:
    """Refuse a strategy that a project cannot use.

    Raises:
        InputError: no such strategy, or one that needs a dropout or a memory.
    """
    needs = get_strategy(name).needs & _REFUSED
    if needs:
        raise InputError(
            f"strategy {name!r} needs {', '.join(sorted(needs))}; pass another, such as badge"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, so that a round leaves the other cores to the clicks.

    Little is lost. Steps on 128 examples gain nothing from a second thread, and where that has to
    wait for a busy core, 200 of them took 65 s in place of 1.
    """
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def advance(directory: Path) -> int | None:
    """Train on the labels there are, measure, and choose and record the next batch.

    Takes a second or so; clicks go on meanwhile in other threads and processes. Called when few
    items are waiting (`project.count_waiting`), the next batch is there before the present one
    ends. Called twice at the same time, one of the calls records nothing.

    Returns:
        The id of the batch; it is empty where a last model was trained and nothing is left to
        label. None where there was nothing to do, or another call was faster.

    Raises:
        ProjectError: a project that cannot be used, or without its features.
    """
    with one_thread():
        return _advance(directory)


def _advance(directory: Path) -> int | None:
    start = perf_counter()
    snapshot = take_snapshot(directory)
    feature_ND = open_features(directory, len(snapshot.ticket_N))
    config = snapshot.config
    seed = config.seed + snapshot.last_batch  # a call that is repeated gives the same
    draw = Generator().manual_seed(seed)
    train = training_rows(snapshot)
    scale = feature_scale(feature_ND)
    head = None
    if len(np.unique(snapshot.class_N[train])) > 1:
        head = train_on(snapshot, feature_ND, train, scale=scale, seed=seed)

    taken_N = snapshot.reserved_N | snapshot.batched_N | snapshot.answered_N | snapshot.missing_N
    pool = np.flatnonzero(~taken_N)
    validation, k = _shares(snapshot, len(pool))
    strategy = config.strategy
    if head is None and get_strategy(strategy).needs:
        strategy = COLD_START
        # To cluster all of 50,000 x 768 would take a minute.
        shuffled = torch.randperm(len(pool), generator=draw).numpy()
        pool = np.sort(pool[shuffled[: max(_COLD_POOL, k)]])
    rows = pool[:0]
    if k:
        view = _view(snapshot, feature_ND, head, scale, pool)
        rows = pool[get_strategy(strategy).fn(view, k, generator=draw).numpy()]
    picks = _picks(snapshot, feature_ND, head, {"validation": validation, strategy: rows})
    if not picks and (head is None or snapshot.last_labels == len(train)):
        return None
    # Mixed, so that nobody can tell which are for validation, and whatever part is labelled when
    # the next round begins is a random part.
    order = torch.randperm(len(picks), generator=draw).tolist()
    model = None
    if head is not None:
        model = _measured(snapshot, feature_ND, head, len(train), perf_counter() - start)
    return record_round(
        directory,
        [picks[i] for i in order],
        strategy=strategy,
        seed=seed,
        model=model,
        weights=head.arrays() if head else None,
        after=snapshot.last_batch,
    )


def validation_size(config: Config, batches: int) -> int:
    """How many of the next batch are for validation: over all batches the share, as near as can be.

    >>> config = Config(kind="texts", source="/t.csv", features="tfidf", batch=10, share=0.15)
    >>> [validation_size(config, batches) for batches in range(4)]
    [2, 1, 2, 1]
    """
    per_batch = config.batch * config.share
    upto, before = (math.ceil(round(n * per_batch, 6)) for n in (batches + 1, batches))
    return upto - before


def training_rows(snapshot: Snapshot) -> NDArray[np.int64]:
    """Rows whose labels the model is trained on: all that are settled, but for the reserve."""
    return np.flatnonzero((snapshot.class_N > 0) & ~snapshot.reserved_N)


def slice_mask(snapshot: Snapshot) -> NDArray[np.bool_]:
    """Which items make the validation slice, [N]: of the reserve what was drawn and is settled."""
    return (snapshot.class_N > 0) & snapshot.reserved_N & snapshot.batched_N


def measured_mask(snapshot: Snapshot) -> NDArray[np.bool_]:
    """Of which items models keep what they predict, [N]: the slice, and what can still join it."""
    return snapshot.reserved_N & ~snapshot.missing_N | slice_mask(snapshot)


def train_on(
    snapshot: Snapshot,
    feature_ND: NDArray[np.float32],
    rows: NDArray[np.int64],
    *,
    scale: tuple[Tensor, Tensor],
    seed: int,
) -> Head:
    """A head trained on the labels of some rows; output c is the c-th class of the page."""
    return train_head(
        torch.from_numpy(np.take(feature_ND, rows, axis=0)),
        torch.from_numpy(_targets(snapshot, rows)),
        len(snapshot.classes),
        scale=scale,
        hidden=snapshot.config.hidden,
        seed=seed,
    )


def _targets(snapshot: Snapshot, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which output of the head stands for the class of each row."""
    output_of = {id: output for output, id in enumerate(snapshot.classes)}
    return np.array([output_of[id] for id in snapshot.class_N[rows].tolist()], dtype=np.int64)


def _shares(snapshot: Snapshot, pool_size: int) -> tuple[NDArray[np.int64], int]:
    """The validation items of the next batch, and how many the strategy is to choose."""
    config = snapshot.config
    k = min(config.batch - validation_size(config, snapshot.last_batch), pool_size)
    reserve = _reserve_in_turn(snapshot)
    validation = _first_to_ask(reserve, config.batch - k, snapshot.answered_N)
    if len(validation) == len(reserve):  # it is used up: the strategy has the rest
        asked = int((~snapshot.answered_N[validation]).sum())
        k = min(config.batch - asked, pool_size)
    return validation, k


def _reserve_in_turn(snapshot: Snapshot) -> NDArray[np.int64]:
    """What of the reserve has not been drawn, in the order in which it will be."""
    rows = np.flatnonzero(snapshot.reserved_N & ~snapshot.batched_N & ~snapshot.missing_N)
    return rows[snapshot.ticket_N[rows].argsort(kind="stable")]


def _first_to_ask(
    reserve: NDArray[np.int64], n: int, answered_N: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The shortest beginning of the reserve with n unanswered rows: imported labels come free."""
    unanswered = np.flatnonzero(~answered_N[reserve])
    if n > len(unanswered):
        return reserve
    return reserve[: unanswered[n - 1] + 1] if n else reserve[:0]


def _view(
    snapshot: Snapshot,
    feature_ND: NDArray[np.float32],
    head: Head | None,
    scale: tuple[Tensor, Tensor],
    pool: NDArray[np.int64],
) -> PoolView:
    """What strategies may see of the pool, and of what is not to be chosen again."""
    if head is not None:
        train = training_rows(snapshot)
        targets_L = torch.from_numpy(_targets(snapshot, train))
        learned = replace(_view_of(head, feature_ND, train), labels=targets_L)
        return replace(_view_of(head, feature_ND, pool), labeled=learned)
    mean_D, scale_D = scale

    def unlearned(rows: NDArray[np.int64]) -> PoolView:
        def features(index: Tensor | slice) -> Tensor:
            x_BD = np.take(feature_ND, torch.from_numpy(rows)[index].numpy(), axis=0)
            return (torch.from_numpy(x_BD) - mean_D) / scale_D

        return PoolView(len(rows), features=features)

    known = (snapshot.batched_N | snapshot.answered_N) & ~snapshot.reserved_N
    labeled = unlearned(np.flatnonzero(known)) if known.any() else None
    return replace(unlearned(pool), labeled=labeled)


def _view_of(head: Head, feature_ND: NDArray[np.float32], rows: NDArray[np.int64]) -> PoolView:
    """What a model makes of some rows."""
    logit_NC, hidden_NH = head.outputs(feature_ND, rows)
    return PoolView(
        len(rows),
        probabilities=lambda index: logit_NC[index].double().softmax(dim=1),
        embedding=GradientEmbedding.from_logits(logit_NC, hidden_NH),
        features=lambda index: hidden_NH[index],
        task="multiclass",
        positions=torch.from_numpy(rows),
    )


def _picks(
    snapshot: Snapshot,
    feature_ND: NDArray[np.float32],
    head: Head | None,
    rows_by_reason: dict[str, NDArray[np.int64]],
) -> list[Pick]:
    """The batch with the model's guesses."""
    reasons = [reason for reason, rows in rows_by_reason.items() for _ in rows]
    rows = np.concatenate(list(rows_by_reason.values()))
    if head is None or not len(rows):
        return [Pick(row + 1, why) for row, why in zip(rows.tolist(), reasons, strict=True)]
    logit_KC, hidden_KH = head.outputs(feature_ND, rows)
    norm_K = GradientEmbedding.from_logits(logit_KC, hidden_KH).sqnorms().sqrt()
    confidence_K, output_K = logit_KC.double().softmax(dim=1).max(dim=1)
    ids = list(snapshot.classes)
    return [
        Pick(row + 1, why, norm, ids[output], confidence)
        for row, why, norm, output, confidence in zip(
            rows.tolist(),
            reasons,
            norm_K.tolist(),
            output_K.tolist(),
            confidence_K.tolist(),
            strict=True,
        )
    ]


def _measured(
    snapshot: Snapshot,
    feature_ND: NDArray[np.float32],
    head: Head,
    labels: int,
    seconds: float,
) -> ModelState:
    """What the model makes of the reserve, and how much of the slice it gets right."""
    reserve = np.flatnonzero(measured_mask(snapshot))
    logit_MC, _ = head.outputs(feature_ND, reserve)
    id_C = np.array(list(snapshot.classes))
    guess_M = id_C[logit_MC.argmax(dim=1).numpy()]
    drawn_M = slice_mask(snapshot)[reserve]
    correct = int((guess_M == snapshot.class_N[reserve])[drawn_M].sum())
    guesses = {"item": reserve + 1, "class": guess_M}
    return ModelState(labels, correct, int(drawn_M.sum()), seconds, guesses)
