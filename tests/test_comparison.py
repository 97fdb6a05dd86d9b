"""Paired tests, Holm's correction, effect sizes and trials needed, by hand and against scipy."""

import math
import random

import numpy as np
import pytest
from scipy import integrate, stats

from fastbadge.errors import InputError
from fastbadge.lab.comparison import (
    critical_t,
    holm,
    paired_tests,
    t_statistic,
    trials_needed,
)


@pytest.fixture
def values():
    draw = random.Random(0)
    return {
        name: {trial: shift + draw.random() for trial in range(trials)}
        for name, shift, trials in (("a", 0.6, 9), ("b", 0.3, 7), ("c", 0.1, 8))
    }


def test_every_pair_against_scipy(values):
    tests = paired_tests(values, confidence=0.9)
    assert [(t.a, t.b, t.trials) for t in tests] == [("a", "b", 7), ("a", "c", 8), ("b", "c", 7)]
    for test in tests:
        a, b = ([values[name][t] for t in range(test.trials)] for name in (test.a, test.b))
        oracle = stats.ttest_rel(a, b)
        assert test.p == pytest.approx(oracle.pvalue, rel=1e-9)
        ends = oracle.confidence_interval(0.9)
        assert test.interval == pytest.approx((ends.low, ends.high), rel=1e-9)
        assert test.effect == pytest.approx(oracle.statistic / math.sqrt(test.trials), rel=1e-9)
        assert test.stdev == pytest.approx(np.std(np.subtract(a, b), ddof=1))
    raw = sorted(t.p for t in tests)
    assert min(t.p_holm for t in tests) == pytest.approx(min(1, 3 * raw[0]))


def test_one_pair_by_hand():
    (test,) = paired_tests({"a": {0: 0.9, 1: 0.7, 2: 0.8}, "b": {0: 0.6, 1: 0.6, 2: 0.6}})
    # Differences 0.3, 0.1, 0.2: mean 0.2, deviation 0.1, d_z 2; t(2) of 95 % is 4.302653.
    assert (test.mean, test.stdev, test.effect) == pytest.approx((0.2, 0.1, 2.0))
    margin = 4.302653 * 0.1 / math.sqrt(3)
    assert test.interval == pytest.approx((0.2 - margin, 0.2 + margin), abs=1e-6)
    assert test.p == test.p_holm


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_error_of_the_family():
    draw = np.random.default_rng(1)
    false_alarms = sum(min(holm(p_values)) < 0.05 for p_values in draw.random((4000, 6)).tolist())
    assert stats.binomtest(false_alarms, 4000, 0.05).pvalue > 0.01


def test_pairs_that_cannot_be_tested_have_none_and_do_not_enter_the_correction():
    full = {0: 0.1, 1: 0.4, 2: 0.2}
    tests = paired_tests({"a": full, "b": {0: 0.0, 1: 0.1, 2: 0.1}, "c": {2: 0.1}, "d": {}})
    by_pair = {(t.a, t.b): t for t in tests}
    assert by_pair["a", "b"].p_holm == by_pair["a", "b"].p
    lone, none = by_pair["a", "c"], by_pair["a", "d"]
    assert (lone.trials, lone.mean) == (1, pytest.approx(0.1))
    assert (none.trials, none.mean) == (0, None)
    for test in (lone, none):
        assert {test.stdev, test.interval, test.effect, test.p, test.p_holm} == {None}
    assert paired_tests({"a": full}) == []
    with pytest.raises(InputError, match="expected a number between 0 and 1"):
        paired_tests({}, confidence=0)


def test_differences_without_spread():
    same = {0: 0.5, 1: 0.25}
    better = {0: 0.75, 1: 0.5}
    ahead, equal = paired_tests({"a": better, "b": same})[0], paired_tests({"a": same, "b": same})
    assert (ahead.effect, ahead.p, ahead.interval) == (math.inf, 0.0, (0.25, 0.25))
    assert (equal[0].effect, equal[0].p, equal[0].interval) == (0.0, 1.0, (0.0, 0.0))
    assert t_statistic([-0.25, -0.25]) == -math.inf
    assert t_statistic([0.5]) is None and t_statistic([]) is None
    # Equal but for rounding: 0.9 - 0.8 is not 0.8 - 0.7.
    a, b = {0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.7, 2: 0.6}
    (ahead,) = paired_tests({"a": a, "b": b})
    assert (ahead.effect, ahead.p) == (math.inf, 0.0)
    assert ahead.interval == pytest.approx((0.1, 0.1))
    (equal,) = paired_tests({"a": {0: 0.1 + 0.2, 1: 0.6}, "b": {0: 0.3, 1: 0.1 + 0.5 + 1e-16}})
    assert (equal.effect, equal.p) == (0.0, 1.0)


def test_critical_values_of_the_table():
    # Two-sided 5 %: 1, 2, 4 and 9 degrees of freedom.
    found = [critical_t(trials) for trials in (2, 3, 5, 10)]
    assert found == pytest.approx([12.7062, 4.3027, 2.7764, 2.2622], abs=1e-4)


def power_by_integration(trials, effect, level):
    """P(|Z + nc| > c sqrt(V / df)) over the chi-square distribution of V, without noncentral t."""
    df, shift = trials - 1, math.sqrt(trials) * effect
    critical = stats.t.ppf(1 - level / 2, df)

    def rejects(root):
        bound = critical * root / math.sqrt(df)
        tails = stats.norm.cdf(shift - bound) + stats.norm.cdf(-shift - bound)
        return tails * stats.chi.pdf(root, df)

    low, high = stats.chi.ppf([1e-14, 1 - 1e-14], df)
    return integrate.quad(rejects, low, high, limit=500)[0]


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.5, 0.8, 1.3, 2.5, 6.0, 20.0])
@pytest.mark.parametrize(("power", "level"), [(0.8, 0.05), (0.95, 0.01)])
def test_trials_needed_is_the_first_number_with_enough_power(effect, power, level):
    trials = trials_needed(-effect * 0.03, 0.03, power=power, level=level)
    assert power_by_integration(trials, effect, level) >= power
    assert trials == 2 or power_by_integration(trials - 1, effect, level) < power


def test_trials_needed_by_simulation():
    # Cohen's tables (1988): a paired difference of half a deviation takes 34.
    trials = trials_needed(0.5, 1.0)
    assert trials == 34
    drawn = np.random.default_rng(2).normal(0.5, 1.0, (20_000, trials))
    detected = (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
    assert detected == pytest.approx(0.8, abs=0.012)


def test_trials_needed_at_the_ends():
    assert trials_needed(0.0, 0.1) is None
    assert trials_needed(0.1, 0.0) == trials_needed(1e9, 1.0) == 2
    assert trials_needed(1e-4, 1.0) == pytest.approx((1.95996 + 0.84162) ** 2 * 1e8, rel=1e-3)
