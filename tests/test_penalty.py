"""Penalty matrix and CDF of errors: one example worked by hand, and a literal twin."""

import math

import numpy as np
import pytest
from scipy import stats

from fastbadge.lab.penalty import Step, budgets, error_cdf, penalty_matrix
from fastbadge.lab.store import RoundRow

START, BATCH = 100, 10


def rows_of(curves):
    """Rows of {(strategy, trial): accuracies}, at 100, 110, 120, ... labels."""
    return [
        RoundRow(name, trial, r, START + BATCH * r, accuracy, 0.1, 1.0, 0.1, 0.1, (1,))
        for (name, trial), accuracies in curves.items()
        for r, accuracy in enumerate(accuracies)
    ]


# Setting one. random rises by 1/16 a round to 0.5 in round 8, so n0 = 180 (7/16 is no 99 % of
# 0.5), (n0 - M) / B = 8, m = 1, 2, 3, and the budgets are 110, 120 and 140: rounds 1, 2, 4.
RANDOM_ONE = [r / 16 for r in range(9)]


def beside(differences):
    """random's curve with a difference added in some rounds."""
    return [a + differences.get(r, 0.0) for r, a in enumerate(RANDOM_ONE)]


ONE = {("random", trial): RANDOM_ONE for trial in range(5)}
# badge - random over the five trials, k = 1/64:
#   round 1: (2.5 + (-2, -1, 0, 1, 2)) k: t = sqrt(5) * 2.5 / sqrt(10 / 4) = 3.54 > 2.776: a win
#   round 2: (1.9 + (-2, -1, 0, 1, 2)) k: t = sqrt(5) * 1.9 / sqrt(10 / 4) = 2.69 < 2.776: none
#   round 4: k each: no spread, t = inf: a win
# so badge beats random at 2 of 3 budgets, and random badge at none.
ONE |= {
    ("badge", t): beside({1: (2.5 + t - 2) / 64, 2: (1.9 + t - 2) / 64, 4: 1 / 64})
    for t in range(5)
}
# margin - random: round 1: -k each, so random wins; elsewhere equal, t = 0: nobody wins.
# badge - margin: round 1: (3.5 + (-2 ... 2)) k: t = 4.95; round 2: 2.69; round 4: inf: 2 of 3.
ONE |= {("margin", t): beside({1: -1 / 64}) for t in range(5)}

# Setting two, three trials: random is at 0.5 from 120 labels on, so n0 = 120,
# (n0 - M) / B = 2, m = 1: the one budget is 110, round 1, where random has 0.25.
TWO = {("random", t): [0.0, 0.25, 0.5, 0.5] for t in range(3)}
# badge - random: -1/8 each: random wins. margin - random: 1/16 (3 + (-1, 0, 1)):
# t = sqrt(3) * 3 = 5.196 > 4.303. badge - margin: -1/8 - 1/16 (3 + ...): t = -sqrt(3) * 5.
TWO |= {("badge", t): [0.0, 0.125, 0.5, 0.5] for t in range(3)}
TWO |= {("margin", t): [0.0, 0.25 + (3 + t - 1) / 16, 0.5, 0.5] for t in range(3)}


def test_budgets_by_hand():
    assert budgets(rows_of(ONE)) == (110, 120, 140)
    assert budgets(rows_of(TWO)) == (110,)
    # (n0 - M) / B of 1: log2 is 0, no budget; of 3: 1; of 4: 2; of 7: 2.
    for reached, expected in ((1, ()), (3, (110,)), (4, (110, 120)), (7, (110, 120))):
        curve = [0.1 * (r >= reached) + 0.4 for r in range(9)]
        assert budgets(rows_of({("random", 0): curve})) == expected
    # 99 % is enough: 0.495 of 0.5.
    assert budgets(rows_of({("random", 0): [0, 0.1, 0.495, 0.5]})) == (110,)
    assert budgets(rows_of({("badge", 0): RANDOM_ONE})) == ()
    assert budgets(rows_of({("badge", 0): RANDOM_ONE}), baseline="badge") == (110, 120, 140)
    assert budgets(rows_of({("random", 0): [0.5]})) == budgets([]) == ()


def test_a_killed_trial_of_the_baseline_does_not_move_the_budgets():
    killed = ONE | {("random", 4): [0.9, 0.9]}
    assert budgets(rows_of(killed)) == (110, 120, 140)


def test_the_matrix_by_hand():
    penalty = penalty_matrix([rows_of(ONE), rows_of(TWO)])
    assert penalty.strategies == ("random", "badge", "margin")
    third = pytest.approx(1 / 3)
    assert penalty.cells == (
        (None, 0 + 1, third),  # random beats badge in two; margin at 1 of 3 budgets of one
        (pytest.approx(2 / 3), None, pytest.approx(2 / 3)),  # badge: both 2 of 3, in one
        (1, 1, None),  # margin beats both in two
    )
    # Columns without the diagonal: random (2/3 + 1) / 2, badge (1 + 1) / 2, margin (1/3 + 2/3) / 2.
    assert penalty.column_means == pytest.approx((5 / 6, 1.0, 0.5))
    assert penalty.budgets == ((110, 120, 140), (110,))
    assert penalty.compared == ((0, 2, 2), (2, 0, 2), (2, 2, 0))


def test_the_critical_value_is_that_of_the_trials_at_hand():
    # The first four trials: round 1: (2.5 + (-2, -1, 0, 1)) k: mean 2 k, deviation sqrt(5 / 3) k,
    # t = 2 * 2 / 1.291 = 3.098, above 2.776 but below the 3.182 of three degrees of freedom.
    four = {key: curve for key, curve in ONE.items() if key[1] < 4}
    cells = penalty_matrix([rows_of(four)]).cells
    assert cells[1][0] == pytest.approx(1 / 3)  # round 4 only


def test_missing_is_none_and_not_zero():
    settings = [rows_of(ONE), rows_of({key: c for key, c in TWO.items() if key[0] != "margin"})]
    penalty = penalty_matrix(settings)
    assert penalty.compared[2] == (1, 1, 0)
    # margin lacks a setting, and random and badge lack its comparison there.
    assert penalty.column_means == (None, None, None)
    assert penalty.cells[2][0] == 0.0  # compared once, and never won
    # One trial of margin is left: nothing to test. A killed round takes the pair out too.
    lone = {key: c for key, c in ONE.items() if key[0] != "margin" or key[1] == 0}
    assert penalty_matrix([rows_of(lone)]).cells[2] == (None, None, None)
    short = {key: c[:3] if key[0] == "margin" else c for key, c in ONE.items()}
    assert penalty_matrix([rows_of(short)]).cells[2] == (None, None, None)
    assert penalty_matrix([rows_of(short)]).column_means[1] is None


def test_settings_without_a_budget_add_nothing():
    without = rows_of({key: c for key, c in TWO.items() if key[0] != "random"})
    assert penalty_matrix([rows_of(ONE), without]).column_means == (
        penalty_matrix([rows_of(ONE)]).column_means
    )
    nothing = penalty_matrix([without])
    assert set(nothing.cells[0]) == set(nothing.column_means) == {None}
    assert penalty_matrix([]).strategies == ()
    assert penalty_matrix([rows_of({("random", 0): RANDOM_ONE})]).column_means == (None,)


def test_the_cdf_by_hand():
    cdf = error_cdf([rows_of(ONE), rows_of(TWO)])
    # random against itself is 1 everywhere.
    assert cdf["random"] == [Step(1.0, 1.0)]
    # badge's mean accuracy is above random's by 2.5 k, 1.9 k, k at errors 15/16, 14/16, 12/16 of
    # random, that is 60 k, 56 k, 48 k: ratios 57.5/60, 54.1/56, 47/48, a sixth of the weight each;
    # in setting two 0.875 / 0.75, half of the weight.
    expected = [57.5 / 60, 54.1 / 56, 47 / 48, 0.875 / 0.75]
    assert [step.error for step in cdf["badge"]] == pytest.approx(expected)
    assert [step.share for step in cdf["badge"]] == pytest.approx([1 / 6, 1 / 3, 1 / 2, 1])
    # margin: 61/60 once and 1 twice in one; (0.75 - 3/16) / 0.75 = 0.75 in two.
    expected = [0.75, 1.0, 61 / 60]
    assert [step.error for step in cdf["margin"]] == pytest.approx(expected)
    assert [step.share for step in cdf["margin"]] == pytest.approx([1 / 2, 5 / 6, 1])


def test_the_cdf_of_what_is_missing_and_of_no_error():
    cdf = error_cdf([rows_of(ONE), rows_of({k: c for k, c in TWO.items() if k[0] != "margin"})])
    assert [step.share for step in cdf["margin"]] == pytest.approx([2 / 3, 1])  # setting one alone
    perfect = {("random", 0): [0.9, 1.0, 1.0], ("a", 0): [0.9, 1.0, 1.0], ("b", 0): [0.9, 0.9, 1.0]}
    late = {key: [0.0, *curve] for key, curve in perfect.items()}  # 0, 0.9, 1, 1: n0 = 120
    assert budgets(rows_of(late)) == (110,)
    assert error_cdf([rows_of(late)])["b"] == [Step(1.0, 1.0)]
    sharp = {("random", 0): [0, 1.0, 0, 0, 1.0], ("b", 0): [0, 0.5, 0, 0, 1.0]}
    # 99 % of 1.0 is reached at 110 already, so there is no budget.
    assert error_cdf([rows_of(sharp)]) == {"random": [], "b": []}
    assert error_cdf([rows_of({("b", 0): RANDOM_ONE})]) == {"b": []}


def test_ratios_to_a_baseline_without_error(monkeypatch):
    monkeypatch.setattr("fastbadge.lab.penalty.budgets", lambda *_, **__: (110,))
    rows = rows_of({("random", 0): [0, 1.0], ("same", 0): [0, 1.0], ("worse", 0): [0, 0.5]})
    cdf = error_cdf([rows])
    assert cdf["same"] == [Step(1.0, 1.0)]
    assert cdf["worse"] == [Step(math.inf, 1.0)]


def literal(settings, names, trials):
    """The definition, with arrays [strategy, trial, round] and nothing missing."""
    matrix = np.zeros((len(names), len(names)))
    points = {name: [] for name in names}
    for array in settings:
        curve = array[names.index("random")].mean(axis=0)
        n0 = START + BATCH * int(np.argmax(curve >= 0.99 * curve[-1]))
        top = math.floor(math.log2((n0 - START) / BATCH))
        rounds = [2 ** (m - 1) for m in range(1, top + 1)]
        for r in rounds:
            for i in range(len(names)):
                for j in range(len(names)):
                    d = array[i, :, r] - array[j, :, r]
                    if i != j:
                        t = np.sqrt(trials) * d.mean() / d.std(ddof=1)
                        matrix[i, j] += (t > stats.t.ppf(0.975, trials - 1)) / len(rounds)
                ratio = (1 - array[i, :, r]).mean() / (1 - curve[r])
                points[names[i]].append((ratio, 1 / len(rounds) / len(settings)))
    return matrix, points


@pytest.mark.parametrize("trials", [2, 5, 9])
def test_both_against_a_literal_twin(trials):
    draw = np.random.default_rng(trials)
    names = ["badge", "margin", "random", "entropy"]
    settings = []
    for rounds in (9, 17, 33):
        rise = np.linspace(0.3, 0.9, rounds) + draw.normal(0, 0.02, (4, trials, rounds))
        settings.append(rise + np.array([0.03, 0.02, 0.0, -0.02])[:, None, None])
    rows = [
        rows_of({(n, t): array[i, t].tolist() for i, n in enumerate(names) for t in range(trials)})
        for array in settings
    ]
    matrix, points = literal(settings, names, trials)
    penalty = penalty_matrix(rows)
    cells = np.array(penalty.cells, dtype=float)  # None becomes NaN, on the diagonal only
    np.testing.assert_allclose(cells[~np.eye(4, dtype=bool)], matrix[~np.eye(4, dtype=bool)])
    assert np.isnan(np.diag(cells)).all()
    np.testing.assert_allclose(penalty.column_means, matrix.sum(axis=0) / 3)
    for name, steps in error_cdf(rows).items():
        for at in np.linspace(0.5, 1.5, 40):
            share = max((step.share for step in steps if step.error <= at), default=0)
            expected = sum(weight for ratio, weight in points[name] if ratio <= at)
            assert share == pytest.approx(expected)
