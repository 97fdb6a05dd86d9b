"""Labelling with a simulated annotator, the time of a round, and reading 100,000 images.

    python benchmarks/label.py [labels|features|round|images|clicks|requests ...] [--seeds 0 1]
        [--settings badge ...] [--data-dir DIR]

`labels`: a simulated annotator, who speaks to the server as the page does, answers with MNIST's
true labels, pixels and the default head, until the model reaches 90 % on the official test set:
BADGE against random batches, validation labels counted for both. In each round, does the interval
that the page would show contain the accuracy on the test set? The rounds of a project share one
slice and are right or wrong together, so that a few seeds say little: the same models are judged
again with other slices, drawn from the reserve. `features`: the same with BADGE on histograms of
gradients, with and without colours, and a linear head. `round`: training and a query of 20 from
50,000 x 768. `images`: `init` of 100,000 PNG files, beside reading and decoding them and nothing
else, and how long the page of that project takes to open. `clicks`: from a click to having the next
items, at the server of 50,000 x 768, while it trains and while it does not. `requests`: 10,000
random ones; a server's error, something from outside the pool or a broken file ends the program.
What is not asked for keeps its figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import closing
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastbadge.lab.environment import describe_environment
from fastbadge.lab.idx import read_idx
from fastbadge.lab.protocol import Config as LabConfig
from fastbadge.label import clicks, project, rounds
from fastbadge.label.features import maker
from fastbadge.label.head import Head
from fastbadge.label.initialise import init_project
from fastbadge.label.numbers import LEAST_SLICE, wilson
from fastbadge.label.schema import kept_open
from label_server import (
    bombard,
    label_by_http,
    make_target,
    server,
    time_of_clicks,
    time_to_open,
)

RECORD = Path(__file__).parent / "results" / "label.json"
GOAL = 0.9
ROUNDS = 120
REDRAWN = 1000
SETTINGS: dict[str, dict[str, Any]] = {
    "badge": {"strategy": "badge"},
    "random": {"strategy": "random"},
    "badge, hog": {"strategy": "badge", "features": "hog"},
    "badge, hog+colour": {"strategy": "badge", "features": "hog+colour"},
    "badge, linear": {"strategy": "badge", "hidden": 0},
}


def mnist(data_dir: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, 28, 28] and labels [N] of "train" or "t10k"."""
    images = read_idx(data_dir / f"{part}-images-idx3-ubyte.gz", ndim=3)
    return images, read_idx(data_dir / f"{part}-labels-idx1-ubyte.gz", ndim=1).astype(np.int64)


def features_of(images: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """What `init` makes of PNGs of these images, [N, D], without the PNGs for pixels."""
    if kind == "pixels":
        return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    files = map(as_file, images)
    return np.concatenate([maker(kind)(part) for part in iter(lambda: [*islice(files, 500)], [])])


def as_file(image: NDArray[np.uint8]) -> bytes:
    """An uncompressed image file."""
    with tempfile.SpooledTemporaryFile() as file:
        Image.fromarray(image).save(file, "bmp")
        file.seek(0)
        return file.read()


def label(name: str, seed: int, data_dir: Path, folder: Path) -> dict[str, Any]:
    """Label until the goal is reached; what each round showed."""
    settings = dict(SETTINGS[name])
    kind = settings.pop("features", "pixels")
    source, test = folder / f"{kind}.npy", folder / f"{kind}-test.npy"
    _, truth_N = mnist(data_dir, "train")
    images_M, truth_M = mnist(data_dir, "t10k")
    if not source.exists():
        np.save(source, features_of(mnist(data_dir, "train")[0], kind))
        np.save(test, features_of(images_M, kind))
    feature_MD = np.load(test)
    directory = folder / f"{name}-{seed}"
    config = project.Config(
        kind="features", source=str(source), features="given", seed=1000 * seed, **settings
    )
    init_project(directory, config, [str(c) for c in range(10)])
    shown: list[dict[str, Any]] = []
    hits: list[NDArray[np.bool_]] = []
    with closing(label_by_http(directory, truth_N)) as rounds_of_labels:
        for labels in islice(rounds_of_labels, ROUNDS):
            weights = project.read_weights(directory)
            if weights is None:
                continue
            logit_MC, _ = head_of(weights).outputs(feature_MD, np.arange(len(truth_M)))
            accuracy = float((logit_MC.argmax(dim=1).numpy() == truth_M).mean())
            model = project.read_models(directory)[-1]
            if not model.total:  # chosen ahead, when no validation item had been answered yet
                continue
            rate = wilson(model.correct, model.total)
            hits.append(model.guesses["class"] == truth_N[model.guesses["item"] - 1] + 1)
            shown.append(
                {
                    "labels": labels,
                    "test_accuracy": accuracy,
                    "slice": model.total,
                    "inside": rate.low <= accuracy <= rate.high,
                    "seconds": model.seconds,
                }
            )
            if accuracy >= GOAL:
                break
    reached = shown[-1]["test_accuracy"] >= GOAL
    labels_at_goal = shown[-1]["labels"] if reached else None
    return {
        "setting": name,
        "seed": seed,
        "labels": labels_at_goal,
        "redrawn": with_other_slices(np.array(hits), shown),
        "rounds": shown,
    }


def with_other_slices(hit_RM: NDArray[np.bool_], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """In which share of the rounds the interval would have held, with other slices drawn.

    The reserve is a uniform sample that no model has seen, so that any part of it could have been
    the slice. Held: the accuracy on the test set, and on the whole reserve, so of the source.

    Args:
        hit_RM: what each round's model gets right of the reserve.
        rounds: size of the slice and accuracy on the test set of each.

    Returns:
        The means over all draws, and for the test set what 0, 5 ... 100 % of the draws stay below.
    """
    draw = np.random.default_rng(0)
    largest = max(row["slice"] for row in rounds)
    item_SM = np.array([draw.permutation(hit_RM.shape[1])[:largest] for _ in range(REDRAWN)])
    held: dict[str, list[NDArray[np.bool_]]] = {"test": [], "source": []}
    for hit_M, row in zip(hit_RM, rounds, strict=True):
        size = row["slice"]
        rates = [wilson(correct, size) for correct in range(size + 1)]
        bounds_2 = np.array([(rate.low, rate.high) for rate in rates]).T
        low_S, high_S = bounds_2[:, hit_M[item_SM[:, :size]].sum(axis=1)]
        for name, value in (("test", row["test_accuracy"]), ("source", hit_M.mean())):
            held[name].append((low_S <= value) & (value <= high_S))
    share_S = np.mean(held["test"], axis=0)
    return {
        "test": float(share_S.mean()),
        "source": float(np.mean(held["source"])),
        "percentiles": np.percentile(share_S, range(0, 101, 5)).round(3).tolist(),
    }


def head_of(weights: project.Arrays) -> Head:
    """The head whose weights a project keeps."""
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    mean_D, scale_D = tensors.pop("mean"), tensors.pop("scale")
    return Head(mean_D, scale_D, tuple(tensors.values()))


def wide_project(folder: Path, labels: int = 500) -> tuple[Path, NDArray[np.int64]]:
    """A project of 50,000 x 768 in batches of 20 with so many labels, and the true classes."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    centre_CD = draw.normal(size=(10, 768)).astype(np.float32)
    truth_N = draw.integers(10, size=50_000)
    noise_ND = draw.standard_normal((50_000, 768), dtype=np.float32)
    np.save(folder / "x.npy", centre_CD[truth_N] + 5 * noise_ND)
    config = project.Config(
        kind="features", source=str(folder / "x.npy"), features="given", strategy="badge"
    )
    directory = folder / "project"
    init_project(directory, config, [str(c) for c in range(10)])
    for item in range(1, labels + 1):
        answer = int(truth_N[item - 1]) + 1
        clicks.record_label(directory, item, answer, "simulated", request=str(item))
    return directory, truth_N


def time_of_round(folder: Path) -> dict[str, float]:
    """Seconds of `advance` with 500 labels, three times."""
    directory, _ = wide_project(folder)
    seconds = []
    with kept_open(directory):
        for _ in range(4):
            start = perf_counter()
            rounds.advance(directory)
            seconds.append(perf_counter() - start)
    return {"first": seconds[0], "median": float(np.median(seconds[1:])), "worst": max(seconds[1:])}


_INIT = """
import re, sys
from pathlib import Path
from time import perf_counter
from fastbadge.label.initialise import init_project
from fastbadge.label.project import Config
import torch, sklearn
def peak():  # not of getrusage, where a process begins with what its parent had
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
start = perf_counter()
config = Config(kind="images", source=sys.argv[1], features=sys.argv[3])
report = init_project(Path(sys.argv[2]), config, ["a", "b"], progress=False)
seconds = perf_counter() - start
print(report.added, seconds, peak(), before)
"""


def read_images(folder: Path, data_dir: Path, count: int = 100_000) -> dict[str, Any]:
    """`init` of PNG files against opening and decoding them alone, in one process each."""
    images, _ = mnist(data_dir, "train")
    source = folder / "images"
    for i in range(count):
        place = source / f"{i // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        turned = np.rot90(images[i % len(images)], i // len(images))
        Image.fromarray(turned).save(place / f"{i:06}.png")
    start = perf_counter()
    for path in source.rglob("*.png"):
        np.asarray(Image.open(path))
    figures: dict[str, Any] = {"files": count, "decode_only_seconds": perf_counter() - start}
    for kind in ("hog+colour", "hog", "pixels"):
        command = [sys.executable, "-c", _INIT, str(source), str(folder / kind), kind]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        added, seconds, peak_mb, before_mb = map(float, answer.split())
        assert added == count
        figures[kind] = {"seconds": seconds, "peak_mb": peak_mb, "before_mb": before_mb}
    return figures | {"page": time_to_open(folder / "pixels")}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Labels to the goal of each setting, its ratio to random's, and how often intervals cover."""
    figures: dict[str, Any] = {}
    for name in dict.fromkeys(run["setting"] for run in runs):
        mine = [run for run in runs if run["setting"] == name]
        rows = [row for run in mine for row in run["rounds"]]
        shown = [row for row in rows if row["slice"] >= LEAST_SLICE]
        weights = [len(run["rounds"]) for run in mine]
        figures[name] = {
            "labels": [run["labels"] for run in sorted(mine, key=lambda run: run["seed"])],
            "covered": float(np.mean([row["inside"] for row in rows])),
            "covered_where_shown": sum(row["inside"] for row in shown) / max(1, len(shown)),
            "rounds": len(rows),
            "rounds_shown": len(shown),
            "redrawn": {
                part: float(np.average([run["redrawn"][part] for run in mine], weights=weights))
                for part in ("test", "source")
            }
            | {"five_seeds_reach_90": chance_of_five(mine, 0.9)},
        }
    ours, base = ([run for run in runs if run["setting"] == name] for name in ("badge", "random"))
    labels = {run["seed"]: run["labels"] for run in base}
    pairs = [(run["labels"], labels.get(run["seed"])) for run in ours]
    both = [(mine, theirs) for mine, theirs in pairs if mine and theirs]
    if both:
        figures["badge"]["share_of_random"] = sum(a for a, _ in both) / sum(b for _, b in both)
    return figures


def chance_of_five(runs: list[dict[str, Any]], share: float) -> float:
    """How likely five projects hold in at least that share of their rounds, slices drawn anew."""
    draw = np.random.default_rng(0)
    run_SP = draw.integers(len(runs), size=(10_000, 5))
    percent_SP = draw.uniform(0, 20, size=run_SP.shape)
    held_SP = np.empty(run_SP.shape)
    for i, run in enumerate(runs):
        held_SP[run_SP == i] = np.interp(
            percent_SP[run_SP == i], range(21), run["redrawn"]["percentiles"]
        )
    rounds_SP = np.array([len(run["rounds"]) for run in runs])[run_SP]
    return float(((held_SP * rounds_SP).sum(axis=1) / rounds_SP.sum(axis=1) >= share).mean())


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("labels", "features", "round", "images", "clicks", "requests")
    parser.add_argument("parts", nargs="*", default=parts, help=f"of {', '.join(parts)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/mnist"))
    arguments = parser.parse_args()
    chosen = [
        name
        for name in arguments.settings or SETTINGS
        if ("labels" if name in ("badge", "random") else "features") in arguments.parts
    ]
    environment = describe_environment(LabConfig(threads=1))  # before the record makes it dirty
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed in arguments.seeds if chosen else ():
            for name in chosen:
                run = label(name, seed, arguments.data_dir, folder)
                save(environment, run)
                last = run["rounds"][-1]
                print(f"{name}, seed {seed}: {run['labels']} labels, {last}", flush=True)
        figures: dict[str, Any] = {}
        if "round" in arguments.parts:
            figures["round"] = time_of_round(folder / "round")
        if "images" in arguments.parts:
            figures["images"] = read_images(folder, arguments.data_dir)
        if "clicks" in arguments.parts:
            figures["clicks"] = time_of_clicks(*wide_project(folder / "clicks"))
        if "requests" in arguments.parts:
            target = make_target(folder / "requests")
            with server(target) as address:
                figures["requests"] = bombard(target, address, arguments.requests, seed=0)
    record = save(environment, **figures)
    print(json.dumps({k: v for k, v in record.items() if k != "runs"}, indent=2))
    print(f"saved: {RECORD}")


def save(environment: dict[str, Any], *runs: dict[str, Any], **figures: Any) -> dict[str, Any]:
    """Put runs and figures beside those kept, in the place of the same ones; the whole record."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"runs": []}
    new = [run | {"commit": environment["commit"]} for run in runs]
    named = {(run["setting"], run["seed"]): run for run in [*record["runs"], *new]}
    kept = sorted(
        named.values(), key=lambda run: (list(SETTINGS).index(run["setting"]), run["seed"])
    )
    record |= figures | {"environment": environment, "summary": summary(kept), "runs": kept}
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    main()
