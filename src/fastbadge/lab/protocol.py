"""The whole configuration of an experiment, and the protocols: presets of it.

Everything that determines an experiment's numbers is in `Config`; where the data lie, where the
record goes and how many processes share the work are not, because they change no number.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fastbadge.errors import InputError
from fastbadge.lab.datasets import check_dataset_name, has_images
from fastbadge.lab.models import check_model_name
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
# Each is held in memory from the beginning.
_MOST_TRIALS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What determines the numbers of an experiment; the defaults are the protocol **digits**.

    Args:
        protocol: the preset this began as; `deviations` measures by it.
        dataset: see `fastbadge datasets`.
        strategies: names of the strategies to compare.
        trials: repetitions, each with its own initial labels and weights.
        rounds: queries after the initial labels, so a trial gives rounds + 1 points.
        initial_labels: examples labelled at random before the first query.
        query_size: examples that each query adds.
        model: mlp, linear, resnet18, vgg11 or MODULE:FUNCTION (see `lab.models.build_model`).
        hidden: widths of the hidden layers of the MLP.
        dropout: share of each of its hidden layers that training drops (0 to below 1).
        learning_rate: of Adam.
        train_batch: examples in one step of training.
        max_epochs: training of a round ends here,
        stop_accuracy: or at this accuracy on the labelled examples (0 to 1).
        clip_norm: the gradient of a step is scaled down to this norm; 0 leaves it as it is.
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

    protocol: str = "digits"
    dataset: str = "digits"
    strategies: tuple[str, ...] = ("badge", "random")
    trials: int = 5
    rounds: int = 10
    initial_labels: int = 20
    query_size: int = 20
    model: str = "mlp"
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
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
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}; expected a positive number")
        if not 0 <= self.clip_norm < math.inf:
            raise InputError(
                f"clip_norm is {self.clip_norm}; expected a positive number, or 0 for no clipping"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; expected from 0 to below 1")
        if self.dropout and self.model != "mlp":
            raise InputError(
                f"dropout is {self.dropout} but model {self.model} has none; pass --model mlp"
            )
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
        """The inverse of `to_json`; what an older version did not know has its default.

        Raises:
            ValueError, TypeError: text that `to_json` does not give.

        >>> Config.from_json(Config(seed=3).to_json()) == Config(seed=3)
        True
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise InputError(f"it is {text!r}; expected a JSON object")
        values.setdefault("protocol", _usual_protocol(values.get("dataset", "digits")))
        likes = asdict(cls())
        return cls(**{k: typed_like(v, likes.get(k, v), k) for k, v in values.items()})


# Ash et al. 2020: what differs from MNIST.
_PAPER_TABLES: dict[str, Any] = {"hidden": (1024,), "learning_rate": 1e-4, "train_batch": 128}
_PAPER_CIFAR10: dict[str, Any] = {"train_batch": 128}
# By the size of the queries. Powers of 2, as are the rounds that the paper's analysis looks at;
# 100 and 1,000 fit each of its pools, 10,000 those of images.
_PAPER_ROUNDS = {100: 32, 1_000: 16, 10_000: 4}
_PAPER_STRATEGIES = (
    "badge",
    "coreset",
    "least_confidence",
    "margin",
    "entropy",
    "albl",
    "random",
)
PAPER_PAIRS = (
    ("mnist", "mlp"),
    *((data, model) for data in ("svhn", "cifar10") for model in ("mlp", "resnet18", "vgg11")),
    *((f"openml:{number}", "mlp") for number in (6, 155, 156, 184)),
)
PAPER_QUERY_SIZES = tuple(_PAPER_ROUNDS)

PROTOCOLS: dict[str, Config] = {
    "digits": Config(),
    "classic": Config(
        protocol="classic",
        dataset="mnist",
        initial_labels=100,
        query_size=100,
        learning_rate=1e-4,
        max_epochs=100,
    ),
    "paper": Config(
        protocol="paper",
        dataset="mnist",
        strategies=_PAPER_STRATEGIES,
        rounds=_PAPER_ROUNDS[100],
        initial_labels=100,
        query_size=100,
        hidden=(256,),
        learning_rate=1e-3,
        train_batch=64,
        max_epochs=1000,
        clip_norm=0.0,
    ),
}


def config_for(
    dataset: str | None = None, *, protocol: str | None = None, **overrides: Any
) -> Config:
    """The preset of a protocol for a data set, with the settings the caller wants otherwise.

    Without a protocol, the image sets of 50,000 and more (mnist, fashion_mnist, svhn, cifar10)
    take **classic**. All others take **digits**, because its 220 labels and its learning rate suit
    a pool of unknown size. **paper** depends on the data set (images or tables) and on the size of
    the queries, which decides how many there are.

    Args:
        dataset: name of a data set; by default the protocol's, digits without one.
        protocol: digits, classic or paper.
        overrides: fields of `Config`; None keeps the protocol's value.

    Raises:
        InputError: an unknown protocol; a value that no experiment can be made of.

    >>> config_for("mnist", trials=2, seed=None).final_labels
    1100
    >>> config_for("openml:6", protocol="paper").hidden
    (1024,)
    """
    protocol = protocol or _usual_protocol(dataset or "digits")
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol is {protocol!r}; {nearest(protocol, PROTOCOLS)}")
    preset = PROTOCOLS[protocol]
    wanted = {name: value for name, value in overrides.items() if value is not None}
    preset = replace(preset, dataset=dataset or preset.dataset)
    if protocol == "paper":
        preset = _paper_for(preset, wanted.get("query_size", preset.query_size))
    return replace(preset, **_with_tuples(wanted))


def preset_of(config: Config) -> Config:
    """The preset of the protocol that a configuration began as, for its data set and queries.

    That of **paper** has the configuration's own size of queries if the paper has it too. A record
    from elsewhere may name a protocol unknown here; it is measured by what suits the data set.

    >>> config = config_for("digits", protocol="paper", query_size=1_000, trials=3)
    >>> preset_of(config) == replace(config, trials=5)
    True
    """
    known = config.protocol if config.protocol in PROTOCOLS else None
    size = config.query_size if known == "paper" and config.query_size in _PAPER_ROUNDS else None
    return config_for(config.dataset, protocol=known, query_size=size)


def deviations(config: Config) -> list[str]:
    """What differs from the publication whose protocol a configuration began as, in words.

    **digits** was not published, so nothing differs from it.

    >>> deviations(config_for("mnist", trials=50))
    ['trials is 50 instead of 5']
    """
    if config.protocol not in ("classic", "paper"):
        return []
    skipped = {"strategies", "seed", "device", "threads"}
    if config.protocol == "classic":
        published, others = PROTOCOLS["classic"], []
    else:
        published = preset_of(config)
        others = _off_paper(config, published.learning_rate)
        skipped |= {"dataset", "model", "rounds", "max_epochs"}  # told in their own words
    theirs = asdict(published)
    return [
        f"{name} is {as_text(value)} instead of {as_text(theirs[name])}"
        for name, value in asdict(config).items()
        if name not in skipped and value != theirs[name]
    ] + others


def check_runnable(config: Config) -> None:
    """Refuse names that nothing answers to here; a record from elsewhere stays readable.

    Raises:
        InputError: an unknown data set, model or strategy, options a strategy cannot choose by, or
            a device this machine does not have.
    """
    check_dataset_name(config.dataset)
    check_model_name(config.model)
    for name in config.strategies:
        get_strategy(name).check_options(config.query_size)
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
    if config.trials > _MOST_TRIALS:
        raise InputError(f"trials is {config.trials}; expected at most {_MOST_TRIALS}")
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


def _usual_protocol(dataset: str) -> str:
    return "classic" if dataset in ("mnist", "fashion_mnist", "svhn", "cifar10") else "digits"


def _paper_for(preset: Config, query_size: int) -> Config:
    if not has_images(preset.dataset):
        preset = replace(preset, **_PAPER_TABLES)
    elif preset.dataset == "cifar10":
        preset = replace(preset, **_PAPER_CIFAR10)
    return replace(preset, rounds=_PAPER_ROUNDS.get(query_size, preset.rounds))


def _off_paper(config: Config, papers_rate: float) -> list[str]:
    """Where this package, or its bounds, part from Ash et al. 2020 and their code."""
    found = []
    if config.learning_rate == papers_rate:
        found.append(
            f"learning_rate is the paper's {papers_rate}, but its authors later called their rates "
            "doubtful; --learning-rate sets another"
        )
    if (config.dataset, config.model) not in PAPER_PAIRS:
        found.append(
            f"{config.dataset} with {config.model} is none of the paper's data sets and models"
        )
    if missing := [name for name in _PAPER_STRATEGIES if name not in config.strategies]:
        found.append(f"without {', '.join(missing)}, which the paper compares too")
    if config.final_labels < 50_000:
        found.append(
            f"a trial ends at {config.final_labels} labels; the authors' code goes on to 50,000 or "
            "the end of the pool"
        )
    found.append(
        f"training ends after {config.max_epochs} epochs at the latest; the paper's goes on until "
        "99 %, however long that takes"
    )
    if not config.clip_norm:
        found.append(
            "gradients are taken as they are; the authors' code, not the paper, clamps each entry "
            "to 0.1"
        )
    if not has_images(config.dataset):
        found += [
            "numbers are standardised and categories one-hot; the authors' code takes the numbers, "
            "and the categories' codes, as they come",
            "the pool is all that is not in the test set, which is stratified; the authors' code "
            "draws both, and at most 50,000 for the pool",
        ]
    if config.model == "vgg11":
        found.append("vgg11 is what the paper names; the authors' code runs VGG-16")
    found.append(
        "the strategies of a trial share initial labels and weights; the authors' runs share none"
    )
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint of a message about an unknown name.

    >>> nearest("trails", ["trials", "rounds"]), nearest("x", ["trials", "rounds"])
    ('did you mean trials?', 'expected one of trials, rounds')
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"


def as_text(value: object) -> str:
    """A setting as a person writes it: a tuple is comma-separated."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def typed_like(value: Any, like: Any, name: str) -> Any:
    """The value, if it is of the type of another; a whole number may stand for any number.

    Raises:
        InputError: it is not.

    >>> typed_like([32], (128, 64), "hidden"), typed_like(1, 1e-3, "learning_rate")
    ((32,), 1.0)
    """
    if isinstance(like, tuple) and isinstance(value, list):
        return tuple(typed_like(item, like[0], name) for item in value)
    if isinstance(like, float) and type(value) is int:
        return float(value)
    if type(value) is not type(like):
        kinds = {int: "a whole number", float: "a number", str: "a text", tuple: "a list"}
        raise InputError(f"{name} is {value!r}; expected {kinds[type(like)]}")
    return value


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
