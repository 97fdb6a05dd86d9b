"""How often the interval of the labels saved misses the truth, by simulation.

PYTHONPATH=src python tests/coverage_of_savings.py prints the table of docs/statistics.md.
"""

import numpy as np

from fastbadge.lab.statistics import labels_saved_interval
from fastbadge.lab.store import RoundRow

LABELS = np.arange(20, 240, 20)
_QUERIES = np.arange(len(LABELS))
_RISING = 0.95 - 0.45 * np.exp(-_QUERIES / 2.2)
_FASTER = 0.97 - 0.47 * np.exp(-_QUERIES / 1.5)
_FLAT = np.minimum(_RISING, _RISING[6])  # exactly, from its seventh point on

# True mean curves of a and of b.
SCENARIOS = {
    "a and b alike": (_RISING, _RISING),
    "alike, flat at the end": (_FLAT, _FLAT),
    "a saves": (_FASTER, _RISING),
    "a saves, b flat at the end": (_FASTER, _FLAT),
    "a ends just below b": (np.minimum(_FASTER, _RISING[-1] - 0.001), _RISING),
    "a a little better": (_RISING + 0.005 * (_QUERIES > 0), _RISING),
}


def rows_of(curves, trials, draw):
    """Trials that share what they owe to their initial labels; errors go on from round to round."""
    shared = draw.normal(0, 0.012, (1, trials, 1))
    error = draw.normal(0, 1, (2, trials, len(LABELS)))
    for r in range(1, len(LABELS)):
        error[..., r] = 0.6 * error[..., r - 1] + 0.8 * error[..., r]
    error[1, :, 0] = error[0, :, 0]  # the first models are the same
    accuracy = np.stack(curves)[:, None] + shared + 0.015 * error * np.exp(-_QUERIES / 6)
    return [
        RoundRow(name, t, r, int(LABELS[r]), float(accuracy[i, t, r]), 0.1, 1.0, 0.1, 0.1, (1,))
        for i, name in enumerate("ab")
        for t in range(trials)
        for r in range(len(LABELS))
    ]


def true_saving(curves):
    """Labels of b - labels of a where true curves first have what b truly ends with, or -inf."""
    fine = np.linspace(LABELS[0], LABELS[-1], 200_001)
    reached = [np.interp(fine, LABELS, curve) >= curves[1][-1] - 1e-12 for curve in curves]
    first_a, first_b = (fine[r.argmax()] if r.any() else np.inf for r in reached)
    return first_b - first_a


def simulate(scenario, trials, *, draws, seed=0):
    """Of so many runs, the number whose interval misses the truth, and that of those without 0."""
    curves, draw = SCENARIOS[scenario], np.random.default_rng(seed)
    truth, missed, without_zero = true_saving(curves), 0, 0
    for _ in range(draws):
        interval = labels_saved_interval(rows_of(curves, trials, draw), "a", "b")
        # An interval is computed in steps of a label here.
        missed += not interval.low - 0.5 <= truth <= interval.high + 0.5
        without_zero += not interval.low <= 0 <= interval.high
    return missed, without_zero


if __name__ == "__main__":
    print(
        "| missed / without 0, in % | " + " | ".join(f"T = {t}" for t in (2, 3, 5, 10, 30)) + " |"
    )
    print("|---" * 6 + "|")
    for name, curves in SCENARIOS.items():
        cells = [simulate(name, trials, draws=500) for trials in (2, 3, 5, 10, 30)]
        shown = " | ".join(f"{missed / 5:.1f} / {without / 5:.0f}" for missed, without in cells)
        saved = true_saving(curves)
        print(f"| {name}: {f'{saved:.0f}' if np.isfinite(saved) else 'none'} saved | {shown} |")
