"""Every strategy on one pool: seconds and memory of a query, given what it needs of the model.

    python benchmarks/strategies.py

60,000 x (10, 64), k = 100, 1,000 labelled, two threads; each strategy in a process of its own, once
with nothing compiled or cached. The model is not run: probabilities, features and the samples of a
dropout come from arrays, so these are the seconds of the strategy alone. BAIT once more at
20,000 x (26, 128). Memory is what the process takes at most beyond what it had before the query.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter, sleep

import torch

from fastbadge.lab.environment import describe_environment
from fastbadge.lab.protocol import Config
from fastbadge.strategies import PoolView, get_strategy, strategy_names
from pools import synthetic_pool

RESULTS = Path(__file__).parent / "results"
POOL = (60_000, 10, 64)
BAIT_POOL = (20_000, 26, 128)
K, LABELED, MEAN_TOP = 100, 1000, 0.85


def view_of(N: int, C: int, D: int) -> PoolView:
    """What select() would show of a pool of N and of LABELED examples more."""
    from fastbadge import GradientEmbedding

    emb = synthetic_pool(N + LABELED, C, D, MEAN_TOP)
    prob_NC = emb.error_NC.double()  # p - e_y, whose one negative entry is at y
    prob_NC = prob_NC + (prob_NC < 0)
    logit_NC = prob_NC.clamp_min(1e-30).log()

    def samples(count: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        for _ in range(count):  # as if a mask moved the logits
            noise_NC = torch.randn(N, C, generator=generator)
            yield (logit_NC[:N] + noise_NC).softmax(dim=1)

    known = PoolView(
        LABELED,
        probabilities=lambda index: prob_NC[N:][index],
        features=lambda index: emb.feature_ND[N:][index],
        task="multiclass",
        labels=torch.zeros(LABELED, dtype=torch.int64),
        positions=torch.arange(N, N + LABELED),
    )
    return PoolView(
        N,
        probabilities=lambda index: prob_NC[:N][index],
        embedding=GradientEmbedding(emb.error_NC[:N], emb.feature_ND[:N]),
        features=lambda index: emb.feature_ND[:N][index],
        task="multiclass",
        samples=samples,
        labeled=known,
        memory={},
        positions=torch.arange(N),
    )


def measure(name: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """Seconds and MB of one query, in this process."""
    torch.set_num_threads(2)
    strategy, view = get_strategy(name), view_of(*shape)
    if "labeled" not in strategy.needs:
        view = replace(view, labeled=None)
    base, peak, over = resident_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, resident_mb())
            sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    start = perf_counter()
    picks_K = strategy.fn(view, K, generator=torch.Generator().manual_seed(0))
    seconds = perf_counter() - start
    over.set()
    thread.join()
    assert len(set(picks_K.tolist())) == K
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "mb": max(peak - base, 0.0), "process_mb": whole}


def resident_mb() -> float:
    """MB of memory this process has now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def in_its_own_process(name: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """`measure` where no other strategy has left anything behind."""
    command = [sys.executable, __file__, "--one", name, *map(str, shape)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(answer)
    return figures


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4, metavar=("NAME", "N", "C", "D"), help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", help="these strategies; the others keep their figures")
    arguments = parser.parse_args()
    if arguments.one:
        name, N, C, D = arguments.one
        print(json.dumps(measure(name, (int(N), int(C), int(D)))))
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "strategies.json"
    rows = json.loads(path.read_text())["rows"] if arguments.only and path.exists() else []
    todo = [(name, POOL) for name in strategy_names()] + [("bait", BAIT_POOL)]
    for name, shape in todo:
        if arguments.only and name not in arguments.only:
            continue
        row = {"strategy": name, "pool": list(shape), "k": K} | in_its_own_process(name, shape)
        rows = [r for r in rows if (r["strategy"], r["pool"]) != (name, list(shape))] + [row]
        print(f"{name:22} {shape!s:20} {row['seconds']:8.2f} s {row['mb']:8.0f} MB", flush=True)
    order = {(name, tuple(shape)): i for i, (name, shape) in enumerate(todo)}
    rows.sort(key=lambda row: order[row["strategy"], tuple(row["pool"])])
    record = {"environment": describe_environment(Config(threads=2)), "rows": rows}
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved: {path}")


if __name__ == "__main__":
    main()
