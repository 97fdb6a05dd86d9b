"""Labels that the model doubts, for a second look: confident learning, by cross-validation.

Every training label is judged by a head that has not seen it. Labels of the validation slice are
left out on purpose: to look again only where the model disagrees, and to correct only there, would
make the slice agree with the model, and its accuracy a lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import InputError
from fastbadge.label.features import open_features
from fastbadge.label.head import feature_scale
from fastbadge.label.project import Snapshot, take_snapshot
from fastbadge.label.rounds import one_thread, train_on, training_rows

_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Doubt:
    """A label that heads trained without it doubt.

    Args:
        item: its id.
        label: the class it has.
        suggested: the class that the head predicts.
        label_probability: what the head gives to the one,
        suggested_probability: and to the other.
    """

    item: int
    label: str
    suggested: str
    label_probability: float
    suggested_probability: float


def find_doubts(directory: Path, *, seed: int = 0) -> tuple[list[Doubt], int]:
    """Labels to look at again, the most doubtful first, and of how many.

    A label is doubted where the predicted class is another one and at least as probable as that
    class is on average where it is the label (Northcutt, Jiang & Chuang, JAIR 2021: the confident
    joint, with thresholds for each class); ranked by the difference of the two probabilities.

    Raises:
        InputError: too few labels to divide.
    """
    snapshot = take_snapshot(directory)
    rows = training_rows(snapshot)
    if len(rows) < 2 * _FOLDS or len(np.unique(snapshot.class_N[rows])) < 2:
        raise InputError(
            f"there are {len(rows)} labels to judge; expected at least {2 * _FOLDS}, of two classes"
        )
    feature_ND = open_features(directory, len(snapshot.ticket_N))
    with one_thread():
        prob_LC = _out_of_fold(snapshot, feature_ND, rows, seed)
    ids, names = list(snapshot.classes), list(snapshot.classes.values())
    label_L = np.array([ids.index(id) for id in snapshot.class_N[rows].tolist()])
    return [
        Doubt(
            int(rows[i]) + 1,
            names[label_L[i]],
            names[suggested],
            float(prob_LC[i, label_L[i]]),
            float(prob_LC[i, suggested]),
        )
        for i, suggested in _doubted(prob_LC, label_L)
    ], len(rows)


def _doubted(prob_LC: NDArray[np.float64], label_L: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Rows and what they are taken for, the most doubtful first.

    >>> prob_LC = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.95, 0.05]])
    >>> _doubted(prob_LC, np.array([0, 0, 1, 1]))
    [(3, 0)]
    """
    L, C = prob_LC.shape
    # A class without labels has no threshold that anything could pass.
    threshold_C = np.array(
        [prob_LC[label_L == c, c].mean() if (label_L == c).any() else np.inf for c in range(C)]
    )
    predicted_L = prob_LC.argmax(axis=1)
    top_L, own_L = prob_LC[np.arange(L), predicted_L], prob_LC[np.arange(L), label_L]
    doubted = np.flatnonzero((predicted_L != label_L) & (top_L >= threshold_C[predicted_L]))
    order = doubted[(own_L - top_L)[doubted].argsort(kind="stable")]
    return [(int(i), int(predicted_L[i])) for i in order]


def _out_of_fold(
    snapshot: Snapshot, feature_ND: NDArray[np.float32], rows: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """Probabilities [L, C] for each row by a head trained on the four fifths it is not in."""
    scale = feature_scale(feature_ND)
    # Dealt out class by class, so that every fold has about the same share of each.
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    dealt = shuffled[snapshot.class_N[rows][shuffled].argsort(kind="stable")]
    fold_L = np.empty(len(rows), dtype=np.int64)
    fold_L[dealt] = np.arange(len(rows)) % _FOLDS
    prob_LC = np.empty((len(rows), len(snapshot.classes)))
    for fold in range(_FOLDS):
        out = fold_L == fold
        head = train_on(snapshot, feature_ND, rows[~out], scale=scale, seed=seed + fold)
        logit_BC, _ = head.outputs(feature_ND, rows[out])
        prob_LC[out] = logit_BC.double().softmax(dim=1).numpy()
    return prob_LC
