"""What a run says, in sentences that carry their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastbadge.lab.comparison import PairTest, paired_tests
from fastbadge.lab.plots import in_words
from fastbadge.lab.statistics import area_under_curve, trial_areas
from fastbadge.lab.store import RoundRow, Run
from fastbadge.lab.summary import compared, saving_in_words


def answer(run: Run) -> list[str]:
    """How many labels the compared strategy saves, how sure that is, and whether another is better.

    Every difference comes with its 95 % interval, and with its p-value corrected over all pairs
    of the run.
    """
    pair = compared(run.config.strategies)
    if pair is None:
        alone = in_words(run.config.strategies[0])
        return [f"{alone} was run alone, so nothing is compared."]
    a, b = pair
    tests = area_tests(run.rows)
    sentences = [saving_in_words(run.rows, a, b, called=in_words)]
    if (test := _between(tests, a, b)) is not None:
        sentences.append(f"Its accuracy, averaged over the budget, is {_apart(test, b)}.")
    means = {name: area.mean for name, area in area_under_curve(run.rows).items() if area}
    best = max(means, key=means.__getitem__, default=a)
    if best in (a, b) and len(means) > 2:
        sentences.append(f"No strategy of this run has a higher average than {in_words(best)}.")
    elif best not in (a, b) and (test := _between(tests, best, a)) is not None:
        sentences.append(f"The highest average is that of {in_words(best)}, {_apart(test, a)}.")
    return sentences


def area_tests(rows: Sequence[RoundRow]) -> list[PairTest]:
    """Every pair of strategies, tested on the area under the curve."""
    return paired_tests(trial_areas(rows))


def p_value(p: float) -> str:
    """A p-value as it is printed.

    >>> p_value(0.00002), p_value(0.0123), p_value(0.4567)
    ('< 0.001', '0.012', '0.46')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _between(tests: Sequence[PairTest], a: str, b: str) -> PairTest | None:
    """The test of a - b, turned round where it was made the other way; None without a trial."""
    for test in tests:
        if (test.a, test.b) == (a, b) and test.mean is not None:
            return test
        if (test.a, test.b) == (b, a) and test.mean is not None:
            turned = None if test.interval is None else (-test.interval[1], -test.interval[0])
            effect = None if test.effect is None else -test.effect
            return replace(test, a=a, b=b, mean=-test.mean, interval=turned, effect=effect)
    return None


def _apart(test: PairTest, other: str) -> str:
    assert test.mean is not None
    side = "above" if test.mean >= 0 else "below"
    text = f"{100 * abs(test.mean):.1f} points {side} that of {in_words(other)}"
    if test.interval is None or test.p_holm is None:
        return f"{text} (one trial, so the uncertainty is not known)"
    low, high = (100 * end for end in test.interval)
    sign = "=" if test.p_holm >= 0.001 else ""
    known = f"95 % interval {low:+.1f} to {high:+.1f}, Holm's p {sign} {p_value(test.p_holm)}"
    return f"{text} ({' '.join(known.split())})"
