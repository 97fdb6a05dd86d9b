"""The pictures of runs, as PNG, SVG or PDF, the same every time.

Of one run learning curves and query times; of several the penalty matrix and the CDF of errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fastbadge.errors import InputError
from fastbadge.lab.penalty import error_cdf, in_every_setting, penalty_matrix
from fastbadge.lab.statistics import (
    LabelsSaved,
    labels_saved,
    labels_saved_interval,
    learning_curve,
    query_time,
)
from fastbadge.lab.store import RoundRow


class Look(NamedTuple):
    """How the line of a strategy looks.

    Args:
        color: as #rrggbb.
        marker: of matplotlib.
        dash: lengths drawn and left out in turn, in widths of the line; empty for a solid one.
    """

    color: str
    marker: str
    dash: tuple[float, ...]


_SOLID, _DASHED, _DOTTED, _DASH_DOTTED = (), (3.5, 1.5), (1.0, 1.5), (4.5, 1.5, 1.0, 1.5)
# Okabe & Ito (2008): eight colours that colour-blind readers tell apart; the rarer strategies have
# Paul Tol's twelve and a grey. Known strategies keep theirs in every picture, and marker and dash
# tell apart what is close in colour, or a grey print.
LOOKS = {
    "badge": Look("#0072B2", "o", _SOLID),
    "random": Look("#D55E00", "s", _SOLID),
    "margin": Look("#009E73", "^", _DASHED),
    "entropy": Look("#CC79A7", "D", _DOTTED),
    "least_confidence": Look("#E69F00", "v", _DASH_DOTTED),
    "coreset": Look("#332288", "p", _DASHED),
    "albl": Look("#999933", "$A$", _DOTTED),
    "kdpp": Look("#882255", "$K$", _DASH_DOTTED),
    "bait": Look("#661100", "*", _SOLID),
    "bald": Look("#117733", "<", _DASHED),
    "batchbald": Look("#44AA99", ">", _DOTTED),
    "power_bald": Look("#88CCEE", "8", _DASH_DOTTED),
    "power_margin": Look("#6699CC", "d", _SOLID),
    "cluster_margin": Look("#AA4499", "H", _DASHED),
    "typiclust": Look("#CC6677", "$T$", _DASH_DOTTED),
    "probcover": Look("#DDCC77", "$\\clubsuit$", _DOTTED),
    "uncertainty_herding": Look("#AA4466", "$\\spadesuit$", _DASHED),
    "vessal": Look("#777777", "$V$", _DOTTED),
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
OTHER_LOOKS = (
    Look("#56B4E9", "P", _DASHED),
    Look("#000000", "X", _DOTTED),
    Look("#F0E442", "h", _DASH_DOTTED),
)

FORMATS = ("png", "svg", "pdf")
# Else the time of drawing is in the file, and no two are the same.
_METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

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
    "pdf.fonttype": 42,  # TrueType: many journals refuse the default, Type 3
    "svg.hashsalt": "fastbadge",  # else the ids in the file, and with them the file, are random
}


def write_plots(
    rows: Sequence[RoundRow],
    directory: Path,
    *,
    title: str = "",
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw what the rows allow: learning curves, and query times where a query was recorded.

    Args:
        rows: of one run, at least one.
        directory: where `badge_vs_random_comparison` (a run of exactly these two) or
            `learning_curves`, and `query_time`, are written, in each format.
        title: what the run was about, for example its data set.
        formats: of `FORMATS`; png has 200 dpi.

    Returns:
        The files that were written.

    Raises:
        InputError: no rows, or an unknown format.
    """
    _check_formats(formats)
    pair = {row.strategy for row in rows} == {"badge", "random"}
    name = "badge_vs_random_comparison" if pair else "learning_curves"
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        written = _save(draw_learning_curves(rows, title=title), directory / name, formats)
        if query_time(rows):
            figure = draw_query_time(rows, title=title)
            written += _save(figure, directory / "query_time", formats)
    return written


def write_setting_plots(
    settings: Sequence[Sequence[RoundRow]],
    directory: Path,
    *,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw `penalty_matrix` and `error_cdf` of several settings, see `in_every_setting`.

    Args:
        settings: the rows of one run each.
        directory: where the files are written.
        formats: of `FORMATS`.

    Returns:
        The files that were written.

    Raises:
        InputError: no setting with a budget, or an unknown format.
    """
    _check_formats(formats)
    settings = in_every_setting(settings)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        return [
            *_save(draw_penalty_matrix(settings), directory / "penalty_matrix", formats),
            *_save(draw_error_cdf(settings), directory / "error_cdf", formats),
        ]


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
            interval = labels_saved_interval(rows, "badge", "random")
            _draw_saving(axes, saved, sure=interval is not None and interval.low > 0)
        if len(curves) > 4:
            figure.legend(loc="outside lower center", ncols=3)
        else:
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


def draw_penalty_matrix(settings: Sequence[Sequence[RoundRow]]) -> Figure:
    """The penalty matrix as a heat map with its numbers, its column means below.

    Args:
        settings: the rows of one run each.

    Raises:
        InputError: no setting has a budget, so nothing is compared.
    """
    penalty = penalty_matrix(settings)
    most = _settings_with_budgets(penalty.budgets)
    names, size = penalty.strategies, len(penalty.strategies)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(1.8 + 0.72 * size, 1.6 + 0.42 * size), layout="constrained")
        axes = figure.add_subplot()
        # A light end for 0 and one that still bears black numbers.
        colors = LinearSegmentedColormap.from_list("penalty", ["#F6F6F8", "#E69F00"])
        numbers = [
            [float("nan") if cell is None else cell for cell in row]
            for row in (*penalty.cells, [None] * size)
        ]
        axes.imshow(numbers, cmap=colors, vmin=0, vmax=most, aspect="auto")
        for i, row in enumerate((*penalty.cells, penalty.column_means)):
            for j, cell in enumerate(row):
                text = "" if i == j else "\N{EN DASH}" if cell is None else f"{cell:.2f}"
                weight = "bold" if i == size else "normal"
                axes.text(j, i, text, ha="center", va="center", fontweight=weight)
        axes.axhline(size - 0.5, color="black", linewidth=1)
        axes.set_xticks(range(size), list(map(display_name, names)), rotation=30, ha="right")
        axes.set_yticks(range(size + 1), [*map(display_name, names), "Column mean"])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_title(f"How often row beats column ({most} setting{'s' if most > 1 else ''})")
    return figure


def draw_error_cdf(settings: Sequence[Sequence[RoundRow]]) -> Figure:
    """Cumulative distribution of the error relative to random's, one staircase a strategy.

    Args:
        settings: the rows of one run each.

    Raises:
        InputError: no setting has a budget, so nothing is compared.
    """
    _settings_with_budgets(penalty_matrix(settings).budgets)
    cdf = {name: steps for name, steps in error_cdf(settings).items() if steps}
    errors = [s.error for steps in cdf.values() for s in steps if s.error < float("inf")]
    low, high = min(errors) - 0.02, max(errors) + 0.02
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(5.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for name, steps in cdf.items():
            seen = [step for step in steps if step.error <= high]
            x = [low, *(step.error for step in seen), high]
            y = [0.0, *(step.share for step in seen), seen[-1].share if seen else 0.0]
            color, marker, dash = look(name, list(cdf))
            axes.step(
                x,
                y,
                where="post",
                color=color,
                dashes=dash,
                marker=marker,
                markevery=slice(1, len(x) - 1),
                label=display_name(name),
            )
        axes.set_xlabel("Mean error / mean error of random sampling")
        axes.set_ylabel("Share of budgets")
        axes.legend(loc="lower right")  # distributions rise too
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


def in_words(strategy: str) -> str:
    """A strategy's name within a sentence.

    >>> in_words("badge"), in_words("least_confidence")
    ('BADGE', 'least confidence')
    """
    return "BADGE" if strategy == "badge" else strategy.replace("_", " ")


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


def look(strategy: str, strategies: Sequence[str]) -> Look:
    """The look of a strategy, the same in every picture of a run with these strategies."""
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
    color, marker, dash = look(strategy, strategies)
    letter = marker.startswith("$")  # thinner than a shape, and a white edge would eat it
    axes.fill_between(labels, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(
        labels,
        middle,
        color=color,
        dashes=dash,
        marker=marker,
        markersize=7 if letter else None,
        markeredgecolor=color if letter else "white",
        markeredgewidth=0.5,
        label=display_name(strategy),
    )


def _draw_saving(axes: Axes, saved: LabelsSaved, *, sure: bool) -> None:
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
        f"{saved.labels_b - saved.labels_a:.0f} labels {'saved' if sure else 'fewer'}",
        xy=((saved.labels_a + saved.labels_b) / 2, level),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        color=gray,
    )


def _settings_with_budgets(budgets: Sequence[Sequence[int]]) -> int:
    count = sum(map(bool, budgets))
    if count == 0:
        raise InputError(
            "no setting has budgets to compare at; expected a run with random among its "
            "strategies, and several queries before random has 99 % of its final accuracy"
        )
    return count


def _check_formats(formats: Sequence[str]) -> None:
    if not formats or not set(formats) <= set(FORMATS):
        given = ",".join(formats)
        raise InputError(f"format is {given!r}; expected some of {', '.join(FORMATS)}")


def _save(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{name}") for name in formats]
    for name, path in zip(formats, paths, strict=True):
        figure.savefig(path, metadata=_METADATA[name])
    return paths
