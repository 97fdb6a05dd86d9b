"""Several processes choosing together: time against one process, and what travels.

    python benchmarks/processes.py [--data-dir DIR]

Starts jobs of two processes over gloo on this machine, each after one of one process, in turn.
Prints and saves, as medians of all runs: a whole query of 2 processes x 1 thread against 1 process
x 2 threads; of sampling alone also the share of time spent in exchanges, the bytes that all
processes together send for a pick, and how these grow with the rows of the pool.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fastbadge import GradientEmbedding, ShardedPool, kmeans_pp, select
from fastbadge.distributed import Job
from fastbadge.lab.datasets import load_dataset
from fastbadge.lab.environment import describe_environment
from fastbadge.lab.models import mlp
from fastbadge.lab.protocol import Config
from fastbadge.pools import load_arithmetic
from pools import synthetic_pool

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3  # of a job of one process and a job of two
RUNS = 5  # in each
ROWS = (62_500, 250_000, 1_000_000)


class Counted(Job):
    """Counts what goes over the wire, and the time it takes."""

    sent_bytes = 0
    exchanges = 0
    seconds = 0.0

    def _to_all(self, ours: Tensor, counts: Any) -> Any:
        start = perf_counter()
        parts = super()._to_all(ours, counts)
        Counted.seconds += perf_counter() - start
        Counted.sent_bytes += ours.nbytes * (self.size - 1)
        Counted.exchanges += 1
        return parts


def in_processes(size: int, threads: int, work: Callable[..., Any], *arguments: object) -> Any:
    """What the first of so many processes returns."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_start, args=(rank, size, threads, folder, sender, work, arguments)
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        sender.close()
        answer: Any = receiver.recv()
        for process in processes:
            process.join()
    return answer


def _start(
    rank: int, size: int, threads: int, folder: str, sender: Any, work: Any, arguments: Any
) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=rank, world_size=size)
    load_arithmetic(1 << 40)
    answer = work(*arguments)
    if rank == 0:
        sender.send(answer)
    sender.close()
    dist.barrier()
    dist.destroy_process_group()


def timed(work: Callable[[], Tensor]) -> tuple[list[float], Tensor]:
    """Seconds of runs that all processes begin together, after one to warm up; and the picks."""
    picked, seconds = work(), []
    for _ in range(RUNS):
        dist.barrier()
        start = perf_counter()
        picked = work()
        seconds.append(perf_counter() - start)
    return seconds, picked


def query(data_dir: Path, k: int) -> tuple[list[float], list[int]]:
    """select() on the MNIST training images, forward pass included."""
    x = load_dataset("mnist", data_dir=data_dir).x_pool_NF
    seconds, picked = timed(lambda: select(network(), x, k, seed=0))
    return seconds, picked.tolist()


def wide_query(k: int) -> tuple[list[float], list[int]]:
    """select() with a wider network, as those are that people run on several devices."""
    x = torch.randn(20_000, 512, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    model = mlp(512, (1024, 1024, 512), 10, generator=generator)
    seconds, picked = timed(lambda: select(model, x, k, seed=0))
    return seconds, picked.tolist()


def network() -> nn.Module:
    """The MLP of protocol **classic**, untrained."""
    return mlp(784, (128, 64), 10, generator=torch.Generator().manual_seed(0))


def sampling(N: int, C: int, D: int, k: int) -> tuple[list[float], list[int], dict[str, Any]]:
    """kmeans_pp alone over two processes that hold 3/8 and 5/8 of the rows; and what travels."""
    emb = synthetic_pool(N, C, D, 0.85)
    rank, size = dist.get_rank(), dist.get_world_size()
    if size == 1:
        seconds, picked = timed(lambda: kmeans_pp(emb, k, seed=0))
        return seconds, picked.tolist(), {}
    bounds = [0, N // 8 * 3, N]
    ours = slice(bounds[rank], bounds[rank + 1])
    shard = GradientEmbedding(emb.error_NC[ours].clone(), emb.feature_ND[ours].clone())
    whole = ShardedPool(shard)
    seconds, picked = timed(lambda: kmeans_pp(whole, k, seed=0))
    counted, shares = ShardedPool(shard), []
    counted.job = Counted()
    for _ in range(RUNS):
        Counted.sent_bytes, Counted.exchanges, Counted.seconds = 0, 0, 0.0
        dist.barrier()
        start = perf_counter()
        kmeans_pp(counted, k, seed=0)
        shares.append(Counted.seconds / (perf_counter() - start))
    sent = Job().gather(Counted.sent_bytes)
    travels = {"sent": sent, "exchanges": Counted.exchanges, "shares": shares}
    return seconds, picked.tolist(), travels


def compared(work: Callable[..., Any], *arguments: object) -> dict[str, float]:
    """One process x two threads, two processes x one thread, in turn; and what travels."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    picks: list[list[int]] = []
    shares: list[float] = []
    for _ in range(ROUNDS):
        for size in (1, 2):
            ran, picked, *more = in_processes(size, 3 - size, work, *arguments)
            seconds[size] += ran
            picks.append(picked)
            shares += more[0].get("shares", []) if more else []
    one, two = (statistics.median(seconds[size]) for size in (1, 2))
    figures = {
        "1 process x 2 threads, seconds": one,
        "2 processes x 1 thread, seconds": two,
        "ratio": two / one,
        "equal picks": float(all(picked == picks[0] for picked in picks)),
    }
    if shares:  # of the last job of two, as in all
        sent = more[0]["sent"]
        figures["bytes sent by process 0"] = sent[0]
        figures["bytes sent by all"] = sum(sent)
        figures["bytes sent by all, a pick"] = sum(sent) / len(picks[0])
        figures["exchanges"] = more[0]["exchanges"]
        figures["share of time in exchanges"] = statistics.median(shares)
    return figures


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="where MNIST lies")
    data_dir = parser.parse_args().data_dir
    figures: dict[str, dict[str, float]] = {}

    def show(title: str, values: dict[str, float]) -> None:
        figures[title] = values
        print(title)
        for name, value in values.items():
            print(f"  {name:34} {value:14,.3f}", flush=True)

    for k in (100, 1000):
        show(f"select(), MNIST, 60,000, k = {k:,}", compared(query, data_dir, k))
    show("select(), wide MLP, 20,000, k = 100", compared(wide_query, 100))
    for N in ROWS:
        show(f"sampling alone, {N:,} x (10, 64), k = 1,000", compared(sampling, N, 10, 64, 1000))
    show(
        "sampling alone, 1,000,000 x (10, 64), k = 100", compared(sampling, 1_000_000, 10, 64, 100)
    )
    environment = describe_environment(Config(threads=2))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "processes.json"
    path.write_text(json.dumps({"environment": environment, "figures": figures}, indent=2) + "\n")
    print(f"saved: {path}")


if __name__ == "__main__":
    main()
