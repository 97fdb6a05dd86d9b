"""train.py, train_random.py and plot_results.py, as users start them."""

import gzip
import random
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from fastbadge.errors import DataError, InputError, RunError
from fastbadge.lab.store import RoundRow, open_run, read_run, record_environment, record_round
from fastbadge.lab.textlog import count_trials, format_trial, read_log, run_classic

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
    """Configurations that were run; each round is made up, recorded and reported.

    Trials end in any order, and a record that is there is completed. `experiments.computed` has
    all rounds that were made up, (seed, trial, round).
    """

    ran = type("Ran", (list,), {})()
    ran.computed = []

    def pretend(config, directory, *, data_dir, on_round):
        ran.append(config)
        open_run(directory, config, data_digest="")
        environment = record_environment(directory, {})
        found = read_run(directory).rows
        for row in found:
            on_round(row)
        trials = list(range(config.trials))
        random.Random(len(ran)).shuffle(trials)
        for trial in trials:
            for round in range(config.points):
                if any((row.trial, row.round) == (trial, round) for row in found):
                    continue
                accuracy = 0.01 * (config.seed + trial) + 0.001 * round
                strategy, picks = config.strategies[0], (round,)
                row = RoundRow(strategy, trial, round, 100, accuracy, 1.0, 1.0, 0.1, 0.1, picks)
                ran.computed.append((config.seed, trial, round))
                record_round(directory, row, environment)
                on_round(row)

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


def stop_after(blocks):
    """An `on_trial` of a reader that leaves, and what it has read."""
    read = []

    def on_trial(block):
        if len(read) == blocks:
            raise BrokenPipeError
        read.append(block)

    return on_trial, read


@pytest.mark.parametrize("blocks", range(4))
def test_a_reader_that_leaves_costs_nothing(experiments, tmp_path, blocks):
    log = tmp_path / "results_badge.txt"
    run_classic("badge", log, trials=2, rounds=1)
    whole, (on_trial, read) = log.read_text(), stop_after(blocks)
    with pytest.raises(BrokenPipeError):
        run_classic("badge", log, trials=4, rounds=1, on_trial=on_trial)
    # Appended before it was shown, and nothing is done for a reader who is gone.
    assert log.read_text().startswith(whole + "".join(f"{block}\n" for block in read))
    assert count_trials(log) > 2 + blocks
    seen = []
    if count_trials(log) < 6:
        run_classic("badge", log, trials=4, rounds=1, on_trial=seen.append)
    accuracies = [row.accuracy for row in read_log(log, "badge") if row.round == 0]
    assert accuracies == pytest.approx([0.01 * trial for trial in range(6)])
    assert not set(seen) & set(read)
    assert len(experiments.computed) == len(set(experiments.computed)) == 6 * 2
    assert [path.name for path in tmp_path.iterdir()] == ["results_badge.txt"]


def killed_after(rows, monkeypatch):
    """The process ends when so many rounds are recorded, as a kill ends it: nothing is tidied."""
    record = record_round

    def dying(directory, row, environment):
        nonlocal rows
        record(directory, row, environment)
        rows -= 1
        if rows == 0:
            raise SystemExit

    monkeypatch.setattr(sys.modules[__name__], "record_round", dying)


def test_what_a_kill_leaves_is_completed_by_the_same_call(experiments, tmp_path, monkeypatch):
    log = tmp_path / "results_random.txt"
    for rows in (5, 4, 1):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            killed_after(rows, patch)
            run_classic("random", log, trials=5, rounds=2)
    assert (tmp_path / "results_random.txt.unfinished" / "run.sqlite").is_file()
    with pytest.raises(InputError, match=r"stopped; pass its --trials 5 --rounds 2 to complete"):
        run_classic("random", log, trials=1, rounds=2)
    run_classic("random", log, trials=5, rounds=2)
    assert [(row.trial, row.round) for row in read_log(log, "random")] == [
        (trial, round) for trial in range(5) for round in range(3)
    ]
    assert len(experiments.computed) == len(set(experiments.computed)) == 5 * 3
    assert {config.seed for config in experiments} == {0}
    run_classic("random", log, trials=5, rounds=2)  # and another one adds as many again
    assert experiments[-1].seed == 5 and count_trials(log) == 10


def test_a_block_torn_by_a_kill_is_written_again(experiments, tmp_path, monkeypatch):
    log = tmp_path / "results_badge.txt"
    run_classic("badge", log, trials=1, rounds=1)
    before = log.read_text()
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        killed_after(3 * 2, patch)
        run_classic("badge", log, trials=3, rounds=1)
    left, kept = tmp_path / "results_badge.txt.unfinished", tmp_path / "kept"
    left.rename(kept)
    rows = read_run(kept).rows
    written = [before, *(format_trial(rows[i : i + 2]) for i in (0, 2))]
    whole = "".join(written)
    # At and before each end of a line, in the headers, and in the middle of lines.
    ends = {i + j for i in range(len(before), len(whole)) if whole[i] == "\n" for j in (-9, 0, 1)}
    for end in sorted(ends - {len(whole)}):
        log.write_text(whole[:end])
        shutil.copytree(kept, left)
        run_classic("badge", log, trials=3, rounds=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a header that was torn itself
            rows = read_log(log, "badge")
        assert [(row.trial, row.round) for row in rows] == [
            (t, r) for t in range(4) for r in (0, 1)
        ]
        assert not left.exists()


def test_a_full_disk_leaves_the_file_as_it_was(experiments, tmp_path, monkeypatch):
    log = tmp_path / "results_badge.txt"
    run_classic("badge", log, trials=1, rounds=1)
    before = log.read_text()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DataError, match="No space left on device; mend that, and the same"):
            run_classic("badge", log, trials=2, rounds=1)
    assert log.read_text() == before
    run_classic("badge", log, trials=2, rounds=1)
    assert count_trials(log) == 3
    assert len(experiments.computed) == len(set(experiments.computed)) == 3 * 2


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
