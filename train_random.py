"""Random sampling on MNIST by the classic protocol; appends its trials to results_random.txt."""

import sys
from functools import partial
from pathlib import Path

from fastbadge.cli import Whole, launch
from fastbadge.lab.textlog import run_classic


def train(*, data_dir: Path | None = None, trials: Whole = 5, rounds: Whole = 10) -> None:
    """Run trials of random sampling on MNIST; each goes to results_random.txt when finished.

    Args:
        data_dir: Where the MNIST files are; downloaded to the user's cache by default.
        trials: How many to add to those in the file.
        rounds: Queries of 100 after the initial 100 labels.
    """
    log, show = Path("results_random.txt"), partial(print, flush=True)
    run_classic("random", log, data_dir=data_dir, trials=trials, rounds=rounds, on_trial=show)


if __name__ == "__main__":
    sys.exit(launch(train))
