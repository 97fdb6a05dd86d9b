"""The experiment: train, test, choose, look up the labels; again from scratch each round."""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastbadge.dropout import fixed_dropout
from fastbadge.errors import InputError, RunError
from fastbadge.lab.batched import train_together
from fastbadge.lab.datasets import Dataset, at_its_place, is_resplit, load_dataset
from fastbadge.lab.environment import describe_environment
from fastbadge.lab.models import build_model, drawing_from
from fastbadge.lab.protocol import Config, check_pool_size, check_runnable
from fastbadge.lab.seeds import generator_for, seed_for
from fastbadge.lab.sources import Shared, Source, can_share, loaded
from fastbadge.lab.store import (
    RoundRow,
    Run,
    only_writer,
    open_run,
    read_run,
    record_environment,
    record_round,
)
from fastbadge.lab.training import batch_sizes, evaluate
from fastbadge.lab.workers import Place, Workers, in_this_process, on_cluster, on_this_host
from fastbadge.pools import load_arithmetic
from fastbadge.select import select
from fastbadge.strategies import get_strategy
from fastbadge.strategies.registry import Memory

OnRound: TypeAlias = Callable[[RoundRow], None]

# The threads of a worker (Dask's may have several) take turns: training draws from generators that
# they share.
_ALONE = threading.Lock()


@dataclass(eq=False, slots=True)
class _Cohort:
    """Trials of one strategy that stand at the same round and go on together.

    One task is one round of all of them. Mostly that is one trial; see `_trains_together`.
    """

    strategy: str
    rows_of: dict[int, list[RoundRow]]  # by the number of the trial, round by round
    source_of: dict[int, Source] = field(default_factory=dict)  # from when it is begun

    @property
    def round(self) -> int:
        """The round that comes next."""
        return len(next(iter(self.rows_of.values())))


def run_experiment(
    config: Config,
    out: Path,
    *,
    data_dir: Path | None = None,
    jobs: int | None = None,
    dask: str | None = None,
    on_round: OnRound | None = None,
) -> Run:
    """Run an experiment, or what is left of it, and record each round as it is finished.

    A round is a task for a worker: it is given the rounds before it and gives back its row, which
    this process records. So a worker can die, or live on another host, without a round being lost
    or recorded twice.

    The numbers depend on `config` and the data alone: not on `jobs` or `dask`, nor on how often
    the run was interrupted. On a GPU that is so up to rounding, because there the trials of a
    strategy train together, and how many are left of them enters the order of additions.

    Args:
        config: what to run.
        out: the run directory; one that holds a part of this experiment is completed.
        data_dir: see `load_dataset`; with `dask`, on the hosts of the workers too.
        jobs: processes; by default one a processor core, and one in all for a GPU. With 1 all
            happens in this process.
        dask: address of the scheduler of a Dask cluster, whose workers compute instead.
        on_round: called for each row of the record, those found there first, in this thread.

    Returns:
        The finished record.

    Raises:
        InputError: a configuration that cannot be run here, a cluster that cannot be reached.
        DataError: the data set cannot be had.
        RunError: the run directory cannot be used, another command is computing in it, or a worker
            died.
    """
    check_runnable(config)
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs is {jobs}; expected at least 1")
    on_round = on_round or (lambda row: None)
    recorded_as = config
    # Workers stand where they were started, and the caller may move meanwhile.
    config = replace(config, dataset=at_its_place(config.dataset))
    out, data_dir = out.absolute(), None if data_dir is None else data_dir.absolute()
    try:
        dataset = _load(config, data_dir, _split_seed(config, trial=0))
        check_pool_size(config, len(dataset.y_pool_N))
        if finished := _finished(recorded_as, out, dataset.digest):
            for row in finished.rows:
                on_round(row)
            return finished
        _check_model(config, dataset)
        with only_writer(out):
            open_run(out, recorded_as, data_digest=dataset.digest)
            recorded = read_run(out)
            for row in recorded.rows:
                on_round(row)
            if not recorded.finished:
                waiting = _unfinished(config, out, recorded.rows, len(dataset.y_pool_N))
                with _workers(config, jobs, dask, len(waiting)) as workers:
                    source_for = partial(_source, config, data_dir, workers.place, dataset.digest)
                    del dataset
                    _run_rounds(config, out, waiting, workers, source_for, on_round)
            return read_run(out)
    finally:
        _load.cache_clear()
        _source.cache_clear()


def _finished(config: Config, out: Path, data_digest: str) -> Run | None:
    """The record, if nothing is left to do: then it may lie where nobody can write."""
    try:
        found = read_run(out)
    except (RunError, OSError):  # none; or `open_run` has more to say
        return None
    same = found.config == config and found.data_digest == data_digest
    return found if same and found.finished else None


def _check_model(config: Config, dataset: Dataset) -> None:
    """Build a model once before anything is written, to refuse what no round could begin with."""
    model = build_model(
        config.model,
        dataset.shape,
        dataset.num_classes,
        hidden=config.hidden,
        dropout=config.dropout,
        generator=torch.Generator(),
    )
    if any("samples" in get_strategy(name).needs for name in config.strategies):
        with fixed_dropout(model, torch.Generator()):
            pass
    if 1 in batch_sizes(config.initial_labels, config.train_batch):
        try:
            with torch.no_grad(), drawing_from(torch.Generator()):
                model.train()(dataset.x_pool_NF[:1].cpu())
        except ValueError as error:  # of BatchNorm, which then has nothing to compare
            raise InputError(
                f"model {config.model} cannot be trained on one example at a time ({error}); pass "
                "initial_labels and train_batch of at least 2"
            ) from error


def _run_rounds(
    config: Config,
    out: Path,
    waiting: deque[_Cohort],
    workers: Workers,
    source_for: Callable[[int], Source],
    on_round: OnRound,
) -> None:
    """Each round after the one before it, and those of other trials meanwhile."""
    environment_id = record_environment(out, describe_environment(config))
    under_way: list[_Cohort] = []
    computing: dict[Future[list[RoundRow]], _Cohort] = {}
    while waiting or under_way or computing:
        while waiting and len(under_way) + len(computing) < workers.turns:
            cohort = waiting.popleft()
            for trial in cohort.rows_of:
                cohort.source_of[trial] = source_for(_split_seed(config, trial))
            under_way.append(cohort)
        while under_way and len(computing) < workers.tasks:
            # Who is furthest behind goes first, so that the last ones end together.
            cohort = min(under_way, key=lambda cohort: cohort.round)
            under_way.remove(cohort)
            computing[workers.executor.submit(_work, config, cohort)] = cohort
        for future in wait(computing, return_when=FIRST_COMPLETED).done:
            cohort = computing.pop(future)
            for row in future.result():
                record_round(out, row, environment_id)
                on_round(row)
                cohort.rows_of[row.trial].append(row)
            if cohort.round < config.points:
                under_way.append(cohort)


def _work(config: Config, cohort: _Cohort) -> list[RoundRow]:
    with _ALONE:
        torch.set_num_threads(config.threads)
        try:
            return _run_round(config, cohort)
        except RunError as error:
            trials = ", ".join(map(str, cohort.rows_of))
            raise RunError(
                f"{cohort.strategy}, trial {trials}, round {cohort.round}: {error}"
            ) from error


def _run_round(config: Config, cohort: _Cohort) -> list[RoundRow]:
    """The next round of each trial of a cohort: train from scratch, test, choose."""
    trials, round = list(cohort.rows_of), cohort.round
    dataset_of = {trial: cohort.source_of[trial]() for trial in trials}
    labeled_of = {
        trial: _labeled(config, trial, len(dataset_of[trial].y_pool_N), rows)
        for trial, rows in cohort.rows_of.items()
    }
    start = perf_counter()
    model_of = {
        trial: build_model(
            config.model,
            dataset_of[trial].shape,
            dataset_of[trial].num_classes,
            hidden=config.hidden,
            dropout=config.dropout,
            generator=generator_for(config.seed, trial, round, "weights"),
        ).to(config.device)
        for trial in trials
    }
    known_of = {trial: labeled_of[trial].to(config.device) for trial in trials}
    train_together(
        list(model_of.values()),
        [dataset_of[trial].x_pool_NF[known_of[trial]] for trial in trials],
        [dataset_of[trial].y_pool_N[known_of[trial]] for trial in trials],
        config,
        generators=[generator_for(config.seed, trial, round, "shuffling") for trial in trials],
    )
    train_seconds = (perf_counter() - start) / len(trials)
    return [
        _test_and_choose(
            config,
            cohort.strategy,
            trial,
            round,
            dataset_of[trial],
            model_of[trial],
            labeled_of[trial],
            _memory(config, cohort.strategy, cohort.rows_of[trial]),
            train_seconds,
        )
        for trial in trials
    ]


def _test_and_choose(
    config: Config,
    strategy: str,
    trial: int,
    round: int,
    dataset: Dataset,
    model: nn.Module,
    labeled_L: Tensor,
    memory: Memory,
    train_seconds: float,
) -> RoundRow:
    if "gradients" in get_strategy(strategy).needs:
        pool_size = len(dataset.y_pool_N)
        features = [layer.in_features for layer in model.modules() if isinstance(layer, nn.Linear)]
        columns = dataset.num_classes + sum(features[-1:])
        load_arithmetic(config.trials * config.rounds * pool_size * columns)
    start = perf_counter()
    accuracy, loss = evaluate(model, dataset.x_test_MF, dataset.y_test_M)
    evaluated = perf_counter()
    picked_K = torch.empty(0, dtype=torch.int64)
    if round < config.rounds:
        picked_K = select(
            model,
            dataset.x_pool_NF,
            config.query_size,
            strategy=strategy,
            labeled=labeled_L,
            labels=dataset.y_pool_N[labeled_L.to(config.device)],
            memory=memory,
            generator=generator_for(config.seed, trial, round, "query"),
            progress=False,
        )
    queried = perf_counter()
    return RoundRow(
        strategy=strategy,
        trial=trial,
        round=round,
        labels=len(labeled_L),
        accuracy=accuracy,
        loss=loss,
        train_seconds=train_seconds,
        query_seconds=queried - evaluated if len(picked_K) else 0.0,
        eval_seconds=evaluated - start,
        picks=tuple(picked_K.tolist()),
        memory=json.dumps(memory),
    )


def _memory(config: Config, strategy: str, rows: list[RoundRow]) -> Memory:
    """What the strategy noted last; at first, how often it will be asked."""
    if rows:
        noted: Memory = json.loads(rows[-1].memory)
        return noted
    return {"horizon": config.rounds} if "memory" in get_strategy(strategy).needs else {}


def _labeled(config: Config, trial: int, pool_size: int, rows: list[RoundRow]) -> Tensor:
    """LongTensor[L]: the initial labels, then what the rounds so far have picked, in order."""
    picks = [pick for row in rows for pick in row.picks]
    initial_L = _initial_labels(config, trial, pool_size)
    return torch.cat([initial_L, torch.tensor(picks, dtype=torch.int64)])


def _initial_labels(config: Config, trial: int, pool_size: int) -> Tensor:
    generator = generator_for(config.seed, trial, 0, "initial labels")
    return torch.randperm(pool_size, generator=generator)[: config.initial_labels]


def _unfinished(
    config: Config, out: Path, recorded: list[RoundRow], pool_size: int
) -> deque[_Cohort]:
    """What is left to do; trial by trial, so that the data of one are wanted at one time."""
    cohorts: dict[tuple[int, str, int], _Cohort] = {}
    rows_of: defaultdict[tuple[str, int], list[RoundRow]] = defaultdict(list)
    for row in recorded:
        rows_of[row.strategy, row.trial].append(row)
    for trial in range(config.trials):
        for strategy in config.strategies:
            rows = rows_of[strategy, trial]
            if [row.round for row in rows] != list(range(len(rows))):
                raise RunError(
                    f"{out} lacks a round of {strategy}, trial {trial}, before others that are "
                    "there; it was changed by hand: run into another directory"
                )
            asked = [pick for row in rows for pick in row.picks]
            if len(asked) != config.query_size * len(rows[: config.rounds]) or not all(
                pick < pool_size for pick in asked
            ):
                raise RunError(
                    f"{out} has picks of {strategy}, trial {trial}, that no query gave; it was "
                    "changed by hand: run into another directory"
                )
            if len(rows) < config.points:
                key = (-1 if _trains_together(config) else trial, strategy, len(rows))
                cohorts.setdefault(key, _Cohort(strategy, {})).rows_of[trial] = rows
    return deque(cohorts.values())


def _trains_together(config: Config) -> bool:
    """Whether all trials of a strategy train as one stack: on a GPU.

    A CPU would gain too (small MLPs train 2 to 4 times as fast), but a batched product need not
    round like a single one, and there numbers must not depend on which trials are left to do.
    """
    return torch.device(config.device).type == "cuda"


def _workers(
    config: Config, jobs: int | None, dask: str | None, most: int
) -> AbstractContextManager[Workers]:
    from joblib import cpu_count

    if dask is not None:
        return on_cluster(dask)
    jobs = min(jobs or (1 if _trains_together(config) else cpu_count()), most)
    return in_this_process(config.threads) if jobs == 1 else on_this_host(jobs, config.threads)


@lru_cache(maxsize=1)
def _source(
    config: Config, data_dir: Path | None, place: Place, first_digest: str, split_seed: int
) -> Source:
    """Where workers find the data of the trials with this division."""
    digest = first_digest if split_seed == _split_seed(config, trial=0) else None
    by_itself = partial(loaded, config.dataset, data_dir, config.device, split_seed, digest)
    if place == "elsewhere":
        return by_itself
    dataset = _load(config, data_dir, split_seed)
    if place == "this process":
        return lambda: dataset
    _load.cache_clear()  # this process needs it no more
    return Shared(dataset) if can_share(dataset) else by_itself


@lru_cache(maxsize=1)
def _load(config: Config, data_dir: Path | None, split_seed: int) -> Dataset:
    return load_dataset(
        config.dataset, data_dir=data_dir, device=config.device, split_seed=split_seed
    )


def _split_seed(config: Config, trial: int) -> int:
    return seed_for(config.seed, trial, 0, "split") if is_resplit(config.dataset) else 0
