"""The grid of the paper: what is in it, and the command that runs it."""

import sqlite3
from itertools import product

import numpy as np
import pytest

from fastbadge.cli import main
from fastbadge.errors import InputError
from fastbadge.lab.paper import paper_grid, runs_in, setting_name
from fastbadge.lab.penalty import penalty_matrix, penalty_tie
from fastbadge.lab.report import ranking
from fastbadge.lab.store import FILE_NAME, RoundRow


def write_letters(path, rows=2_000):
    """A table of which 1,600 rows are the pool."""
    rng = np.random.default_rng(0)
    lines = [f"{a:.3f},{b:.3f},{'xy'[int(a > b)]}" for a, b in rng.normal(size=(rows, 2))]
    path.write_text("\n".join(["a,b,class", *lines]))


def test_the_paper_s_grid_without_data_and_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_letters(tmp_path / "letters.csv")
    grid = paper_grid(["csv:letters.csv", "csv:gone.csv", "digits"], trials=3)
    assert [setting_name(config) for config in grid.settings] == [
        "letters-mlp-100",
        "letters-mlp-1000",
        "digits-mlp-100",
        "digits-mlp-1000",
    ]
    letters, fewer = grid.settings[:2]
    assert letters.rounds == 15  # 1,600 - 100 initial ones are 15 queries of 100, not 32
    assert fewer.rounds == 1
    assert letters.hidden == (1024,) and grid.settings[2].hidden == (256,)
    assert {config.trials for config in grid.settings} == {3}
    gone, *others = grid.left_out
    assert gone.startswith("csv:gone.csv: ")
    assert len(others) == 2  # queries of 10,000


def test_models_name_what_the_paper_runs():
    with pytest.raises(InputError, match="runs none of resnet18 on mnist"):
        paper_grid(["mnist"], ["resnet18"])
    with pytest.raises(InputError, match="did you mean digits"):
        paper_grid(["digts"])
    (config,) = paper_grid(["digits"], ["linear"], [100], rounds=2).settings
    assert (config.model, config.rounds) == ("linear", 2)


def test_the_command_runs_resumes_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_letters(tmp_path / "letters.csv")
    command = [
        *("paper", "--datasets", "csv:letters.csv,csv:gone.csv,digits", "--query-sizes", "100"),
        *("--strategies", "margin,random", "--trials", "2", "--rounds", "4", "--jobs", "1"),
        *("--max-epochs", "3"),
    ]
    assert main(command) == 0
    first = capsys.readouterr()
    assert "left out: csv:gone.csv" in first.err
    assert "Setting 2 of 2: runs/paper/digits-mlp-100" in first.err
    assert "max_epochs" not in first.out and "ends after 3 epochs" in first.out
    assert "The penalty is" in first.out or "No ranking" in first.out
    assert first.out.endswith("Report: runs/paper/report.html\n")
    page = (tmp_path / "runs/paper/report.html").read_text()
    assert "letters" in page and "digits" in page
    rows = {path.name: run.rows for path, run in runs_in(tmp_path / "runs/paper").items()}
    assert list(rows) == ["digits-mlp-100", "letters-mlp-100"]
    assert all(len(found) == 2 * 2 * 5 for found in rows.values())

    record = tmp_path / "runs/paper/digits-mlp-100" / FILE_NAME
    with sqlite3.connect(record) as connection:
        connection.execute("DELETE FROM round WHERE trial = 1 AND round > 2")
    connection.close()
    assert main(command) == 0
    again = {path.name: run.rows for path, run in runs_in(tmp_path / "runs/paper").items()}
    assert again["letters-mlp-100"] == rows["letters-mlp-100"]  # seconds too: not computed anew
    key = lambda row: (row.strategy, row.trial, row.round, row.accuracy, row.picks)  # noqa: E731
    assert sorted(map(key, again["digits-mlp-100"])) == sorted(map(key, rows["digits-mlp-100"]))


def test_the_command_without_any_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["paper", "--datasets", "csv:gone.csv"]) == 2
    assert "there are no data for any setting" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def rows_of(curves):
    return [
        RoundRow(name, trial, r, 100 + 10 * r, accuracy, 0.1, 1.0, 0.1, 0.1, (1,))
        for (name, trial), accuracies in curves.items()
        for r, accuracy in enumerate(accuracies)
    ]


def random_setting(seed, *, trials=4, gain=0.0):
    """Three strategies beside a random one that is there in round 4, so budgets are rounds 1, 2."""
    rng = np.random.default_rng(seed)
    base = np.array([0.1, 0.4, 0.6, 0.7, 0.8])
    curves = {}
    for trial, name in product(range(trials), ["random", "a", "b", "c"]):
        noise = np.zeros(5) if name == "random" else 0.05 * rng.normal(size=5)
        curves[name, trial] = (base + noise + gain * (name == "a")).tolist()
    return curves


def exchanged(curves, flips):
    """The same with the curves of a and b exchanged in some trials, by definition."""
    other = {"a": "b", "b": "a"}
    return {
        (name, t): curves[(other.get(name, name) if flips[t] else name), t] for name, t in curves
    }


def difference(settings):
    penalty = penalty_matrix([rows_of(curves) for curves in settings])
    means = dict(zip(penalty.strategies, penalty.column_means, strict=True))
    return means["a"] - means["b"]


@pytest.mark.parametrize(("seed", "gain"), [(0, 0.0), (1, 0.06), (2, 0.15)])
def test_the_permutation_test_against_its_enumeration(seed, gain):
    settings = [random_setting(seed, gain=gain), random_setting(seed + 10, gain=gain)]
    observed = abs(difference(settings))
    every = [
        abs(difference([exchanged(settings[0], flips[:4]), exchanged(settings[1], flips[4:])]))
        >= observed - 1e-9
        for flips in product([False, True], repeat=8)
    ]
    p = penalty_tie([rows_of(curves) for curves in settings], "a", "b")
    assert p == pytest.approx(np.mean(every), abs=0.03)  # 4 standard errors of 5,000 exchanges


def test_the_permutation_test_without_a_comparison():
    assert penalty_tie([], "a", "b") is None
    curves = random_setting(0)
    del curves["c", 1]
    assert penalty_tie([rows_of(curves)], "a", "b") is None
    assert penalty_tie([rows_of(random_setting(0, trials=1))], "a", "b") is None
    assert penalty_tie([rows_of(random_setting(0))], "a", "x") is None


def test_a_ranking_whose_chance_cannot_be_told_says_so():
    curves = random_setting(2, gain=0.15)
    assert "cannot be told" not in ranking([rows_of(curves)])
    del curves["c", 1]
    said = ranking([rows_of(curves)])
    assert "the lowest penalty over 1 setting" in said
    assert said.endswith("How much of it is chance cannot be told: some strategy lacks a trial.")
