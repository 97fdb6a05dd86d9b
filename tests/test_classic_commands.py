"""train.py, train_random.py and plot_results.py, as users start them."""

import gzip
import random
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from fastbadge.errors import DataError, InputError, RunError
from fastbadge.lab.store import RoundRow
from fastbadge.lab.textlog import count_trials, read_log, run_classic

ROOT = Path(__file__).parents[1]
COMMANDS = ("train.py", "train_random.py", "plot_results.py")


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """IDX files of 320 and 50 noisy images of ten patterns."""
    directory = tmp_path_factory.mktemp("mnist")
    draw = np.random.default_rng(0)
    patterns = draw.integers(0, 255, (10, 28, 28))
    for part, size in (("train", 320), ("t10k", 50)):
        y = np.arange(size, dtype=np.uint8) % 10
        x = (0.5 * patterns[y] + 0.5 * draw.integers(0, 255, (size, 28, 28))).astype(np.uint8)
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            (directory / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return directory


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty directory and gives its status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def started(command, *arguments):
        monkeypatch.setattr("sys.argv", [command, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / command), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return started


def test_a_second_process_on_the_same_file_is_refused(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    log = tmp_path / "log.txt"
    with log.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is adding trials to"):
            run_classic("badge", log, trials=1, rounds=0)
    assert log.read_text() == ""


def test_they_are_thin():
    for command in COMMANDS:
        assert len((ROOT / command).read_text().splitlines()) < 25


def test_from_the_first_trial_to_the_picture(data_dir, tmp_path, start):
    line = [sys.executable, ROOT / "train.py", "--data-dir", data_dir, "--rounds", "1"]
    done = subprocess.run(
        [*line, "--trials", "2"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    status, out, err = start("train_random.py", "--data-dir", data_dir, *line[-2:], "--trials", 1)
    assert (status, err) == (0, "")
    for strategy, trials, shown in (("badge", 2, done.stdout), ("random", 1, out)):
        text = (tmp_path / f"results_{strategy}.txt").read_text()
        assert text == shown
        expected = [
            r"--- New Trial Started ---",
            r"Round: 1, Labeled Samples: 100, Test Accuracy: \d+\.\d\d%, Query Time: \d+\.\d\ds",
            r"Round: 2, Labeled Samples: 200, Test Accuracy: \d+\.\d\d%, Query Time: 0\.00s",
        ] * trials
        lines = text.splitlines()
        assert all(re.fullmatch(e, line) for e, line in zip(expected, lines, strict=True))
    badge, other = (read_log(tmp_path / f"results_{s}.txt", s)[0] for s in ("badge", "random"))
    assert badge.accuracy == other.accuracy  # paired: the same initial labels and weights

    status, _, err = start("plot_results.py", "--data-dir", data_dir, "--trials", 1)
    assert (status, err) == (0, "")
    assert (tmp_path / "badge_vs_random_comparison.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {
        "results_badge.txt",
        "results_random.txt",
        "badge_vs_random_comparison.png",
    }


def test_a_trial_on_the_real_mnist(mnist_dir, tmp_path):
    log = tmp_path / "results_badge.txt"
    run_classic("badge", log, trials=1, rounds=1, data_dir=mnist_dir)
    first, second = read_log(log, "badge")
    assert (first.labels, second.labels) == (100, 200)
    assert 0.5 < first.accuracy < second.accuracy < 0.95


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_is_one_line(command, tmp_path, start):
    message = "fastbadge: trials is 0; expected at least 1\n"
    assert start(command, "--trials", "0") == (2, "", message)
    assert not list(tmp_path.iterdir())


def test_plot_without_results_says_what_to_run(tmp_path, start):
    status, _, err = start("plot_results.py")
    assert status == 2
    assert "results_badge.txt is not there; run train.py" in err
    assert not list(tmp_path.iterdir())


def test_plot_warns_of_a_foreign_line_and_goes_on(tmp_path, start):
    block = (
        "--- New Trial Started ---\n"
        "Round: 1, Labeled Samples: 100, Test Accuracy: 65.00%, Query Time: 0.08s\n"
    )
    (tmp_path / "results_badge.txt").write_text(block + "Round: 2, Label")
    (tmp_path / "results_random.txt").write_text(block)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, _, err = start("plot_results.py")
    assert status == 0
    (warning,) = err.splitlines()
    assert warning.startswith("fastbadge: warning: results_badge.txt, line 3: 'Round: 2, Label'")
    assert (tmp_path / "badge_vs_random_comparison.png").exists()


@pytest.fixture
def experiments(monkeypatch):
    """Configurations that were run; each round is made up and reported in any order of trials."""
    ran = []

    def pretend(config, directory, *, data_dir, on_round):
        ran.append(config)
        trials = list(range(config.trials))
        random.Random(len(ran)).shuffle(trials)
        for trial in trials:
            for round in range(config.points):
                accuracy = 0.1 * trial + 0.001 * round
                on_round(
                    RoundRow("badge", trial, round, 100, accuracy, 1.0, 1.0, 0.1, 0.1, (round,))
                )

    monkeypatch.setattr("fastbadge.lab.experiment.run_experiment", pretend)
    return ran


def test_blocks_stand_in_the_order_of_trials(experiments, tmp_path):
    log, shown = tmp_path / "results_badge.txt", []
    run_classic("badge", log, trials=5, rounds=2, on_trial=shown.append)
    assert [(row.trial, row.round) for row in read_log(log, "badge")] == [
        (trial, round) for trial in range(5) for round in range(3)
    ]
    assert log.read_text() == "".join(f"{block}\n" for block in shown)


def test_each_call_adds_new_trials(experiments, tmp_path):
    log = tmp_path / "results_badge.txt"
    for trials in (2, 3, 1):
        run_classic("badge", log, trials=trials, rounds=0)
    assert [config.seed for config in experiments] == [0, 2, 5]
    assert count_trials(log) == 6
    log.write_text(log.read_text()[:-20])  # a kill in the last block
    run_classic("badge", log, trials=1, rounds=0)
    assert experiments[-1].seed == 6


def test_the_protocol_is_the_classic_one(experiments, tmp_path):
    run_classic("random", tmp_path / "log.txt", trials=1, rounds=10)
    (config,) = experiments
    assert (config.dataset, config.strategies) == ("mnist", ("random",))
    assert (config.initial_labels, config.query_size, config.final_labels) == (100, 100, 1100)
    assert (config.learning_rate, config.max_epochs, config.hidden) == (1e-4, 100, (128, 64))


def test_nothing_is_run_for_a_file_that_cannot_be_written(experiments, tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        run_classic("badge", tmp_path / "none" / "log.txt", trials=1, rounds=0)
    with pytest.raises(InputError, match="rounds is -1"):
        run_classic("badge", tmp_path / "log.txt", trials=1, rounds=-1)
    assert not experiments
    assert not list(tmp_path.iterdir())
