"""Pools on disk: an ImageNet-sized one sampled in little memory, and equal picks everywhere.

    python benchmarks/disk.py [--folder DIR]

Writes 3.9 GB of float16 factors (and 0.6 GB for the comparison) into a temporary folder in DIR,
samples them in processes of their own, prints and saves time, memory and whether picks agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch

from fastbadge import DiskPool, GradientEmbedding, kmeans_pp
from fastbadge.lab.environment import describe_environment
from fastbadge.lab.protocol import Config
from fastbadge.pools import GradientPool, scaled, write_pool
from pools import synthetic_batches

RESULTS = Path(__file__).parent / "results"

# Samples a pool in a process of its own; RssAnon is what is not a file's page.
_SAMPLE = """
import sys, threading, time
from fastbadge import DiskPool, kmeans_pp

def anonymous_mb():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1024

peak, over = 0.0, False
def watch():
    global peak
    while not over:
        peak = max(peak, anonymous_mb())
        time.sleep(0.005)
thread = threading.Thread(target=watch)
thread.start()
start = time.perf_counter()
picks = kmeans_pp(DiskPool.open(sys.argv[1]), int(sys.argv[2]), seed=0)
seconds = time.perf_counter() - start
over = True
thread.join()
print(seconds, peak, len(set(picks.tolist())))
"""


def imagenet_sized(folder: Path) -> dict[str, float]:
    """1,281,167 x (1,000, 512) in float16, k = 10,000."""
    N, C, D, k = 1_281_167, 1000, 512, 10_000
    start = perf_counter()
    with write_pool(folder, N, dtype="float16") as append:
        for batch in synthetic_batches(N, C, D, 0.7):
            append(batch.error_NC, batch.feature_ND)
    written = perf_counter() - start
    command = [sys.executable, "-c", _SAMPLE, str(folder), str(k)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, peak_mb, distinct = map(float, answer.split())
    assert distinct == k
    return {"make_and_write_seconds": written, "query_seconds": seconds, "peak_mb": peak_mb}


def equal_picks(folder: Path) -> dict[str, float]:
    """1,000,000 x (10, 128), k = 1,000: memory and disk, tiles, threads, both arithmetics."""
    N, C, D, k = 1_000_000, 10, 128, 1000
    batches = list(synthetic_batches(N, C, D, 0.85))
    emb = GradientEmbedding(
        torch.cat([batch.error_NC for batch in batches]),
        torch.cat([batch.feature_ND for batch in batches]),
    )
    with write_pool(folder, N, dtype="float32") as append:
        for batch in batches:
            append(batch.error_NC, batch.feature_ND)
    del batches
    disk = DiskPool.open(folder)
    figures = {}
    picks = {}
    pools: dict[str, GradientPool] = {"memory": emb, "disk": disk}
    for name, pool in pools.items():
        start = perf_counter()
        picks[name] = kmeans_pp(pool, k, seed=0)
        figures[f"{name}_seconds"] = perf_counter() - start
    torch.set_num_threads(1)
    picks["disk, one thread"] = kmeans_pp(disk, k, seed=0)
    torch.set_num_threads(2)
    scaled._TILE_FACTORS, scaled._TILE_PRODUCTS = 1 << 18, 1 << 16
    picks["disk, small tiles"] = kmeans_pp(disk, k, seed=0)
    scaled._ENTRIES_WORTH_COMPILING = 1 << 60
    picks["memory, plain torch"] = kmeans_pp(emb, k, seed=0)
    for name, other in picks.items():
        figures[f"equal picks: {name}"] = float(torch.equal(other, picks["memory"]))
    return figures


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on a disk with 5 GB free")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        figures = {
            "1,000,000 x (10, 128), k = 1,000": equal_picks(Path(folder, "million")),
            "1,281,167 x (1,000, 512) float16, k = 10,000": imagenet_sized(Path(folder, "big")),
        }
    for title, values in figures.items():
        print(title)
        for name, value in values.items():
            print(f"  {name:32} {value:10.3f}")
    environment = describe_environment(Config(threads=torch.get_num_threads()))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "disk.json"
    path.write_text(json.dumps({"environment": environment, "figures": figures}, indent=2) + "\n")
    print(f"saved: {path}")


if __name__ == "__main__":
    main()
