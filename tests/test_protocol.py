import json
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastbadge.cli import main
from fastbadge.errors import InputError
from fastbadge.lab.configfile import as_toml, read_toml
from fastbadge.lab.protocol import (
    PROTOCOLS,
    Config,
    check_pool_size,
    check_runnable,
    config_for,
    deviations,
)
from fastbadge.lab.seeds import generator_for, seed_for
from fastbadge.lab.store import read_run
from fastbadge.strategies import strategy_names


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("trials", 0, "trials is 0"),
        ("rounds", -1, "rounds is -1"),
        ("initial_labels", 0, "initial_labels is 0"),
        ("query_size", 0, "query_size is 0"),
        ("train_batch", 0, "train_batch is 0"),
        ("max_epochs", 0, "max_epochs is 0"),
        ("threads", 0, "threads is 0"),
        ("seed", -1, "seed is -1"),
        ("learning_rate", 0.0, "learning_rate is 0.0"),
        ("learning_rate", float("nan"), "learning_rate is nan"),
        ("clip_norm", float("inf"), "clip_norm is inf"),
        ("clip_norm", -1.0, "clip_norm is -1.0; expected a positive number, or 0"),
        ("dropout", 1.0, "dropout is 1.0"),
        ("dropout", -0.1, "dropout is -0.1"),
        ("stop_accuracy", 99.0, "stop_accuracy is 99.0"),
        ("hidden", (), "hidden is ()"),
        ("hidden", (128, 0), r"hidden is \(128, 0\)"),
        ("strategies", (), "strategies is empty"),
        ("strategies", ("badge", "random", "badge"), "badge,random,badge; each may be named once"),
    ],
)
def test_impossible_settings_are_refused_by_name(field, value, expected):
    with pytest.raises(InputError, match=expected.replace("()", r"\(\)")) as caught:
        Config(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("strategies", ("bagde",), "badge"),
        ("dataset", "minst", "did you mean mnist"),
        (
            "dataset",
            "weather",
            "expected one of digits, mnist, fashion_mnist, svhn, cifar10, openml:ID",
        ),
        ("dataset", "csv", "did you mean csv:PATH"),
        ("model", "resnet", "model is 'resnet'; expected mlp, linear, resnet18, vgg11"),
        ("device", "toaster", "device is 'toaster'"),
        ("device", "cuda:99", "pass cpu"),
    ],
)
def test_names_unknown_here_are_refused_but_stay_readable(field, value, expected):
    config = Config(**{field: value})
    assert Config.from_json(config.to_json()) == config
    with pytest.raises(InputError, match=expected):
        check_runnable(config)


def test_protocols_are_those_of_the_design():
    classic, digits = PROTOCOLS["classic"], PROTOCOLS["digits"]
    assert (classic.dataset, classic.trials, classic.points, classic.final_labels) == (
        "mnist",
        5,
        11,
        1100,
    )
    assert (classic.learning_rate, classic.train_batch, classic.max_epochs) == (1e-4, 100, 100)
    assert (classic.hidden, classic.clip_norm, classic.stop_accuracy) == ((128, 64), 1.0, 0.99)
    assert (digits.dataset, digits.points, digits.final_labels) == ("digits", 11, 220)
    assert (digits.learning_rate, digits.max_epochs, digits.hidden) == (1e-3, 300, (128, 64))
    for protocol in PROTOCOLS.values():
        check_runnable(protocol)


def test_config_for_takes_the_protocol_that_fits():
    assert config_for("mnist") == PROTOCOLS["classic"]
    assert config_for("fashion_mnist") == replace(PROTOCOLS["classic"], dataset="fashion_mnist")
    assert config_for() == PROTOCOLS["digits"]
    own = config_for("npz:a.npz", trials=2, rounds=None, strategies=["margin"])
    assert own == Config(dataset="npz:a.npz", trials=2, strategies=("margin",))


def test_pool_may_be_used_up_but_not_exceeded():
    check_pool_size(Config(), 220)
    with pytest.raises(InputError, match="need 220 examples but the pool has 219"):
        check_pool_size(Config(), 219)


def test_each_argument_of_a_seed_counts_and_nothing_else():
    seeds = {
        seed_for(seed, trial, round, purpose)
        for seed in (0, 1, 11)
        for trial in (0, 1, 11)
        for round in (0, 1, 11)
        for purpose in ("split", "initial labels", "weights", "shuffling", "query")
    }
    assert len(seeds) == 3 * 3 * 3 * 5
    # Fixed for good: another number here would make every recorded run unrepeatable.
    assert seed_for(0, 0, 0, "weights") == 179499333
    assert generator_for(0, 0, 0, "weights").initial_seed() == 179499333


def test_dropout_is_refused_where_nothing_would_drop():
    with pytest.raises(InputError, match=r"dropout is 0\.5 but model linear has none"):
        Config(dropout=0.5, model="linear")


# --- paper


@pytest.mark.parametrize(
    ("dataset", "query_size", "expected"),
    [
        # hidden, learning rate, batch of training, labels in the end
        (None, None, ((256,), 1e-3, 64, 3_300)),
        ("svhn", 1_000, ((256,), 1e-3, 64, 16_100)),
        ("cifar10", 10_000, ((256,), 1e-3, 128, 40_100)),
        ("openml:155", None, ((1024,), 1e-4, 128, 3_300)),
        ("csv:letter.csv", 1_000, ((1024,), 1e-4, 128, 16_100)),
    ],
)
def test_the_paper_s_protocol_depends_on_data_and_batch(dataset, query_size, expected):
    config = config_for(dataset, protocol="paper", query_size=query_size)
    assert config.dataset == (dataset or "mnist")
    hidden, rate, batch, labels = expected
    assert (config.hidden, config.learning_rate, config.train_batch) == (hidden, rate, batch)
    assert config.final_labels == labels
    assert (config.initial_labels, config.trials, config.stop_accuracy) == (100, 5, 0.99)
    assert config.clip_norm == 0
    # The labels of the last round are those of a budget: 100 + 2 ** m queries.
    assert config.rounds & (config.rounds - 1) == 0


def test_the_paper_s_strategies_are_compared():
    theirs = {"badge", "coreset", "least_confidence", "margin", "entropy", "albl", "random"}
    assert set(PROTOCOLS["paper"].strategies) == theirs <= set(strategy_names())


def test_every_setting_can_be_otherwise_than_the_protocol_s():
    other = {
        "strategies": ("margin",),
        "trials": 7,
        "rounds": 3,
        "initial_labels": 8,
        "query_size": 9,
        "model": "mlp",
        "hidden": (5,),
        "dropout": 0.25,
        "learning_rate": 0.5,
        "train_batch": 3,
        "max_epochs": 4,
        "stop_accuracy": 0.5,
        "clip_norm": 2.0,
        "seed": 6,
        "device": "cuda",
        "threads": 2,
    }
    assert set(other) == {field.name for field in fields(Config)} - {"protocol", "dataset"}
    for protocol in PROTOCOLS:
        config = config_for("svhn", protocol=protocol, **other)
        assert asdict(config) == other | {"protocol": protocol, "dataset": "svhn"}


def test_unknown_protocols_are_refused():
    with pytest.raises(InputError, match="protocol is 'papre'; did you mean paper"):
        config_for(protocol="papre")


def test_nothing_differs_from_the_classic_protocol_but_what_is_changed():
    assert deviations(PROTOCOLS["classic"]) == deviations(PROTOCOLS["digits"]) == []
    # Neither the seed nor further strategies are a part of what was published.
    assert deviations(config_for("mnist", seed=3, strategies=["badge", "margin", "random"])) == []
    assert deviations(config_for("fashion_mnist", rounds=3, hidden=[9, 9], clip_norm=0.0)) == [
        "dataset is fashion_mnist instead of mnist",
        "rounds is 3 instead of 10",
        "hidden is 9,9 instead of 128,64",
        "clip_norm is 0.0 instead of 1.0",
    ]


def test_what_differs_from_the_paper_is_said():
    told = deviations(PROTOCOLS["paper"])
    assert len([line for line in told if " instead of " in line]) == 0
    assert any("1000 epochs at the latest" in line for line in told)
    assert any("ends at 3300 labels" in line for line in told)
    assert any("clamps each entry" in line for line in told)
    assert any("rates doubtful; --learning-rate" in line for line in told)
    other = deviations(config_for("mnist", protocol="paper", learning_rate=3e-4))
    assert not any("doubtful" in line for line in other)
    assert not any("standardised" in line or "VGG" in line or "none of" in line for line in told)
    told = deviations(
        config_for(
            "csv:letter.csv",
            protocol="paper",
            query_size=50,
            trials=50,
            model="vgg11",
            rounds=1000,
            clip_norm=1.0,
            strategies=["badge", "random"],
        )
    )
    assert told[:3] == [
        "trials is 50 instead of 5",
        "query_size is 50 instead of 100",
        "clip_norm is 1.0 instead of 0.0",
    ]
    assert "csv:letter.csv with vgg11 is none of the paper's data sets and models" in told
    assert "without coreset, least_confidence, margin, entropy, albl, which" in " ".join(told)
    assert any("standardised" in line for line in told) and any("VGG-16" in line for line in told)
    assert not any("clamps" in line or "ends at" in line for line in told)
    # A record from elsewhere can be told about, too.
    assert deviations(Config(protocol="paper", dataset="unheard of"))


def test_records_from_before_a_setting_read_as_they_ran():
    old = {"dataset": "mnist", "trials": 3, "hidden": [128, 64], "max_epochs": 100}
    config = Config.from_json(json.dumps(old))
    assert (config.protocol, config.model, config.dropout) == ("classic", "mlp", 0.0)
    recorded = asdict(config_for("mnist", trials=3))
    for name in ("protocol", "model", "dropout"):
        del recorded[name]
    assert Config.from_json(json.dumps(recorded)) == config_for("mnist", trials=3)


# --- TOML


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        PROTOCOLS["paper"],
        config_for("mnist", learning_rate=1e-5, stop_accuracy=1.0, clip_norm=0.1 + 0.2),
        Config(dataset='csv:C:\\a "b"\té\x7f\n.csv', model="my.models:net", hidden=(1,)),
    ],
)
def test_a_written_configuration_is_read_again(tmp_path, config):
    path = tmp_path / "config.toml"
    path.write_text(as_toml(config), encoding="utf-8")
    assert config_for(**read_toml(path)) == config
    comments = [line for line in as_toml(config).splitlines() if line.startswith("#")]
    assert [line.removeprefix("# ") for line in comments[1:]] == deviations(config)
    assert set(tomllib.loads(as_toml(config))) == {field.name for field in fields(Config)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read as TOML: No such file"),
        ("trials = ", "cannot be read as TOML"),
        ("trails = 3", "has 'trails', no setting; did you mean trials"),
        ("[run]\ntrials = 3", "has 'run', no setting; did you mean rounds|expected one of"),
        ("trials = 2.0", r"trials is 2\.0; expected a whole number"),
        ("trials = true", "trials is True; expected a whole number"),
        ("learning_rate = '1'", "learning_rate is '1'; expected a number"),
        ("hidden = 3", "hidden is 3; expected a list"),
        ("hidden = ['3']", "hidden is '3'; expected a whole number"),
        ("strategies = 'badge'", "strategies is 'badge'; expected a list"),
        ("dataset = 1", "dataset is 1; expected a text"),
        ("trials = 0", "trials is 0; expected at least 1"),
        ("protocol = 'x'", "protocol is 'x'; expected one of digits, classic, paper"),
    ],
)
def test_a_file_of_settings_that_does_not_fit_is_refused(tmp_path, capsys, text, expected):
    path = tmp_path / "my.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=expected):
        config_for(**read_toml(path))
    assert main(["run", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastbadge: ") and error.count("\n") == 1


@pytest.fixture
def configured(monkeypatch):
    """The configuration and directory that a command line leads to, without a run."""

    def of(line):
        ran = []

        def pretend(config, directory, **_):
            ran.append((config, directory))
            raise InputError("enough")

        monkeypatch.setattr("fastbadge.lab.experiment.run_experiment", pretend)
        assert main(["run", *line.split()]) == 2
        return ran[0]

    return of


def test_flags_go_before_the_file_and_the_file_before_the_protocol(
    tmp_path, monkeypatch, configured
):
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(
        'protocol = "paper"\ndataset = "svhn"\ntrials = 3\nlearning_rate = 1\nhidden = [32]\n'
    )
    config, _ = configured("--config my.toml --trials 4 --query 1000")
    assert config == config_for(
        "svhn", protocol="paper", trials=4, learning_rate=1.0, hidden=(32,), query_size=1000
    )
    assert config.rounds == 16
    config, _ = configured("--config my.toml --dataset digits --protocol digits")
    assert config == config_for("digits", trials=3, learning_rate=1.0, hidden=(32,))


def test_each_protocol_has_its_directories(configured):
    assert configured("--protocol paper")[1] == Path("runs/mnist-paper")
    assert configured("--protocol classic")[1] == Path("runs/mnist")
    assert configured("--protocol digits")[1] == Path("runs/digits")
    assert configured("--dataset digits --protocol classic")[1] == Path("runs/digits-classic")
    many = configured("--protocol paper --dataset svhn --query 1000 --model resnet18")
    assert many[1] == Path("runs/svhn-paper-rounds_16-query_size_1000-model_resnet18")


# --- all of it


def test_a_run_by_the_paper_s_protocol_on_letters(tmp_path, letter_csv, capsys):
    out = tmp_path / "run"
    line = ["--protocol", "paper", "--strategies", "badge,random", "--trials", "2", "--rounds", "1"]
    line += ["--dataset", f"csv:{letter_csv}", "--learning-rate", "0.001", "--dropout", "0.1"]
    assert main(["run", *line, "--jobs", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    run = read_run(out)
    assert run.finished and run.rows[-1].accuracy > 0.25  # by chance 0.04
    told = deviations(run.config)
    assert "learning_rate is 0.001 instead of 0.0001" in told
    for each in told:
        assert f"Differs from what was published: {each}\n" in shown
    assert config_for(**read_toml(out / "config.toml")) == run.config
    assert main(["export", str(out), "--json", str(tmp_path / "run.json")]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["deviations"] == told
    # The file is the run: with it alone the same directory is taken up, and is finished.
    again = ["--config", str(out / "config.toml"), "--out", str(out), "--jobs", "1"]
    assert main(["run", *again]) == 0
    assert read_run(out).rows == run.rows


def test_dropout_gives_the_same_numbers_in_any_order(tmp_path):
    line = ["run", "--trials", "2", "--rounds", "1", "--max-epochs", "4", "--dropout", "0.5"]
    numbers = {}
    for order in ("badge,random", "random,badge", "random"):
        out = tmp_path / order
        assert main([*line, "--strategies", order, "--jobs", "1", "--out", str(out)]) == 0
        numbers[order] = {
            (row.strategy, row.trial, row.round): (row.loss, row.picks)
            for row in read_run(out).rows
        }
    assert numbers["badge,random"] == numbers["random,badge"]
    assert numbers["random"].items() <= numbers["badge,random"].items()


def test_a_network_for_images_runs_on_a_folder_of_images(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, shift in (("dark", 0), ("light", 120)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 136, (10, 10, 3), dtype=np.uint8) + np.uint8(shift)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    line = ["run", "--dataset", f"imagefolder:{tmp_path / 'images'}:size=10", "--initial", "6"]
    line += ["--query", "6", "--rounds", "1", "--trials", "1", "--max-epochs", "6", "--jobs", "1"]
    out = tmp_path / "run"
    assert main([*line, "--model", "resnet18", "--out", str(out)]) == 0
    run = read_run(out)
    assert run.finished and run.config.model == "resnet18"
    assert main([*line, "--model", "vgg11", "--out", str(tmp_path / "other")]) == 2
    assert "model vgg11 is for images of at least 32 x 32" in capsys.readouterr().err
