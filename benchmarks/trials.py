"""Many trials: what 50 of them take, how much of that is training, and one copy of the data.

python benchmarks/trials.py --data-dir DIR [--jobs 2] [--strategies A,B]
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

from fastbadge.lab.environment import describe_environment
from fastbadge.lab.protocol import Config
from fastbadge.lab.store import read_run

RESULTS = Path(__file__).parent / "results"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastbadge", "run", *arguments]


def fifty_trials(jobs: str, strategies: str) -> dict[str, float]:
    """A run as a user would start it, its start and its pictures included.

    Rounds tell wall time, so the share of CPU time is right on a machine of one's own only; that of
    the cores' time, the idle included, holds in company too.
    """
    with tempfile.TemporaryDirectory() as folder:
        line = command("--trials", "50", "--strategies", strategies, "--jobs", jobs)
        start, before = perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*line, "--out", folder], check=True, capture_output=True)
        wall, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = read_run(Path(folder)).rows
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    training = sum(row.train_seconds for row in rows)
    return {
        "strategies": len(strategies.split(",")),
        "rounds": len(rows),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "train_seconds": training,
        "query_seconds": sum(row.query_seconds for row in rows),
        "eval_seconds": sum(row.eval_seconds for row in rows),
        "train_share_of_cpu": training / cpu,
        "train_share_of_cores": training / int(jobs) / wall,
    }


def shared_memory(jobs: str, data_dir: Path) -> dict[str, float]:
    """MNIST's two float32 tensors, and what of them each worker has for itself."""
    data_mb, seen = 70_000 * 784 * 4 / 2**20, []
    with tempfile.TemporaryDirectory() as folder:
        line = command("--dataset", "mnist", "--data-dir", str(data_dir), "--jobs", jobs)
        line += ["--trials", jobs, "--rounds", "3", "--out", folder]
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            while run.poll() is None:
                seen += _memory_of_workers(run.pid)
                sleep(0.25)
    # When all read it: what one has read and no other yet counts as its own.
    return {"data_mb": data_mb} | max(seen, key=lambda one: one["worker_data_shared_mb"])


def _memory_of_workers(parent: int) -> list[dict[str, float]]:
    """MB that each worker has for itself alone, and of the data its own and the shared part."""
    found = []
    children = Path(f"/proc/{parent}/task/{parent}/children")
    for worker in children.read_text().split() if children.exists() else ():
        try:
            if "LokyProcess" not in Path(f"/proc/{worker}/cmdline").read_text():
                continue
            maps = Path(f"/proc/{worker}/smaps").read_text()
        except OSError:  # it has just ended
            continue
        # Each mapping is a line with its file, then its figures.
        of_data = "".join(re.findall(r"^\S+-.*memfd:fastbadge.*\n(?:[A-Z].*\n)*", maps, re.M))
        found.append(
            {
                "worker_uss_mb": _mb(maps, "Private"),
                "worker_data_private_mb": _mb(of_data, "Private"),
                "worker_data_shared_mb": _mb(of_data, "Shared"),
            }
        )
    return found


def _mb(maps: str, kind: str) -> float:
    return sum(map(int, re.findall(rf"^{kind}_(?:Clean|Dirty): +(\d+) kB", maps, re.M))) / 1024


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="where MNIST lies")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--strategies", default="badge,margin,coreset,random")
    given = parser.parse_args()
    figures = {
        f"digits, 50 trials of {given.strategies}, {given.jobs} processes": fifty_trials(
            given.jobs, given.strategies
        ),
        f"mnist in {given.jobs} processes": shared_memory(given.jobs, given.data_dir),
    }
    for title, values in figures.items():
        print(title)
        for name, value in values.items():
            print(f"  {name:32} {value:10.3f}")
    record = {"environment": describe_environment(Config()), "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "trials.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved: {path}")


if __name__ == "__main__":
    main()
