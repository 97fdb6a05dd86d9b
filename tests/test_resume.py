import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

from fastbadge.errors import RunError
from fastbadge.lab.experiment import run_experiment
from fastbadge.lab.protocol import Config
from fastbadge.lab.store import read_run

# 28 rounds of some 0.1 s, so that a kill falls into the middle of two of them.
CONFIG = Config(trials=2, rounds=6, max_epochs=60, stop_accuracy=1.0, train_batch=10)

SCRIPT = """
import sys
from pathlib import Path
from fastbadge.lab.experiment import run_experiment
from fastbadge.lab.protocol import Config

if __name__ == "__main__":
    run_experiment(Config.from_json(sys.argv[1]), Path(sys.argv[2]), jobs=2)
"""


def count_rounds(out):
    try:
        return len(read_run(out).rows)
    except RunError:  # not there yet
        return 0


@contextmanager
def started(script, out):
    process = subprocess.Popen(
        [sys.executable, script, CONFIG.to_json(), out],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # What joblib could not tidy up when it was killed goes with the test.
        env=os.environ | {"JOBLIB_TEMP_FOLDER": str(out.parent)},
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # the group is gone after a run that ended
                os.killpg(process.pid, signal.SIGKILL)


def without_seconds(rows):
    return [replace(row, train_seconds=0, query_seconds=0, eval_seconds=0) for row in rows]


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(SCRIPT)
    undisturbed = run_experiment(CONFIG, tmp_path / "undisturbed", jobs=1)
    total = len(undisturbed.rows)
    moments = random.Random(0)
    kept = []
    for _ in range(3):
        # The next kill comes after a few more rounds, at any moment of one.
        goal = len(kept) + moments.randint(1, 5)
        with started(script, out) as process:
            while process.poll() is None and count_rounds(out) < goal:
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 0.1))
            assert process.poll() is None, process.stderr.read()
        rows = read_run(out).rows
        assert len(kept) < len(rows) < total
        assert set(kept) <= set(rows)  # seconds included: none lost, none computed again
        kept = rows
    with started(script, out) as process:
        assert process.communicate()[1] == ""
    assert process.returncode == 0
    rows = read_run(out).rows
    assert set(kept) <= set(rows)
    assert without_seconds(rows) == without_seconds(undisturbed.rows)
