"""Line charts as SVG, drawn once with plain axes and once with a logarithmic one.

The page's script only shows and hides what is here, so a chart is complete without it: in print,
and where scripts are off. Why no charting library: the smallest bundle of plotly.js that has lines
is 1.2 MB, is not on PyPI, and its charts neither follow the colour scheme nor print well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from typing import Literal, TypeAlias

from matplotlib.markers import MarkerStyle
from matplotlib.ticker import LogLocator, MaxNLocator

from fastbadge.lab.plots import display_name, look
from fastbadge.lab.report.html import Html, element, join

WIDTH, HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 34, 50
_LINE_WIDTH = 2  # as in report.css
_MARKER_SIZE = 8.5
_MOST_BANDS = 4  # more lie over each other, and are shown one at a time

_Scale: TypeAlias = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        strategy: whose it is.
        points: (x, middle, low, high) by rising x; low = high = middle where there is no spread.
        texts: what the reader is shown of each point.
        stairs: whether the value stays the same up to the next x.
    """

    strategy: str
    points: Sequence[tuple[float, float, float, float]]
    texts: Sequence[str]
    stairs: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    strategies: Sequence[str],
    title: str,
    x_title: str,
    y_title: str,
    log: Literal["x", "y"] | None = None,
    column: Callable[[float], str] | None = None,
    level: float | None = None,
    y_from_zero: bool = False,
    log_first: bool = False,
) -> Html:
    """A chart with a legend that shows and hides its lines.

    The bands of more than four lines are shown one at a time, where a line is pointed at.

    Args:
        lines: at least one, each with at least one point.
        strategies: of the run, which decide about looks.
        title: what is drawn, for those who cannot see it.
        x_title: stands below the axis.
        y_title: stands above the axis.
        log: the axis that a button makes logarithmic.
        column: names an x where the cursor stands; None for a chart without a cursor.
        level: where a horizontal line is drawn.
        y_from_zero: whether the plain axis begins at 0.
        log_first: whether the chart is shown with its logarithmic axis at first.
    """
    plain = _plot(lines, strategies, None, level, y_from_zero, x_title, y_title)
    body, plots = [element("g", plain.markup, class_="linear")], {"linear": plain}
    if log:
        plots["log"] = _plot(lines, strategies, log, level, False, x_title, y_title)
        body.append(element("g", plots["log"].markup, class_="log"))
    bands = sum(any(low != high for _, _, low, high in line.points) for line in lines)
    many = bands > _MOST_BANDS
    cursor = column and json.dumps(_columns(lines, plots, column), separators=(",", ":"))
    svg = element(
        "svg",
        body,
        element("line", class_="cursor", y1=_TOP, y2=HEIGHT - _BOTTOM),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex=0 if column else None,
        aria_label=f"{title}. {_KEYS if column else ''}The figures are in the table below.",
    )
    return element(
        "div",
        element(
            "div", _legend(lines, strategies), log and _switch(log, log_first), class_="controls"
        ),
        element("div", svg, element("div", class_="tip", role="status", hidden=True), class_="box"),
        many and element("p", "Point at a line or its name to see its band.", class_="note hint"),
        class_=" ".join(["chart"] + ["is-log"] * bool(log and log_first) + ["many"] * many),
        data_columns=cursor,
    )


_KEYS = "Left and right arrow keys move along the points. "


@dataclass(frozen=True)
class _Plot:
    markup: Html
    scale_x: _Scale


def _plot(
    lines: Sequence[Line],
    strategies: Sequence[str],
    log: str | None,
    level: float | None,
    y_from_zero: bool,
    x_title: str,
    y_title: str,
) -> _Plot:
    xs = [x for line in lines for x, *_ in line.points]
    ys = [y for line in lines for _, *values in line.points for y in values]
    ys += [level] if level is not None else []
    ys += [0.0] if y_from_zero else []
    x_at, x_ticks = _axis(xs, _LEFT, WIDTH - _RIGHT, log == "x", tight=True)
    y_at, y_ticks = _axis(ys, HEIGHT - _BOTTOM, _TOP, log == "y", tight=False)
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    axes = [
        [
            element("line", x1=_LEFT, x2=right, y1=_n(y_at(y)), y2=_n(y_at(y)), class_="grid")
            for y in y_ticks
        ],
        [
            element("text", f"{y:,g}", x=_LEFT - 8, y=_n(y_at(y)), dy="0.35em", class_="y")
            for y in y_ticks
        ],
        element("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"),
        [
            element("text", f"{x:,g}", x=_n(x_at(x)), y=bottom + 8, dy="0.8em", class_="x")
            for x in x_ticks
        ],
        element("text", x_title, x=(_LEFT + right) / 2, y=HEIGHT - 4, class_="x title"),
        element("text", y_title, x=4, y=18, class_="y title"),
        level is not None
        and element(
            "line", x1=_LEFT, x2=right, y1=_n(y_at(level)), y2=_n(y_at(level)), class_="axis"
        ),
    ]
    drawn = [_draw(line, i, strategies, x_at, y_at, positive=log) for i, line in enumerate(lines)]
    return _Plot(join([axes, drawn]), x_at)


def _axis(
    values: Sequence[float], start: float, end: float, log: bool, *, tight: bool
) -> tuple[_Scale, list[float]]:
    """Where a value lies between start and end, and the ticks."""
    if log:
        values = [value for value in values if value > 0]
    low, high = min(values), max(values)
    if log:
        span = log10(high / low) if high > low else 0.0
        if span < 1.2:  # hardly a decade: its powers of ten would be one tick or none
            ticks = [float(t) for t in MaxNLocator(6).tick_values(low, high)]
        else:
            subs = (1.0, 2.0, 5.0) if span < 3 else (1.0,)
            ticks = [float(t) for t in LogLocator(subs=subs, numticks=12).tick_values(low, high)]
        low, high = (low / 1.05, high * 1.05) if not tight or low == high else (low, high)
        floor, width = log10(low), log10(high) - log10(low)
        return (
            lambda value: start + (log10(value) - floor) / width * (end - start),
            [tick for tick in ticks if low <= tick <= high],
        )
    if low == high:
        low, high = low - 1, high + 1
    margin = (0.015 if tight else 0.04) * (high - low)
    # Nothing is below 0 where the plain axis is to begin there.
    low, high = low - (0 if low == 0 and not tight else margin), high + margin
    ticks = [float(t) for t in MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)]
    return (
        lambda value: start + (value - low) / (high - low) * (end - start),
        [tick for tick in ticks if low <= tick <= high],
    )


def _draw(
    line: Line,
    index: int,
    strategies: Sequence[str],
    x_at: _Scale,
    y_at: _Scale,
    *,
    positive: str | None,
) -> Html:
    color, marker, _ = look(line.strategy, strategies)
    points = [
        (x_at(x), y_at(middle), y_at(low), y_at(high))
        for x, middle, low, high in line.points
        if not (positive == "x" and x <= 0) and not (positive == "y" and low <= 0)
    ]
    band = [(x, high) for x, _, _, high in points] + [(x, low) for x, _, low, _ in points[::-1]]
    path = [(x, y) for x, y, _, _ in points]
    if line.stairs:
        path = _stairs(path)
    shape = "".join(_marker(marker, x, y) for x, y, _, _ in points)
    return element(
        "g",
        any(low != high for _, _, low, high in points)
        and element("path", d=_path(band) + "Z", class_="band"),
        element("path", d=_path(path), class_="line", stroke_dasharray=_dash(line, strategies)),
        not line.stairs and element("path", d=shape, class_="mark"),
        class_="series",
        data_series=index,
        style=f"--c:{color}",
    )


def _stairs(path: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    found = list(path[:1])
    for x, y in path[1:]:
        found += [(x, found[-1][1]), (x, y)]
    return found


def _legend(lines: Sequence[Line], strategies: Sequence[str]) -> list[Html]:
    return [
        element(
            "button",
            element(
                "svg",
                element(
                    "path", d="M0 7H30", class_="line", stroke_dasharray=_dash(line, strategies)
                ),
                not line.stairs
                and element(
                    "path", d=_marker(look(line.strategy, strategies).marker, 15, 7), class_="mark"
                ),
                viewBox="0 0 30 14",
                aria_hidden="true",
            ),
            display_name(line.strategy),
            type="button",
            class_="toggle",
            aria_pressed="true",
            data_series=i,
            style=f"--c:{look(line.strategy, strategies).color}",
        )
        for i, line in enumerate(lines)
    ]


def _switch(log: str, pressed: bool) -> Html:
    text = f"Logarithmic {'horizontal' if log == 'x' else 'vertical'} axis"
    state = str(pressed).lower()
    return element("button", text, type="button", class_="scale", aria_pressed=state)


def _columns(
    lines: Sequence[Line], plots: dict[str, _Plot], column: Callable[[float], str]
) -> list[dict[str, object]]:
    """What the script shows at each x: its name, its place on each axis, a text for each line."""
    texts: dict[float, dict[int, str]] = {}
    for i, line in enumerate(lines):
        for (x, *_), text in zip(line.points, line.texts, strict=True):
            texts.setdefault(x, {})[i] = text
    return [
        {
            "name": column(x),
            "at": {kind: round(plot.scale_x(x), 1) for kind, plot in plots.items()},
            "rows": [[i, display_name(lines[i].strategy), text] for i, text in found.items()],
        }
        for x, found in sorted(texts.items())
    ]


def _dash(line: Line, strategies: Sequence[str]) -> str | None:
    dash = look(line.strategy, strategies).dash
    return " ".join(_n(_LINE_WIDTH * length) for length in dash) or None


def _marker(marker: str, x: float, y: float) -> str:
    """The outline of a matplotlib marker, so that page and paper show the same."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    commands = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}  # matplotlib.path.Path's codes
    parts = []
    for points, code in path.iter_segments(simplify=False, curves=True):
        place = [_n(x + _MARKER_SIZE * v if i % 2 == 0 else y - _MARKER_SIZE * v)
                 for i, v in enumerate(points.tolist())]  # fmt: skip
        parts.append(commands[int(code)] + (" ".join(place) if code != 79 else ""))
    return "".join(parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points) if points else "M0 0"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
