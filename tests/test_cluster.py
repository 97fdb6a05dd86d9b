"""Rounds on a Dask cluster: a real one, of two processes on this host."""

import os
import signal
import socket
import sys
import warnings
from dataclasses import replace

import pytest

from fastbadge.cli import main
from fastbadge.errors import DataError, InputError
from fastbadge.lab.experiment import run_experiment
from fastbadge.lab.protocol import Config
from fastbadge.lab.sources import loaded
from fastbadge.lab.store import read_run

CONFIG = Config(trials=2, rounds=3, max_epochs=10, stop_accuracy=1.0, train_batch=10)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
        ) as cluster,
    ):
        warnings.simplefilter("ignore")  # Dask's own
        yield cluster


def without_seconds(rows):
    return [replace(row, train_seconds=0, query_seconds=0, eval_seconds=0) for row in rows]


def test_a_worker_that_is_killed_costs_no_round(cluster, tmp_path):
    undisturbed = run_experiment(CONFIG, tmp_path / "undisturbed", jobs=1)
    victims = {worker.pid for worker in cluster.workers.values()}
    assert len(victims) == 2
    seen = []

    def kill_one_in_mid_run(row):
        seen.append(row)
        if len(seen) == 5:
            os.kill(victims.pop(), signal.SIGKILL)

    out = tmp_path / "out"
    run = run_experiment(CONFIG, out, dask=cluster.scheduler_address, on_round=kill_one_in_mid_run)
    assert len(victims) == 1
    assert without_seconds(run.rows) == without_seconds(undisturbed.rows)
    assert len(seen) == len(set(seen)) == 16 and set(seen) == set(run.rows)


def test_the_same_command_runs_over_a_cluster(cluster, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    line = ["run", "--trials", "1", "--rounds", "1", "--max-epochs", "5", "--out", "run"]
    assert main([*line, "--dask", cluster.scheduler_address]) == 0
    assert read_run(tmp_path / "run").finished
    assert "test accuracy" in capfd.readouterr().out


def test_divergence_on_a_cluster_is_told(cluster, tmp_path, capfd):
    line = ["run", "--learning-rate", "1e30", "--trials", "1", "--out", str(tmp_path)]
    assert main([*line, "--dask", cluster.scheduler_address]) == 2
    assert "training diverged in epoch" in capfd.readouterr().err


def test_without_dask_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'fastbadge\[cluster\]'"):
        run_experiment(CONFIG, tmp_path, dask="tcp://127.0.0.1:8786")


def test_an_address_where_nobody_answers(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("fastbadge.lab.workers._CONNECT_SECONDS", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    for wrong in (address, "nowhere://x"):
        with pytest.raises(InputError, match=r"no Dask scheduler answers at .* such as tcp"):
            run_experiment(CONFIG, tmp_path, dask=wrong)


def test_other_data_on_another_host_are_refused():
    with pytest.raises(DataError, match="digits has other values in this process"):
        loaded("digits", None, "cpu", 0, "another digest")
