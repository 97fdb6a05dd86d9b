"""Learning curves, paired differences and labels saved, by hand and against scipy."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import coverage_of_savings as coverage
from fastbadge.errors import InputError
from fastbadge.lab.statistics import (
    Area,
    Point,
    SavedInterval,
    area_under_curve,
    complete_trials,
    labels_saved,
    labels_saved_interval,
    labels_to_reach,
    learning_curve,
    paired_difference,
    query_time,
    trial_areas,
)
from fastbadge.lab.store import RoundRow


def row(strategy, trial, round, accuracy, *, seconds=0.5, picks=(1,)):
    return RoundRow(
        strategy, trial, round, 20 + 10 * round, accuracy, 0.1, 1.0, seconds, 0.1, picks
    )


@pytest.fixture
def many():
    draw = random.Random(3)
    return [
        row(strategy, trial, round, draw.random())
        for strategy in ("badge", "random")
        for trial in range(7)
        for round in range(4)
    ]


def test_learning_curve_by_hand():
    rows = [
        row("random", 0, 1, 0.5),
        row("badge", 0, 0, 0.2),
        row("badge", 1, 0, 0.4),
        row("badge", 2, 0, 0.6),
        row("badge", 0, 1, 0.9),
    ]
    curves = learning_curve(rows)
    assert list(curves) == ["random", "badge"]
    assert curves["random"] == [Point(30, 0.5, None, 1)]
    first, second = curves["badge"]
    # 0.2, 0.4, 0.6: deviations -0.2, 0, 0.2, so variance 0.08 / 2 and standard error 0.2 / sqrt 3.
    assert (first.labels, first.trials) == (20, 3)
    assert first.mean == pytest.approx(0.4)
    assert first.stderr == pytest.approx(0.2 / math.sqrt(3))
    assert second == Point(30, 0.9, None, 1)


def test_learning_curve_against_scipy(many):
    for strategy, curve in learning_curve(many).items():
        for point in curve:
            values = [
                r.accuracy for r in many if (r.strategy, r.labels) == (strategy, point.labels)
            ]
            assert point.stderr == pytest.approx(stats.sem(values), rel=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_intervals_are_those_of_the_paired_t_test(many, confidence):
    differences = paired_difference(many, "badge", "random", confidence=confidence)
    assert [d.labels for d in differences] == [20, 30, 40, 50]
    for d in differences:
        a, b = (
            [r.accuracy for r in many if (r.strategy, r.labels) == (name, d.labels)]
            for name in ("badge", "random")
        )
        oracle = stats.ttest_rel(a, b).confidence_interval(confidence)
        assert d.interval == pytest.approx((oracle.low, oracle.high), rel=1e-9)
        assert d.trials == 7


def test_paired_difference_by_hand():
    rows = [
        row("badge", 0, 0, 0.50),
        row("badge", 1, 0, 0.70),
        row("random", 0, 0, 0.40),
        row("random", 1, 0, 0.65),
    ]
    (d,) = paired_difference(rows, "badge", "random")
    # Differences 0.10 and 0.05: mean 0.075, standard error 0.025; t(1) of 95 % is 12.7062.
    assert d.mean == pytest.approx(0.075)
    assert d.interval == pytest.approx((0.075 - 12.7062 * 0.025, 0.075 + 12.7062 * 0.025), abs=1e-6)


def test_pairs_ignore_the_order_of_rows_and_trials_that_one_strategy_lacks(many):
    killed = [r for r in many if not (r.strategy == "random" and r.trial >= 5)]
    random.Random(0).shuffle(killed)
    complete = [r for r in many if r.trial < 5]
    assert paired_difference(killed, "badge", "random") == paired_difference(
        complete, "badge", "random"
    )


def test_no_pair_no_difference_and_no_interval_from_one():
    assert paired_difference([row("badge", 0, 0, 0.5)], "badge", "random") == []
    assert paired_difference([row("badge", 0, 0, 0.5), row("random", 1, 0, 0.5)], "a", "b") == []
    (d,) = paired_difference(
        [row("badge", 0, 0, 0.5), row("random", 0, 0, 0.25)], "badge", "random"
    )
    assert (d.mean, d.interval, d.trials) == (0.25, None, 1)


def test_equal_accuracies_give_an_interval_of_width_zero():
    rows = [row(name, trial, 0, 0.1 * trial) for name in "ab" for trial in range(3)]
    (d,) = paired_difference(rows, "a", "b")
    assert (d.mean, d.interval) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_outside_0_1(confidence):
    with pytest.raises(InputError, match="expected a number between 0 and 1"):
        paired_difference([], "a", "b", confidence=confidence)


CURVE = [Point(100, 0.5, None, 1), Point(200, 0.8, None, 1), Point(300, 0.7, None, 1)]


@pytest.mark.parametrize(
    ("accuracy", "labels"),
    [(0.4, 100), (0.5, 100), (0.65, 150), (0.8, 200), (0.75, 183.33333), (0.81, None)],
)
def test_labels_to_reach_is_the_first_crossing(accuracy, labels):
    expected = None if labels is None else pytest.approx(labels)
    assert labels_to_reach(CURVE, accuracy) == expected


def test_labels_to_reach_on_a_flat_and_an_empty_curve():
    flat = [Point(1, 0.5, None, 1), Point(2, 0.5, None, 1), Point(3, 0.9, None, 1)]
    assert labels_to_reach(flat, 0.7) == pytest.approx(2.5)
    assert labels_to_reach([], 0.1) is None


def run_of(curves):
    return [
        row(strategy, trial, round, accuracy)
        for (strategy, trial), accuracies in curves.items()
        for round, accuracy in enumerate(accuracies)
    ]


def test_labels_saved_by_hand():
    rows = run_of(
        {
            ("badge", 0): [0.3, 0.7, 0.9],
            ("badge", 1): [0.5, 0.9, 0.9],
            ("random", 0): [0.3, 0.4, 0.5],
            ("random", 1): [0.5, 0.6, 0.7],
        }
    )
    saved = labels_saved(rows, "badge", "random")
    # random ends with 0.6 at 40; badge goes from 0.4 at 20 to 0.8 at 30.
    assert saved.accuracy == pytest.approx(0.6)
    assert saved.labels_a == pytest.approx(25)
    assert (saved.labels_b, saved.trials) == (40, 2)


def test_what_a_flat_end_adds_is_not_counted_as_saved():
    rows = run_of({("badge", 0): [0.4, 0.8, 0.8, 0.8], ("random", 0): [0.4, 0.6, 0.6, 0.6]})
    saved = labels_saved(rows, "badge", "random")
    # random has its final 0.6 at 30 already; badge halfway from 20 to 30.
    assert (saved.labels_a, saved.labels_b) == (pytest.approx(25), 30)
    # random against itself saves nothing.
    same = labels_saved(rows, "random", "random")
    assert same.labels_a == same.labels_b


def test_nothing_is_saved_where_nothing_is_learnt():
    rows = run_of({("badge", 0): [0.4, 0.8], ("random", 0): [0.4, 0.3]})
    assert labels_saved(rows, "badge", "random") is None


def test_labels_saved_counts_trials_complete_for_both():
    complete = {("badge", 0): [0.3, 0.7], ("random", 0): [0.3, 0.5]}
    killed = {("badge", 1): [0.9, 0.9], ("random", 1): [0.9]}
    assert labels_saved(run_of(complete | killed), "badge", "random") == labels_saved(
        run_of(complete), "badge", "random"
    )
    assert labels_saved(run_of(killed), "badge", "random") is None
    assert labels_saved([], "badge", "random") is None


def test_labels_never_reached():
    rows = run_of({("badge", 0): [0.3, 0.4], ("random", 0): [0.3, 0.5]})
    assert labels_saved(rows, "badge", "random").labels_a is None


def test_query_time_leaves_out_rounds_without_a_query():
    rows = [
        row("badge", trial, 0, 0.5, seconds=seconds) for trial, seconds in enumerate((3, 1, 8))
    ] + [row("badge", 0, 1, 0.5, seconds=0, picks=())]
    (time,) = query_time(rows)["badge"]
    assert (time.labels, time.median, time.low, time.high) == (20, 3, 1, 8)
    assert query_time(rows[3:]) == {}


def test_the_interval_holds_what_no_t_test_rejects():
    draw = np.random.default_rng(1)
    labels = np.array([20, 30, 40, 50])
    acc = {
        name: np.array([0.3, *peaks])[None] + draw.normal(0, 0.01, (4, 4))
        for name, peaks in (("a", (0.6, 0.7, 0.8)), ("b", (0.5, 0.597, 0.6)))
    }
    rows = run_of({(name, t): curve for name in "ab" for t, curve in enumerate(acc[name])})
    interval = labels_saved_interval(rows, "a", "b", confidence=0.9)
    # Every pair of numbers of labels, tested by scipy.
    fine = np.linspace(20, 50, 201)
    a_TX, b_TX = (np.array([np.interp(fine, labels, c) for c in acc[name]]) for name in "ab")
    may_be_b_X = ~(stats.ttest_rel(b_TX, b_TX[:, -1:]).pvalue < 0.1)  # NaN at the end itself
    p_XX = stats.ttest_rel(a_TX[:, :, None], b_TX[:, None, :]).pvalue
    kept = [fine[j] - fine[i] for i, j in np.argwhere(p_XX >= 0.1) if may_be_b_X[j]]
    assert may_be_b_X.sum() > 1
    # Ends are those of the same grid, give or take a step.
    assert (interval.low, interval.high) == pytest.approx((min(kept), max(kept)), abs=0.16)
    saved = labels_saved(rows, "a", "b")
    assert interval.low < saved.labels_b - saved.labels_a < interval.high


def trials_of(*curves):
    """Rows of a and b: for each trial a pair of curves."""
    return run_of(
        {(n, t): c for t, pair in enumerate(curves) for n, c in zip("ab", pair, strict=True)}
    )


def test_an_accuracy_that_may_not_be_reached_has_no_lower_end():
    # At the end a is ahead by 0.1 and 0.3: on average, but not surely.
    unsure = trials_of(([0.3, 0.7], [0.3, 0.6]), ([0.3, 0.9], [0.3, 0.6]))
    assert labels_saved(unsure, "a", "b").labels_a < 30
    assert labels_saved_interval(unsure, "a", "b").low == -math.inf
    # Behind by 0.1 and 0.1 + 1e-9 it surely does not get there; behind by 0.1 and 0.3 it may.
    sure = trials_of(([0.3, 0.5], [0.3, 0.6]), ([0.3, 0.5], [0.3, 0.6 + 1e-9]))
    assert labels_saved_interval(sure, "a", "b") == SavedInterval(-math.inf, -math.inf)
    maybe = trials_of(([0.3, 0.5], [0.3, 0.6]), ([0.3, 0.3], [0.3, 0.6]))
    assert labels_saved_interval(maybe, "a", "b").high > 0
    # It is there from the start, where b needs all its labels: the whole width is saved.
    ahead = trials_of(([0.9, 0.9], [0.3, 0.6]), ([0.9, 0.9], [0.3, 0.6]))
    assert labels_saved_interval(ahead, "a", "b") == SavedInterval(10, 10)


def test_the_interval_is_paired_and_needs_two_trials():
    rows = coverage.rows_of(coverage.SCENARIOS["a saves"], 6, np.random.default_rng(0))
    interval = labels_saved_interval(rows, "a", "b")
    assert interval == labels_saved_interval(rows[::-1], "a", "b")
    swapped = [replace(r, trial=5 - r.trial) if r.strategy == "a" else r for r in rows]
    assert labels_saved_interval(swapped, "a", "b") != interval
    assert labels_saved_interval([r for r in rows if r.trial == 0], "a", "b") is None
    killed = [r for r in rows if (r.strategy, r.trial, r.round) != ("a", 5, 10)]
    complete = [r for r in rows if r.trial < 5]
    assert labels_saved_interval(killed, "a", "b") == labels_saved_interval(complete, "a", "b")
    assert labels_saved_interval(rows, "a", "c") is None
    with pytest.raises(InputError, match="expected a number between 0 and 1"):
        labels_saved_interval(rows, "a", "b", confidence=1.0)


@pytest.mark.parametrize("trials", [3, 5, 10])
@pytest.mark.parametrize("scenario", coverage.SCENARIOS)
def test_the_interval_covers_what_it_says(scenario, trials):
    missed, _ = coverage.simulate(scenario, trials, draws=100)
    # Of 100 draws at 5 %, 12 or more are missed in 1 of 200 tests; see docs/statistics.md for more.
    assert missed <= 11


def test_area_by_hand():
    rows = run_of({("a", 0): [0.2, 0.6, 0.8], ("a", 1): [0.4, 0.6, 1.0], ("b", 0): [0.2, 0.4]})
    # Labels 20, 30, 40: (10 * 0.4 + 10 * 0.7) / 20 = 0.55 and (10 * 0.5 + 10 * 0.8) / 20 = 0.65.
    areas = trial_areas(rows)
    assert areas["a"] == {0: pytest.approx(0.55), 1: pytest.approx(0.65)}
    assert areas["b"] == {}  # it lacks the last round, and a shorter budget is another measure
    assert complete_trials(rows) == {"a": {0, 1}, "b": set()}
    mean = area_under_curve(rows)
    assert mean == {"a": Area(pytest.approx(0.6), pytest.approx(0.05), 2), "b": None}
    assert area_under_curve(run_of({("a", 0): [0.7]})) == {"a": Area(0.7, None, 1)}
    assert area_under_curve([]) == {}


def test_area_against_numpy_on_uneven_labels(many):
    uneven = [RoundRow(*[r.strategy, r.trial, r.round, 7 * 2**r.round, r.accuracy],
                       0.1, 1.0, 0.1, 0.1, ()) for r in many]  # fmt: skip
    for strategy, by_trial in trial_areas(uneven).items():
        for trial, area in by_trial.items():
            y = [r.accuracy for r in uneven if (r.strategy, r.trial) == (strategy, trial)]
            assert area == pytest.approx(np.trapezoid(y, [7, 14, 28, 56]) / 49)
