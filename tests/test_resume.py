import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fastbadge.errors import RunError
from fastbadge.lab.experiment import run_experiment
from fastbadge.lab.protocol import Config
from fastbadge.lab.store import only_writer, read_run

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
def started(script, out, config=CONFIG, kill=os.killpg):
    process = subprocess.Popen(
        [sys.executable, script, config.to_json(), out],
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
                kill(process.pid, signal.SIGKILL)


def without_seconds(rows):
    return [replace(row, train_seconds=0, query_seconds=0, eval_seconds=0) for row in rows]


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(SCRIPT)
    undisturbed = run_experiment(CONFIG, tmp_path / "undisturbed", jobs=1)
    total = len(undisturbed.rows)
    moments = random.Random(0)
    kept = []
    # Once the command alone: the next one does not wait for the workers that are left.
    for kill in (os.killpg, os.kill, os.killpg):
        # The next kill comes after a few more rounds, at any moment of one.
        goal = len(kept) + moments.randint(1, 5)
        with started(script, out, kill=kill) as process:
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


def workers_of(process):
    """Process ids of the children that compute."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
            if parent == process.pid and b"popen_loky" in command:
                found.append(int(stat.parent.name))
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_whose_command_was_killed_end_by_themselves(tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(SCRIPT)
    # One that would go on for hours: it ends in the middle of its round, not after it.
    endless = replace(CONFIG, max_epochs=10**7, learning_rate=1e-12)
    with started(script, out, endless) as process:
        deadline = time.monotonic() + 300  # a busy machine takes a minute to import torch
        while len(workers := workers_of(process)) < 2 or not has_begun(out):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()  # and not its group
        process.wait()
        while any(map(is_alive, workers)):
            assert time.monotonic() < deadline, "orphans go on"
            time.sleep(0.05)
    assert read_run(out).rows == []  # nobody recorded anything any more
    with only_writer(out):  # and nobody holds the directory
        pass


def has_begun(out):
    try:
        return bool(read_run(out).environment)
    except RunError:
        return False
