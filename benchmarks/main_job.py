"""The main job's figures: the classic and the digits experiment, one query, its memory.

python benchmarks/main_job.py --data-dir DIR
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch

from fastbadge.lab.environment import describe_environment
from fastbadge.lab.protocol import Config
from fastbadge.lab.statistics import learning_curve, paired_difference
from fastbadge.lab.store import RoundRow, open_run, read_run, record_environment, record_round

RESULTS = Path(__file__).parent / "results"

_ONE_QUERY = """
import sys, time, torch
from pathlib import Path
from fastbadge import select
from fastbadge.lab.datasets import load_dataset
from fastbadge.lab.models import mlp
from fastbadge.lab.protocol import config_for
from fastbadge.lab.seeds import generator_for
from fastbadge.lab.training import train

dataset, config = load_dataset("mnist", data_dir=Path(sys.argv[1])), config_for("mnist")
known = torch.randperm(60_000, generator=generator_for(0, 0, 0, "initial labels"))[:100]
model = mlp(784, config.hidden, 10, generator=generator_for(0, 0, 0, "weights"))
shuffling = generator_for(0, 0, 0, "shuffling")
train(model, dataset.x_pool_NF[known], dataset.y_pool_N[known], config, generator=shuffling)
for run in range(6):
    start = time.perf_counter()
    select(model, dataset.x_pool_NF, 100, labeled=known, seed=run)
    print(time.perf_counter() - start)
"""

# Anonymous memory (what is not a file's page), its peak sampled while the query runs.
_MEMORY = """
import threading, time, torch
from fastbadge import GradientEmbedding, kmeans_pp

def anonymous_mb():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

g = torch.Generator().manual_seed(0)
logits, features = torch.randn(60_000, 10, generator=g), torch.randn(60_000, 64, generator=g)
emb = GradientEmbedding.from_logits(3 * logits, features.relu())
base = peak = anonymous_mb()
over = False

def watch():
    global peak
    while not over:
        peak = max(peak, anonymous_mb())
        time.sleep(0.0005)

thread = threading.Thread(target=watch)
thread.start()
kmeans_pp(emb, 1000, seed=0)
over = True
thread.join()
print(peak - base)
"""


def experiment(arguments: list[str], processes: int) -> dict[str, float]:
    """Run `fastbadge run` as a user would and read its record."""
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        command = [sys.executable, "-m", "fastbadge", "run", *arguments, "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall = perf_counter() - start
        rows = read_run(Path(folder)).rows
    final = {name: points[-1].mean for name, points in learning_curve(rows).items()}
    difference = paired_difference(rows, "badge", "random")[-1]
    training = sum(row.train_seconds for row in rows)
    querying = sum(row.query_seconds for row in rows)
    evaluating = sum(row.eval_seconds for row in rows)
    recording = seconds_of_recording(rows)
    assert difference.interval is not None
    return {
        "wall_seconds": wall,
        "train_seconds": training,
        "query_seconds": querying,
        "eval_seconds": evaluating,
        "record_seconds": recording,
        "query_eval_record_share_of_wall": (querying + evaluating + recording) / processes / wall,
        "query_eval_record_share_of_rounds": (querying + evaluating + recording)
        / (training + querying + evaluating + recording),
        "badge_final": final["badge"],
        "random_final": final["random"],
        "difference": difference.mean,
        "difference_low": difference.interval[0],
        "difference_high": difference.interval[1],
    }


def seconds_of_recording(rows: list[RoundRow]) -> float:
    """What writing these rounds into a record takes, a transaction each."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        open_run(out, Config(), data_digest="")
        environment = record_environment(out, {})
        start = perf_counter()
        for row in rows:
            record_round(out, row, environment)
        return perf_counter() - start


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="where MNIST lies")
    data_dir = parser.parse_args().data_dir
    mnist = ["--dataset", "mnist", "--data-dir", str(data_dir)]
    processes = 2
    program = [sys.executable, "-c"]
    queries = subprocess.run(
        [*program, _ONE_QUERY, str(data_dir)], check=True, capture_output=True, text=True
    ).stdout.split()
    memory = subprocess.run([*program, _MEMORY], check=True, capture_output=True, text=True).stdout
    figures = {
        "one query of 100 from 59,900 images": {
            "first_seconds": float(queries[0]),
            "median_seconds": statistics.median(map(float, queries[1:])),
        },
        "query of 1,000 from 60,000 x (10, 64)": {"memory_above_base_mb": float(memory)},
        "digits, 5 trials": experiment(["--jobs", str(processes)], processes),
        "mnist, 5 trials": experiment([*mnist, "--jobs", str(processes)], processes),
    }
    for title, values in figures.items():
        print(title)
        for name, value in values.items():
            print(f"  {name:34} {value:10.3f}")
    record = {"environment": describe_environment(Config(threads=torch.get_num_threads()))}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "main_job.json"
    path.write_text(json.dumps(record | {"figures": figures}, indent=2) + "\n")
    print(f"saved: {path}")


if __name__ == "__main__":
    main()
