"""The whole page: question, answer, all settings together, then each run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from itertools import combinations
from pathlib import Path

from fastbadge.errors import InputError
from fastbadge.lab.datasets import short_name
from fastbadge.lab.penalty import (
    Penalty,
    Step,
    error_cdf,
    in_every_setting,
    penalty_matrix,
    penalty_tie,
)
from fastbadge.lab.plots import display_name, in_words
from fastbadge.lab.report import sections
from fastbadge.lab.report.answer import answer, p_value
from fastbadge.lab.report.charts import Line, line_chart
from fastbadge.lab.report.html import Content, Html, captioned, element, join, table
from fastbadge.lab.report.picks import look_up
from fastbadge.lab.store import RoundRow, Run
from fastbadge.lab.summary import compared

_BASELINE = "random"


def render_report(runs: Sequence[Run], *, data_dir: Path | None = None, command: str = "") -> str:
    """One HTML page about one or several runs that needs nothing but itself.

    The same records give the same page, byte for byte. Its security policy forbids it to ask
    anybody for anything, or to run any script but its own.

    Args:
        runs: at least one; each is a setting of the penalty matrix.
        data_dir: where data sets are looked for, to show what was picked.
        command: what made the page; stands at its end.

    Raises:
        InputError: no run, or one without a recorded round.
    """
    if not runs:
        raise InputError("there is no run to report on; expected at least one")
    for run in runs:
        if not run.rows:
            raise InputError(
                f"the run on {run.config.dataset} has no finished round to report on; run it first"
            )
    title = f"fastbadge: {', '.join(dict.fromkeys(short_name(run.config.dataset) for run in runs))}"
    several, names = len(runs) > 1, _names(runs)
    settings = in_every_setting([run.rows for run in runs])
    penalty = penalty_matrix(settings, baseline=_BASELINE)
    together = _settings_section(runs, settings, penalty)
    body = [
        element(
            "header",
            element("h1", _question(runs)),
            _answers(runs, names),
            several
            and element(
                "nav",
                element(
                    "ul",
                    element("li", element("a", "All settings", href="#all")),
                    [
                        element("li", element("a", name, href=f"#run-{i}"))
                        for i, name in enumerate(names)
                    ],
                ),
                aria_label="Runs",
            ),
        ),
        element(
            "main",
            together if several else None,
            [
                _run_section(run, name, i, data_dir, heading=several)
                for i, (run, name) in enumerate(zip(runs, names, strict=True))
            ],
            None if several else together,
        ),
        element(
            "footer",
            element("p", "Made by ", element("code", command or "fastbadge report"), "."),
        ),
    ]
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("link", rel="icon", href="data:,"),  # else a browser asks the server for one
        element("title", title),
        element("style", Html(_asset("report.css"))),
    ]
    page = element(
        "html",
        element("head", head),
        element("body", body, element("script", Html(script))),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"


def _asset(name: str) -> str:
    return files("fastbadge.lab.report").joinpath(name).read_text(encoding="utf-8")


def _names(runs: Sequence[Run]) -> list[str]:
    """What each run is called: its data set; model, batch and number where these differ."""
    names = [short_name(run.config.dataset) for run in runs]
    if len({run.config.model for run in runs}) > 1:
        names = [f"{name} ({run.config.model})" for name, run in zip(names, runs, strict=True)]
    if len(set(names)) < len(names):
        names = [
            f"{name}, batches of {run.config.query_size:,}"
            for name, run in zip(names, runs, strict=True)
        ]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _question(runs: Sequence[Run]) -> str:
    pairs = {compared(run.config.strategies) for run in runs}
    where = (
        f"on {short_name(runs[0].config.dataset)}" if len(runs) == 1 else f"in {len(runs)} settings"
    )
    if len(pairs) == 1 and (pair := next(iter(pairs))):
        a, b = map(in_words, pair)
        return f"How many labels does {a} save against {b} {where}?"
    return f"Which examples should be labelled next {where}?"


def _answers(runs: Sequence[Run], names: Sequence[str]) -> Content:
    first, *others = map(_capital, answer(runs[0]))
    if len(runs) == 1:
        return [
            element("p", first, class_="answer"),
            others and element("p", " ".join(others)),
            _unfinished(runs[0]),
        ]
    return [
        element("p", ranking([run.rows for run in runs]), class_="answer"),
        element(
            "ul",
            [
                element("li", element("b", f"{name}: "), _capital(answer(run)[0]), _unfinished(run))
                for run, name in zip(runs, names, strict=True)
            ],
            class_="answers",
        ),
    ]


def ranking(settings: Sequence[Sequence[RoundRow]]) -> str:
    """Who is beaten least over all settings, and who is not surely beaten more, in words.

    Args:
        settings: the rows of one run each.
    """
    settings = in_every_setting(settings)
    penalty = penalty_matrix(settings, baseline=_BASELINE)
    count = sum(map(bool, penalty.budgets))
    means = {
        name: mean
        for name, mean in zip(penalty.strategies, penalty.column_means, strict=True)
        if mean is not None
    }
    if not means:
        return f"There is no ranking over all settings: {_why_none(penalty)}."
    least = min(means.values())
    best = [name for name, mean in means.items() if mean == least]
    others = [name for name in sorted(means, key=means.__getitem__) if means[name] > least]
    tie_of = {name: penalty_tie(settings, name, best[0], baseline=_BASELINE) for name in others}
    tied = [f"{in_words(n)} (p = {p_value(p)})" for n, p in tie_of.items() if p and p > 0.05]
    untold = any(p is None for p in tie_of.values())
    have = "have" if len(best) > 1 else "has"
    return _capital(
        f"{_listed([in_words(name) for name in best])} {have} the lowest penalty over "
        f"{count} setting{'s' if count > 1 else ''}, {least:.2f}"
        f"{''.join(f'; {in_words(name)} {means[name]:.2f}' for name in others)}. "
        "The penalty is how often a strategy is beaten significantly by another, averaged over "
        f"the others: 0 is never, {count} always."
        + (
            f" By a permutation test, the lowest may be by chance lower than {_listed(tied)}."
            if tied
            else " How much of it is chance cannot be told: some strategy lacks a trial."
            if untold
            else ""
        )
    )


def _why_none(penalty: Penalty) -> str:
    count = sum(map(bool, penalty.budgets))
    if count == 0:
        return f"none has budgets, which {_BASELINE} sets"
    missing = [
        f"{in_words(a)} and {in_words(b)}"
        for (i, a), (j, b) in combinations(enumerate(penalty.strategies), 2)
        if penalty.compared[i][j] < count
    ]
    if not missing:
        return "there is one strategy"
    further = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return (
        "a comparison takes two trials of both strategies in every setting, which the pair "
        f"{missing[0]} lacks{further}"
    )


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _unfinished(run: Run) -> Html | None:
    if run.finished:
        return None
    config = run.config
    total = len(config.strategies) * config.trials * config.points
    return element(
        "p",
        f"This run is not finished: {len(run.rows):,} of {total:,} rounds are recorded.",
        class_="note warn",
    )


def _run_section(run: Run, name: str, index: int, data_dir: Path | None, *, heading: bool) -> Html:
    config = run.config
    about = (
        f"{config.trials} trial{'s' if config.trials > 1 else ''}, {config.initial_labels:,} "
        f"initial labels, {config.rounds} queries of {config.query_size:,}."
    )
    return element(
        "section",
        heading and element("h2", name),
        element("p", about, class_="note"),
        heading and element("p", " ".join(map(_capital, answer(run)))),
        sections.learning_section(run),
        sections.difference_section(run),
        sections.overview_section(run),
        sections.pair_section(run),
        sections.query_section(run),
        sections.picks_section(run, look_up(run, data_dir)),
        sections.configuration_section(run),
        id=f"run-{index}",
    )


def _settings_section(
    runs: Sequence[Run], settings: Sequence[Sequence[RoundRow]], penalty: Penalty
) -> Html | None:
    """Penalty matrix and CDF over all runs, for the strategies that all of them have."""
    shown = penalty.strategies
    if len(shown) < 2:
        return None
    count = sum(map(bool, penalty.budgets))
    heading = element("h2", "All settings together" if len(runs) > 1 else "As the paper compares")
    if count == 0:
        text = (
            f"There is no penalty matrix: no setting has budgets, which {_BASELINE} sets (it has "
            "to be among the strategies, and to need more than one query for 99 % of its final "
            "accuracy)."
        )
        return element("section", heading, element("p", text, class_="note warn"), id="all")
    left_out = dict.fromkeys(
        display_name(name) for run in runs for name in run.config.strategies if name not in shown
    )
    return element(
        "section",
        heading,
        element(
            "p",
            "The analysis of Ash et al. (2020): strategies are compared at budgets that double, up "
            "to where random sampling has nearly all of its final accuracy "
            f"({_budgets_in_words(penalty)}).",
        ),
        left_out
        and element(
            "p", f"Left out, because some setting lacks them: {', '.join(left_out)}.", class_="note"
        ),
        element("h3", "Penalty matrix"),
        _matrix(penalty, count),
        element("h3", "Errors relative to random sampling"),
        _cdf_figure(settings, shown),
        id="all",
    )


def _budgets_in_words(penalty: Penalty) -> str:
    if len(penalty.budgets) == 1:
        return "here " + ", ".join(f"{labels:,}" for labels in penalty.budgets[0]) + " labels"
    return f"{sum(map(len, penalty.budgets))} budgets in {sum(map(bool, penalty.budgets))} settings"


def _matrix(penalty: Penalty, count: int) -> Html:
    best = min((mean for mean in penalty.column_means if mean is not None), default=None)
    header = ["beats →", *map(display_name, penalty.strategies)]
    body = [
        element(
            "tr",
            element("th", display_name(name), scope="row"),
            [
                _matrix_cell(cell, compared_in, count, diagonal=i == j)
                for j, (cell, compared_in) in enumerate(
                    zip(penalty.cells[i], penalty.compared[i], strict=True)
                )
            ],
        )
        for i, name in enumerate(penalty.strategies)
    ]
    means = element(
        "tr",
        element("th", "Column mean", scope="row"),
        [
            element(
                "td",
                element("span", "\N{EN DASH}", class_="none", title="not compared everywhere")
                if mean is None
                else f"{mean:.2f}",
                mean is not None and mean == best and element("small", "lowest"),
            )
            for mean in penalty.column_means
        ],
        class_="mean",
    )
    caption = (
        f"How often the strategy of a row beats that of a column, over {count} "
        f"setting{'s' if count > 1 else ''}: the share of budgets at which its paired t statistic "
        "exceeds the two-sided 5 % critical value, summed. The column mean, without the diagonal, "
        "ranks strategies: lower is better. A dash stands for what was not compared."
    )
    head = element("tr", [element("th", cell, scope="col") for cell in header])
    return captioned(
        caption,
        element("table", element("thead", head), element("tbody", body, means), class_="matrix"),
    )


def _matrix_cell(cell: float | None, compared_in: int, count: int, *, diagonal: bool) -> Html:
    if diagonal:
        return element("td", "")
    if cell is None:
        return element("td", element("span", "\N{EN DASH}", class_="none", title="not compared"))
    return element(
        "td",
        f"{cell:.2f}",
        compared_in < count and element("small", f"of {compared_in}"),
        style=f"--share:{60 * cell / count:.0f}%",
    )


def _cdf_figure(settings: Sequence[Sequence[RoundRow]], shown: Sequence[str]) -> Html:
    cdf = {n: steps for n, steps in error_cdf(settings, baseline=_BASELINE).items() if steps}
    finite = [step.error for steps in cdf.values() for step in steps if step.error < float("inf")]
    low, high = min(finite) - 0.02, max(finite) + 0.02
    lines = []
    for name, steps in cdf.items():
        seen = [step for step in steps if step.error <= high]
        ends = [
            (low, 0.0),
            *((s.error, s.share) for s in seen),
            (high, seen[-1].share if seen else 0.0),
        ]
        points = [(x, y, y, y) for x, y in ends]
        lines.append(Line(name, points, [""] * len(points), stairs=True))
    chart = line_chart(
        lines,
        strategies=shown,
        title="Cumulative distribution of the error relative to random sampling",
        x_title="Mean error / mean error of random sampling",
        y_title="Share of budgets",
    )
    rows = [
        [
            display_name(name),
            *(f"{_share_below(steps, at):.2f}" for at in (0.8, 0.9, 1.0, 1.1)),
        ]
        for name, steps in cdf.items()
    ]
    figures = table(
        "Share of budgets at which the relative error is at most",
        ["Strategy", "0.8", "0.9", "1.0", "1.1"],
        rows,
    )
    caption = (
        "Higher and further to the left is better: at how large a share of the budgets the error "
        "is at most this multiple of random sampling's. Settings weigh alike."
    )
    details = element("details", element("summary", "The figures"), figures)
    return join([element("figure", chart, element("figcaption", caption)), details])


def _share_below(steps: Sequence[Step], at: float) -> float:
    return max((step.share for step in steps if step.error <= at), default=0.0)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
