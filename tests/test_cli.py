"""The command line: what it prints and writes, and what it says of bad input."""

import csv
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import fastbadge
import fastbadge_command
from fastbadge.cli import Settings, main
from fastbadge.lab.protocol import Config, config_for
from fastbadge.lab.store import read_run
from fastbadge.lab.workers import _spared_interrupt
from fastbadge.strategies import get_strategy

QUICK = ["--trials", "2", "--rounds", "2", "--max-epochs", "5", "--jobs", "1"]
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
COLUMNS = "strategy,trial,round,labels,accuracy,loss,train_seconds,query_seconds,eval_seconds"


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert main(["run", *QUICK, "--out", str(directory)]) == 0
    return directory


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    """p.npy and h.npy of 50 examples in the current directory."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    probs_NC = torch.rand(50, 4, generator=generator, dtype=torch.float64).softmax(dim=1)
    feature_ND = torch.rand(50, 3, generator=generator, dtype=torch.float64)
    np.save("p.npy", probs_NC.numpy())
    np.save("h.npy", feature_ND.numpy())
    return probs_NC, feature_ND


SELECT = ["select", "--probabilities", "p.npy", "--features", "h.npy"]


def files_under(directory):
    return {path: path.stat().st_mtime_ns for path in Path(directory).rglob("*")}


# --- what it prints


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == fastbadge.__version__


def test_help_of_every_command(capsys):
    assert main([]) == 0
    overview = capsys.readouterr().out
    for command in ("run", "plot", "export", "select", "datasets", "strategies"):
        assert command in overview
        assert main([command, "--help"]) == 0
        assert f"Usage: fastbadge {command}" in capsys.readouterr().out


def test_tables_of_datasets_and_strategies(capsys):
    assert main(["datasets"]) == 0
    out = capsys.readouterr().out
    assert "digits" in out and "npz:PATH" in out
    assert main(["strategies"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in fastbadge.strategy_names())


def test_a_row_of_a_table_is_a_line_in_a_pipe_and_fits_a_terminal(capsys, monkeypatch):
    assert main(["strategies"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == fastbadge.strategy_names()
    for row, name in zip(rows, fastbadge.strategy_names(), strict=True):
        assert row[header.index("what") :] == get_strategy(name).summary
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # no escape sequences
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["strategies"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_no_help_shows_a_default_as_python_writes_it(capsys):
    for command in ("run", "plot", "report", "export", "select"):
        assert main([command, "--help"]) == 0
        assert "[default" not in capsys.readouterr().out


def test_python_m_fastbadge():
    command = [sys.executable, "-m", "fastbadge", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == fastbadge.__version__


# --- run


def test_run_says_what_came_out_and_where_it_is(run_directory, capsys):
    assert main(["run", *QUICK, "--out", str(run_directory)]) == 0
    out, err = capsys.readouterr()
    assert "digits: test accuracy in %, mean ± standard error of 2 trials" in out
    assert "badge - random (95 % interval)" in out
    assert "that random ends with" in out or "Labels saved:" in out
    assert f"Run: {run_directory}" in out
    for name in ("badge_vs_random_comparison", "query_time"):
        assert str(run_directory / f"{name}.png") in out
        assert (run_directory / f"{name}.svg").is_file()
    assert len(err.splitlines()) == 4  # one a trial of a strategy, for a log
    assert "(4 of 4 done)" in err


def test_a_finished_run_is_shown_again_and_not_computed_again(run_directory, capsys, monkeypatch):
    main(["run", *QUICK, "--out", str(run_directory)])
    first = capsys.readouterr().out
    monkeypatch.setattr(
        "fastbadge.lab.experiment.train_together", lambda *_, **__: pytest.fail("again")
    )
    assert main(["run", *QUICK, "--out", str(run_directory)]) == 0
    assert capsys.readouterr().out == first


def test_the_default_directory_is_one_for_each_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []

    def pretend(config, directory, **_):
        ran.append((config, directory))
        raise fastbadge.RunError("enough")

    monkeypatch.setattr("fastbadge.lab.experiment.run_experiment", pretend)
    lines = [
        "",
        "--trials 5 --seed 0",
        "--seed 1",
        "--trials 6",
        "--strategies random,badge",
        "--hidden 32",
        "--hidden 3,2",
        "--learning-rate 0.01",
        "--dataset mnist",
        "--dataset npz:a/b.npz",
        "--dataset npz:a_b.npz --seed 1",
    ]
    for line in lines:
        assert main(["run", *line.split()]) == 2
    directory_of = dict(ran)
    assert directory_of[Config()] == Path("runs/digits")
    assert len(set(directory_of.values())) == len(directory_of) == len(lines) - 1
    assert all(directory.parent == Path("runs") for directory in directory_of.values())
    assert Path("runs/digits-strategies_random+badge") in directory_of.values()


def test_settings_are_those_of_the_configuration():
    names = {field.name for field in dataclasses.fields(Config)} - {"dataset", "protocol"}
    assert {field.name for field in dataclasses.fields(Settings)} == names


def test_the_help_tells_the_defaults_of_the_protocols():
    for field in dataclasses.fields(Settings):
        (line,) = re.findall(rf"^ +{field.name}: .* Default: (.*)\.$", Settings.__doc__, re.M)
        told = re.fullmatch(r"digits (?P<digits>\S+), MNIST (?P<mnist>\S+)|(?P<both>\S+)", line)
        for dataset in ("digits", "mnist"):
            value = getattr(config_for(dataset), field.name)
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            said = told["both"] or told[dataset]
            assert said == shown or float(said) == value


def test_flags_reach_the_configuration_and_the_rest_is_the_protocol_s(monkeypatch):
    ran = {}

    def pretend(config, directory, **others):
        ran.update(others, config=config, directory=directory)
        raise fastbadge.RunError("enough")

    monkeypatch.setattr("fastbadge.lab.experiment.run_experiment", pretend)
    line = (
        "run --dataset mnist --strategies badge,margin --trials 3 --rounds 4 --initial 50 "
        "--query 25 --hidden 32,16 --learning-rate 0.01 --max-epochs 7 --seed 9 "
        "--data-dir somewhere --out there --jobs 2"
    )
    main(line.split())
    assert ran["config"] == config_for(
        "mnist",
        strategies=("badge", "margin"),
        trials=3,
        rounds=4,
        initial_labels=50,
        query_size=25,
        hidden=(32, 16),
        learning_rate=0.01,
        max_epochs=7,
        seed=9,
    )
    assert (ran["data_dir"], ran["directory"], ran["jobs"]) == (Path("somewhere"), Path("there"), 2)


def test_one_strategy_has_nothing_to_be_compared_with(tmp_path, capsys):
    directory = str(tmp_path / "run")
    line = ["--strategies", "margin", "--trials", "1", "--rounds", "1", "--max-epochs", "3"]
    assert main(["run", *line, "--jobs", "1", "--out", directory]) == 0
    out = capsys.readouterr().out
    assert "one trial" in out
    assert "saved" not in out


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastbadge.lab.experiment.run_experiment", interrupted)
    assert main(["run", "--out", "here"]) == 130
    assert capsys.readouterr().err == "fastbadge: stopped; the same command resumes here\n"
    monkeypatch.setattr("fastbadge.files.read_array", interrupted)
    assert main([*SELECT, "-k", "1"]) == 130
    assert capsys.readouterr().err == "fastbadge: stopped\n"


@pytest.fixture
def heard():
    """Ctrl-C as it is in the foreground, for this process and those it starts."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def test_ctrl_c_that_meets_a_callback_is_not_lost(monkeypatch, arrays, capsys, heard):
    class Interrupted:
        def __del__(self):  # Python ignores what is raised here
            signal.raise_signal(signal.SIGINT)

    class Disguised:
        def __set_name__(self, owner, name):  # Python 3.11 makes a RuntimeError of it
            signal.raise_signal(signal.SIGINT)

    def in_vain(path):
        Interrupted()
        threading.Event().wait(60)
        raise AssertionError("Ctrl-C was lost")

    def in_disguise(path):
        type("Made", (), {"name": Disguised()})

    for read in (in_vain, in_disguise):
        monkeypatch.setattr("fastbadge.files.read_array", read)
        assert main([*SELECT, "-k", "1"]) == 130
        assert capsys.readouterr() == ("", "fastbadge: stopped\n")


# Of a `fastbadge.cli` that does `meanwhile` as it is loaded, and as it ends with status 7 `then`.
COMMAND = """
import atexit, signal, sys, types
import fastbadge_command

def interrupt(*_):
    signal.raise_signal(signal.SIGINT)

def interrupt_unheard():
    try:
        interrupt()
    except BaseException:  # as torch has it where it loads numpy
        pass

def interrupted():
    raise KeyboardInterrupt

class Cli(types.ModuleType):
    def __getattr__(self, name):
        {meanwhile}
        return lambda: {then} or 7

sys.modules["fastbadge.cli"] = Cli("fastbadge.cli")
sys.exit(fastbadge_command.main())
"""


@pytest.mark.parametrize(
    ("meanwhile", "then", "status", "said"),
    [
        ("interrupt_unheard()", "None", 130, "fastbadge: stopped\n"),
        (
            "pass",
            "interrupt()",
            130,
            "fastbadge: stopped\n",
        ),  # one more, which `launch` lets through
        ("pass", "atexit.register(interrupt) and 0", 7, ""),  # all is done
    ],
)
def test_ctrl_c_before_and_after_a_command_is_no_traceback(meanwhile, then, status, said, heard):
    assert PROJECT["scripts"] == {"fastbadge": "fastbadge_command:main"}
    # No more is loaded before it is ready for Ctrl-C.
    assert {name for name in vars(fastbadge_command) if name[0] != "_"} == {
        "main",
        "os",
        "signal",
        "sys",
    }
    line = [sys.executable, "-c", COMMAND.format(meanwhile=meanwhile, then=then)]
    ended = subprocess.run(line, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", said)


def test_a_command_in_the_background_ignores_ctrl_c_from_first_to_last():
    program = COMMAND.format(meanwhile="interrupt()", then="atexit.register(interrupt) and 0")
    program = program.replace("import fast", "signal.signal(2, signal.SIG_IGN)\nimport fast", 1)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no masks of signals")
def test_ctrl_c_while_workers_start_waits_and_is_not_theirs(heard):
    look = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    waiting = threading.Event()
    # Such as that of the live progress: the signal is delivered to a thread that takes it.
    other = threading.Thread(target=waiting.wait)
    other.start()
    started = None
    try:
        with pytest.raises(KeyboardInterrupt), _spared_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            started = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    finally:
        waiting.set()
        other.join()
    assert started is not None and started.stdout == "True\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process group")
def test_ctrl_c_on_a_real_run_loses_nothing(tmp_path, heard):
    line = [
        sys.executable,
        "-m",
        "fastbadge",
        "run",
        "--out",
        "run",
        "--trials",
        "2",
        "--jobs",
        "2",
    ]
    process = subprocess.Popen(
        [*line, "--rounds", "30"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 300  # a busy machine takes a minute to import torch
    while not rounds_of(tmp_path / "run"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "fastbadge: stopped; the same command resumes run"
    assert "Traceback" not in err
    assert rounds_of(tmp_path / "run")


def rounds_of(directory):
    try:
        return read_run(directory).rows
    except fastbadge.RunError:  # being made at this moment
        return []


# --- plot and export


def test_plot_draws_into_the_run_or_elsewhere(run_directory, tmp_path, capsys):
    picture = run_directory / "badge_vs_random_comparison.png"
    drawn = picture.read_bytes()
    picture.unlink()
    assert main(["plot", str(run_directory)]) == 0
    assert picture.read_bytes() == drawn
    assert "test accuracy" in capsys.readouterr().out
    assert main(["plot", str(run_directory), "--out", str(tmp_path)]) == 0
    assert (tmp_path / picture.name).read_bytes() == drawn


def test_export_gives_every_row_exactly(run_directory, tmp_path):
    as_csv, as_json = tmp_path / "rows.csv", tmp_path / "rows.json"
    assert main(["export", str(run_directory), "--csv", str(as_csv), "--json", str(as_json)]) == 0
    run = read_run(run_directory)
    expected = [{name: getattr(row, name) for name in COLUMNS.split(",")} for row in run.rows]
    assert as_csv.read_text().splitlines()[0] == COLUMNS
    with as_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [
        {k: type(e[k])(r[k]) for k in e} for r, e in zip(rows, expected, strict=True)
    ] == expected
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    content = json.loads(as_json.read_text())
    assert content["rows"] == expected
    assert content["environment"] == run.environment
    assert (
        Config(
            **{
                k: tuple(v) if isinstance(v, list) else v
                for k, v in content["configuration"].items()
            }
        )
        == run.config
    )
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "rows.json"}


def test_export_overwrites_only_with_force(run_directory, tmp_path, capsys):
    mine, other = tmp_path / "mine.csv", tmp_path / "other.json"
    mine.write_text("precious")
    line = ["export", str(run_directory), "--csv", str(mine), "--json", str(other)]
    assert main(line) == 2
    assert "mine.csv is there already; pass another name, or --force" in capsys.readouterr().err
    assert mine.read_text() == "precious"
    assert not other.exists()
    assert main([*line, "--force"]) == 0
    assert mine.read_text().startswith(COLUMNS)


def test_export_never_overwrites_the_record(run_directory, capsys):
    record = run_directory / "run.sqlite"
    before = record.read_bytes()
    assert main(["export", str(run_directory), "--csv", str(record), "--force"]) == 2
    assert "is the record of the run" in capsys.readouterr().err
    assert record.read_bytes() == before


# --- select


def test_select_prints_positions_in_order_of_choice(arrays, capsys):
    assert main([*SELECT, "-k", "7", "--seed", "3"]) == 0
    expected = fastbadge.select_from_arrays(*arrays, 7, seed=3).tolist()
    assert capsys.readouterr().out == "".join(f"{line}\n" for line in ["position", *expected])


def test_select_writes_a_file_that_can_be_handed_back_as_labeled(arrays, capsys):
    assert main([*SELECT, "-k", "30", "--seed", "0", "-o", "first.csv"]) == 0
    assert main([*SELECT, "-k", "20", "--labeled", "first.csv", "-o", "second.csv"]) == 0
    assert capsys.readouterr().out == ""
    first, second = (Path(name).read_text().split() for name in ("first.csv", "second.csv"))
    assert first[0] == second[0] == "position"
    assert sorted(map(int, first[1:] + second[1:])) == list(range(50))
    assert main([*SELECT, "-k", "1", "-o", "first.csv"]) == 2
    assert Path("first.csv").read_text().split() == first


def test_select_takes_labeled_positions_and_masks_from_npy(arrays, capsys):
    done = np.arange(0, 50, 2)
    np.save("positions.npy", done)
    np.save("mask.npy", np.isin(np.arange(50), done))
    outputs = []
    for name in ("positions.npy", "mask.npy"):
        assert main([*SELECT, "-k", "5", "--seed", "1", "--labeled", name]) == 0
        outputs.append(capsys.readouterr().out)
    expected = fastbadge.select_from_arrays(*arrays, 5, labeled=done, seed=1).tolist()
    assert outputs == ["".join(f"{line}\n" for line in ["position", *expected])] * 2


def test_select_by_a_strategy_that_needs_no_features(arrays, capsys):
    assert main(["select", "--probabilities", "p.npy", "-k", "3", "--strategy", "margin"]) == 0
    expected = fastbadge.select_from_arrays(arrays[0], None, 3, strategy="margin").tolist()
    assert [int(line) for line in capsys.readouterr().out.split()[1:]] == expected


def test_select_of_independent_outputs_with_the_bias(arrays, capsys):
    np.save("p.npy", torch.rand(50, 4, generator=torch.Generator().manual_seed(1)).numpy())
    line = [*SELECT, "-k", "9", "--seed", "2", "--task", "multilabel", "--include-bias"]
    assert main(line) == 0
    picked = [int(line) for line in capsys.readouterr().out.split()[1:]]
    given = np.load("p.npy"), arrays[1].numpy()
    expected = fastbadge.select_from_arrays(
        *given, 9, seed=2, task="multilabel", include_bias=True
    ).tolist()
    assert picked == expected
    others = [
        fastbadge.select_from_arrays(*given, 9, seed=2, task="multilabel"),
        fastbadge.select_from_arrays(
            np.load("p.npy"), arrays[1].numpy() + 1, 9, seed=2, task="multilabel"
        ),
    ]
    assert all(picked != other.tolist() for other in others)


@pytest.mark.parametrize("strategy", fastbadge.strategy_names())
def test_select_offers_every_strategy_or_says_in_its_own_flags_what_is_missing(
    strategy, arrays, capsys
):
    needs = get_strategy(strategy).needs
    fitting = {
        "--probabilities p.npy": needs & {"probabilities", "gradients"},
        "--features h.npy": needs & {"features", "gradients"},
    }
    least = " ".join(flag for flag, uses in fitting.items() if uses) or "--features h.npy"
    status = main(["select", "-k", "4", "--strategy", strategy, "--seed", "0", *least.split()])
    out, err = capsys.readouterr()
    if needs & {"samples", "memory"}:
        assert (status, out) == (2, "")
        assert "choose another one or call fastbadge.select" in err
        return
    assert (status, err) == (0, "")
    expected = fastbadge.select_from_arrays(
        arrays[0].numpy(), arrays[1].numpy(), 4, strategy=strategy, seed=0
    )
    assert [int(line) for line in out.split()[1:]] == expected.tolist()
    for flag in least.split()[::2]:
        others = [words for words in fitting if not words.startswith(flag)]
        status = main(["select", "-k", "4", "--strategy", strategy, *others[0].split()])
        if needs:
            assert status == 2
            assert capsys.readouterr().err == (
                f"fastbadge: strategy {strategy!r} needs {flag}; pass a file\n"
            )


@pytest.mark.parametrize("gone", ["full", "removed"])
def test_picks_that_cannot_be_written_are_printed(gone, arrays, capsys, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    def read_and_lose(path):
        if gone == "full":
            monkeypatch.setattr("os.fsync", full)
        else:
            shutil.rmtree("there", ignore_errors=True)
        return np.load(path)

    Path("there").mkdir()
    monkeypatch.setattr("fastbadge.files.read_array", read_and_lose)
    assert main([*SELECT, "-k", "6", "--seed", "3", "-o", "there/picks.csv"]) == 2
    out, err = capsys.readouterr()
    expected = fastbadge.select_from_arrays(*arrays, 6, seed=3).tolist()
    assert out == "".join(f"{line}\n" for line in ["position", *expected])
    assert err.startswith("fastbadge: there/picks.csv cannot be written: No s")
    assert err.endswith("; the positions are printed instead\n") and err.count("\n") == 1
    assert not list(Path(".").rglob("*draft*")) + list(Path(".").rglob("picks*"))


def test_a_warning_is_one_line_too(arrays, capsys):
    np.save("h.npy", np.zeros((50, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main([*SELECT, "-k", "5", "--seed", "0"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("fastbadge: warning: ")


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise on Windows")
def test_a_reader_that_leaves_gets_no_traceback(arrays):
    process = subprocess.Popen(
        [sys.executable, "-m", "fastbadge", *SELECT, "-k", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes them")
def test_closed_streams_give_no_traceback(arrays):
    line = shlex.join([sys.executable, "-m", "fastbadge", *SELECT, "-k", "3", "-o", "x.csv"])
    done = subprocess.run(["sh", "-c", f"{line} <&- >&- 2>&-"], check=False)
    assert done.returncode == 0
    assert len(Path("x.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("line", [[*SELECT, "-k", "3"], ["--version"], ["run", "--help"]])
def test_a_closed_stdout_is_one_that_nobody_reads(line, arrays, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    try:
        status = main(line)
    except SystemExit as end:  # of rich
        status = end.code
    sys.stdout.close()
    monkeypatch.undo()
    assert (status, capsys.readouterr().err) == (1, "")


def test_the_status_tells_where_stderr_is_closed_or_full(capsys, monkeypatch):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    for stream in (None, Full()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["run", "--trials", "0"]) == 2
        sys.stderr.close()
        monkeypatch.undo()
        assert capsys.readouterr() == ("", "")


# --- bad input


BAD = {
    "unknown command": ("rum", 'Unknown command "rum"'),
    "unknown flag": ("run --trails 3", "Did you mean --trials?"),
    "flag without value": ("run --trials", "--trials requires an argument"),
    "no number": ("run --trials three", "'three' is not a whole number"),
    "part of a trial": ("run --trials 0.6", "'0.6' is not a whole number"),
    "part of a label": ("run --initial 1.5", "'1.5' is not a whole number"),
    "k and a half": ("select --probabilities p.npy -k 3.5", "'3.5' is not a whole number"),
    "a device without float64": ("run --device meta", "device is 'meta', which cannot be used"),
    "threads": ("run --threads 100000", "threads is 100000; expected at most"),
    "a huge label": ("run --dataset npz:huge.npz", "y_train has labels 0 to 1099511627776 but no"),
    "the same name twice": ("export . --csv x --json x", "--csv and --json are both x"),
    "over its input": (
        "select --probabilities p.npy --features h.npy -k 1 -o ./h.npy --force",
        "h.npy is an input of this command",
    ),
    "labeled is too far": (
        "select --probabilities p.npy --features h.npy -k 1 --labeled huge.txt",
        "huge.txt, line 1: '99999999999999999999999' is no position",
    ),
    "no numbers": ("run --hidden 12,x", "--hidden"),
    "trials 0": ("run --trials 0", "trials is 0; expected at least 1"),
    "trials without end": ("run --trials 1000000000000", "expected at most 100000"),
    "trials -1": ("run --trials -1", "trials is -1; expected at least 1"),
    "jobs 0": ("run --jobs 0", "jobs is 0; expected at least 1"),
    "learning rate": ("run --learning-rate nan", "learning_rate is nan"),
    "more labels than the pool has": ("run --query 1000", "lower initial_labels, rounds or query"),
    "unknown strategy": ("run --strategies bagde", "did you mean 'badge'?"),
    "no strategy": ("run --strategies ,", "strategies is empty; expected"),
    "fewer candidates than picks": (
        "run --strategies badge,badge_subset:candidates=9 --query 20",
        "k is 20 but candidates is 9; expected at least k",
    ),
    "an option out of its range": (
        "run --strategies random,power_bald:beta=-1 --dropout 0.5",
        "beta is -1.0; expected a positive number",
    ),
    "dropout samples without dropout": ("run --strategies bald", "has no nn.Dropout with p > 0"),
    "images too small": ("run --model vgg11", "is for images of at least 32 x 32"),
    "no memory for it": (
        "run --hidden 1000000000000",
        "hidden is 1000000000000, which takes 1,200,000 GB to train; this machine has ",
    ),
    "unknown data set": ("run --dataset mnits", "did you mean mnist?"),
    "label outside the classes": ("run --dataset npz:classes.npz", "y_test has class 7, which"),
    "negative label": ("run --dataset npz:negative.npz", "y_train has label -1; expected"),
    "pickled npz": ("run --dataset npz:pickled.npz", "pickled.npz"),
    "text named npz": ("run --dataset npz:text.npz", "text.npz"),
    "no such npz": ("run --dataset npz:none.npz", "none.npz"),
    "unknown device": ("run --device quantum", "device is 'quantum'"),
    "run directory under a file": ("run --out p.npy/run", "pass another --out"),
    "run directory is a file": ("run --out p.npy", "pass another --out"),
    "plot without a run": ("plot .", ". holds no run.sqlite"),
    "plot of nothing": ("plot", "requires an argument"),
    "export without a run": ("export none --csv x.csv", "none holds no run.sqlite"),
    "export of nothing": ("export .", "pass --csv FILE, --json FILE or both"),
    "no such array": ("select --probabilities none.npy --features h.npy -k 1", "none.npy is not"),
    "a directory": ("select --probabilities . --features h.npy -k 1", ". is not there or is not"),
    "k 0": ("select --probabilities p.npy --features h.npy -k 0", "k is 0; expected"),
    "k too large": ("select --probabilities p.npy --features h.npy -k 51", "from 1 to 50"),
    "no k": ("select --probabilities p.npy --features h.npy", "-k requires an argument"),
    "no features": ("select --probabilities p.npy -k 1", "'badge' needs --features; pass a file"),
    "no probabilities": ("select --features h.npy -k 1", "'badge' needs --probabilities; pass"),
    "no array": ("select -k 1 --strategy random", "no rows to choose from; pass a file"),
    "no row": ("select -k 1 --strategy random --features scalar.npy", "features has shape ()"),
    "unknown task": ("select -k 1 --task sigmoid --features h.npy", 'value "sigmoid" for --task'),
    "sums of independent outputs": (
        "select --probabilities logits.npy --features h.npy -k 1 --task multilabel",
        "expected [0, 1]",
    ),
    "shapes": ("select --probabilities p.npy --features short.npy -k 1", "features has 49"),
    "pickled": ("select --probabilities pickled.npy --features h.npy -k 1", "Python objects"),
    "text": ("select --probabilities text.npy --features h.npy -k 1", "not an .npy file"),
    "nothing in it": ("select --probabilities void.npy --features h.npy -k 1", "void.npy is empty"),
    "cut short": ("select --probabilities p.npy --features cut.npy -k 1", "cut.npy is cut short"),
    "empty pool": ("select --probabilities none_N.npy --features none_N.npy -k 1", "is empty"),
    "npz": ("select --probabilities both.npz --features h.npy -k 1", ".npz archive"),
    "logits": ("select --probabilities logits.npy --features h.npy -k 1", "expected [0, 1]"),
    "NaN": ("select --probabilities nan.npy --features h.npy -k 1", "row 3"),
    "seed": ("select --probabilities p.npy --features h.npy -k 1 --seed -1", "seed is -1"),
    "labeled outside": (
        "select --probabilities p.npy --features h.npy -k 1 --labeled far.txt",
        "labeled has position 50; the pool has 0 to 49",
    ),
    "labeled is no number": (
        "select --probabilities p.npy --features h.npy -k 1 --labeled words.txt",
        "words.txt, line 2: 'two' is no position",
    ),
    "labeled is no text": (
        "select --probabilities p.npy --features h.npy -k 1 --labeled binary.txt",
        "binary.txt is not a text file",
    ),
    "unknown strategy to select": (
        "select --probabilities p.npy --features h.npy -k 1 --strategy randon",
        "did you mean 'random'?",
    ),
    "an empty directory": ("run --out ''", "--out is empty; pass a value, or leave it out"),
    "an empty name": ("run --dataset=", "--dataset is empty; pass a value"),
    "an empty run": ("plot ''", "an argument is empty"),
    "nowhere to write": (
        "select --probabilities p.npy --features h.npy -k 1 -o none/picks.csv",
        "none is not a directory",
    ),
    "a directory to write": (
        "select --probabilities p.npy --features h.npy -k 1 -o .",
        ". is not a file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_status_2_and_writes_nothing(case, arrays, capsys):
    line, expected = BAD[case]
    np.save("short.npy", np.ones((49, 3)))
    np.save("pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save("scalar.npy", np.float64(1))
    np.save("none_N.npy", np.ones((0, 4)))
    np.save("logits.npy", np.full((50, 4), 7.0))
    np.savez("both.npz", p=np.ones(3))
    nan_NC = arrays[0].numpy().copy()
    nan_NC[3, 1] = np.nan
    np.save("nan.npy", nan_NC)
    Path("text.npy").write_text("0.5,0.5\n")
    Path("void.npy").touch()
    Path("cut.npy").write_bytes(Path("h.npy").read_bytes()[:-8])
    Path("far.txt").write_text("1\n50\n")
    Path("words.txt").write_text("1\ntwo\n")
    Path("huge.txt").write_text("99999999999999999999999\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    x, y = np.ones((30, 3)), np.arange(30) % 3
    for name, y_train, y_test in (
        ("classes", y, np.full(30, 7)),
        ("negative", y - 1, y),
        ("huge", np.where(y == 2, 2**40, y), y),
        ("pickled", y.astype(object), y),
    ):
        np.savez(f"{name}.npz", x_train=x, y_train=y_train, x_test=x, y_test=y_test)
    Path("text.npz").write_text("0,1\n")
    before = files_under(".")
    assert main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastbadge: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert expected in err
    assert files_under(".") == before


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_directory_without_permission(arrays, capsys):
    Path("locked").mkdir(mode=0o500)
    for line in (["run", "--out", "locked/run"], ["run", "--out", "locked"]):
        assert main([*line, *QUICK]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main([*SELECT, "-k", "1", "-o", "locked/picks.csv"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_another_configuration_in_the_directory_is_refused(run_directory, capsys):
    before = read_run(run_directory)
    assert main(["run", *QUICK, "--seed", "7", "--out", str(run_directory)]) == 2
    err = capsys.readouterr().err
    assert "seed 0 -> 7" in err
    assert err.count("\n") == 1
    assert read_run(run_directory) == before


def test_an_error_of_the_system_is_one_line(run_directory, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "x.png")

    monkeypatch.setattr("fastbadge.lab.plots.write_plots", full)
    assert main(["plot", str(run_directory)]) == 2
    out, err = capsys.readouterr()
    assert "labels" in out  # the table is not lost
    assert err.startswith("fastbadge: no picture could be written to ")
    assert "No space left on device; pass a directory" in err and err.count("\n") == 1


def test_want_of_memory_is_one_line(arrays, capsys, monkeypatch):
    def torch_wants(_):
        torch.empty(1 << 60)

    def numpy_wants(_):
        np.empty(1 << 56)

    def broken(_):
        raise RuntimeError("a bug")

    for read in (torch_wants, numpy_wants):
        monkeypatch.setattr("fastbadge.files.read_array", read)
        assert main([*SELECT, "-k", "1"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert err.startswith("fastbadge: too large for the memory of this machine: ")
        assert "llocate" in err
    monkeypatch.setattr("fastbadge.files.read_array", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main([*SELECT, "-k", "1"])


def test_a_real_process_gives_the_status_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "fastbadge", "run", "--trials", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fastbadge: trials is 0; expected at least 1\n"
    assert not list(tmp_path.iterdir())
