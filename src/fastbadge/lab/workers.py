"""Where rounds are computed: in this process, in others on this host, or on a Dask cluster.

All three are executors of `concurrent.futures`, so the loop over them is one.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Literal, TypeAlias

import torch

from fastbadge.errors import InputError, RunError
from fastbadge.interrupts import uninterrupted

_THREADS_OF = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_CONNECT_SECONDS = 10

Place: TypeAlias = Literal["this process", "this host", "elsewhere"]


@dataclass(frozen=True, slots=True)
class Workers:
    """Processes that compute.

    Args:
        executor: takes the tasks.
        tasks: how many it is to hold at a time, running and waiting.
        turns: of how many trials, or cohorts of them, that are under way at a time the tasks are.
        place: where the processes are, seen from the one that runs the command.
    """

    executor: Executor
    tasks: int
    turns: int
    place: Place


@contextmanager
def in_this_process(threads: int) -> Iterator[Workers]:
    """A task is finished when it has been submitted."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield Workers(_Immediately(), tasks=1, turns=1, place="this process")
    finally:
        torch.set_num_threads(before)


@contextmanager
def on_this_host(jobs: int, threads: int) -> Iterator[Workers]:
    """Processes of their own, which are gone at the end, be it an error or Ctrl-C.

    Raises:
        RunError: one of them was killed.
    """
    from joblib.externals.loky import ProcessPoolExecutor

    executor = ProcessPoolExecutor(
        jobs,
        initializer=_prepare,
        initargs=(os.getpid(),),
        # Windows, where `_end_with` sees nothing: idle ones end. Not elsewhere: to start others in
        # their place takes a second.
        timeout=10 if os.name == "nt" else None,
        env=dict.fromkeys(_THREADS_OF, str(threads)),
    )
    try:
        with _spared_interrupt():
            executor.submit(int)  # the first task starts the processes
        # One task waits, so that no process does while a finished one is recorded. Several trials
        # a process take turns, so that the last ones of a run keep all processes busy.
        yield Workers(executor, tasks=jobs + 1, turns=4 * jobs, place="this host")
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process was killed (out of memory?); the run directory keeps the finished "
            "rounds: run the same command again, with fewer --jobs"
        ) from error
    finally:
        try:
            # loky forgets the tasks, but not those of their numbers that its thread has not yet
            # taken: it would look them up in vain, show a traceback and tidy up nothing.
            with executor._work_ids.mutex:
                executor._work_ids.queue.clear()
        finally:
            executor.shutdown(kill_workers=True)


@contextmanager
def on_cluster(address: str) -> Iterator[Workers]:
    """The workers of a Dask cluster, those that join later too.

    What a worker that dies was computing is computed by another.

    Raises:
        InputError: no dask.distributed here, or nobody answers at the address.
        RunError: a task that killed several workers.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise InputError(
            "--dask needs dask.distributed, here and on the workers; "
            "pip install 'fastbadge[cluster]'"
        ) from error
    try:
        client = Client(address, set_as_default=False, timeout=_CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at {address!r}; pass what `dask scheduler` prints, "
            "such as tcp://HOST:8786"
        ) from error
    with client:
        try:
            # The scheduler has the queue, and sees what there is to do.
            executor = client.get_executor(pure=False)  # type: ignore[no-untyped-call]
            yield Workers(executor, tasks=sys.maxsize, turns=sys.maxsize, place="elsewhere")
        except KilledWorker as error:
            raise RunError(
                "several Dask workers died of the same round (out of memory?); the run directory "
                "keeps the finished rounds: run the same command again, with larger workers"
            ) from error


def _prepare(command: int) -> None:
    """Ties a new worker to its command alone, and spares it what loky does against leaks of memory.

    Ctrl-C is the command's to answer, also for workers started later, in place of others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(command,), daemon=True).start()
    from joblib.externals.loky import process_executor

    # It would end a worker that has grown by 300 MB, as ours do when they load data and numba.
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    # It collects garbage too: 0.1 s for what torch has imported.
    gc.freeze()


def _end_with(command: int) -> None:
    """End this process soon after the command that started it, even one killed outright.

    What it computes by then nobody will record, and the same command may be running again.
    """
    while os.getppid() == command:
        time.sleep(0.5)
    os._exit(1)


class _Immediately(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def _spared_interrupt() -> Iterator[None]:
    """Processes started meanwhile get no Ctrl-C, which the terminal sends to all of them.

    It is the parent's to answer, afterwards; each worker would show a traceback of its own.
    """
    with uninterrupted():  # what is started by half shows one too
        if not hasattr(signal, "pthread_sigmask"):  # Windows, where nothing of it is inherited
            yield
            return
        # loky would start it meanwhile, and it unblocks the signal.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
