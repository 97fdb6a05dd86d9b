import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fastbadge.errors import RunError
from fastbadge.lab import store
from fastbadge.lab.protocol import Config
from fastbadge.lab.store import (
    RoundRow,
    open_run,
    read_run,
    record_environment,
    record_round,
)

CONFIG = Config(trials=2, rounds=1, strategies=("random", "badge"), learning_rate=0.1 + 0.2)
FACTS = {"torch": "2.13.0", "processor": "abacus"}


def row(strategy="random", trial=0, round=0, **changes):
    picks = (5, 3, 2**40) if round == 0 else ()
    # Numbers that a rounded or text-formatted column would change.
    values = RoundRow(strategy, trial, round, 20, 1 / 3, 0.1 + 0.2, 1e-9, 2.5, 3.5, picks)
    return replace(values, **changes)


def open_it(directory, config=CONFIG, digest="abc"):
    open_run(directory, config, data_digest=digest)
    return record_environment(directory, FACTS)


def test_what_is_recorded_is_read_bit_for_bit_and_in_order(tmp_path):
    out = tmp_path / "a" / "b"
    environment_id = open_it(out)
    rows = [row("badge", 0), row("random", 1), row("random", 0, 1), row("random", 0)]
    for each in rows:
        record_round(out, each, environment_id)
    run = read_run(out)
    assert run.config == CONFIG and run.environment == FACTS
    assert run.rows == [rows[3], rows[2], rows[1], rows[0]]
    assert not run.finished
    for each in (row("random", 1, 1), row("badge", 0, 1), row("badge", 1), row("badge", 1, 1)):
        record_round(out, each, environment_id)
    assert read_run(out).finished
    # One file, with nothing beside it that a copy could miss.
    assert [path.name for path in out.iterdir()] == ["run.sqlite"]


def test_a_row_is_recorded_once(tmp_path):
    environment_id = open_it(tmp_path)
    record_round(tmp_path, row(train_seconds=1.0), environment_id)
    record_round(tmp_path, row(train_seconds=2.0), environment_id)
    assert [each.train_seconds for each in read_run(tmp_path).rows] == [1.0]


def test_many_writers_lose_nothing(tmp_path):
    config = replace(CONFIG, trials=4, rounds=24)
    environment_id = open_it(tmp_path, config)

    def write(trial):
        for round in range(25):
            record_round(tmp_path, row("badge", trial, round), environment_id)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert [(each.trial, each.round) for each in read_run(tmp_path).rows] == [
        (trial, round) for trial in range(4) for round in range(25)
    ]


def test_the_same_configuration_resumes(tmp_path):
    record_round(tmp_path, row(), open_it(tmp_path))
    open_it(tmp_path)
    assert read_run(tmp_path).rows == [row()]


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    record_round(tmp_path, row(), open_it(tmp_path))
    other = replace(CONFIG, rounds=3, hidden=(64,), strategies=("random", "margin"))
    before = (tmp_path / "run.sqlite").read_bytes()
    with pytest.raises(RunError) as caught:
        open_run(tmp_path, other, data_digest="abc")
    message = str(caught.value)
    for difference in ("rounds 1 -> 3", "hidden 128,64 -> 64", "random,badge -> random,margin"):
        assert difference in message
    assert "learning_rate" not in message and "\n" not in message
    assert (tmp_path / "run.sqlite").read_bytes() == before


def test_more_trials_or_strategies_extend_and_fewer_are_refused(tmp_path):
    record_round(tmp_path, row(), open_it(tmp_path))
    larger = replace(CONFIG, trials=5, strategies=("badge", "margin", "random"))
    open_run(tmp_path, larger, data_digest="abc")
    assert read_run(tmp_path).config == larger
    assert read_run(tmp_path).rows == [row()]
    with pytest.raises(RunError, match="trials 5 -> 2"):
        open_run(tmp_path, replace(larger, trials=2), data_digest="abc")
    with pytest.raises(RunError, match="badge,margin,random -> badge,random"):
        open_run(tmp_path, replace(larger, strategies=("badge", "random")), data_digest="abc")
    # Both at once: an extension that also changes a number is none.
    with pytest.raises(RunError, match="trials 5 -> 6, seed 0 -> 1"):
        open_run(tmp_path, replace(larger, trials=6, seed=1), data_digest="abc")
    assert read_run(tmp_path).config == larger


def test_other_data_are_refused(tmp_path):
    open_it(tmp_path)
    with pytest.raises(RunError, match="the values of digits have changed since"):
        open_run(tmp_path, CONFIG, data_digest="abd")


def test_a_directory_with_other_files_is_used_and_they_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    open_it(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_left_by_a_run_killed_before_its_first_commit_is_taken_up(tmp_path):
    (tmp_path / "run.sqlite").touch()
    with pytest.raises(RunError, match="is no record"):
        read_run(tmp_path)
    open_it(tmp_path)
    assert read_run(tmp_path).rows == []


def test_nothing_is_left_half_created(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "now_utc", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # after the tables, before the commit
        open_run(tmp_path, CONFIG, data_digest="abc")
    monkeypatch.undo()
    open_it(tmp_path)
    assert read_run(tmp_path).config == CONFIG


def change(directory, statement):
    with closing(sqlite3.connect(directory / "run.sqlite")) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize("call", [lambda out: open_it(out), read_run])
@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("PRAGMA user_version = 2", "schema version 2; this fastbadge reads up to 1; install"),
        ("PRAGMA user_version = 0", "is no record of a fastbadge run"),
        ("UPDATE run SET config = '{\"tirals\": 3}'", "no readable configuration"),
        ("UPDATE run SET config = '{\"trials\": 0}'", "no readable configuration: trials is 0"),
        ("UPDATE run SET config = '['", "no readable configuration"),
        ("UPDATE run SET config = '[]'", "no readable configuration: it is '\\[\\]'; expected a"),
        ("UPDATE run SET config = '{\"trials\": 2.5}'", "trials is 2.5; expected a whole number"),
        ('UPDATE run SET config = \'{"strategies": "a"}\'', "expected a list"),
        ("DELETE FROM run", "no readable configuration"),
        ("DROP TABLE run", "cannot be used: no such table"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(tmp_path, statement, expected, call):
    open_it(tmp_path)
    change(tmp_path, statement)
    with pytest.raises(RunError, match=expected) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE round SET picks = '[1, 2'", "cannot be read: Expecting ',' delimiter"),
        ("UPDATE round SET picks = '7'", "cannot be read: 'int' object is not iterable"),
        ("UPDATE round SET picks = '[-1]'", "picks of round 0 are '\\[-1\\]', no JSON list of"),
        ("UPDATE round SET picks = '{\"a\": 1}'", "no JSON list of positions"),
        ("UPDATE round SET memory = '{'", "cannot be read: Expecting property name"),
        ("UPDATE round SET memory = '[]'", "memory is '\\[\\]', no JSON object"),
        ("UPDATE round SET strategy = 'margin'", "margin, trial 0, round 0 is not of the run"),
        ("UPDATE round SET trial = 2", "random, trial 2, round 0 is not of the run"),
        ("UPDATE round SET round = 2", "random, trial 0, round 2 is not of the run"),
        ("UPDATE environment SET facts = '1'", "environment is '1', no JSON object"),
        ("UPDATE environment SET facts = ''", "cannot be read: Expecting value"),
    ],
)
def test_rows_that_were_changed_by_hand_are_told_in_one_line(tmp_path, statement, expected):
    record_round(tmp_path, row(), open_it(tmp_path))
    change(tmp_path, statement)
    with pytest.raises(RunError, match=expected) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value) and "changed by hand" in str(caught.value)


@pytest.mark.parametrize("call", [lambda out: open_it(out), read_run])
def test_a_file_that_is_not_sqlite_is_refused_and_kept(tmp_path, call):
    (tmp_path / "run.sqlite").write_text("my diary, not a database " * 50)
    with pytest.raises(RunError, match="file is not a database; pass another run directory"):
        call(tmp_path)
    assert (tmp_path / "run.sqlite").read_text().startswith("my diary")


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tmp_path, monkeypatch):
    environment = open_it(tmp_path)
    record_round(tmp_path, row(), environment)
    large, connect = row(round=1, picks=tuple(range(100_000))), sqlite3.connect

    def without_room(*args, **options):
        connection = connect(*args, **options)
        connection.execute("PRAGMA max_page_count = 1")  # which is: no more than there are
        return connection

    monkeypatch.setattr(sqlite3, "connect", without_room)
    with pytest.raises(RunError, match=r"the disk is full; make room, and the same command goes"):
        record_round(tmp_path, large, environment)
    monkeypatch.undo()
    assert read_run(tmp_path).rows == [row()]
    record_round(tmp_path, large, environment)
    assert read_run(tmp_path).rows == [row(), large]


@pytest.mark.parametrize("tail", [".", "below", "below/it"])
def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path, tail):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be made a run directory: .*; pass another --out"):
        open_run(tmp_path / "file" / tail, CONFIG, data_digest="abc")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError):
        open_run(tmp_path, CONFIG, data_digest="abc")
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_a_record_on_a_medium_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    record_round(tmp_path, row(), open_it(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert read_run(tmp_path).rows == [row()]
    assert [path.name for path in tmp_path.iterdir()] == ["run.sqlite"]
    # While another process writes there, what it has committed is in the file beside it.
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as writer:
        writer.execute("UPDATE round SET trial = 1")
        writer.commit()
        assert read_run(tmp_path).rows == [row(trial=1)]


def test_what_a_kill_left_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    killed, archive = tmp_path / "killed", tmp_path / "archive"
    record_round(killed, row(), open_it(killed))
    archive.mkdir()
    with closing(sqlite3.connect(killed / "run.sqlite")) as writer:
        writer.execute("UPDATE round SET trial = 1")
        writer.commit()
        for suffix in ("", "-wal"):  # as they are now, and not what lies in memory
            shutil.copy(killed / f"run.sqlite{suffix}", archive)
    monkeypatch.setattr(os, "access", lambda path, mode: tmp_path not in Path(path).parents)
    before = {path.name: path.read_bytes() for path in archive.iterdir()}
    assert read_run(archive).rows == [row(trial=1)]
    assert {path.name: path.read_bytes() for path in archive.iterdir()} == before


def test_a_record_that_has_gone_is_not_made_again(tmp_path):
    environment_id = open_it(tmp_path)
    (tmp_path / "run.sqlite").unlink()
    with pytest.raises(RunError, match="unable to open database file"):
        record_round(tmp_path, row(), environment_id)
    with pytest.raises(RunError, match=r"holds no run\.sqlite; expected the --out"):
        read_run(tmp_path)
    assert not list(tmp_path.iterdir())
