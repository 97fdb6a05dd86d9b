"""The sampler against its floor and its rivals: one table, one JSON, one picture, in one run.

    python benchmarks/query.py --data-dir DIR

Ours and rivals run in turn in this process (scikit-activeml in one of its own); each figure is
the median of five runs after one that warms up, or the only run where that takes over 5 s.
(a) the plain matrix products; (b) the algorithm of the authors' code, (n) the same in lean NumPy,
(c) in PyTorch; (d) the dense matrix with scikit-learn; (e) scikit-activeml. "x (a)" is our time
over that of (a); the columns after it say how many times as long as ours the others take. A dash:
not run, it would take many minutes or the memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, sleep

import torch

from fastbadge import GradientEmbedding, kmeans_pp
from fastbadge.lab.environment import describe_environment
from fastbadge.lab.plots import STYLE
from fastbadge.lab.protocol import Config
from pools import mnist_pool, synthetic_pool
from rivals import (
    ScikitActiveml,
    dense_sklearn,
    one_at_a_time_authors,
    one_at_a_time_numpy,
    one_at_a_time_torch,
    products,
)

RESULTS = Path(__file__).parent / "results"
ONCE_SECONDS = 5.0
# Threads of the NumPy rivals spin for a while after their work, on the cores the next one needs:
# without a rest, ours took 28 ms instead of 18 after (d).
REST_SECONDS = 0.5

Rival = Callable[[GradientEmbedding, int], object]
RIVALS: dict[str, Rival] = {
    "a": products,
    "b": one_at_a_time_authors,
    "n": one_at_a_time_numpy,
    "c": one_at_a_time_torch,
    "d": dense_sklearn,
}

GROWTH = {
    "N": (12_500, 25_000, 50_000, 100_000, 200_000),
    "C": (2, 10, 50, 250, 1000),
    "D": (32, 128, 512, 2048),
    "k": (10, 100, 1000, 10_000),
}


@dataclass
class Row:
    """Seconds of one query of k by ours and by the rivals that were run."""

    pool: str
    k: int
    ours: float
    rivals: dict[str, float] = field(default_factory=dict)

    def times_ours(self, rival: str) -> str:
        """How many times as long as ours a rival takes."""
        return f"{self.rivals[rival] / self.ours:.1f}" if rival in self.rivals else "-"


def median_seconds(works: dict[str, Callable[[], object]], runs: int = 5) -> dict[str, float]:
    """Median seconds of each, run in turn, so that a slow minute of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs + 1):
        for name, work in works.items():
            if seconds[name] and seconds[name][0] > ONCE_SECONDS:
                continue
            sleep(REST_SECONDS)
            start = perf_counter()
            work()
            seconds[name].append(perf_counter() - start)
    return {name: statistics.median(taken[1:] or taken) for name, taken in seconds.items()}


def measure(pool: str, emb: GradientEmbedding, k: int, rivals: str = "a", runs: int = 5) -> Row:
    """One row of the table."""
    seeds = iter(range(1000))
    works: dict[str, Callable[[], object]] = {"ours": lambda: kmeans_pp(emb, k, seed=next(seeds))}
    works |= {name: partial(RIVALS[name], emb, k) for name in rivals}
    taken = median_seconds(works, runs)
    row = Row(pool, k, taken.pop("ours"), taken)
    print(
        f"{row.pool:44} {row.k:6} {row.ours:8.3f}"
        f" {row.rivals['a']:8.3f} {row.ours / row.rivals['a']:6.2f}"
        + "".join(f" {row.times_ours(name):>8}" for name in "bncde"),
        flush=True,
    )
    return row


def main_table(data_dir: Path) -> list[Row]:
    """The pools of the targets."""
    # The compiled arithmetic is loaded by the first large pool of a process; benchmarks/main_job.py
    # has what a first query takes.
    kmeans_pp(synthetic_pool(50_000, 10, 512, 0.85), 10)
    mnist = mnist_pool(data_dir)
    rows = [measure("MNIST MLP, 60,000 x (10, 64)", mnist, 100, "abncd")]
    activeml = ScikitActiveml()
    seconds = activeml.seconds(mnist, 100)
    if seconds is None:
        print(f"  (e) not run: {activeml.reason}")
    else:
        rows[0].rivals["e"] = seconds
        print(f"  (e) scikit-activeml: {seconds:.2f} s, {rows[0].times_ours('e')} times ours")
    rows.append(measure("MNIST MLP, 60,000 x (10, 64)", mnist, 1000, "abnc"))
    for mean_top in (0.5, 0.7, 0.85, 0.95):
        emb = synthetic_pool(50_000, 10, 512, mean_top)
        name = f"synthetic {mean_top}, 50,000 x (10, 512)"
        rows.append(measure(name, emb, 1000, "anc" if mean_top == 0.85 else "a"))
        if mean_top == 0.85:
            rows.append(measure(name, emb, 10_000, "ac"))
    emb = synthetic_pool(50_000, 100, 512, 0.7)
    rows.append(measure("synthetic 0.7, 50,000 x (100, 512)", emb, 1000, "ac"))
    emb = synthetic_pool(320_000, 1000, 512, 0.7)
    rows.append(measure("synthetic 0.7, 320,000 x (1,000, 512)", emb, 2500, "a"))
    return rows


def growth() -> dict[str, list[Row]]:
    """Ours and the floor as one of N, C, D and k grows from 50,000 x (10, 128), k = 1,000."""
    curves: dict[str, list[Row]] = {}
    for axis, values in GROWTH.items():
        curves[axis] = []
        for value in values:
            shape = {"N": 50_000, "C": 10, "D": 128, "k": 1000} | {axis: value}
            emb = synthetic_pool(shape["N"], shape["C"], shape["D"], 0.85)
            name = f"0.85, {shape['N']:,} x ({shape['C']:,}, {shape['D']:,})"
            curves[axis].append(measure(f"{axis}: {name}", emb, shape["k"], "a", runs=3))
    return curves


CONTESTANTS = {
    "ours": ("fastbadge", "#0072B2", "o"),
    "a": ("(a) plain products", "#D55E00", "s"),
    "c": ("(c) one at a time, PyTorch", "#009E73", "^"),
    "n": ("(n) one at a time, NumPy", "#CC79A7", "v"),
    "b": ("(b) authors' algorithm", "#E69F00", "D"),
    "d": ("(d) dense, scikit-learn", "#56B4E9", "P"),
    "e": ("(e) scikit-activeml", "#555555", "X"),
}


def draw(rows: list[Row], curves: dict[str, list[Row]]) -> None:
    """The table as points, one line a pool; the growth as lines."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(12, 6.6), layout="constrained")
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.5, 1]).flat
        table = upper.subplots()
        for name, (label, color, marker) in CONTESTANTS.items():
            taken = [row.ours if name == "ours" else row.rivals.get(name) for row in rows]
            points = [(seconds, y) for y, seconds in enumerate(taken) if seconds is not None]
            xs, ys = zip(*points, strict=True) if points else ((), ())
            table.plot(xs, ys, marker, color=color, label=label, markersize=7)
        table.set_yticks(range(len(rows)), [f"{row.pool}, k = {row.k:,}" for row in rows])
        table.invert_yaxis()
        table.set_xscale("log")
        table.xaxis.set_major_formatter("{x:g}")
        table.set_xlabel("seconds for one query, less is better")
        table.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        panels = lower.subplots(1, len(curves), sharey=True)
        for panel, (letter, points_of) in zip(panels, curves.items(), strict=True):
            for name in ("ours", "a"):
                label, color, marker = CONTESTANTS[name]
                taken = [row.ours if name == "ours" else row.rivals["a"] for row in points_of]
                panel.plot(GROWTH[letter], taken, marker=marker, color=color, label=label)
            panel.loglog()
            ticks = GROWTH[letter] if len(GROWTH[letter]) < 5 else GROWTH[letter][::2]
            panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            panel.set_xticks([], minor=True)
            panel.yaxis.set_major_formatter("{x:g}")
            panel.set_xlabel(letter)
        panels[0].set_ylabel("seconds")
        for suffix in ("png", "svg"):
            figure.savefig(RESULTS / f"query.{suffix}", dpi=150)


def main() -> None:
    """Measure, print, save, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="where MNIST lies")
    data_dir = parser.parse_args().data_dir
    print(
        f"{'pool':44} {'k':>6} {'ours s':>8} {'(a) s':>8} {'x (a)':>6}"
        + "".join(f" {f'({name})/ours':>8}" for name in "bncde")
    )
    rows, curves = main_table(data_dir), growth()
    record = {
        "environment": describe_environment(Config(threads=torch.get_num_threads())),
        "table": [asdict(row) for row in rows],
        "growth": {axis: [asdict(row) for row in points] for axis, points in curves.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "query.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(rows, curves)
    print(f"saved: {RESULTS / 'query.json'} and its picture")


if __name__ == "__main__":
    main()
