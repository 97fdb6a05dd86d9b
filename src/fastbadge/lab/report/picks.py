"""What was picked, looked up in the data set where it is at hand: classes and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbadge.errors import FastbadgeError
from fastbadge.lab.datasets import Dataset, is_resplit, load_dataset
from fastbadge.lab.seeds import seed_for
from fastbadge.lab.store import RoundRow, Run

FIRST = 20
_COLUMNS = 10
_LARGEST_SIDE = 64


@dataclass(frozen=True)
class Sprite:
    """The first examples that a strategy picked, side by side.

    Args:
        png: as base64.
        width: in pixels of the picture.
        height: likewise.
        classes: of the examples, in order, by number.
    """

    png: str
    width: int
    height: int
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Picks:
    """What a run picked.

    Args:
        classes: what each class is called: its name, or its number.
        class_sizes_C: int64 [C], of the pool (of trial 0, where it is divided anew each trial).
        counts: for each strategy float64 [C, rounds]: mean picks of a class over the trials that
            recorded the query; NaN where none did.
        sprites: for each strategy that queried in trial 0; empty where examples are no images.
    """

    classes: tuple[str, ...]
    class_sizes_C: NDArray[np.int64]
    counts: dict[str, NDArray[np.float64]]
    sprites: dict[str, Sprite]


def look_up(run: Run, data_dir: Path | None) -> Picks | str:
    """The classes and pictures of a run's picks, or one line that says why there are none.

    Nothing is downloaded: data that are neither in `data_dir` nor in the cache are not at hand.
    """
    if not any(row.picks for row in run.rows):
        return "no query was recorded"
    if not _at_hand(run.config.dataset, data_dir):
        return f"{run.config.dataset} is not in the cache; pass --data-dir to have it looked up"
    try:
        return _look_up(run, data_dir)
    except (FastbadgeError, OSError, ImportError) as error:
        return str(error)


def _look_up(run: Run, data_dir: Path | None) -> Picks | str:
    config = run.config
    first = _load(run, data_dir, 0)
    if run.data_digest and first.digest != run.data_digest:
        return f"the values of {config.dataset} have changed since the run"
    sizes_C = np.bincount(first.y_pool_N.numpy(), minlength=first.num_classes)
    labels_of = {0: first.y_pool_N.numpy()}
    shape = (config.rounds, first.num_classes)
    sums = {name: np.zeros(shape) for name in config.strategies}
    trials = {name: np.zeros((config.rounds, 1)) for name in config.strategies}
    for row in run.rows:
        if not row.picks:
            continue
        if row.trial not in labels_of:
            again = is_resplit(config.dataset)
            labels_of[row.trial] = (
                _load(run, data_dir, row.trial).y_pool_N.numpy() if again else labels_of[0]
            )
        picked = labels_of[row.trial][list(row.picks)]
        sums[row.strategy][row.round] += np.bincount(picked, minlength=first.num_classes)
        trials[row.strategy][row.round] += 1
    with np.errstate(invalid="ignore"):
        counts = {name: (sums[name] / trials[name]).T for name in sums}
    classes = first.classes or tuple(map(str, range(first.num_classes)))
    return Picks(classes, sizes_C, counts, _sprites(run.rows, first))


def _load(run: Run, data_dir: Path | None, trial: int) -> Dataset:
    """The data of a trial, as `experiment` has them."""
    resplit = is_resplit(run.config.dataset)
    split_seed = seed_for(run.config.seed, trial, 0, "split") if resplit else 0
    return load_dataset(run.config.dataset, data_dir=data_dir, split_seed=split_seed)


def _at_hand(dataset: str, data_dir: Path | None) -> bool:
    import pooch

    name, _, argument = dataset.partition(":")
    local = name == "digits" or (argument != "" and name != "openml")
    cached = Path(pooch.os_cache("fastbadge")) / name
    return local or data_dir is not None or cached.is_dir()


def _sprites(rows: Sequence[RoundRow], dataset: Dataset) -> dict[str, Sprite]:
    shape = image_shape(dataset)
    if shape is None:
        return {}
    channels, height, width = shape
    image_NCHW = dataset.x_pool_NF.reshape(-1, channels, height, width).numpy()
    # A sample is enough for the range of the pixels; the pool may have 60,000 images.
    sample = image_NCHW[:: max(1, len(image_NCHW) // 2000)]
    low_C, high_C = sample.min(axis=(0, 2, 3)), sample.max(axis=(0, 2, 3))
    labels_N = dataset.y_pool_N.numpy()
    return {
        row.strategy: _sprite(
            image_NCHW[list(row.picks[:FIRST])], low_C, high_C, labels_N[list(row.picks[:FIRST])]
        )
        for row in rows
        if (row.trial, row.round) == (0, 0) and row.picks
    }


def image_shape(dataset: Dataset) -> tuple[int, int, int] | None:
    """Channels, height and width of a data set's examples; None where they are no small images."""
    shape = dataset.shape
    if len(shape) != 3 or shape[0] not in (1, 3) or max(shape[1:]) > _LARGEST_SIDE:
        return None
    return shape[0], shape[1], shape[2]


def _sprite(
    image_KCHW: NDArray[Any], low_C: NDArray[Any], high_C: NDArray[Any], class_K: NDArray[Any]
) -> Sprite:
    from PIL import Image

    low_C11, high_C11 = low_C[:, None, None], high_C[:, None, None]
    span_C11 = np.maximum(high_C11 - low_C11, 1e-12)
    byte_KCHW = (255 * ((image_KCHW - low_C11) / span_C11).clip(0, 1)).round().astype(np.uint8)
    count, channels, height, width = byte_KCHW.shape
    columns, lines = min(_COLUMNS, count), -(-count // _COLUMNS)
    sheet = np.full((lines * (height + 1) - 1, columns * (width + 1) - 1, channels), 96, np.uint8)
    for i, image_CHW in enumerate(byte_KCHW):
        top, left = i // _COLUMNS * (height + 1), i % _COLUMNS * (width + 1)
        sheet[top : top + height, left : left + width] = image_CHW.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(sheet.squeeze(axis=2) if channels == 1 else sheet).save(
        file, "PNG", optimize=True
    )
    return Sprite(
        base64.b64encode(file.getvalue()).decode(),
        sheet.shape[1],
        sheet.shape[0],
        tuple(int(c) for c in class_K),
    )
