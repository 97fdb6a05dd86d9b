import os
import signal
import sqlite3
import statistics
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from fastbadge.errors import DataError, InputError, RunError
from fastbadge.lab import environment, experiment, workers
from fastbadge.lab.environment import describe_environment
from fastbadge.lab.experiment import run_experiment
from fastbadge.lab.protocol import Config, config_for
from fastbadge.strategies import register
from fastbadge.strategies.registry import _TABLE

SMALL = Config(trials=2, rounds=3, initial_labels=15, query_size=7, max_epochs=8, hidden=(16, 12))


def numbers(rows):
    """What must not depend on the circumstances: everything but the seconds."""
    return [
        (row.strategy, row.trial, row.round, row.labels, row.accuracy, row.loss, row.picks)
        for row in rows
    ]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return run_experiment(SMALL, tmp_path_factory.mktemp("run"), jobs=1)


def test_each_strategy_has_each_round_of_each_trial(small_run):
    assert small_run.finished and small_run.config == SMALL
    assert [(row.strategy, row.trial, row.round) for row in small_run.rows] == [
        (strategy, trial, round)
        for strategy in ("badge", "random")
        for trial in range(2)
        for round in range(4)
    ]
    for row in small_run.rows:
        assert row.labels == 15 + 7 * row.round
        assert 0 < row.accuracy < 1 and row.loss > 0
        assert row.train_seconds > 0 and row.eval_seconds > 0
        assert len(row.picks) == (7 if row.round < 3 else 0)
        assert (row.query_seconds > 0) == (row.round < 3)


def test_trials_are_paired_and_distinct(small_run):
    first = {
        (row.strategy, row.trial): (row.accuracy, row.loss)
        for row in small_run.rows
        if row.round == 0
    }
    # Same initial labels, weights and shuffling: before the first query nothing differs.
    assert first["badge", 0] == first["random", 0]
    assert first["badge", 1] == first["random", 1]
    assert first["badge", 0] != first["badge", 1]
    picks = {(row.strategy, row.trial): row.picks for row in small_run.rows if row.round == 0}
    assert len(set(picks.values())) == 4


def test_labels_are_never_asked_twice(small_run):
    pool_size = 1297
    for strategy in SMALL.strategies:
        for trial in range(SMALL.trials):
            asked = experiment._initial_labels(SMALL, trial, pool_size).tolist()
            assert len(asked) == 15
            for row in small_run.rows:
                if (row.strategy, row.trial) == (strategy, trial):
                    asked += row.picks
            assert len(set(asked)) == len(asked) == SMALL.final_labels
            assert 0 <= min(asked) and max(asked) < pool_size


def test_every_round_starts_from_weights_of_its_own(monkeypatch, tmp_path):
    drawn = []

    def spy(*args, generator, **others):
        drawn.append(generator.initial_seed())
        return made(*args, generator=generator, **others)

    made = experiment.build_model
    monkeypatch.setattr(experiment, "build_model", spy)
    run_experiment(SMALL, tmp_path, jobs=1)
    del drawn[0]  # the model that shows that models can be built
    # Trial 0 of badge, trial 0 of random, trial 1 of badge, trial 1 of random.
    assert drawn[0:4] == drawn[4:8] and drawn[8:12] == drawn[12:16]
    assert len(set(drawn)) == 8


def test_every_round_and_trial_shuffles_in_its_own_way(monkeypatch, tmp_path):
    drawn = []

    def spy(*args, generators):
        drawn.extend(generator.initial_seed() for generator in generators)
        return train(*args, generators=generators)

    train = experiment.train_together
    monkeypatch.setattr(experiment, "train_together", spy)
    run_experiment(SMALL, tmp_path, jobs=1)
    assert drawn[0:4] == drawn[4:8] and drawn[8:12] == drawn[12:16]
    assert len(set(drawn)) == 8


@pytest.mark.parametrize("jobs", [2, None])
def test_the_number_of_processes_changes_no_number(small_run, tmp_path, jobs):
    threads = torch.get_num_threads()
    parallel = run_experiment(SMALL, tmp_path, jobs=jobs)
    assert numbers(parallel.rows) == numbers(small_run.rows)
    assert torch.get_num_threads() == threads


def test_the_seed_changes_the_numbers(small_run, tmp_path):
    other = run_experiment(replace(SMALL, seed=1), tmp_path, jobs=1)
    assert not set(numbers(other.rows)) & set(numbers(small_run.rows))


def test_a_run_extended_has_the_numbers_of_one_made_at_once(tmp_path, monkeypatch):
    part = replace(SMALL, trials=1, strategies=("random",))
    whole = replace(SMALL, strategies=("random", "margin"))
    rows = run_experiment(part, tmp_path / "grown", jobs=1).rows
    grown = run_experiment(whole, tmp_path / "grown", jobs=1)
    assert [row for row in grown.rows if row.strategy == "random" and row.trial == 0] == rows
    at_once = run_experiment(whole, tmp_path / "at_once", jobs=1)
    assert numbers(grown.rows) == numbers(at_once.rows)


def test_what_is_left_is_computed_and_the_rest_kept(small_run, tmp_path):
    run_experiment(SMALL, tmp_path, jobs=1)
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as connection, connection:
        connection.execute("DELETE FROM round WHERE strategy = 'badge' AND trial = 0 AND round > 1")
        connection.execute("DELETE FROM round WHERE strategy = 'random' AND trial = 1")
    kept = experiment.read_run(tmp_path).rows
    assert len(kept) == 16 - 2 - 4
    seen = []
    run = run_experiment(SMALL, tmp_path, jobs=1, on_round=seen.append)
    assert numbers(run.rows) == numbers(small_run.rows)
    assert set(kept) <= set(run.rows)  # seconds included: not computed again
    assert seen[:10] == kept and set(seen) == set(run.rows) and len(seen) == 16


def test_a_record_with_a_gap_is_refused(tmp_path):
    run_experiment(SMALL, tmp_path, jobs=1)
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as connection, connection:
        connection.execute("DELETE FROM round WHERE strategy = 'badge' AND trial = 1 AND round = 1")
    with pytest.raises(RunError, match=r"lacks a round of badge, trial 1"):
        run_experiment(SMALL, tmp_path, jobs=1)


@pytest.mark.parametrize("picks", ["[1297, 0, 1, 2, 3, 4, 5]", "[0, 1, 2]", "[]"])
def test_picks_that_no_query_gave_are_refused(tmp_path, picks):
    run_experiment(replace(SMALL, trials=1, rounds=1), tmp_path, jobs=1)
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as connection, connection:
        connection.execute("UPDATE round SET picks = ? WHERE round = 0", (picks,))
    with pytest.raises(RunError, match=r"has picks of badge, trial 0, that no query gave"):
        run_experiment(replace(SMALL, trials=2, rounds=1), tmp_path, jobs=1)


def test_a_finished_run_is_read_where_nothing_can_be_written(small_run, tmp_path, monkeypatch):
    run_experiment(SMALL, tmp_path, jobs=1)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(experiment, "open_run", lambda *_: pytest.fail("opened to write"))
    seen = []
    run = run_experiment(SMALL, tmp_path, jobs=1, on_round=seen.append)
    assert numbers(run.rows) == numbers(small_run.rows) and seen == run.rows
    assert [path.name for path in tmp_path.iterdir()] == ["run.sqlite"]


def test_compiled_arithmetic_is_loaded_before_queries_are_timed(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(experiment, "load_arithmetic", told.append)
    run_experiment(replace(SMALL, trials=1), tmp_path, jobs=1)
    # 3 queries of 1,297 rows of 10 classes and 12 features; random needs no gradients.
    assert set(told) == {3 * 1297 * 22} and len(told) == 4


def test_the_arithmetic_is_told_of_the_model_s_own_features(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(experiment, "load_arithmetic", told.append)
    config = replace(SMALL, trials=1, rounds=1, strategies=("badge",), model="linear")
    run_experiment(config, tmp_path, jobs=1)
    assert told == [1297 * (10 + 64)] * 2  # not the 12 of SMALL's MLP


def test_paths_stay_where_the_caller_was(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    lines = [f"{a},{b},{'yes' if a + b > 0 else 'no'}" for a, b in rng.normal(size=(60, 2))]
    (tmp_path / "own.csv").write_text("\n".join(["a,b,class", *lines]))
    (tmp_path / "elsewhere-now").mkdir()
    (tmp_path / "data").mkdir()
    config = config_for("csv:own.csv", trials=3, rounds=1, initial_labels=5, query_size=5)
    config = replace(config, max_epochs=2)
    here = workers.in_this_process
    for place in ("this process", "elsewhere"):  # each task reads the data, or the command does

        @contextmanager
        def at_that_place(threads, place=place):
            with here(threads) as found:
                yield replace(found, place=place)

        monkeypatch.setattr(experiment, "in_this_process", at_that_place)
        monkeypatch.chdir(tmp_path)
        run = run_experiment(
            config,
            Path(place),
            data_dir=Path("data"),
            jobs=1,
            on_round=lambda _: os.chdir(tmp_path / "elsewhere-now"),
        )
        assert run.finished and run.config == config
        assert (tmp_path / place / "run.sqlite").is_file()
    assert not list((tmp_path / "elsewhere-now").iterdir())


def test_a_finished_run_starts_nothing(small_run, tmp_path, monkeypatch):
    first = run_experiment(SMALL, tmp_path, jobs=1)
    monkeypatch.setattr(experiment, "_run_rounds", lambda *_: pytest.fail("computed again"))
    seen = []
    again = run_experiment(SMALL, tmp_path, jobs=2, on_round=seen.append)
    assert again == first and seen == first.rows


def test_rounds_are_reported_when_they_are_recorded(tmp_path):
    seen = []

    def on_round(row):
        seen.append(row)
        assert set(experiment.read_run(tmp_path).rows) == set(seen)

    run = run_experiment(SMALL, tmp_path, jobs=2, on_round=on_round)
    assert len(seen) == 16 and set(seen) == set(run.rows)


def test_a_second_command_on_the_directory_is_refused_and_readers_are_not(tmp_path):
    pytest.importorskip("fcntl")
    refused = []

    def on_round(row):
        with pytest.raises(RunError, match=r"another command is computing .*; wait until") as end:
            run_experiment(replace(SMALL, strategies=("badge", "margin", "random")), tmp_path)
        refused.append(end)
        assert row in experiment.read_run(tmp_path).rows

    config = replace(SMALL, trials=1, rounds=1)
    assert run_experiment(config, tmp_path, jobs=1, on_round=on_round).config == config
    assert len(refused) == 4
    run_experiment(replace(config, trials=2), tmp_path, jobs=1)  # it ends with the command


def test_without_locks_a_run_goes_on(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def none_here(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    assert run_experiment(replace(SMALL, trials=1, rounds=0), tmp_path, jobs=1).finished


def test_an_error_of_the_caller_s_is_not_lost(tmp_path):
    def on_round(row):
        raise ZeroDivisionError("the caller's own")

    with pytest.raises(ZeroDivisionError, match="the caller's own"):
        run_experiment(SMALL, tmp_path, jobs=1, on_round=on_round)


def test_badge_beats_random_on_digits(tmp_path):
    config = config_for("digits", trials=4, rounds=7)
    run = run_experiment(config, tmp_path, jobs=2)
    last = {
        strategy: [r.accuracy for r in run.rows if r.strategy == strategy and r.round == 7]
        for strategy in config.strategies
    }
    assert statistics.mean(last["badge"]) > statistics.mean(last["random"]) + 0.01
    assert statistics.mean(last["badge"]) > 0.9


def test_a_short_run_on_mnist(mnist_dir, tmp_path):
    config = config_for("mnist", trials=1, rounds=2, max_epochs=40, learning_rate=1e-3)
    run = run_experiment(config, tmp_path, data_dir=mnist_dir, jobs=2)
    for strategy in config.strategies:
        accuracy = [row.accuracy for row in run.rows if row.strategy == strategy]
        assert 0.5 < accuracy[0] < accuracy[-1]
    assert run.rows[-1].labels == 300 and run.rows[-1].accuracy > 0.75


def test_own_data_are_learned(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    x = rng.normal(size=(400, 3)) + 4 * y[:, None]
    path = tmp_path / "own.npz"
    np.savez(path, x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    config = config_for(f"npz:{path}", trials=1, rounds=2, max_epochs=60)
    run = run_experiment(config, tmp_path / "out", jobs=1)
    assert run.rows[-1].accuracy > 0.95


@pytest.mark.parametrize(
    ("config", "jobs", "error", "expected"),
    [
        (replace(SMALL, strategies=("bagde",)), 1, InputError, "bagde"),
        (replace(SMALL, dataset="minst"), 1, InputError, "did you mean mnist"),
        (replace(SMALL, rounds=500), 1, InputError, "need 3515 examples but the pool has 1297"),
        (replace(SMALL, device="toaster"), 1, InputError, "device is .toaster., .* pass cpu"),
        (replace(SMALL, dataset="npz:gone.npz"), 1, DataError, "gone.npz is not a file"),
        (SMALL, 0, InputError, "jobs is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_run_leaves_nothing_behind(tmp_path, config, jobs, error, expected):
    with pytest.raises(error, match=expected):
        run_experiment(config, tmp_path / "out", jobs=jobs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alone", [{"initial_labels": 1}, {"train_batch": 1}])
def test_a_model_that_cannot_train_on_one_example_is_refused(tmp_path, monkeypatch, alone):
    own = ModuleType("own")
    own.normed = lambda shape, num_classes: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)
    )
    monkeypatch.setitem(sys.modules, "own", own)
    config = replace(SMALL, model="own:normed", trials=1, rounds=0)
    before = torch.random.get_rng_state()
    with pytest.raises(InputError, match=r"own:normed cannot be trained on one .* pass init"):
        run_experiment(replace(config, **alone), tmp_path / "out", jobs=1)
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert run_experiment(config, tmp_path / "out", jobs=1).finished
    assert run_experiment(replace(SMALL, rounds=0, trials=1, **alone), tmp_path / "mlp").finished


def test_another_configuration_is_refused(tmp_path):
    run_experiment(replace(SMALL, rounds=0, trials=1), tmp_path, jobs=1)
    with pytest.raises(RunError, match="rounds 0 -> 1"):
        run_experiment(replace(SMALL, rounds=1, trials=1), tmp_path, jobs=1)


def test_divergence_in_a_worker_is_told(tmp_path):
    expected = r"^(badge|random), trial [01], round 0: training diverged in epoch .* lower"
    with pytest.raises(RunError, match=expected):
        run_experiment(replace(SMALL, learning_rate=1e30), tmp_path, jobs=2)


def test_a_worker_that_is_killed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "_work", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RunError, match=r"a worker process was killed .* fewer --jobs"):
        run_experiment(SMALL, tmp_path, jobs=2)


def test_workers_end_in_silence_where_there_is_no_pgrep(monkeypatch):
    # What joblib ends processes by, unless it has psutil; an error in its thread fails this test.
    monkeypatch.setenv("PATH", "")
    assert '"psutil>=' in (Path(__file__).parents[1] / "pyproject.toml").read_text()
    with workers.on_this_host(1, 1) as started:
        pid = started.executor.submit(os.getpid).result()
        heard = started.executor.submit(signal.getsignal, signal.SIGINT).result()
    assert heard == signal.SIG_IGN  # Ctrl-C is the command's to answer
    assert not psutil.pid_exists(pid)


def test_workers_end_in_silence_where_a_task_was_submitted_just_before(monkeypatch):
    with workers.on_this_host(1, 1) as started:
        executor = started.executor
        executor.submit(int).result()
        with monkeypatch.context() as patched:  # its thread hears of nothing
            patched.setattr(executor._executor_manager_thread_wakeup, "wakeup", lambda: None)
            while not executor._work_ids.qsize():
                late = executor.submit(int)
                time.sleep(0.1)  # until it waits
    assert isinstance(late.exception(), RuntimeError)


def test_a_strategy_of_the_user_s_takes_part(tmp_path):
    @register("last")
    def last(view, k, *, generator):
        """The last k examples."""
        return torch.arange(view.size - k, view.size)

    try:
        config = replace(SMALL, strategies=("last",), trials=1)
        run = run_experiment(config, tmp_path, jobs=1)
        assert run.finished
    finally:
        del _TABLE["last"]
    # A record stays readable where the strategy is not known.
    assert experiment.read_run(tmp_path) == run


def test_the_environment_is_recorded(small_run):
    facts = small_run.environment
    assert facts["torch"] == torch.__version__ and facts["numpy"] == np.__version__
    assert facts["threads"] == "1" and facts["processor"] and facts["python"].startswith("3.")


def test_facts_that_cannot_be_had_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.Path, "read_text", lambda self: "")  # no /proc/cpuinfo
    monkeypatch.setenv("PATH", "")  # no git
    monkeypatch.setattr(environment, "_PACKAGES", ("fastbadge-of-tomorrow",))
    facts = describe_environment(SMALL)
    assert facts["processor"] and facts["fastbadge-of-tomorrow"] == "not installed"
    assert "commit" not in facts
    assert environment._commit(tmp_path) is None
