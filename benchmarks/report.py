"""Writes benchmarks/README.md from the figures in benchmarks/results.

python benchmarks/report.py
"""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

# (a) may be multiplied by, or a rival's time divided by, at most.
TARGETS: dict[tuple[str, int], dict[str, float]] = {
    ("MNIST MLP, 60,000 x (10, 64)", 100): {"b": 25},
    ("MNIST MLP, 60,000 x (10, 64)", 1000): {"b": 120, "a": 1.0},
    ("synthetic 0.85, 50,000 x (10, 512)", 1000): {"a": 0.7},
    ("synthetic 0.85, 50,000 x (10, 512)", 10_000): {"a": 0.35, "c": 60},
    ("synthetic 0.7, 50,000 x (100, 512)", 1000): {"a": 0.9},
    ("synthetic 0.7, 320,000 x (1,000, 512)", 2500): {"a": 0.6},
}

# What the figures of a script are to reach: by how its titles begin, then by name.
GOALS: dict[str, dict[str, dict[str, str]]] = {
    "main_job": {
        "one query": {"first_seconds": "< 0.5", "median_seconds": "< 0.5"},
        "query of 1,000": {"memory_above_base_mb": "< 300"},
        "digits": {"wall_seconds": "< 15", "difference": ">= 0.02"},
        "mnist": {
            "wall_seconds": "< 100",
            "query_eval_record_share_of_wall": "<= 0.15",
            "badge_final": ">= 0.91",
            "difference": ">= 0.015",
            "difference_low": "> 0",
        },
    },
    "trials": {"digits": {"wall_seconds": "< 150", "train_share_of_cpu": ">= 0.85"}},
    "strategies": {"bait 20,000": {"seconds": "< 60", "mb": "< 2000"}},
    "disk": {
        "1,000,000": {"equal picks": ">= 1"},
        "1,281,167": {"query_seconds": "< 300", "peak_mb": "< 3000"},
    },
    "forward": {"ResNet-18": {"query_over_forward": "<= 1.10"}},
    "processes": {
        "select()": {"ratio": "<= 1.15", "equal picks": ">= 1"},
        "sampling": {"equal picks": ">= 1"},
    },
    "label": {
        "clicks": {"training_p95_ms": "< 50"},
        "round": {"median": "< 1.5"},
        "images": {"peak_mb": "< 1000"},
        "page": {"first_item_seconds": "< 2"},
        "requests": {"5xx": "<= 0"},
        "badge:": {"share_of_random": "<= 0.6", "covered": ">= 0.9"},
        "random:": {"covered": ">= 0.9"},
    },
}
REACHED = {True: "yes", False: "**no**"}

HEAD = """# Benchmarks

`make bench` (or `make bench DATA_DIR=...` where MNIST lies elsewhere) prints and saves every
figure on this page; `python benchmarks/report.py` writes the page from what was saved. It needs
50 minutes, 5 GB of disk and 12 GB of memory. Nothing here was measured on a GPU.

"""


def goal(script: str, title: str, name: str) -> str:
    """What a figure is to reach; empty where it only informs."""
    for beginning, goals in GOALS.get(script, {}).items():
        for key, wanted in goals.items():
            if title.startswith(beginning) and name.partition(":")[0] == key:
                return wanted
    return ""


def reached(value: float, wanted: str) -> str:
    """Whether a figure is as wanted, such as "<= 1.10"."""
    if not wanted:
        return ""
    sign, bound = wanted.split()
    compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[sign]
    return REACHED[compare(value, float(bound))]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns after the first are right-aligned."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows]) + "\n"


def environment(record: dict[str, Any]) -> str:
    """Where it was measured."""
    facts = record["environment"]
    return (
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}, "
        f"numba {facts['numba']}, Python {facts['python']}.\n\n"
    )


def query(record: dict[str, Any]) -> str:
    """The sampler."""
    rows = []
    for row in record["table"]:
        ours, rivals = row["ours"], row["rivals"]
        times = [f"{rivals[name] / ours:.0f}" if name in rivals else "" for name in "bncde"]
        targets = TARGETS.get((row["pool"], row["k"]), {})
        parts = [f"{value} (a)" if n == "a" else f"({n}) / {value}" for n, value in targets.items()]
        met = all(
            ours <= value * rivals["a"] if n == "a" else ours <= rivals[n] / value
            for n, value in targets.items()
        )
        target = [", ".join(parts), REACHED[met] if targets else ""]
        ratio = f"{ours / rivals['a']:.2f}"
        cells = [row["pool"], f"{row['k']:,}", f"{ours:.3f}", f"{rivals['a']:.3f}", ratio]
        rows.append([*cells, *times, *target])
    header = ["pool", "k", "ours, s", "(a), s", "ours / (a)"]
    header += [f"({name}) / ours" for name in "bncde"] + ["target, at most", "reached"]
    return (
        "## The sampler: `query.py`\n\n"
        "Selection alone. (a) the plain matrix products N x C x k and N x D x k in float32, the\n"
        "floor of a method without pruning; (b) the algorithm of the authors' code, one centre at\n"
        "a time; (n) the same in lean NumPy; (c) in PyTorch; (d) the dense matrix with\n"
        "scikit-learn's `kmeans_plusplus`; (e) scikit-activeml's `Badge`. The number in a\n"
        "synthetic pool's name is the mean probability of the predicted class. Medians of five.\n"
        "The compiled arithmetic is loaded beforehand (0.6 s, once a process; what a first query\n"
        "takes is below).\n\n"
        + table(header, rows)
        + environment(record)
        + "![Ours against the products, and growth over N, C, D and k](results/query.png)\n\n"
    )


def strategies(record: dict[str, Any]) -> str:
    """One query of each strategy."""
    rows = []
    for row in record["rows"]:
        N, C, D = row["pool"]
        cells = [row["strategy"], f"{N:,} x ({C}, {D})", f"{row['k']:,}"]
        wanted = {
            key: goal("strategies", f"{cells[0]} {cells[1]}", key) for key in ("seconds", "mb")
        }
        met = min(reached(row[key], bound) for key, bound in wanted.items())  # "**no**" < "yes"
        target = [", ".join(f"{bound} {key}" for key, bound in wanted.items() if bound)]
        rows.append([*cells, f"{row['seconds']:.2f}", f"{row['mb']:.0f}", *target, met])
    return (
        "## Every strategy: `strategies.py`\n\n"
        "A query of k given what it needs of the model, with 1,000 labelled examples; the first\n"
        "call in a process of its own, so with the loading of scikit-learn or compiled code. MB\n"
        "beyond the pool and what was loaded before.\n\n"
        + table(["strategy", "pool", "k", "seconds", "MB", "target", "reached"], rows)
        + environment(record)
    )


def labelling(record: dict[str, Any]) -> dict[str, Any]:
    """The figures of the labelling tool under headings, as those of the other scripts are kept."""
    requests = record["requests"]
    images = record["images"]
    named: dict[str, dict[str, float]] = {
        "clicks, 50,000 x 768, while it trains and while not": record["clicks"],
        "round: training and a query of 20, 50,000 x 768, seconds": record["round"],
        "images: 100,000 files, opened and decoded and nothing else": {
            "seconds": images["decode_only_seconds"]
        },
        **{f"images: init with {kind}": images[kind] for kind in ("hog+colour", "hog", "pixels")},
        "page of 100,000 images": images["page"],
        "requests, 10,000 at random": {
            "5xx": sum(n for status, n in requests.items() if status.startswith("5"))
        }
        | {status: n for status, n in requests.items() if not status.startswith("5")},
    }
    for setting, summary in record["summary"].items():
        labels = [n for n in summary["labels"] if n]
        named[f"{setting}: MNIST to 90 % on its test set"] = {
            "seeds": len(summary["labels"]),
            "reached": len(labels),
            "labels, mean": sum(labels) / len(labels),
            **{key: summary[key] for key in ("share_of_random", "covered") if key in summary},
            "covered, other slices": summary["redrawn"]["test"],
            "covered, other slices, items of the source": summary["redrawn"]["source"],
            "chance that five seeds cover 0.9": summary["redrawn"]["five_seeds_reach_90"],
        }
    return {"figures": named, "environment": record["environment"]}


def figures(title: str, script: str, record: dict[str, Any]) -> str:
    """Plain figures under their headings."""
    text = f"## {title}: `{script}`\n\n"
    for name, values in record["figures"].items():
        text += f"{name}\n\n"
        rows = []
        for key, value in values.items():
            wanted = goal(Path(script).stem, name, key)
            rows.append([key.replace("_", " "), f"{value:.3f}", wanted, reached(value, wanted)])
        text += table(["figure", "value", "target", "reached"], rows)
    return text + environment(record)


def main() -> None:
    """Read the figures, write the page."""
    read = {p.stem: json.loads(p.read_text()) for p in (FOLDER / "results").glob("*.json")}
    page = HEAD + query(read["query"])
    page += strategies(read["strategies"])
    page += figures("The main job", "main_job.py", read["main_job"])
    page += figures("Many trials", "trials.py", read["trials"])
    page += figures("Pools on disk", "disk.py", read["disk"])
    page += figures("A query over the forward pass alone", "forward.py", read["forward"])
    page += figures("Several processes", "processes.py", read["processes"])
    page += figures("Labelling", "label.py", labelling(read["label"]))
    (FOLDER / "README.md").write_text(page.rstrip() + "\n")


if __name__ == "__main__":
    main()
