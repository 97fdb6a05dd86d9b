"""The parts of the page about one run, each a function from its record to markup."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

import numpy as np

from fastbadge.lab.comparison import trials_needed
from fastbadge.lab.plots import display_name, in_words, look
from fastbadge.lab.protocol import Config, as_text, config_for, deviations, preset_of
from fastbadge.lab.report.answer import area_tests, p_value
from fastbadge.lab.report.charts import Line, line_chart
from fastbadge.lab.report.html import Content, Html, element, join, table
from fastbadge.lab.report.picks import FIRST, Picks
from fastbadge.lab.statistics import (
    Difference,
    area_under_curve,
    complete_trials,
    labels_saved,
    labels_saved_interval,
    learning_curve,
    paired_difference,
    query_time,
)
from fastbadge.lab.store import RoundRow, Run
from fastbadge.lab.summary import compared, saving_ends

_MISSING = element("span", "\N{EN DASH}", class_="none", title="missing")
_MOST_CLASSES = 60
_LONGEST_NAME = 12  # of a class beside its row


def baseline_of(run: Run) -> str | None:
    """What the strategies of a run are measured against; None for a lone one."""
    pair = compared(run.config.strategies)
    return pair[1] if pair else None


def learning_section(run: Run) -> Html:
    """The learning curves, and the same figures as a table."""
    lines = [
        Line(
            strategy,
            [_spread(p.labels, p.mean, p.stderr) for p in curve],
            [f"{100 * p.mean:.1f} %{_plus_minus(p.stderr)}" for p in curve],
        )
        for strategy, curve in learning_curve(run.rows).items()
    ]
    chart = line_chart(
        lines,
        strategies=run.config.strategies,
        title="Learning curves: mean test accuracy against labelled examples",
        x_title="Labelled examples",
        y_title="Test accuracy (%)",
        log="x",
        column=_labels,
    )
    return join(
        [
            element("h3", "Learning curves"),
            _figure(
                chart,
                "Mean test accuracy of models trained from scratch; the band is one standard "
                f"error on either side{_of_trials(run)}.",
            ),
            _curve_table(run),
        ]
    )


def _curve_table(run: Run) -> Html:
    curves = {s: {p.labels: p for p in curve} for s, curve in learning_curve(run.rows).items()}
    every = sorted({row.labels for row in run.rows})
    rows: list[list[Content]] = [
        [
            f"{labels:,}",
            *(
                _MISSING
                if (point := curve.get(labels)) is None
                else f"{100 * point.mean:.1f}{_plus_minus(point.stderr)}"
                + (f" ({point.trials})" if point.trials < run.config.trials else "")
                for curve in curves.values()
            ),
        ]
        for labels in every
    ]
    caption = (
        "Test accuracy in %, mean ± standard error. Where a figure rests on fewer trials than the "
        "run asks for, their number is in brackets."
    )
    return _unfold("The figures", table(caption, ["Labels", *map(display_name, curves)], rows))


def difference_section(run: Run) -> Html | None:
    """Paired differences to the baseline, with the interval of the t test."""
    b = baseline_of(run)
    found = [(a, paired_difference(run.rows, a, b)) for a in run.config.strategies if b and a != b]
    lines = [
        Line(
            a,
            [_difference_point(d) for d in differences],
            [_difference_text(d) for d in differences],
        )
        for a, differences in found
        if differences
    ]
    if b is None or not lines:
        return None
    chart = line_chart(
        lines,
        strategies=run.config.strategies,
        title=f"Difference of accuracy to {in_words(b)} against labelled examples",
        x_title="Labelled examples",
        y_title=f"Accuracy above {in_words(b)} (points)",
        log="x",
        column=_labels,
        level=0.0,
    )
    every = sorted({int(x) for line in lines for x, *_ in line.points})
    texts = [{int(p[0]): t for p, t in zip(line.points, line.texts, strict=True)} for line in lines]
    rows: list[list[Content]] = [
        [f"{labels:,}", *(column.get(labels, _MISSING) for column in texts)] for labels in every
    ]
    caption = f"Accuracy minus that of {in_words(b)} in percentage points, with its 95 % interval."
    return join(
        [
            element("h3", f"Difference to {in_words(b)}"),
            _figure(
                chart,
                "Strategies share the initial labels and weights of a trial, so the difference is "
                "taken trial by trial. The band is its 95 % interval (paired t, for each number "
                "of labels by itself).",
            ),
            _unfold(
                "The figures",
                table(caption, ["Labels", *(display_name(line.strategy) for line in lines)], rows),
            ),
        ]
    )


def _difference_point(d: Difference) -> tuple[float, float, float, float]:
    low, high = d.interval or (d.mean, d.mean)
    return d.labels, 100 * d.mean, 100 * low, 100 * high


def _difference_text(d: Difference) -> str:
    if d.interval is None:
        return f"{100 * d.mean:+.1f}"
    low, high = d.interval
    return f"{100 * d.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def query_section(run: Run) -> Html | None:
    """Seconds per query."""
    times = query_time(run.rows)
    if not times:
        return None
    medians = [point.median for curve in times.values() for point in curve]
    unit, scale = ("ms", 1e3) if max(medians) < 1 else ("s", 1.0)
    lines = [
        Line(
            strategy,
            [(p.labels, scale * p.median, scale * p.low, scale * p.high) for p in curve],
            [
                f"{scale * p.median:.3g} {unit} ({scale * p.low:.3g} to {scale * p.high:.3g})"
                for p in curve
            ],
        )
        for strategy, curve in times.items()
    ]
    chart = line_chart(
        lines,
        strategies=run.config.strategies,
        title="Time of a query against labelled examples",
        x_title="Labelled examples",
        y_title=f"Time per query ({unit})",
        log="y" if all(low > 0 for line in lines for _, _, low, _ in line.points) else None,
        column=_labels,
        y_from_zero=True,
        log_first=max(medians) > 20 * min(medians),
    )
    every = sorted({int(x) for line in lines for x, *_ in line.points})
    texts = [{int(p[0]): t for p, t in zip(line.points, line.texts, strict=True)} for line in lines]
    rows: list[list[Content]] = [
        [f"{labels:,}", *(column.get(labels, _MISSING) for column in texts)] for labels in every
    ]
    return join(
        [
            element("h3", "Time of a query"),
            _figure(
                chart,
                "Forward pass over the pool and selection: median over trials, and the band from "
                "the fastest to the slowest. Wall time: trials that ran side by side slow each "
                "other down.",
            ),
            _unfold(
                "The figures",
                table(
                    f"Time per query, median (fastest to slowest), in {unit}.",
                    ["Labels", *map(display_name, times)],
                    rows,
                ),
            ),
        ]
    )


def overview_section(run: Run) -> Html:
    """One line a strategy: area, final accuracy, labels saved, time of a query."""
    b = baseline_of(run)
    areas, curves = area_under_curve(run.rows), learning_curve(run.rows)
    times, last = query_time(run.rows), max((row.labels for row in run.rows), default=0)
    rows: list[list[Content]] = []
    for name in curves:
        area, point = areas[name], curves[name][-1]
        queries = [p.median for p in times.get(name, [])]
        rows.append(
            [
                display_name(name),
                _MISSING if area is None else f"{100 * area.mean:.2f}{_plus_minus(area.stderr, 2)}",
                f"{100 * point.mean:.1f}{_plus_minus(point.stderr)}"
                if point.labels == last
                else _MISSING,
                *(_saving_cells(run.rows, name, b) if b else ()),
                _seconds(median(queries)) if queries else _MISSING,
                str(len(complete_trials(run.rows)[name])),
            ]
        )
    saving: list[Content] = ["Labels needed", "Labels saved (95 % interval)"] if b else []
    header: list[Content] = [
        "Strategy",
        "Area (%)",
        f"At {last:,} labels (%)",
        *saving,
        "Query",
        "Trials",
    ]
    caption = (
        "Area: the mean accuracy over the budget, by the trapezoidal rule; ± is the standard "
        "error. Labels needed: for the accuracy that the baseline ends with, on the mean curves. "
        "The interval holds all savings that paired t tests do not reject; where it begins with "
        "none, the accuracy may not be reached at all."
    )
    return join([element("h3", "At a glance"), table(caption, header, rows)])


def _saving_cells(rows: Sequence[RoundRow], a: str, b: str) -> tuple[Content, Content]:
    saved = labels_saved(rows, a, b)
    if saved is None:
        return _MISSING, _MISSING
    if a == b:
        return f"{saved.labels_b:.0f}", _MISSING
    interval = labels_saved_interval(rows, a, b)
    said = "" if interval is None else f" ({saving_ends(interval.low, interval.high)})"
    if saved.labels_a is None:
        return "not reached", f"none{said}"
    return f"{saved.labels_a:.0f}", f"{saved.labels_b - saved.labels_a:.0f}{said}"


def pair_section(run: Run) -> Html | None:
    """Every pair of strategies, tested on the area under the curve."""
    tests = area_tests(run.rows)
    if not tests:
        return None
    rows: list[list[Content]] = []
    for t in tests:
        sure = t.p_holm is not None and t.p_holm < 0.05
        needed = None if t.stdev is None else trials_needed(0.01, t.stdev)
        rows.append(
            [
                f"{display_name(t.a)} \N{EN DASH} {display_name(t.b)}",
                _MISSING if t.mean is None else f"{100 * t.mean:+.2f}",
                _MISSING
                if t.interval is None
                else f"{100 * t.interval[0]:+.2f} to {100 * t.interval[1]:+.2f}",
                _MISSING if t.effect is None else f"{t.effect:+.2f}",
                _MISSING if t.p is None else p_value(t.p),
                _MISSING
                if t.p_holm is None
                else element("b", p_value(t.p_holm)) if sure else p_value(t.p_holm),
                _MISSING if needed is None else str(needed),
            ]
        )  # fmt: skip
    header = [
        "Pair",
        "Difference (points)",
        "95 % interval",
        element("span", "d", element("sub", "z")),
        "p",
        "p (Holm)",
        "Trials to see 1 point",
    ]
    caption = (
        "Paired t tests of the area under the curve. d_z is the mean difference in its own "
        "standard deviations. Holm's correction is over the pairs of this table; below 0.05 it is "
        "bold. The last column says how many trials would detect a difference of 1 point with a "
        "power of 80 % if pairs spread as they do here."
    )
    return join([element("h3", "Which differences are sure"), table(caption, header, rows)])


def picks_section(run: Run, picks: Picks | str) -> Html | None:
    """Classes that each query picked, and the pictures of the first picks."""
    if isinstance(picks, str):
        return join(
            [
                element("h3", "What was picked"),
                element("p", f"Not shown: {picks}.", class_="note warn"),
            ]
        )
    parts: list[Content] = []
    if picks.sprites:
        parts += [
            element("h3", "What each strategy picked first"),
            element(
                "p",
                f"The first {FIRST} picks at most of the first query in trial 1, in order of "
                "choice: all strategies chose with the same model.",
                class_="note",
            ),
            element("div", [_sprite(n, picks) for n in picks.sprites], class_="multiples first"),
        ]
    parts.append(element("h3", "Classes picked, round by round"))
    if len(picks.class_sizes_C) > _MOST_CLASSES:
        text = f"{len(picks.class_sizes_C)} classes are too many to draw; the totals are below."
        parts.append(element("p", text, class_="note"))
    else:
        top = float(np.nanmax(np.stack(list(picks.counts.values()))))
        parts += [
            element(
                "p",
                "Mean picks of a class (down) in a query (across) over trials; the fullest colour "
                f"is {top:.1f} of {run.config.query_size}.",
                class_="note",
            ),
            element(
                "div",
                [_heat(name, run, picks, top) for name in picks.counts],
                class_="multiples",
            ),
        ]
    parts.append(_class_table(picks))
    return join(parts)


def _sprite(name: str, picks: Picks) -> Html:
    sprite = picks.sprites[name]
    classes = ", ".join(picks.classes[c] for c in sprite.classes)
    zoom = max(1, min(4, 360 // sprite.width))
    return element(
        "figure",
        element("figcaption", display_name(name)),
        element(
            "img",
            src=f"data:image/png;base64,{sprite.png}",
            alt=f"First picks of {display_name(name)}, of the classes {classes}",
            width=zoom * sprite.width,
            height=zoom * sprite.height,
        ),
    )


def _heat(name: str, run: Run, picks: Picks, top: float) -> Html:
    counts_CR = picks.counts[name]
    classes, rounds = counts_CR.shape
    side = 13 if classes <= 30 else 9
    wide = max(4, min(side, 300 // max(rounds, 1)))
    shown = [_shortened(name) for name in picks.classes]
    left = 14 + 6 * max(map(len, shown))
    cells = [
        element(
            "rect",
            None
            if math.isnan(value)
            else element(
                "title",
                f"class {picks.classes[c]}, query {r + 1}: {value:.1f} of {run.config.query_size}",
            ),
            x=left + r * wide,
            y=c * side,
            width=wide - 1,
            height=side - 1,
            class_="empty" if math.isnan(value) or not value else "some",
            fill_opacity=None if math.isnan(value) or not value else round(value / top, 2),
        )
        for c in range(classes)
        for r, value in enumerate(counts_CR[c].tolist())
    ]
    names = [
        element("text", shown[c], x=left - 6, y=c * side + 10, text_anchor="end")
        for c in range(classes)
        if side > 10 or c % 2 == 0
    ]
    under = [
        element(
            "text",
            str(r + 1),
            x=left + (r + 0.5) * wide,
            y=classes * side + 12,
            text_anchor="middle",
        )
        for r in range(rounds)
        if (wide >= 12 and (r + 1) % 2 == 1) or r in (0, rounds - 1)
    ]
    width, height = left + 4 + rounds * wide, classes * side + 16
    return element(
        "figure",
        element("figcaption", display_name(name)),
        element(
            "svg",
            cells,
            names,
            under,
            viewBox=f"0 0 {width} {height}",
            width=width,
            height=height,
            class_="cells",
            role="img",
            aria_label=f"Classes picked by {display_name(name)}; the totals are in the table below",
            style=f"--c:{look(name, run.config.strategies).color}",
        ),
    )


def _shortened(name: str) -> str:
    return (
        name
        if len(name) <= _LONGEST_NAME
        else f"{name[: _LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    )


def _class_table(picks: Picks) -> Html:
    share_C = picks.class_sizes_C / picks.class_sizes_C.sum()
    totals = {name: np.nansum(counts, axis=1) for name, counts in picks.counts.items()}
    rows: list[list[Content]] = [
        [
            picks.classes[c],
            f"{100 * share_C[c]:.1f}",
            *(
                f"{100 * total_C[c] / total_C.sum():.1f}" if total_C.sum() else _MISSING
                for total_C in totals.values()
            ),
        ]
        for c in range(len(share_C))
    ]
    caption = "Share of each class, in %: in the pool and among all picks of each strategy."
    header = ["Class", "Pool", *map(display_name, totals)]
    return _unfold("The totals", table(caption, header, rows))


def configuration_section(run: Run) -> Html:
    """Configuration, what differs from the protocol, environment, and the command."""
    preset = asdict(preset_of(run.config))
    rows: list[list[Content]] = []
    for name, value in asdict(run.config).items():
        differs = value != preset[name]
        said = element("b", as_text(value)) if differs else as_text(value)
        rows.append([name, said, f"protocol: {as_text(preset[name])}" if differs else ""])
    facts: list[list[Content]] = [[name, fact] for name, fact in run.environment.items()]
    if run.data_digest:
        facts.append(["data (SHA-256)", run.data_digest])
    told = deviations(run.config)
    return join(
        [
            element("h3", "Repeat it"),
            element("pre", element("code", command(run.config))),
            element(
                "p",
                "The same seed, versions and kind of processor give the same numbers, whatever the "
                "number of processes. Where the data lie (--data-dir) changes no number.",
                class_="note",
            ),
            told and element("p", "What differs from what was published:", class_="note"),
            told and element("ul", [element("li", line) for line in told], class_="note"),
            _unfold(
                "Configuration and environment",
                table(
                    f"Configuration; what differs from the protocol {preset['protocol']} is bold.",
                    ["Setting", "Value", ""],
                    rows,
                    class_="text",
                ),
                table("Environment.", ["What", "Which"], facts, class_="text") if facts else None,
            ),
        ]
    )


def command(config: Config) -> str:
    """The command that computes the same numbers.

    >>> command(config_for("mnist", trials=3, hidden=(32, 16)))
    'fastbadge run --dataset mnist --trials 3 --hidden 32,16'
    >>> command(config_for("mnist", protocol="paper", query_size=1_000, trials=3))
    'fastbadge run --dataset mnist --protocol paper --trials 3 --query-size 1000'
    """
    preset = preset_of(config)
    words = ["fastbadge", "run", "--dataset", config.dataset]
    if preset.protocol != config_for(config.dataset).protocol:
        words += ["--protocol", preset.protocol]
    # The size of queries sets others of the protocol's values, so it is named where it is not its.
    size = config_for(config.dataset, protocol=preset.protocol).query_size
    unsaid = asdict(preset) | {"protocol": config.protocol, "query_size": size}
    for name, value in asdict(config).items():
        if value != unsaid[name]:
            words += [f"--{name.replace('_', '-')}", as_text(value)]
    return shlex.join(words)


def _figure(chart: Html, caption: Content) -> Html:
    return element("figure", chart, element("figcaption", caption))


def _unfold(summary: str, *content: Content) -> Html:
    return element("details", element("summary", summary), content)


def _spread(labels: int, mean: float, stderr: float | None) -> tuple[float, float, float, float]:
    error = 100 * (stderr or 0.0)
    return labels, 100 * mean, 100 * mean - error, 100 * mean + error


def _labels(x: float) -> str:
    return f"{x:,.0f} labels"


def _of_trials(run: Run) -> str:
    return f", over {run.config.trials} trials" if run.config.trials > 1 else "; there is one trial"


def _plus_minus(stderr: float | None, digits: int = 1) -> str:
    return "" if stderr is None else f" ± {100 * stderr:.{digits}f}"


def _seconds(value: float) -> str:
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
