"""What a run says, in sentences that carry their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fastbadge.lab.comparison import PairTest, paired_tests
from fastbadge.lab.plots import in_words
from fastbadge.lab.statistics import (
    area_under_curve,
    labels_saved,
    labels_saved_interval,
    trial_areas,
)
from fastbadge.lab.store import RoundRow, Run
from fastbadge.lab.summary import compared


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
    sentences = [_saving(run.rows, a, b)]
    if (test := _between(tests, a, b)) is not None:
        sentences.append(f"Its accuracy, averaged over the budget, is {_apart(test, b)}.")
    means = {name: area.mean for name, area in area_under_curve(run.rows).items() if area}
    best = max(means, key=means.__getitem__, default=a)
    if best == a and len(means) > 2:
        sentences.append(f"No other strategy of this run has a higher average than {in_words(a)}.")
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


def saving_ends(low: float, high: float) -> str:
    """The interval of a saving, in labels; "none" stands for an accuracy that is not reached.

    >>> saving_ends(31.2, 66.6), saving_ends(-math.inf, 12.0), saving_ends(-math.inf, -math.inf)
    ('31 to 67', 'none to 12', 'none')
    """
    if math.isinf(high):
        return "none"
    return f"{'none' if math.isinf(low) else f'{low:.0f}'} to {high:.0f}"


def _saving(rows: Sequence[RoundRow], a: str, b: str) -> str:
    saved, interval = labels_saved(rows, a, b), labels_saved_interval(rows, a, b)
    a, b = in_words(a), in_words(b)
    if saved is None:
        return (
            f"How many labels {a} saves against {b} cannot be said: there is no finished trial of "
            f"both in which {b} improves on its first round."
        )
    target = f"the {100 * saved.accuracy:.1f} % that {b} ends with"
    unknown = "there is one trial, so the uncertainty is not known"
    if saved.labels_a is None:
        missed = unknown if interval is None else (
            f"nor does it in {100 * interval.missed:.0f} % of the bootstrap resamples of "
            f"{saved.trials} trials"
        )  # fmt: skip
        return f"{a} does not reach {target}; {missed}."
    fewer = saved.labels_b - saved.labels_a
    said = f"{abs(fewer):.0f} ({100 * abs(fewer) / saved.labels_b:.0f} %)"
    known = unknown if interval is None else (
        f"95 % interval of the saving {saving_ends(interval.low, interval.high)}, "
        f"{saved.trials} paired trials"
    )  # fmt: skip
    return (
        f"{a} needs {saved.labels_a:.0f} labels for {target}, {b} itself {saved.labels_b:.0f}: "
        f"{said} {'saved' if fewer >= 0 else 'more'} ({known})."
    )


def _between(tests: Sequence[PairTest], a: str, b: str) -> PairTest | None:
    """The test of a - b, turned round where it was made the other way; None without a trial."""
    for test in tests:
        if (test.a, test.b) == (a, b) and test.mean is not None:
            return test
        if (test.a, test.b) == (b, a) and test.mean is not None:
            turned = None if test.interval is None else (-test.interval[1], -test.interval[0])
            return replace(test, a=a, b=b, mean=-test.mean, interval=turned)
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
