"""Writes benchmarks/README.md from the figures in benchmarks/results.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

TARGETS = {
    ("MNIST MLP, 60,000 x (10, 64)", 100): "(b) / 25",
    ("MNIST MLP, 60,000 x (10, 64)", 1000): "(b) / 120, 1.0 (a)",
    ("synthetic 0.85, 50,000 x (10, 512)", 1000): "0.7 (a)",
    ("synthetic 0.85, 50,000 x (10, 512)", 10_000): "0.35 (a), (c) / 60",
    ("synthetic 0.7, 50,000 x (100, 512)", 1000): "0.9 (a)",
    ("synthetic 0.7, 320,000 x (1,000, 512)", 2500): "0.6 (a)",
}

HEAD = """# Benchmarks

`make bench` (or `make bench DATA_DIR=...` where MNIST lies elsewhere) prints and saves every
figure on this page; `python benchmarks/report.py` writes the page from what was saved. It needs
25 minutes, 5 GB of disk and 12 GB of memory.

"""


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
        target = TARGETS.get((row["pool"], row["k"]), "")
        ratio = f"{ours / rivals['a']:.2f}"
        cells = [row["pool"], f"{row['k']:,}", f"{ours:.3f}", f"{rivals['a']:.3f}", ratio]
        rows.append([*cells, *times, target])
    header = ["pool", "k", "ours, s", "(a), s", "ours / (a)"]
    header += [f"({name}) / ours" for name in "bncde"] + ["target, at most"]
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
        rows.append([*cells, f"{row['seconds']:.2f}", f"{row['mb']:.0f}"])
    return (
        "## Every strategy: `strategies.py`\n\n"
        "A query of k given what it needs of the model, with 1,000 labelled examples; the first\n"
        "call in a process of its own, so with the loading of scikit-learn or compiled code. MB\n"
        "beyond the pool and what was loaded before.\n\n"
        + table(["strategy", "pool", "k", "seconds", "MB"], rows)
        + environment(record)
    )


def figures(title: str, script: str, record: dict[str, Any]) -> str:
    """Plain figures under their headings."""
    text = f"## {title}: `{script}`\n\n"
    for name, values in record["figures"].items():
        text += f"{name}\n\n"
        cells = [[key.replace("_", " "), f"{value:.3f}"] for key, value in values.items()]
        text += table(["figure", "value"], cells)
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
    (FOLDER / "README.md").write_text(page.rstrip() + "\n")


if __name__ == "__main__":
    main()
