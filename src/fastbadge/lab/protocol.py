"""The whole configuration of an experiment, and the two protocols of the package.

Everything that determines an experiment's numbers is in `Config`; where the data lie, where the
record goes and how many processes share the work are not, because they change no number.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fastbadge.errors import InputError
from fastbadge.lab.datasets import check_dataset_name
from fastbadge.strategies import get_strategy

_LEAST = {
    "trials": 1,
    "rounds": 0,
    "initial_labels": 1,
    "query_size": 1,
    "train_batch": 1,
    "max_epochs": 1,
    "seed": 0,
    "threads": 1,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What determines the numbers of an experiment; the defaults are the protocol **digits**.

    Args:
        dataset: digits, mnist, fashion_mnist or npz:PATH.
        strategies: names of the strategies to compare.
        trials: repetitions, each with its own initial labels and weights.
        rounds: queries after the initial labels, so a trial gives rounds + 1 points.
        initial_labels: examples labelled at random before the first query.
        query_size: examples that each query adds.
        hidden: widths of the hidden layers of the MLP.
        learning_rate: of Adam.
        train_batch: examples in one step of training.
        max_epochs: training of a round ends here,
        stop_accuracy: or at this accuracy on the labelled examples (0 to 1).
        clip_norm: the gradient of a step is scaled down to this norm.
        seed: every random number derives from it.
        device: where tensors live: cpu, cuda, cuda:1.
        threads: of torch in each process.

    Raises:
        InputError: a value that no experiment can be made of.

    >>> Config(trials=3).points
    11
    >>> Config(trials=0)
    Traceback (most recent call last):
        ...
    fastbadge.errors.InputError: trials is 0; expected at least 1
    """

    dataset: str = "digits"
    strategies: tuple[str, ...] = ("badge", "random")
    trials: int = 5
    rounds: int = 10
    initial_labels: int = 20
    query_size: int = 20
    hidden: tuple[int, ...] = (128, 64)
    learning_rate: float = 1e-3
    train_batch: int = 100
    max_epochs: int = 300
    stop_accuracy: float = 0.99
    clip_norm: float = 1.0
    seed: int = 0
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse what no machine could run; what this one cannot is `check_runnable`'s."""
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) < least:
                raise InputError(f"{name} is {value}; expected at least {least}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise InputError(f"{name} is {value}; expected a positive number")
        if not 0 < self.stop_accuracy <= 1:
            raise InputError(f"stop_accuracy is {self.stop_accuracy}; expected above 0, up to 1")
        if not self.hidden or min(self.hidden) < 1:
            raise InputError(f"hidden is {self.hidden}; expected one or more widths of at least 1")
        if not self.strategies:
            raise InputError("strategies is empty; expected at least one, such as badge")
        if len(set(self.strategies)) < len(self.strategies):
            raise InputError(f"strategies is {','.join(self.strategies)}; each may be named once")

    @property
    def points(self) -> int:
        """Points of a learning curve: the initial labels and one for each query."""
        return self.rounds + 1

    @property
    def final_labels(self) -> int:
        """How many examples are labelled in the last round."""
        return self.initial_labels + self.rounds * self.query_size

    def to_json(self) -> str:
        """The configuration as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The inverse of `to_json`.

        >>> Config.from_json(Config(seed=3).to_json()) == Config(seed=3)
        True
        """
        return cls(**_with_tuples(json.loads(text)))


PROTOCOLS: dict[str, Config] = {
    "digits": Config(),
    "classic": Config(
        dataset="mnist",
        initial_labels=100,
        query_size=100,
        learning_rate=1e-4,
        max_epochs=100,
    ),
}


def config_for(dataset: str = "digits", **overrides: Any) -> Config:
    """The protocol that fits a data set, with the settings the caller wants otherwise.

    mnist and fashion_mnist take **classic**. digits takes **digits**, and so does npz:PATH,
    because its 220 labels and its learning rate suit a pool of unknown size.

    Args:
        dataset: name of a data set.
        overrides: fields of `Config`; None keeps the protocol's value.

    Raises:
        InputError: a value that no experiment can be made of.

    >>> config_for("mnist", trials=2, seed=None).final_labels
    1100
    """
    protocol = PROTOCOLS["classic" if dataset in ("mnist", "fashion_mnist") else "digits"]
    wanted = {name: value for name, value in overrides.items() if value is not None}
    return replace(protocol, dataset=dataset, **_with_tuples(wanted))


def check_runnable(config: Config) -> None:
    """Refuse names that nothing answers to here; a record from elsewhere stays readable.

    Raises:
        InputError: an unknown data set or strategy, or a device this machine does not have.
    """
    check_dataset_name(config.dataset)
    for name in config.strategies:
        get_strategy(name)
    try:
        usable = torch.empty(0, device=config.device).device.type in ("cpu", "cuda")
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        # Not mps: it lacks the float64 in which losses and distances are settled.
        raise InputError(
            f"device is {config.device!r}, which cannot be used here; pass cpu, or cuda where "
            "there is one"
        )
    if config.threads > (most := max(64, os.cpu_count() or 1)):
        raise InputError(f"threads is {config.threads}; expected at most {most} on this machine")


def check_pool_size(config: Config, pool_size: int) -> None:
    """Refuse an experiment that would ask for more labels than the pool has.

    Raises:
        InputError: initial_labels + rounds x query_size exceeds the pool.

    >>> check_pool_size(Config(), 100)
    Traceback (most recent call last):
        ...
    fastbadge.errors.InputError: 20 initial labels and 10 rounds of 20 need 220 examples but the \
pool has 100; lower initial_labels, rounds or query_size
    """
    if config.final_labels > pool_size:
        raise InputError(
            f"{config.initial_labels} initial labels and {config.rounds} rounds of "
            f"{config.query_size} need {config.final_labels} examples but the pool has "
            f"{pool_size}; lower initial_labels, rounds or query_size"
        )


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
