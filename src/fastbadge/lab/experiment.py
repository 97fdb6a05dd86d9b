"""The experiment: train, test, choose, look up the labels; again from scratch each round."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

import torch

from fastbadge.errors import InputError, RunError
from fastbadge.lab.datasets import Dataset, is_resplit, load_dataset
from fastbadge.lab.environment import describe_environment
from fastbadge.lab.models import build_model
from fastbadge.lab.protocol import Config, check_pool_size, check_runnable
from fastbadge.lab.seeds import generator_for, seed_for
from fastbadge.lab.store import (
    RoundRow,
    Run,
    follow_rows,
    open_run,
    read_run,
    record_environment,
    record_round,
)
from fastbadge.lab.training import evaluate, train
from fastbadge.pools import load_arithmetic
from fastbadge.select import select
from fastbadge.strategies import get_strategy

OnRound: TypeAlias = Callable[[RoundRow], None]

# The arguments of _run_trial.
_Task: TypeAlias = tuple[Config, Path, Path | None, int, int, str, list[RoundRow]]

_POLL_SECONDS = 0.2


def run_experiment(
    config: Config,
    out: Path,
    *,
    data_dir: Path | None = None,
    jobs: int | None = None,
    on_round: OnRound | None = None,
) -> Run:
    """Run an experiment, or what is left of it, and record each round as it is finished.

    The trials of each strategy are shared out to processes. The numbers depend on `config` and
    the data alone: not on `jobs`, nor on how often the run was interrupted.

    Args:
        config: what to run.
        out: the run directory; one that holds a part of this experiment is completed.
        data_dir: see `load_dataset`.
        jobs: processes; by default one a processor core. With 1 all happens in this process.
        on_round: called for each row of the record, those found there first; one call at a time,
            in this process, on a thread of its own.

    Returns:
        The finished record.

    Raises:
        InputError: a configuration that cannot be run here.
        DataError: the data set cannot be had.
        RunError: the run directory cannot be used, or a worker died.
    """
    check_runnable(config)
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs is {jobs}; expected at least 1")
    try:
        dataset = _load_for(config, data_dir, trial=0)
        check_pool_size(config, len(dataset.y_pool_N))
        open_run(out, config, data_digest=dataset.digest)
        del dataset
        with _reporting(out, on_round):
            if not read_run(out).finished:
                _run_trials(config, out, data_dir, jobs)
        return read_run(out)
    finally:
        _load.cache_clear()


def _run_trials(config: Config, out: Path, data_dir: Path | None, jobs: int | None) -> None:
    from joblib import Parallel, cpu_count, delayed, parallel_config

    environment_id = record_environment(out, describe_environment(config))
    done = read_run(out).rows
    tasks: list[_Task] = []
    for trial in range(config.trials):
        for strategy in config.strategies:
            rows = [row for row in done if (row.strategy, row.trial) == (strategy, trial)]
            if [row.round for row in rows] != list(range(len(rows))):
                raise RunError(
                    f"{out} lacks a round of {strategy}, trial {trial}, before others that are "
                    "there; it was changed by hand: run into another directory"
                )
            if len(rows) < config.points:
                tasks.append((config, out, data_dir, environment_id, trial, strategy, rows))

    jobs = min(jobs or cpu_count(), len(tasks))
    if jobs == 1:
        with _torch_threads(config.threads):
            for task in tasks:
                _run_trial(*task)
        return
    _load.cache_clear()  # each process loads the data for itself, once
    # The workers of a parent killed outright end a while after their last trial.
    with parallel_config(
        "loky", n_jobs=jobs, inner_max_num_threads=config.threads, idle_worker_timeout=10
    ):
        # No task waits in loky's own queue: one that did would make Ctrl-C print a traceback of
        # loky's (KeyError in ExecutorManagerThread, joblib 1.6).
        parallel = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)
        try:
            with _interrupt_ignored():
                finished = parallel(delayed(_work)(config.threads, task) for task in tasks)
            for _ in finished:
                pass
        except BrokenProcessPool as error:
            raise RunError(
                f"a worker process was killed (out of memory?); {out} keeps the finished rounds: "
                "run the same command again, with fewer --jobs"
            ) from error


def _work(threads: int, task: _Task) -> None:
    torch.set_num_threads(threads)
    _run_trial(*task)


def _run_trial(
    config: Config,
    out: Path,
    data_dir: Path | None,
    environment_id: int,
    trial: int,
    strategy: str,
    done: list[RoundRow],
) -> None:
    """The rounds of one trial of one strategy that follow those `done`."""
    dataset = _load_for(config, data_dir, trial)
    pool_size = len(dataset.y_pool_N)
    if "gradients" in get_strategy(strategy).needs:
        columns = dataset.num_classes + config.hidden[-1]
        load_arithmetic(config.trials * config.rounds * pool_size * columns)
    memory = json.loads(done[-1].memory) if done else {}
    labeled_L = _initial_labels(config, trial, pool_size)
    for row in done:
        labeled_L = torch.cat([labeled_L, torch.tensor(row.picks, dtype=torch.int64)])

    for round in range(len(done), config.points):
        start = perf_counter()
        model = build_model(
            config.model,
            dataset.shape,
            dataset.num_classes,
            hidden=config.hidden,
            dropout=config.dropout,
            generator=generator_for(config.seed, trial, round, "weights"),
        ).to(config.device)
        known_L = labeled_L.to(config.device)
        train(
            model,
            dataset.x_pool_NF[known_L],
            dataset.y_pool_N[known_L],
            config,
            generator=generator_for(config.seed, trial, round, "shuffling"),
        )
        trained = perf_counter()
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
                labels=dataset.y_pool_N[known_L],
                memory=memory,
                generator=generator_for(config.seed, trial, round, "query"),
                progress=False,
            )
        queried = perf_counter()
        row = RoundRow(
            strategy=strategy,
            trial=trial,
            round=round,
            labels=len(labeled_L),
            accuracy=accuracy,
            loss=loss,
            train_seconds=trained - start,
            query_seconds=queried - evaluated if len(picked_K) else 0.0,
            eval_seconds=evaluated - trained,
            picks=tuple(picked_K.tolist()),
            memory=json.dumps(memory),
        )
        record_round(out, row, environment_id)
        labeled_L = torch.cat([labeled_L, picked_K])


def _initial_labels(config: Config, trial: int, pool_size: int) -> torch.Tensor:
    generator = generator_for(config.seed, trial, 0, "initial labels")
    return torch.randperm(pool_size, generator=generator)[: config.initial_labels]


# One data set a process: the tasks of a worker share it.
_load = lru_cache(maxsize=1)(load_dataset)


def _load_for(config: Config, data_dir: Path | None, trial: int) -> Dataset:
    resplit = is_resplit(config.dataset)
    split_seed = seed_for(config.seed, trial, 0, "split") if resplit else 0
    return _load(config.dataset, data_dir=data_dir, device=config.device, split_seed=split_seed)


@contextmanager
def _reporting(out: Path, on_round: OnRound | None) -> Iterator[None]:
    """Calls `on_round` for each row of the record, and for each that appears meanwhile."""
    if on_round is None:
        yield
        return
    over = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        report = thread.submit(_report, out, on_round, over)
        try:
            yield
        finally:
            over.set()
        report.result()


def _report(out: Path, on_round: OnRound, over: threading.Event) -> None:
    last = False
    with closing(follow_rows(out)) as news:
        for rows in news:
            for row in rows:
                on_round(row)
            if last:
                return
            last = over.wait(_POLL_SECONDS)  # then once more, for what came since


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interrupt_ignored() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C, which the terminal sends to all of them.

    It is the parent's to answer; without this each worker shows a traceback of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
