"""Draws results_badge.txt and results_random.txt as badge_vs_random_comparison.png."""

import sys
from pathlib import Path

from fastbadge.cli import Whole, launch
from fastbadge.lab.plots import show_learning_curves
from fastbadge.lab.textlog import read_logs


def plot(*, data_dir: Path | None = None, trials: Whole | None = None, rounds: Whole | None = None):
    """Draw badge_vs_random_comparison.png, and show it where there is a screen.

    Args:
        data_dir: Taken, and not used, so that the three classic commands take the same options.
        trials: Only the first so many trials of each file.
        rounds: Only so many queries after the initial labels.
    """
    rows = read_logs(Path(), ("badge", "random"), trials=trials, rounds=rounds)
    show_learning_curves(rows, Path("badge_vs_random_comparison.png"), title="MNIST")


if __name__ == "__main__":
    sys.exit(launch(plot))
