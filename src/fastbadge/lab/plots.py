"""The pictures of a run: learning curves and query times, as PNG and SVG, the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fastbadge.errors import InputError
from fastbadge.lab.statistics import LabelsSaved, labels_saved, learning_curve, query_time
from fastbadge.lab.store import RoundRow

# Okabe & Ito (2008): eight colours that colour-blind readers tell apart; the rarer strategies have
# Paul Tol's twelve and a grey. Known strategies keep theirs in every picture, and the marker tells
# apart what is close in colour, or a grey print.
LOOKS = {
    "badge": ("#0072B2", "o"),
    "random": ("#D55E00", "s"),
    "margin": ("#009E73", "^"),
    "entropy": ("#CC79A7", "D"),
    "least_confidence": ("#E69F00", "v"),
    "coreset": ("#332288", "p"),
    "albl": ("#999933", "$A$"),
    "kdpp": ("#882255", "$K$"),
    "bait": ("#661100", "*"),
    "bald": ("#117733", "<"),
    "batchbald": ("#44AA99", ">"),
    "power_bald": ("#88CCEE", "8"),
    "power_margin": ("#6699CC", "d"),
    "cluster_margin": ("#AA4499", "H"),
    "typiclust": ("#CC6677", "$T$"),
    "probcover": ("#DDCC77", "$\\clubsuit$"),
    "uncertainty_herding": ("#AA4466", "$\\spadesuit$"),
    "vessal": ("#777777", "$V$"),
}
_NAMES = {
    "badge": "BADGE",
    "albl": "ALBL",
    "kdpp": "k-DPP",
    "bait": "BAIT",
    "bald": "BALD",
    "batchbald": "BatchBALD",
    "power_bald": "Power BALD",
    "typiclust": "TypiClust",
    "probcover": "ProbCover",
    "vessal": "VeSSAL",
}
OTHER_LOOKS = (("#56B4E9", "P"), ("#000000", "X"), ("#F0E442", "h"))

STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the picture is the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.dpi": 200,
    "svg.hashsalt": "fastbadge",  # else the ids in the file, and with them the file, are random
}


def write_plots(rows: Sequence[RoundRow], directory: Path, *, title: str = "") -> list[Path]:
    """Draw what the rows allow: learning curves, and query times where a query was recorded.

    Args:
        rows: of one run, at least one.
        directory: where `badge_vs_random_comparison` (a run of exactly these two) or
            `learning_curves`, and `query_time`, are written, each as .png (200 dpi) and .svg.
        title: what the run was about, for example its data set.

    Returns:
        The files that were written.

    Raises:
        InputError: no rows.
    """
    pair = {row.strategy for row in rows} == {"badge", "random"}
    name = "badge_vs_random_comparison" if pair else "learning_curves"
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        written = _save(draw_learning_curves(rows, title=title), directory / name)
        if query_time(rows):
            written += _save(draw_query_time(rows, title=title), directory / "query_time")
    return written


def draw_learning_curves(
    rows: Sequence[RoundRow], *, title: str = "", figure: Figure | None = None
) -> Figure:
    """Mean test accuracy against labels, with a band of one standard error for each strategy.

    Where the run has both badge and random, an arrow shows how many labels badge needs for
    the accuracy random ends with.

    Args:
        rows: of one run, at least one.
        title: stands above the picture; the number of trials is added to it.
        figure: drawn on where given (an interactive one, say), else a new one.

    Raises:
        InputError: no rows.
    """
    if not rows:
        raise InputError("there are no rows to draw; expected at least one finished round")
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = _canvas(figure, title, rows, "mean ± standard error")
        curves = learning_curve(rows)
        for strategy, curve in curves.items():
            labels = [point.labels for point in curve]
            percent = [100 * point.mean for point in curve]
            stderr = [100 * (point.stderr or 0.0) for point in curve]
            low = [mean - error for mean, error in zip(percent, stderr, strict=True)]
            high = [mean + error for mean, error in zip(percent, stderr, strict=True)]
            _draw_line(axes, strategy, list(curves), labels, percent, low, high)
        axes.set_ylabel("Test accuracy (%)")
        saved = labels_saved(rows, "badge", "random")
        if saved is not None and len(curves) == 2:  # among more curves the arrow is clutter
            _draw_saving(axes, saved)
        axes.legend(loc="lower right")  # learning curves rise, so nothing is there
    return figure


def draw_query_time(
    rows: Sequence[RoundRow], *, title: str = "", figure: Figure | None = None
) -> Figure:
    """Median seconds a query against labels, with the fastest and slowest trial as a band.

    The axis is logarithmic where the medians span more than a factor of twenty.

    Args:
        rows: of one run; at least one recorded a query.
        title: stands above the picture; the number of trials is added to it.
        figure: drawn on where given, else a new one.

    Raises:
        InputError: no row recorded a query.
    """
    times = query_time(rows)
    if not times:
        raise InputError("no row has a query to draw; expected at least one round with picks")
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = _canvas(figure, title, rows, "median and range")
        medians = [point.median for curve in times.values() for point in curve]
        scale = 1000.0 if max(medians) < 1 else 1.0
        for strategy, curve in times.items():
            _draw_line(
                axes,
                strategy,
                list(times),
                [point.labels for point in curve],
                [scale * point.median for point in curve],
                [scale * point.low for point in curve],
                [scale * point.high for point in curve],
            )
        unit = "ms" if scale == 1000.0 else "s"
        axes.set_ylabel(f"Time per query ({unit})")
        if min(medians) > 0 and max(medians) > 20 * min(medians):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.set_ylim(bottom=0)
        # Flat lines leave no corner free for sure.
        figure.legend(loc="outside lower center", ncols=min(len(times), 3))
    return figure


def show_learning_curves(rows: Sequence[RoundRow], png: Path, *, title: str = "") -> None:
    """Draw learning curves into a PNG file and, where there is a screen, in a window.

    Raises:
        InputError: no rows.
    """
    import matplotlib.pyplot as plt  # takes an interactive backend where there is a screen

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = draw_learning_curves(rows, title=title, figure=plt.figure())
        figure.savefig(png, metadata={"Software": None})
        if type(figure.canvas).required_interactive_framework is not None:
            plt.show()
        plt.close(figure)


def display_name(strategy: str) -> str:
    """A strategy's name as it stands in a picture.

    >>> display_name("badge"), display_name("least_confidence")
    ('BADGE', 'Least confidence')
    """
    return _NAMES.get(strategy, strategy.replace("_", " ").capitalize())


def _canvas(
    figure: Figure | None, title: str, rows: Sequence[RoundRow], shown: str
) -> tuple[Figure, Axes]:
    figure = Figure() if figure is None else figure
    figure.set_size_inches(5.2, 3.5)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    trials = len({row.trial for row in rows})
    caption = f"{shown} of {trials} trials" if trials > 1 else "one trial"
    axes.set_title(f"{title}: {caption}" if title else caption.capitalize())
    axes.set_xlabel("Labelled examples")
    labels = sorted({row.labels for row in rows})
    if len(labels) <= 12:  # as many as fit: the numbers the models were trained on
        axes.set_xticks(labels)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _look(strategy: str, strategies: Sequence[str]) -> tuple[str, str]:
    if strategy in LOOKS:
        return LOOKS[strategy]
    others = [name for name in strategies if name not in LOOKS]
    return OTHER_LOOKS[others.index(strategy) % len(OTHER_LOOKS)]


def _draw_line(
    axes: Axes,
    strategy: str,
    strategies: Sequence[str],
    labels: Sequence[int],
    middle: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
) -> None:
    color, marker = _look(strategy, strategies)
    axes.fill_between(labels, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(
        labels,
        middle,
        color=color,
        marker=marker,
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=display_name(strategy),
    )


def _draw_saving(axes: Axes, saved: LabelsSaved) -> None:
    percent, gray = 100 * saved.accuracy, "#555555"
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    level = bottom + 0.38 * (top - bottom)  # below rising curves, above the legend
    # Too short for its words, the arrow would only stand in the way.
    if saved.labels_a is None or saved.labels_b - saved.labels_a < 0.2 * (right - left):
        return
    frame_x = [saved.labels_b, saved.labels_b, saved.labels_a, saved.labels_a]
    frame_y = [level, percent, percent, level]
    axes.plot(frame_x, frame_y, color=gray, linewidth=0.8, linestyle=":", zorder=1, label="_frame")
    axes.annotate(
        "",
        xy=(saved.labels_a, level),
        xytext=(saved.labels_b, level),
        arrowprops={
            "arrowstyle": "<|-|>",
            "linewidth": 0.8,
            "color": gray,
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )
    axes.annotate(
        f"{saved.labels_b - saved.labels_a:.0f} labels saved",
        xy=((saved.labels_a + saved.labels_b) / 2, level),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        color=gray,
    )


def _save(figure: Figure, stem: Path) -> list[Path]:
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
