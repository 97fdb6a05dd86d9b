"""The pictures and the table of docs/exact.md, from real runs of the package.

    python docs/pictures.py [--data-dir DIR]

Draws docs/img/rejection and docs/img/work (.svg and .png) and prints the table; with --data-dir,
where MNIST lies, its row too. Seeded: the same machine gives the same files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastbadge import GradientEmbedding, kmeans_pp, screen, weights
from fastbadge.lab.plots import STYLE
from fastbadge.pools import scaled
from fastbadge.sumtree import SumTree

DOCS = Path(__file__).parent

# Okabe & Ito (2008), as in lab/plots.py; the markers tell them apart in a grey print.
SMALL, LARGE = "synthetic, 60,000 x (10, 64)", "synthetic, 50,000 x (10, 512)"
LETTERS = "abcdefghijkl"
CURRENT, ACCEPTED, REJECTED, STALE = "#56B4E9", "#0072B2", "#D55E00", "#999999"


# --- What a run did -------------------------------------------------------------------------


@dataclass
class Work:
    """What one run multiplied, in products of the whole pool with one centre.

    A product is N pairs of a gradient and a centre, and so N (C + D) multiply-adds.
    """

    passes: list[int] = field(default_factory=list)  # how many centres each pass was about
    proposals: int = 0
    centres: int = 1
    norms: float = 1.0
    updates: float = 0.0  # the passes' products
    walks: float = 0.0  # proposals with newer centres, and with each other
    settled: float = 0.0  # pairs computed again in float64
    course: list[tuple[int, float]] = field(default_factory=list)  # centres, products so far
    updated_at: list[int] = field(default_factory=list)  # places in the course, one a pass

    @property
    def total(self) -> float:
        """Everything counted."""
        return self.norms + self.updates + self.walks + self.settled


@contextmanager
def counted(pool: GradientEmbedding) -> Iterator[Work]:
    """Count what a run over this pool multiplies, by wrapping the arithmetic it calls.

    The picks are those of the compiled arithmetic too, so one of the two is enough.
    """
    N, work = len(pool), Work()
    update, lower, accept, settle = (
        weights.bring_up_to_date, screen.lower, screen.accept, screen._settle,
    )  # fmt: skip
    updating = False

    def count_update(tree: Any, pool: Any, centres: Any) -> None:
        nonlocal updating
        work.passes.append(len(centres))
        updating = True
        update(tree, pool, centres)
        updating = False
        work.updated_at.append(len(work.course))
        work.course.append((work.centres, work.total))

    def count_lower(weight_B: Any, rows: Any, centres: Any) -> Any:
        products = len(rows) * len(centres) / N
        if updating:
            work.updates += products
        else:
            work.walks += products
        return lower(weight_B, rows, centres)

    def count_accept(bar_B: Any, weight_B: Any, rows: Any, need: int) -> Any:
        taken, current_B = accept(bar_B, weight_B, rows, need)
        work.proposals += len(rows)
        work.centres += len(taken)
        work.walks += len(rows) ** 2 / N
        work.course.append((work.centres, work.total))
        return taken, current_B

    def count_settle(rows: Any, row_P: Any, centres: Any, centre_P: Any) -> Any:
        work.settled += len(row_P) / N
        return settle(rows, row_P, centres, centre_P)

    with (
        mock.patch.object(scaled, "_ENTRIES_WORTH_COMPILING", sys.maxsize),
        mock.patch.object(weights, "bring_up_to_date", count_update),
        mock.patch.multiple(screen, lower=count_lower, accept=count_accept, _settle=count_settle),
    ):
        yield work


def work_of(pool: GradientEmbedding, k: int) -> Work:
    """What k centres of this pool cost, seed 0."""
    with counted(pool) as work:
        kmeans_pp(pool, k, seed=0)
    return work


@dataclass
class Moment:
    """A walk between two centres: the weights, and the proposals up to the next centre."""

    centres: list[int]
    stale_N: np.ndarray
    current_N: np.ndarray
    first: int  # the number of the first proposal, from 1
    row_P: list[int]
    height_P: list[float]  # a uniform share of the stale weight; the last lies under the current


def tiny_pool() -> GradientEmbedding:
    """Twelve gradients in the plane, in three clumps, in float64."""
    generator = torch.Generator().manual_seed(1837)
    middle_N2 = torch.tensor([[0.0, 0.0], [3.2, 0.6], [1.4, 2.6]]).repeat_interleave(4, dim=0)
    noise_N2 = torch.rand(12, 2, generator=generator, dtype=torch.float64) - 0.5
    return GradientEmbedding(
        torch.ones(12, 1, dtype=torch.float64), middle_N2.double() + 2.4 * noise_N2
    )


def walk_of(pool: GradientEmbedding, k: int, seed: int) -> list[Moment]:
    """The walk of a real run, retold: its proposals, and the weights they met."""
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    bars: list[np.ndarray] = []
    draw, accept = SumTree.draw, screen.accept

    def record_draw(tree: SumTree, uniform_B: Any) -> Any:
        row_B = draw(tree, uniform_B)
        drawn.append((tree.weight_N.copy(), row_B))
        return row_B

    def record_accept(bar_B: Any, weight_B: Any, rows: Any, need: int) -> Any:
        bars.append(bar_B.copy())
        return accept(bar_B, weight_B, rows, need)

    with (
        mock.patch.object(scaled, "_ENTRIES_WORTH_COMPILING", sys.maxsize),
        mock.patch.object(SumTree, "draw", record_draw),
        mock.patch.object(screen, "accept", record_accept),
    ):
        picks = kmeans_pp(pool, k, seed=seed).tolist()

    (stale_N, row_B), bar_B = drawn[0], bars[0]  # the first block is all that so few take
    moments, start = [], 0
    for count in range(1, k):
        current_N = pool.sqdist_to(torch.tensor(picks[:count])).amin(dim=1).numpy()
        end = next(p for p in range(start, len(row_B)) if bar_B[p] < current_N[row_B[p]]) + 1
        assert row_B[end - 1] == picks[count]
        proposals = slice(start, end)
        moments.append(
            Moment(
                picks[:count], stale_N, current_N, start + 1,
                row_B[proposals].tolist(), bar_B[proposals].tolist(),
            )
        )  # fmt: skip
        start = end
    return moments


# --- The pictures ---------------------------------------------------------------------------


@mpl.rc_context(STYLE)  # type: ignore[arg-type]
def draw_rejection(directory: Path) -> list[Moment]:
    """Three centres of a walk over the tiny pool: the map above, the weights below."""
    pool = tiny_pool()
    moments = walk_of(pool, 4, seed=184)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=[1, 1.15], sharey="row")
    for column, moment in enumerate(moments):
        _draw_map(axes[0, column], pool.feature_ND.numpy(), moment)
        _draw_weights(axes[1, column], moment)
    axes[0, 0].set_ylabel("12 gradients in the plane")
    axes[1, 0].set_ylabel("weight")
    titles = ("one centre, all weights up to date", "one new centre", "two new centres")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    handles, labels = axes[1, 2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    _save(figure, directory / "rejection")
    return moments


def _draw_map(axes: Axes, point_N2: np.ndarray, moment: Moment) -> None:
    x_N, y_N = point_N2.T
    first, *newer = moment.centres
    axes.scatter(x_N, y_N, s=110, color="#E0E0E0")
    axes.scatter(x_N[[first]], y_N[[first]], s=130, color="black", marker="s")
    axes.scatter(x_N[newer], y_N[newer], s=130, color=ACCEPTED)
    for row, point in enumerate(point_N2):
        axes.annotate(
            LETTERS[row], point, ha="center", va="center_baseline", fontsize=8,
            color="white" if row in moment.centres else "#333333",
        )  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _draw_weights(axes: Axes, moment: Moment) -> None:
    row_N = np.arange(len(moment.stale_N))
    axes.bar(
        row_N, moment.stale_N, width=0.9, facecolor="#F2F2F2", edgecolor=STALE, linewidth=0.8,
        label="weight drawn from (stale)",
    )  # fmt: skip
    axes.bar(row_N, moment.current_N, width=0.9, color=CURRENT, label="true current weight")
    *rejected, last = range(len(moment.row_P))
    x_P, y_P = np.array(moment.row_P, dtype=float), np.array(moment.height_P)
    axes.scatter(
        x_P[rejected], y_P[rejected], s=26, marker="x", color=REJECTED, zorder=3,
        label="proposal, rejected",
    )  # fmt: skip
    axes.scatter(
        x_P[[last]], y_P[[last]], s=34, color=ACCEPTED, edgecolor="white", zorder=3,
        label="proposal, accepted: the next centre",
    )  # fmt: skip
    for number, (x, y) in enumerate(zip(x_P, y_P, strict=True), start=moment.first):
        axes.annotate(
            f"{number}", (x, y), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=7
        )
    axes.set_xticks(row_N, LETTERS)
    axes.tick_params(axis="x", length=0)
    axes.grid(False)
    share = moment.current_N.sum() / moment.stale_N.sum()
    axes.set_title(f"{100 * share:.0f} % of the area is filled", loc="right", fontsize=9)


@mpl.rc_context(STYLE)  # type: ignore[arg-type]
def draw_work(runs: Sequence[tuple[str, Work]], directory: Path) -> None:
    """Products with the pool as the centres of a run grow, against one product a centre."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (title, work) in zip(figure.subplots(1, len(runs)), runs, strict=True):
        centres, products = np.array(work.course).T
        k = work.centres
        axes.loglog([1, k], [1, k], color=REJECTED, linestyle="--")
        axes.loglog(centres, products, color=ACCEPTED)
        place: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
        axes.annotate(
            "one at a time,\nor in matrix products", (k**0.65, k**0.65), xytext=(-8, 8), ha="right",
            color=REJECTED, **place,
        )  # fmt: skip
        axes.annotate(f"{k:,}", (k, k), xytext=(4, 0), color=REJECTED, **place)
        axes.annotate(f"{work.total:,.0f}", (k, work.total), xytext=(4, 0), color=ACCEPTED, **place)
        for number, at in enumerate(work.updated_at, start=1):
            beside = (5, -7) if number > 1 else (2, 8)  # where the dashed line is not
            axes.annotate(
                f"pass {number}", (centres[at], products[at]), xytext=beside, color=ACCEPTED,
                **place,
            )  # fmt: skip
        late = np.searchsorted(centres, k**0.87)
        axes.annotate(
            "fastbadge", (centres[late], products[late]), xytext=(-2, -11), color=ACCEPTED, **place
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,.0f}")
        axes.set_title(f"{title}, k = {k:,}")
        axes.set_xlabel("centres drawn")
    figure.axes[0].set_ylabel("products with the whole pool,\n$N(C + D)$ multiply-adds each")
    _save(figure, directory / "work")


def _save(figure: Figure, stem: Path) -> None:
    figure.savefig(stem.with_suffix(".png"), metadata={"Software": None})
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


# --- The table ------------------------------------------------------------------------------


def table_row(pool: str, work: Work) -> str:
    """One row of the page's table."""
    parts = (work.updates, work.walks, work.norms + work.settled, work.total)
    cells = [f"{work.centres:,}", str(len(work.passes)), f"{work.proposals:,}"]
    cells += [f"{part:,.0f}" for part in parts]
    return f"| {pool} | {' | '.join(cells)} | {100 * work.total / work.centres:.1f} % |"


def main() -> None:
    """Draw, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="where MNIST lies, for its row of the table")
    data_dir = parser.parse_args().data_dir
    sys.path.append(str(DOCS.parent / "benchmarks"))
    from pools import mnist_pool, synthetic_pool

    torch.set_num_threads(1)  # the last bits of the synthetic logits may depend on the threads
    queries = [
        (SMALL, synthetic_pool(60_000, 10, 64, 0.85), (100, 1000)),
        (LARGE, synthetic_pool(50_000, 10, 512, 0.85), (1000, 10_000)),
    ]
    if data_dir is not None:
        queries.insert(0, ("MNIST MLP, 60,000 x (10, 64)", mnist_pool(data_dir), (100, 1000)))
    runs = {(name, k): work_of(pool, k) for name, pool, ks in queries for k in ks}
    for (name, _), work in runs.items():
        print(table_row(name, work))
    draw_rejection(DOCS / "img")
    draw_work([(SMALL, runs[SMALL, 1000]), (LARGE, runs[LARGE, 10_000])], DOCS / "img")


if __name__ == "__main__":
    main()
