"""The grid of the BADGE paper: one run a data set, model and size of queries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastbadge.errors import DataError, InputError
from fastbadge.lab.datasets import check_dataset_name, load_dataset, short_name
from fastbadge.lab.models import check_model_name
from fastbadge.lab.protocol import PAPER_PAIRS, PAPER_QUERY_SIZES, Config, config_for
from fastbadge.lab.store import FILE_NAME, Run, read_run


@dataclass(frozen=True)
class Grid:
    """What of the paper's grid can be run here.

    Args:
        settings: one experiment each, the cheapest models first.
        left_out: what cannot be run and why, in words.
    """

    settings: tuple[Config, ...]
    left_out: tuple[str, ...]


def paper_grid(
    datasets: Sequence[str] = (),
    models: Sequence[str] = (),
    query_sizes: Sequence[int] = (),
    *,
    data_dir: Path | None = None,
    **overrides: Any,
) -> Grid:
    """Every data set with its models and sizes of queries, as far as there are data for it.

    A pool too small for all queries of the protocol gets as many as it has room for.

    Args:
        datasets: names; by default the paper's seven. Others (csv:letter.csv is openml:6) go with
            the MLP, or with the models that are named.
        models: only these; by default what the paper runs on a data set.
        query_sizes: by default the paper's 100, 1,000 and 10,000.
        data_dir: see `load_dataset`.
        overrides: fields of `Config` that the settings have otherwise than the protocol; None
            keeps the protocol's.

    Raises:
        InputError: a name or a number that no experiment can be made of.

    >>> grid = paper_grid(["digits"], query_sizes=[100, 1_000, 10_000], trials=10)
    >>> [(config.query_size, config.rounds) for config in grid.settings]
    [(100, 11), (1000, 1)]
    >>> grid.left_out
    ('digits with queries of 10,000: 10,100 labels are more than the pool of 1,297',)
    """
    for name in datasets:
        check_dataset_name(name)
    for name in models:
        check_model_name(name)
    pairs = _pairs(datasets, models)
    settings: list[Config] = []
    left_out: list[str] = []
    pool_size_of: dict[str, int] = {}
    for dataset in dict.fromkeys(dataset for dataset, _ in pairs):
        try:
            pool_size_of[dataset] = len(load_dataset(dataset, data_dir=data_dir).y_pool_N)
        except DataError as error:
            left_out.append(f"{dataset}: {error}")
    for dataset, model in pairs:
        if (pool_size := pool_size_of.get(dataset)) is None:
            continue
        for query_size in query_sizes or PAPER_QUERY_SIZES:
            config = config_for(
                dataset, protocol="paper", model=model, query_size=query_size, **overrides
            )
            room = (pool_size - config.initial_labels) // query_size
            if room < 1:
                wanted = config.initial_labels + query_size
                left_out.append(
                    f"{dataset} with queries of {query_size:,}: {wanted:,} labels are more than "
                    f"the pool of {pool_size:,}"
                )
                continue
            settings.append(replace(config, rounds=min(config.rounds, room)))
    return Grid(tuple(settings), tuple(dict.fromkeys(left_out)))


def setting_name(config: Config) -> str:
    """What a setting's run directory is called.

    >>> setting_name(config_for("csv:tables/letter.csv", protocol="paper"))
    'letter-mlp-100'
    >>> setting_name(config_for("openml:6", protocol="paper", query_size=1_000))
    'openml_6-mlp-1000'
    """
    name = f"{short_name(config.dataset)}-{config.model}-{config.query_size}"
    return re.sub(r"[^\w.+-]", "_", name)


def runs_in(directory: Path) -> dict[Path, Run]:
    """The records under a directory that have a round, by their own directories, sorted."""
    found = {
        file.parent: read_run(file.parent) for file in sorted(directory.glob(f"*/{FILE_NAME}"))
    }
    return {path: run for path, run in found.items() if run.rows}


def _pairs(datasets: Sequence[str], models: Sequence[str]) -> list[tuple[str, str]]:
    """Data set and model, those with the MLP first."""
    names = datasets or list(dict.fromkeys(dataset for dataset, _ in PAPER_PAIRS))
    pairs = []
    for dataset in names:
        papers = [model for name, model in PAPER_PAIRS if name == dataset]
        if papers and models:
            chosen = [model for model in papers if model in models]
        else:
            chosen = papers or list(models) or ["mlp"]
        pairs += [(dataset, model) for model in chosen]
    if not pairs:
        raise InputError(
            f"the paper runs none of {', '.join(models)} on {', '.join(names)}; "
            "pass other --models or --datasets"
        )
    return sorted(pairs, key=lambda pair: pair[1] != "mlp")
