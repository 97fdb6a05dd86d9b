"""The table and the sentence at the end of a run, and what is shown meanwhile."""

import io
import math
import random
from dataclasses import replace

import pytest
from rich.console import Console

from fastbadge.lab.progress import follow, seconds_left
from fastbadge.lab.protocol import Config
from fastbadge.lab.statistics import labels_saved_interval, learning_curve, paired_difference
from fastbadge.lab.store import RoundRow, Run
from fastbadge.lab.summary import compared, heading, savings_sentence, summary_table


def run_of(accuracies, *, trials):
    """A run from {(strategy, trial): [accuracy of each round]}."""
    strategies = tuple(dict.fromkeys(strategy for strategy, _ in accuracies))
    rows = [
        RoundRow(strategy, trial, i, 20 + 20 * i, accuracy, 0.5, 2.0, 0.5, 0.5, (1,))
        for (strategy, trial), curve in accuracies.items()
        for i, accuracy in enumerate(curve)
    ]
    rounds = max(len(curve) for curve in accuracies.values()) - 1
    return Run(Config(strategies=strategies, trials=trials, rounds=rounds), {}, rows)


def shown(run):
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(run))
    lines = console.file.getvalue().splitlines()
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


PAIR = {
    ("badge", 0): [0.50, 0.90],
    ("badge", 1): [0.60, 0.94],
    ("random", 0): [0.50, 0.80],
    ("random", 1): [0.60, 0.82],
}


def test_the_table_by_hand():
    run = run_of(PAIR, trials=2)
    table = shown(run)
    # Differences at 40 labels: 10 and 12, so 11 +- 12.7062 * 1.
    assert ["labels", "badge", "random", "badge - random (95 % interval)"] in table
    assert ["20", "55.0 ± 5.0", "55.0 ± 5.0", "+0.0 (+0.0 to +0.0)"] in table
    assert ["40", "92.0 ± 2.0", "81.0 ± 1.0", "+11.0 (-1.7 to +23.7)"] in table
    assert heading(run) == "digits: test accuracy in %, mean ± standard error of 2 trials"


def test_the_table_of_a_killed_run_says_how_many_trials_a_figure_has():
    killed = {key: curve for key, curve in PAIR.items() if key != ("random", 1)}
    table = shown(run_of(killed | {("random", 1): [0.60]}, trials=2))
    assert ["20", "55.0 ± 5.0", "55.0 ± 5.0", "+0.0 (+0.0 to +0.0)"] in table
    assert ["40", "92.0 ± 2.0", "80.0 (1)", "+10.0 (1)"] in table
    alone = shown(run_of({("badge", 0): [0.5, 0.6], ("random", 0): [0.5]}, trials=1))
    assert ["40", "60.0"] in alone


def test_many_strategies_are_rows_that_fit():
    names = ("badge", "random", "uncertainty_herding", "least_confidence", "cluster_margin",
             "power_margin", "badge_subset:candidates=2000")  # fmt: skip
    draw = random.Random(0)
    run = run_of(
        {(n, t): [0.2 + 0.07 * r + draw.random() / 20 for r in range(9)]
         for n in names for t in range(3)},
        trials=3,
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(run))
    assert "…" not in console.file.getvalue()
    table = shown(run)
    assert table[1] == [
        "strategy", "60 labels", "100 labels", "180 labels", "- random at 180 (95 % interval)"
    ]  # fmt: skip
    assert [row[0] for row in table[3:10]] == list(names)
    (difference,) = [
        d for d in paired_difference(run.rows, "power_margin", "random") if d.labels == 180
    ]
    low, high = (100 * end for end in difference.interval)
    by_name = {row[0]: row[1:] for row in table[3:10]}
    point = learning_curve(run.rows)["power_margin"][4]
    assert by_name["power_margin"][1] == f"{100 * point.mean:.1f} ± {100 * point.stderr:.1f}"
    assert by_name["power_margin"][3] == f"{100 * difference.mean:+.1f} ({low:+.1f} to {high:+.1f})"
    assert len(by_name["random"]) == 3
    assert len(shown(run_of({(n, 0): [0.5] for n in names}, trials=1))) > 9


def test_one_trial_has_no_interval():
    table = shown(run_of({("badge", 0): [0.5], ("random", 0): [0.4]}, trials=1))
    assert ["labels", "badge", "random", "badge - random"] in table
    assert ["20", "50.0", "40.0", "+10.0"] in table


@pytest.mark.parametrize(
    ("strategies", "pair"),
    [
        (("badge", "random"), ("badge", "random")),
        (("random", "margin", "badge"), ("margin", "random")),
        (("badge", "margin", "entropy"), ("badge", "entropy")),
        (("badge",), None),
        ((), None),
    ],
)
def test_what_is_compared(strategies, pair):
    assert compared(strategies) == pair


def test_the_sentence():
    # random ends with 81.0 at 40; badge goes from 55 at 20 to 92 at 40: 20 + 20 * 26 / 37 = 34.05.
    # At the end badge is ahead by 10 and 12 points, 11 +- 12.7 * 1 of the t test: not surely.
    run = run_of(PAIR, trials=2)
    interval = labels_saved_interval(run.rows, "badge", "random")
    assert interval.low == -math.inf
    assert savings_sentence(run) == (
        "badge needs 34 labels for the 81.0 % that random ends with, random itself 40: "
        "6 (15 %) fewer, which is not sure (95 % interval of the saving none to "
        f"{interval.high:.0f}, 2 paired trials)."
    )
    swapped = {
        (b, t): PAIR[a, t] for a, b in (("badge", "random"), ("random", "badge")) for t in (0, 1)
    }
    assert savings_sentence(run_of(swapped, trials=2)).startswith(
        "badge does not reach the 92.0 % that random ends with, which is not sure (95 %"
    )
    worse = {(strategy, trial): [0.5, 0.6 + (strategy == "random")] for strategy, trial in PAIR}
    assert savings_sentence(run_of(worse, trials=2)) == (
        "badge does not reach the 160.0 % that random ends with (95 % interval of the saving none, "
        "2 paired trials)."
    )
    sure = {key: [0.5, 0.9 if key[0] == "badge" else 0.7] for key in PAIR}
    assert savings_sentence(run_of(sure, trials=2)) == (
        "badge needs 30 labels for the 70.0 % that random ends with, random itself 40: "
        "10 (25 %) saved (95 % interval of the saving 10 to 10, 2 paired trials)."
    )
    late = {key: [0.5, 0.9, 0.7] if key[0] == "random" else [0.5, 0.6, 0.8] for key in PAIR}
    assert savings_sentence(run_of(late, trials=2)) == (
        "badge needs 50 labels for the 70.0 % that random ends with, random itself 30: "
        "20 (67 %) more, which is not sure (95 % interval of the saving -20 to 10, 2 paired "
        "trials)."
    )
    once = {key: curve for key, curve in PAIR.items() if key[1] == 0}
    assert savings_sentence(run_of(once, trials=1)).endswith(
        ": 5 (12 %) fewer (there is one trial, so the uncertainty is not known)."
    )
    assert savings_sentence(run_of({("badge", 0): [0.5]}, trials=1)) == ""
    unfinished = {("badge", 0): [0.5, 0.6], ("random", 0): [0.5]}
    assert savings_sentence(run_of(unfinished, trials=1)) == (
        "How many labels badge saves against random cannot be said: there is no finished trial of "
        "both in which random improves on its first round."
    )
    falling = {("badge", 0): [0.5, 0.6], ("random", 0): [0.5, 0.4]}
    assert "no finished trial of both" in savings_sentence(run_of(falling, trials=1))


def followed(run, *, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    rows = list(run.rows)
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: row.round)
    with follow(run.config, console, jobs=2) as on_round:
        for row in rows:
            on_round(row)
    return console.file.getvalue()


def test_a_log_has_one_line_a_finished_trial():
    lines = followed(run_of(PAIR, trials=2), terminal=False).splitlines()
    assert len(lines) == 4
    assert {line.partition(" (")[0] for line in lines} == {
        "badge, trial 1 of 2: 90.0 % at 40 labels",
        "badge, trial 2 of 2: 94.0 % at 40 labels",
        "random, trial 1 of 2: 80.0 % at 40 labels",
        "random, trial 2 of 2: 82.0 % at 40 labels",
    }
    assert lines[-1].endswith("(4 of 4 done)")


def test_a_terminal_shows_trials_rounds_accuracy_and_time_left():
    text = followed(run_of(PAIR, trials=2), terminal=True)
    assert "2/2 trials, 4/4 rounds 92.0 % at 40 labels" in text
    assert "2/2 trials, 4/4 rounds 81.0 % at 40 labels" in text
    assert "0:00 left" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_a_round_of_another_command_s_strategy_does_no_harm(terminal):
    run = run_of(PAIR, trials=2)
    config = replace(run.config, strategies=("badge",))
    assert "badge" in followed(replace(run, config=config), terminal=terminal)


def test_time_left():
    config = Config(strategies=("badge",), trials=4, rounds=999)
    row = RoundRow("badge", 0, 0, 20, 0.5, 0.5, 2.0, 0.5, 0.5, (1,))
    # 3,000 rounds of 3 s in three trials.
    assert seconds_left([row] * 1000, config, jobs=8) == pytest.approx(3000)
    assert seconds_left([row] * 1000, config, jobs=1) == pytest.approx(9000)
    assert seconds_left([row] * 4000, config, jobs=1) == 0
