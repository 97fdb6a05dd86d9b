"""The record of a run: one SQLite file, in which a finished round is one transaction.

The process that runs the experiment writes each round as it is finished, so a run killed at any
moment has lost only the rounds that were being computed. Others may read meanwhile (WAL), and are
refused if they want to write. Rows are data; nothing in them is executed.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastbadge.errors import InputError, RunError
from fastbadge.lab.lock import held
from fastbadge.lab.protocol import Config, as_text

FILE_NAME = "run.sqlite"
SCHEMA_VERSION = 1

# STRICT: a text in a column of numbers is an error when written, not when plotted.
_SCHEMA = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    config TEXT NOT NULL,         -- JSON, see protocol.Config
    data_digest TEXT NOT NULL,    -- SHA-256 of the data set's values
    created TEXT NOT NULL         -- UTC, ISO 8601
) STRICT;
CREATE TABLE environment (        -- one row each time rounds began to be computed
    id INTEGER PRIMARY KEY,
    facts TEXT NOT NULL,          -- JSON: versions, processor, commit
    started TEXT NOT NULL
) STRICT;
CREATE TABLE round (
    id INTEGER PRIMARY KEY,       -- order of recording
    strategy TEXT NOT NULL,
    trial INTEGER NOT NULL,
    round INTEGER NOT NULL,
    labels INTEGER NOT NULL,
    accuracy REAL NOT NULL,
    loss REAL NOT NULL,
    train_seconds REAL NOT NULL,
    query_seconds REAL NOT NULL,
    eval_seconds REAL NOT NULL,
    picks TEXT NOT NULL,          -- JSON list of positions in the pool
    memory TEXT NOT NULL,         -- JSON object, what the strategy noted for its next query
    environment INTEGER NOT NULL REFERENCES environment (id),
    UNIQUE (strategy, trial, round)
) STRICT;
"""
_FIELDS = (
    "strategy, trial, round, labels, accuracy, loss, "
    "train_seconds, query_seconds, eval_seconds, picks, memory"
)


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One point of one learning curve: a model trained on `labels` examples, and its query.

    Args:
        strategy: what chose the labels beyond the initial ones.
        trial: from 0.
        round: from 0 (trained on the initial labels) to config.rounds.
        labels: how many examples the model was trained on.
        accuracy: on the test set, 0 to 1.
        loss: mean cross-entropy on the test set, nats.
        train_seconds: wall time of training this round's model.
        query_seconds: wall time of the query, forward pass over the pool included; 0 without one.
        eval_seconds: wall time of the test set's forward pass.
        picks: positions in the pool that the query chose, in order; empty in the last round.
        memory: JSON object, what the strategy noted for its next query (see `select`).
    """

    strategy: str
    trial: int
    round: int
    labels: int
    accuracy: float
    loss: float
    train_seconds: float
    query_seconds: float
    eval_seconds: float
    picks: tuple[int, ...]
    memory: str = "{}"


@dataclass(frozen=True, slots=True)
class Run:
    """A record as read: rows are sorted by (strategy in config order, trial, round).

    `environment` tells where rounds were computed last: versions, processor, commit; `data_digest`
    is the SHA-256 of the data set's values.
    """

    config: Config
    environment: dict[str, str]
    rows: list[RoundRow]
    data_digest: str = ""

    @property
    def finished(self) -> bool:
        """Whether every round of every trial is there."""
        config = self.config
        return len(self.rows) == len(config.strategies) * config.trials * config.points


def read_run(directory: Path) -> Run:
    """The record of a run directory, finished or not; it may be growing meanwhile.

    Raises:
        RunError: no record there, or one that this version cannot read.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise RunError(f"{directory} holds no {FILE_NAME}; expected the --out of a fastbadge run")
    with _connection(path) as connection:
        _check_schema(connection, path)
        # One transaction, so that configuration and rows belong together.
        connection.execute("BEGIN")
        config = _read_config(connection, path)
        data_digest = _read_digest(connection, path)
        environment = connection.execute(
            "SELECT facts FROM environment ORDER BY id DESC LIMIT 1"
        ).fetchone()
        found = connection.execute(f"SELECT {_FIELDS} FROM round ORDER BY id").fetchall()
    try:
        facts = _facts(environment[0]) if environment else {}
        rows = [_row(values, config) for values in found]
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read: {error}; it was changed by hand: run into another directory"
        ) from error
    order = {strategy: i for i, strategy in enumerate(config.strategies)}
    rows.sort(key=lambda row: (order[row.strategy], row.trial, row.round))
    return Run(config, facts, rows, data_digest)


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Make the run directory if need be, and keep other commands from computing in it meanwhile.

    Raises:
        RunError: another one does, or the directory cannot be made.
    """
    _make(directory)
    with held(
        directory,
        f"another command is computing {directory}; wait until it ends, or see how far it is with: "
        f"fastbadge plot {directory}",
    ):
        yield


def open_run(directory: Path, config: Config, *, data_digest: str) -> None:
    """Create the record of a run, or take up the one that is there.

    A directory that holds the same configuration is resumed. More trials or further strategies,
    all else equal, extend it: no recorded number depends on how many follow. Anything else is
    refused. Other files in the directory are left alone.

    Args:
        directory: made if it is not there, with its parents.
        config: of this run.
        data_digest: SHA-256 of the data set's values; a record of other data is refused.

    Raises:
        RunError: another configuration or other data (the message shows the difference), a newer
            schema, a file that is no record, or a directory that cannot be written.
    """
    path = Path(directory) / FILE_NAME
    _make(path.parent)
    with _connection(path, create=True) as connection:
        if not _is_empty(connection):
            _check_schema(connection, path)  # before the first write
        connection.execute("PRAGMA journal_mode = WAL")
        with _transaction(connection):
            if _is_empty(connection):  # asked again: two runs may start at the same moment
                _create(connection, config, data_digest)
            else:
                _take_up(connection, path, config, data_digest)


def record_environment(directory: Path, facts: dict[str, str]) -> int:
    """Note where rounds are about to be computed; the id is for `record_round`.

    Raises:
        RunError: the record cannot be written.
    """
    with _connection(Path(directory) / FILE_NAME) as connection:
        cursor = connection.execute(
            "INSERT INTO environment (facts, started) VALUES (?, ?)", (json.dumps(facts), _now())
        )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def record_round(directory: Path, row: RoundRow, environment_id: int) -> None:
    """Add a finished round, in one transaction.

    A row that is there already stays: where there are no locks (see `held`) the same experiment may
    be running twice, and what it writes is the same.

    Raises:
        RunError: the record cannot be written.
    """
    values = asdict(row) | {"picks": json.dumps(row.picks), "environment": environment_id}
    with _connection(Path(directory) / FILE_NAME) as connection:
        connection.execute(
            f"INSERT INTO round ({_FIELDS}, environment) "
            f"VALUES ({', '.join('?' * len(values))}) ON CONFLICT DO NOTHING",
            tuple(values.values()),
        )


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{directory} cannot be made a run directory: {error.strerror}; pass another --out"
        ) from error


@contextmanager
def _connection(path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    if create:
        mode = "mode=rwc"
    elif os.access(path.parent, os.W_OK):
        mode = "mode=rw"  # readers too: the last to close a WAL file tidies up beside it
    elif not _beside(path, "-wal").exists():
        mode = "immutable=1"  # else SQLite would need to write beside a WAL file even to read it
    elif _beside(path, "-shm").exists():
        mode = "mode=ro"
    else:
        with _copy(path) as copied, _connection(copied) as connection:
            yield connection
        return
    uri = f"{path.absolute().as_uri()}?{mode}"
    try:
        # Autocommit; transactions are begun in so many words.
        opened = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)
        with closing(opened) as connection:
            yield connection
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise RunError(
                f"{path} cannot grow, the disk is full; make room, and the same command goes on"
            ) from error
        raise RunError(f"{path} cannot be used: {error}; pass another run directory") from error


@contextmanager
def _copy(path: Path) -> Iterator[Path]:
    """A record that a kill left in two files, on a medium where SQLite cannot join them."""
    with tempfile.TemporaryDirectory(prefix="fastbadge-") as directory:
        copied = Path(directory) / path.name
        for suffix in ("", "-wal"):
            shutil.copyfile(_beside(path, suffix), _beside(copied, suffix))
        yield copied


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _is_empty(connection: sqlite3.Connection) -> bool:
    # A run killed before its first commit leaves a file without tables.
    return connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{path} has schema version {version}; this fastbadge reads up to {SCHEMA_VERSION}; "
            "install a newer one"
        )
    if version < 1:
        raise RunError(f"{path} is no record of a fastbadge run; pass another run directory")


def _create(connection: sqlite3.Connection, config: Config, data_digest: str) -> None:
    for statement in _SCHEMA.split(";\n"):  # executescript would commit
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute(
        "INSERT INTO run (id, config, data_digest, created) VALUES (1, ?, ?, ?)",
        (config.to_json(), data_digest, _now()),
    )


def _take_up(connection: sqlite3.Connection, path: Path, config: Config, data_digest: str) -> None:
    recorded = _read_config(connection, path)
    _check_same(recorded, config, path.parent)
    if _read_digest(connection, path) != data_digest:
        raise RunError(
            f"{path.parent} holds a run on other data: the values of {config.dataset} have "
            "changed since; pass another --out"
        )
    if recorded != config:
        connection.execute("UPDATE run SET config = ?", (config.to_json(),))


def _check_same(recorded: Config, config: Config, directory: Path) -> None:
    extends = config.trials >= recorded.trials and set(config.strategies) >= set(
        recorded.strategies
    )
    if extends and config == replace(recorded, trials=config.trials, strategies=config.strategies):
        return
    theirs, yours = asdict(recorded), asdict(config)
    difference = ", ".join(
        f"{name} {as_text(theirs[name])} -> {as_text(yours[name])}"
        for name in yours
        if theirs[name] != yours[name]
    )
    raise RunError(
        f"{directory} holds a run of another configuration ({difference}); "
        "pass its settings or another --out"
    )


def _read_config(connection: sqlite3.Connection, path: Path) -> Config:
    found = connection.execute("SELECT config FROM run").fetchone()
    try:
        return Config.from_json(found[0])
    except (TypeError, ValueError, InputError) as error:
        raise RunError(f"{path} holds no readable configuration: {error}") from error


def _read_digest(connection: sqlite3.Connection, path: Path) -> str:
    (data_digest,) = connection.execute("SELECT data_digest FROM run").fetchone()
    return str(data_digest)


def _facts(text: str) -> dict[str, str]:
    facts = json.loads(text)
    if not isinstance(facts, dict):
        raise ValueError(f"environment is {text!r}, no JSON object")
    return facts


def _row(values: tuple[Any, ...], config: Config) -> RoundRow:
    *numbers, picks, memory = values
    row = RoundRow(*[*numbers, tuple(json.loads(picks)), memory])
    of_config = row.strategy in config.strategies and row.trial in range(config.trials)
    if not of_config or row.round not in range(config.points):
        raise ValueError(f"{row.strategy}, trial {row.trial}, round {row.round} is not of the run")
    if not all(type(pick) is int and pick >= 0 for pick in row.picks):
        raise ValueError(f"picks of round {row.round} are {picks!r}, no JSON list of positions")
    if not isinstance(json.loads(memory), dict):
        raise ValueError(f"memory is {memory!r}, no JSON object")
    return row


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
