"""Learning curves, paired differences and labels saved, by hand and against scipy."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from fastbadge.errors import InputError
from fastbadge.lab.statistics import (
    Area,
    Point,
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


def curves_of(trials, *, slope_a=0.30, slope_b=0.15, rounds=6, seed=5):
    """Trials of a and b whose curves rise with noise, as {(strategy, trial): accuracies}."""
    draw = random.Random(seed)
    return {
        (name, trial): [0.3 + slope * r**0.5 + draw.gauss(0, 0.03) for r in range(rounds)]
        for name, slope in (("a", slope_a), ("b", slope_b))
        for trial in range(trials)
    }


def literal_savings(curves, trials, drawn_ST):
    """`labels_saved` on rows made of each resample, a drawn trial under a number of its own."""
    for drawn_T in drawn_ST:
        resample = {(n, i): curves[n, trials[t]] for i, t in enumerate(drawn_T) for n in "ab"}
        saved = labels_saved(run_of(resample), "a", "b")
        if saved is None:  # b has it from the start
            first = labels_to_reach(learning_curve(run_of(resample))["a"], -1.0)
            yield 0.0 if first is not None else None
        else:
            yield -math.inf if saved.labels_a is None else saved.labels_b - saved.labels_a


@pytest.mark.parametrize(("slope_a", "trials"), [(0.30, 7), (0.20, 5), (0.152, 4), (0.05, 3)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bootstrap_against_a_literal_one(slope_a, trials, confidence):
    curves = curves_of(trials, slope_a=slope_a)
    interval = labels_saved_interval(
        run_of(curves), "a", "b", confidence=confidence, resamples=200, seed=3
    )
    drawn_ST = np.random.default_rng(3).integers(trials, size=(200, trials))
    saved = sorted(literal_savings(curves, list(range(trials)), drawn_ST))
    # The smallest values with at least 2.5 and 97.5 % (10 and 90 %) of the resamples at or below.
    ends = [next(v for v in saved if sum(s <= v for s in saved) >= share * 200)
            for share in ((1 - confidence) / 2, (1 + confidence) / 2)]  # fmt: skip
    assert (interval.low, interval.high) == pytest.approx(tuple(ends))
    assert interval.missed == pytest.approx(sum(math.isinf(s) for s in saved) / 200)


def test_a_resample_that_misses_the_accuracy_is_not_dropped():
    # a stays below b's end in trial 0 and passes it early in trial 1: of the four resamples of
    # two trials, (0, 0) misses, so about a quarter do, and the lower end is not known.
    curves = {
        ("a", 0): [0.3, 0.4, 0.5],
        ("a", 1): [0.3, 0.9, 0.9],
        ("b", 0): [0.3, 0.5, 0.6],
        ("b", 1): [0.3, 0.5, 0.6],
    }
    interval = labels_saved_interval(run_of(curves), "a", "b")
    assert interval.missed == pytest.approx(0.25, abs=0.02)
    assert interval.low == -math.inf
    # Best, (1, 1): from 0.3 at 20 to 0.9 at 30 it passes 0.6 at 25, where b needs 40.
    assert interval.high == pytest.approx(15)
    never = {key: [0.3, 0.35, 0.4] if key[0] == "a" else curve for key, curve in curves.items()}
    hopeless = labels_saved_interval(run_of(never), "a", "b")
    assert (hopeless.low, hopeless.high, hopeless.missed) == (-math.inf, -math.inf, 1.0)


def test_the_bootstrap_is_paired_seeded_and_needs_two_trials():
    rows = run_of(curves_of(6))
    assert labels_saved_interval(rows, "a", "b") == labels_saved_interval(rows[::-1], "a", "b")
    assert labels_saved_interval(rows, "a", "b") != labels_saved_interval(rows, "a", "b", seed=1)
    itself = labels_saved_interval(rows, "a", "a")
    assert (itself.low, itself.high, itself.missed) == (0, 0, 0)
    assert labels_saved_interval(run_of(curves_of(1)), "a", "b") is None
    assert labels_saved_interval(rows, "a", "c") is None
    with pytest.raises(InputError, match="expected a number between 0 and 1"):
        labels_saved_interval(rows, "a", "b", confidence=1.0)


def test_the_bootstrap_covers_what_it_says():
    # The curves are straight, so with many trials a saves what the slopes say: b ends at
    # 0.3 + 0.1 * 5 = 0.8, at 70 labels, which a reaches after 2.5 of 5 rounds, at 45.
    covered = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        curves = {
            (name, trial): 0.3 + slope * np.arange(6) + draw.normal(0, 0.02, 6)
            for name, slope in (("a", 0.2), ("b", 0.1))
            for trial in range(20)
        }
        # b's own curve reaches the accuracy it ends with no later than at its end: 70 or so.
        interval = labels_saved_interval(run_of(curves), "a", "b", resamples=400)
        covered += interval.low <= 25 <= interval.high
    # 95 % of 200 is 190 +- 3.1 draws of the binomial; a little less as for any percentile one.
    assert 176 <= covered <= 199


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
