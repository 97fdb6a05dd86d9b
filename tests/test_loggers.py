"""Loggers: TensorBoard and W&B for real where installed, MLflow against its calls."""

import inspect
import struct
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from fastbadge.cli import main
from fastbadge.errors import InputError
from fastbadge.lab import loggers
from fastbadge.lab.loggers import LOGGERS, log_rounds
from fastbadge.lab.protocol import Config
from fastbadge.lab.store import RoundRow

CONFIG = Config(trials=2, rounds=2)
ROWS = [
    RoundRow(s, t, r, 20 + 20 * r, 0.5 + 0.1 * r + 0.01 * t, 0.7, 1.5, 0.25, 0.1, (1,))
    for r in range(3)  # trials run side by side
    for s in CONFIG.strategies
    for t in range(2)
]


def send(names, directory, rows=ROWS):
    with log_rounds(names, CONFIG, directory) as on_round:
        for row in rows:
            on_round(row)


def test_tensorboard_has_every_round_at_its_number_of_labels(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra fastbadge[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    send(["tensorboard"], tmp_path, ROWS[:5])  # a command that was interrupted
    send(["tensorboard"], tmp_path)  # and the one that resumed
    folders = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert folders == ["badge-trial1", "badge-trial2", "random-trial1", "random-trial2"]
    for s in CONFIG.strategies:
        for t in range(2):
            events = EventAccumulator(str(tmp_path / "tensorboard" / f"{s}-trial{t + 1}"))
            events.Reload()
            assert set(events.Tags()["scalars"]) == set(loggers._MEASURES)
            found = [(event.step, event.value) for event in events.Scalars("accuracy")]
            expected = [(r.labels, r.accuracy) for r in ROWS if (r.strategy, r.trial) == (s, t)]
            assert found == [(labels, pytest.approx(value)) for labels, value in expected]
            assert {event.value for event in events.Scalars("query_seconds")} == {0.25}


def test_rounds_are_on_disk_before_the_run_ends(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra fastbadge[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with log_rounds(["tensorboard"], CONFIG, tmp_path) as on_round:
        on_round(ROWS[0])
        events = EventAccumulator(str(tmp_path / "tensorboard" / "badge-trial1"))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == [20]


def test_wandb_offline_for_real(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra fastbadge[wandb] is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    rows = [row for row in ROWS if row.strategy == "badge" and row.trial == 1]
    send(["wandb"], tmp_path, rows)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(600):  # wandb's own process may write on after `finish`
        history, run, ended = [], None, False
        for data in records_of(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = record.history.item
                history.append({item.key or item.nested_key[0]: item.value_json for item in items})
            elif kind == "run":
                run = record.run
            ended = ended or kind == "exit"
        if ended:
            break
        time.sleep(0.1)
    assert ended
    assert [(float(h["labels"]), float(h["accuracy"])) for h in history] == [
        (row.labels, pytest.approx(row.accuracy)) for row in rows
    ]
    assert (run.project, run.run_group, run.display_name, run.job_type) == (
        "fastbadge",
        tmp_path.name,
        "badge trial 2",
        "badge",
    )


def records_of(data):
    """LevelDB's log format within its first block: 7 bytes of header, then whole records.

    One that is not yet written whole is left out.
    """
    assert len(data) < 32768
    at = 7
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        assert kind == 1
        if at + 7 + length > len(data):
            return
        yield data[at + 7 : at + 7 + length]
        at += 7 + length


class Client:
    """The calls of mlflow.MlflowClient (3.17) that are made, with its signatures."""

    runs: dict = {}  # noqa: RUF012
    experiments: dict = {}  # noqa: RUF012

    def get_experiment_by_name(self, name: str):
        found = self.experiments.get(name)
        return found and SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str, artifact_location=None, tags=None):
        assert name not in self.experiments
        return self.experiments.setdefault(name, "7")

    def create_run(self, experiment_id: str, start_time=None, tags=None, run_name=None):
        run_id = str(len(self.runs))
        self.runs[run_id] = {"name": run_name, "tags": tags, "params": {}, "log": [], "end": None}
        assert experiment_id == "7" and all(isinstance(tag, str) for tag in tags.values())
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_param(self, run_id: str, key: str, value, synchronous=None):
        assert key not in self.runs[run_id]["params"]
        self.runs[run_id]["params"][key] = value

    def log_metric(self, run_id, key, value, timestamp=None, step=None, synchronous=None):
        assert self.runs[run_id]["end"] is None
        self.runs[run_id]["log"].append((key, value, step))

    def set_terminated(self, run_id: str, status=None, end_time=None):
        self.runs[run_id]["end"] = status or "FINISHED"


@pytest.fixture
def mlflow(monkeypatch):
    module = ModuleType("mlflow")
    module.MlflowClient = type("MlflowClient", (Client,), {"runs": {}, "experiments": {}})
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setattr(loggers, "find_spec", lambda name: SimpleNamespace(origin="there"))
    return module.MlflowClient


def test_mlflow_gets_a_run_for_each_trial(mlflow, tmp_path):
    send(["mlflow"], tmp_path)
    assert len(mlflow.runs) == 4
    run = next(run for run in mlflow.runs.values() if run["name"].endswith("random trial 2"))
    assert run["params"]["dataset"] == "digits" and run["end"] == "FINISHED"
    assert run["tags"] == {"directory": str(tmp_path), "strategy": "random", "trial": "1"}
    accuracy = [(step, value) for key, value, step in run["log"] if key == "accuracy"]
    assert accuracy == [(20, 0.51), (40, pytest.approx(0.61)), (60, pytest.approx(0.71))]


def test_an_interrupted_run_closes_what_is_open(mlflow, tmp_path):
    with pytest.raises(KeyboardInterrupt), log_rounds(["mlflow"], CONFIG, tmp_path) as on_round:
        on_round(ROWS[0])
        raise KeyboardInterrupt
    assert [run["end"] for run in mlflow.runs.values()] == ["FINISHED"]


def test_a_logger_that_fails_does_not_stop_the_run(mlflow, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise ConnectionError("no server\nand more")

    monkeypatch.setattr(mlflow, "log_metric", refused)
    seen = []
    monkeypatch.setitem(LOGGERS, "mine", lambda *_: (seen.append, lambda: None))
    message = r"logger mlflow failed .* \(ConnectionError: no server\); the record has them all"
    with pytest.warns(UserWarning, match=message) as caught:
        send(["mlflow", "mine"], tmp_path)
    assert len(caught) == 1 and seen == ROWS


def test_a_missing_package_names_its_extra_before_anything_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    for name in LOGGERS:
        with pytest.raises(InputError, match=rf"pip install 'fastbadge\[{name}\]'"):
            send([name], tmp_path)
    folder = SimpleNamespace(origin=None)
    monkeypatch.setattr(loggers, "find_spec", lambda name: folder)
    assert main(["run", "--logger", "wandb", "--out", str(tmp_path / "run")]) == 2
    assert "fastbadge[wandb]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="logger is 'wand'; expected some of tensorboard, wandb"):
        send(["wand"], tmp_path)


def test_the_command_line_passes_rounds_on(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(loggers, "find_spec", lambda name: SimpleNamespace(origin="there"))
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(
            LOGGERS, name, lambda *_, name=name: (lambda row: seen.append((name, row)), list)
        )
    line = "run --trials 1 --rounds 1 --max-epochs 2 --jobs 1 --logger wandb,mlflow --out".split()
    assert main([*line, str(tmp_path / "run")]) == 0
    assert [name for name, _ in seen].count("wandb") == len(seen) / 2 == 4
    assert "(2 of 2 done)" in capsys.readouterr().err


def test_every_logger_has_an_extra_and_one_signature():
    text = (loggers.Path(__file__).parents[1] / "pyproject.toml").read_text()
    for name, open_trial in LOGGERS.items():
        assert f"\n{name} = [" in text
        assert list(inspect.signature(open_trial).parameters) == [
            "config",
            "directory",
            "strategy",
            "trial",
        ]
