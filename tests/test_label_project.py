"""The project's file: what was acknowledged is there, once, whatever else happens."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import pytest

import fastbadge
from fastbadge.errors import InputError, ProjectError
from fastbadge.label import clicks, project
from fastbadge.label.exchange import export_rows
from fastbadge.label.project import Config, Found, ModelState, Pick

CONFIG = Config(kind="texts", source="/data/table.csv", features="tfidf", text_column="text")


def make(directory, items=20, batch=10, classes=("cat", "dog"), **changes):
    """A project with a first batch of the items 1 to `batch`."""
    project.create_project(directory, replace(CONFIG, **changes), classes)
    found = [Found(f"{i:064x}", str(i), f"text {i}") for i in range(items)]
    project.add_items(directory, found, first=1)
    add_batch(directory, range(1, batch + 1))
    return directory


def add_batch(directory, items, after=0, model=None):
    picks = [Pick(item, "typiclust") for item in items]
    return project.record_round(
        directory, picks, strategy="typiclust", seed=0, model=model, after=after
    )


def ids(items):
    return [item.id for item in items]


def rows(directory, query, *values):
    with closing(sqlite3.connect(directory / "project.sqlite")) as connection:
        return connection.execute(query, values).fetchall()


# --- the project


def test_what_is_made_is_read_and_made_again_without_change(tmp_path):
    make(tmp_path)
    project.create_project(tmp_path, CONFIG, ["dog", "bird"])
    assert project.read_config(tmp_path) == CONFIG
    assert project.read_classes(tmp_path) == {1: "cat", 2: "dog", 3: "bird"}
    assert project.add_class(tmp_path, " bird ") == 3 and project.add_class(tmp_path, "cow") == 4
    assert project.count_items(tmp_path) == 20
    assert project.read_item(tmp_path, 7) == project.Item(7, "6", "text 6", False, f"{6:064x}")


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    make(tmp_path)
    with pytest.raises(ProjectError, match=r"batch 20 -> 5, share 0\.15 -> 0\.5\); pass its"):
        project.create_project(tmp_path, replace(CONFIG, batch=5, share=0.5), [])


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("PRAGMA user_version = 9", "schema version 9; this fastbadge reads up to 1; install"),
        ("PRAGMA user_version = 0", "is no labelling project"),
        ("UPDATE project SET config = '{\"batsh\": 3}'", "no readable configuration"),
        ("UPDATE project SET config = '['", "no readable configuration"),
        ("DROP TABLE project", "cannot be used: no such table"),
    ],
)
def test_a_project_that_cannot_be_read_is_refused_in_one_line(tmp_path, statement, expected):
    make(tmp_path)
    with closing(sqlite3.connect(tmp_path / "project.sqlite")) as connection, connection:
        connection.execute(statement)
    with pytest.raises(ProjectError, match=expected) as caught:
        project.read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_project_there(tmp_path):
    with pytest.raises(ProjectError, match=r"holds no project\.sqlite; make it with"):
        clicks.next_items(tmp_path, "ann")
    assert not list(tmp_path.iterdir())


def test_items_are_numbered_without_gaps_or_not_added(tmp_path):
    make(tmp_path)
    with pytest.raises(ProjectError, match="items from elsewhere meanwhile"):
        project.add_items(tmp_path, [Found("f", "20")], first=20)
    project.add_items(tmp_path, [Found("f", "20"), Found("e", "21")], first=21)
    assert [item.id for item in project.read_items(tmp_path)] == list(range(1, 23))


def test_tickets_do_not_depend_on_how_items_came_in(tmp_path):
    make(tmp_path / "a", items=50)
    make(tmp_path / "b", items=20)
    for i in range(20, 50):
        project.add_items(tmp_path / "b", [Found(f"{i:064x}", str(i))], first=i + 1)
    a, b = (project.take_snapshot(tmp_path / name) for name in "ab")
    assert (a.ticket_N == b.ticket_N).all() and (a.reserved_N == (a.ticket_N < 0.15)).all()


def test_a_missing_item_is_not_handed_out_until_it_is_back(tmp_path):
    make(tmp_path)
    project.update_items(tmp_path, missing=[1, 3], renamed={2: "moved"})
    assert ids(clicks.next_items(tmp_path, "ann", 2)) == [2, 4]
    assert project.read_status(tmp_path).missing == 2
    assert project.count_waiting(tmp_path) == 8
    project.update_items(tmp_path, back=[1])
    assert ids(clicks.next_items(tmp_path, "ann", 2)) == [1, 2]
    assert project.read_item(tmp_path, 2).name == "moved"


def test_a_round_is_recorded_with_its_model_or_not_at_all(tmp_path):
    make(tmp_path)
    weights = {"weight": np.array([[1 / 3, 2]], dtype=np.float32)}
    model = ModelState(5, 3, 4, 0.25, {"item": np.array([4]), "class": np.array([2])})
    assert add_batch(tmp_path, [11, 12], after=0, model=model) is None  # chosen before batch 1
    with pytest.raises(ProjectError, match="UNIQUE constraint failed"):
        add_batch(tmp_path, [11, 10], after=1, model=model)  # 10 is in a batch
    assert project.read_models(tmp_path) == [] and project.take_snapshot(tmp_path).last_batch == 1
    pick = Pick(11, "badge", 1.5, 2, 0.75)
    made = {"strategy": "badge", "seed": 1, "model": model, "weights": weights}
    assert project.record_round(tmp_path, [pick], after=1, **made) == 2
    (read,) = project.read_models(tmp_path)
    assert replace(read, guesses={}) == replace(model, guesses={})
    assert {name: array.tolist() for name, array in read.guesses.items()} == {
        "item": [4],
        "class": [2],
    }
    (stored,) = project.read_weights(tmp_path).values()
    assert stored.dtype == np.float32 and (stored == weights["weight"]).all()
    assert project.record_round(tmp_path, [], after=2, **(made | {"weights": {}})) == 3
    assert project.read_weights(tmp_path) == {}
    assert rows(tmp_path, "SELECT count(weights) FROM model") == [(1,)]
    assert project.read_pick(tmp_path, 11) == pick and project.read_pick(tmp_path, 13) is None


# --- clicks


def test_items_come_in_order_and_a_reload_shows_the_same(tmp_path):
    make(tmp_path)
    assert ids(clicks.next_items(tmp_path, "ann", 3)) == [1, 2, 3]
    assert ids(clicks.next_items(tmp_path, "ann", 2)) == [1, 2]
    assert ids(clicks.next_items(tmp_path, "bob", 2)) == [4, 5]
    clicks.record_label(tmp_path, 1, 2, "ann", request="r1", seconds=1.5)
    assert ids(clicks.next_items(tmp_path, "ann", 3)) == [2, 3, 6]
    clicks.release(tmp_path, "ann")
    assert ids(clicks.next_items(tmp_path, "bob", 3)) == [2, 3, 4]


def test_an_expired_lease_returns_and_a_late_click_is_kept(tmp_path):
    make(tmp_path)
    clicks.next_items(tmp_path, "ann", 2, lease_seconds=0.0)
    assert ids(clicks.next_items(tmp_path, "bob", 2)) == [1, 2]
    clicks.record_label(tmp_path, 1, 1, "ann", request="late")
    clicks.record_label(tmp_path, 1, 2, "bob", request="in time")
    assert project.read_disputes(tmp_path) == {1: {"ann": 1, "bob": 2}}
    assert project.take_snapshot(tmp_path).class_N[0] == 2  # of equally many, the latest


def test_a_retry_counts_once_and_another_click_with_its_name_is_refused(tmp_path):
    make(tmp_path)
    first = clicks.record_label(tmp_path, 1, 2, "ann", request="r")
    assert clicks.record_label(tmp_path, 1, 2, "ann", request="r") == first
    for changed in [(2, 2, "ann"), (1, 1, "ann"), (1, 2, "bob")]:
        with pytest.raises(InputError, match="'r' was another click"):
            clicks.record_label(tmp_path, *changed, request="r")
    assert rows(tmp_path, "SELECT count(*) FROM label") == [(1,)]


def test_undo_goes_back_click_by_click_and_a_retry_only_once(tmp_path):
    make(tmp_path)
    one = clicks.record_label(tmp_path, 1, 2, "ann", request="1")
    two = clicks.record_cannot_tell(tmp_path, 2, "ann", request="2")
    clicks.record_label(tmp_path, 3, 1, "bob", request="3")
    assert project.count_waiting(tmp_path) == 7
    assert clicks.undo(tmp_path, "ann", request="u1") == two
    assert clicks.undo(tmp_path, "ann", request="u1") == two
    assert ids(clicks.next_items(tmp_path, "ann")) == [2]
    assert clicks.undo(tmp_path, "ann", request="u2") == one
    assert clicks.undo(tmp_path, "ann", request="u3") is None
    assert ids(clicks.next_items(tmp_path, "ann", 3)) == [1, 2, 4]
    assert clicks.undo(tmp_path, request="u4").annotator == "bob"
    assert project.count_waiting(tmp_path) == 10
    assert rows(tmp_path, "SELECT count(*) FROM label") == [(3,)]  # history is kept


def test_undoing_a_change_of_mind_brings_the_first_word_back(tmp_path):
    make(tmp_path)
    clicks.record_label(tmp_path, 1, 1, "ann", request="1")
    clicks.record_label(tmp_path, 1, 2, "ann", request="2")
    assert project.take_snapshot(tmp_path).class_N[0] == 2
    assert project.read_status(tmp_path).disputed == 0
    clicks.undo(tmp_path, "ann", request="u")
    assert project.take_snapshot(tmp_path).class_N[0] == 1


def test_skipped_items_come_last_and_are_open_to_others(tmp_path):
    make(tmp_path, batch=3)
    clicks.skip(tmp_path, 1, "ann", request="1")
    assert ids(clicks.next_items(tmp_path, "ann", 3)) == [2, 3, 1]
    clicks.skip(tmp_path, 2, "ann", request="2")
    clicks.skip(tmp_path, 1, "ann", request="3")
    clicks.release(tmp_path, "ann")
    assert ids(clicks.next_items(tmp_path, "bob", 1)) == [1]
    assert ids(clicks.next_items(tmp_path, "ann", 3)) == [3, 2]
    status = project.read_status(tmp_path)
    assert (status.labelled, status.cannot_tell, status.waiting) == (0, 0, 3)


def test_a_skip_withdraws_the_answer_until_it_is_taken_back(tmp_path):
    make(tmp_path, batch=1)
    clicks.record_label(tmp_path, 1, 1, "ann", request="1")
    clicks.record_label(tmp_path, 1, 2, "ann", request="2")
    clicks.skip(tmp_path, 1, "ann", request="3")
    assert project.count_waiting(tmp_path) == 1
    assert project.take_snapshot(tmp_path).class_N[0] == 0
    assert ids(clicks.next_items(tmp_path, "ann")) == [1]
    clicks.release(tmp_path, "ann")
    assert ids(clicks.next_items(tmp_path, "bob")) == [1]
    clicks.undo(tmp_path, "ann", request="4")
    assert project.count_waiting(tmp_path) == 0
    assert project.take_snapshot(tmp_path).class_N[0] == 2
    assert ids(clicks.next_items(tmp_path, "ann")) == []
    clicks.skip(tmp_path, 1, "bob", request="5")  # says nothing of what ann said
    assert project.take_snapshot(tmp_path).class_N[0] == 2


def test_a_project_of_before_counts_as_one_of_today(tmp_path):
    make(tmp_path)
    with closing(sqlite3.connect(tmp_path / "project.sqlite")) as connection:
        connection.executescript(
            "DROP VIEW IF EXISTS answer; DROP VIEW IF EXISTS settled;"
            "CREATE VIEW answer AS SELECT id, item, annotator, class FROM label;"
            "CREATE VIEW settled AS SELECT item, class, 2 AS opinions FROM answer"
        )
    clicks.record_label(tmp_path, 1, 1, "ann", request="1")
    clicks.skip(tmp_path, 1, "ann", request="2")
    assert project.read_status(tmp_path).labelled == project.read_status(tmp_path).disputed == 0


def test_a_skip_taken_back_does_not_take_the_item_from_whom_it_was_given_to(tmp_path):
    make(tmp_path, batch=1)
    clicks.next_items(tmp_path, "ann")
    clicks.skip(tmp_path, 1, "ann", request="1")
    assert ids(clicks.next_items(tmp_path, "bob")) == [1]
    assert clicks.undo(tmp_path, "ann", request="2").item == 1
    assert ids(clicks.next_items(tmp_path, "ann")) == []
    assert ids(clicks.next_items(tmp_path, "bob")) == [1]


def test_a_lease_from_a_clock_that_was_wrong_is_none(tmp_path, monkeypatch):
    make(tmp_path, batch=1)
    with monkeypatch.context() as wrong:
        wrong.setattr(clicks, "time", lambda: time.time() + 1e8)
        assert ids(clicks.next_items(tmp_path, "ann")) == [1]
    assert ids(clicks.next_items(tmp_path, "bob")) == [1]


def test_cannot_tell_is_an_answer_without_a_class(tmp_path):
    make(tmp_path)
    clicks.record_cannot_tell(tmp_path, 1, "ann", request="1")
    snapshot, status = project.take_snapshot(tmp_path), project.read_status(tmp_path)
    assert snapshot.answered_N[0] and snapshot.class_N[0] == 0
    assert (status.labelled, status.cannot_tell, status.waiting) == (0, 1, 9)


@pytest.mark.parametrize(
    ("answers", "settled", "disputed"),
    [
        ([None, None, 2], 0, True),
        ([2, None, None], 0, True),
        ([None, 2, 2], 2, True),
        ([1, None, 2], 2, True),  # a tie: what was said last
        ([1, 2, None], 0, True),
        ([1, 1, 1], 1, False),
        ([None, None, None], 0, False),
    ],
)
def test_cannot_tell_is_one_of_the_opinions(tmp_path, answers, settled, disputed):
    make(tmp_path, overlap=3)
    for who, label in zip("abc", answers, strict=True):
        if label is None:
            clicks.record_cannot_tell(tmp_path, 1, who, request=who)
        else:
            clicks.record_label(tmp_path, 1, label, who, request=who)
    said = dict(zip("abc", answers, strict=True))
    assert project.take_snapshot(tmp_path).class_N[0] == settled
    assert project.read_disputes(tmp_path) == ({1: said} if disputed else {})
    status = project.read_status(tmp_path)
    assert (status.labelled, status.cannot_tell) == ((1, 0) if settled else (0, 1))
    assert status.disputed == disputed
    exported = [(row["label"], row["disputed"]) for row in export_rows(tmp_path)]
    assert exported == ([({1: "cat", 2: "dog"}[settled], disputed)] if settled else [])


def test_overlap_gives_an_item_to_so_many_and_no_more(tmp_path):
    make(tmp_path, batch=2, overlap=2)
    assert ids(clicks.next_items(tmp_path, "ann", 2)) == [1, 2]
    assert ids(clicks.next_items(tmp_path, "bob", 2)) == [1, 2]
    assert clicks.next_items(tmp_path, "eve", 2) == []
    clicks.record_label(tmp_path, 1, 1, "ann", request="1")
    assert project.count_waiting(tmp_path) == 2
    clicks.release(tmp_path, "bob")
    assert ids(clicks.next_items(tmp_path, "eve", 2)) == [1, 2]
    clicks.record_label(tmp_path, 1, 2, "eve", request="2")
    assert project.count_waiting(tmp_path) == 1
    assert ids(clicks.next_items(tmp_path, "bob", 2)) == []  # 2 is with ann and eve


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"item": 21}, "item 21 is not in the project"),
        ({"item": 0}, "item 0 is not"),
        ({"item": 2**80}, "is not in the project"),
        ({"label": 3}, "class 3 is not in the project"),
        ({"label": -1}, "class -1 is not"),
        ({"annotator": " "}, "annotator is ''; expected 1 to 100 printable"),
        ({"annotator": "\u200d"}, "annotator is"),
        ({"annotator": "a\nb"}, "annotator is"),
        ({"annotator": "a\u202eb"}, "annotator is"),
        ({"annotator": "a\ud800"}, "annotator is"),
        ({"request": "x" * 101}, "request is"),
        ({"seconds": float("nan")}, "seconds is nan; expected"),
        ({"seconds": -1.0}, "seconds is -1"),
    ],
)
def test_a_click_that_cannot_be_is_refused_in_one_line(tmp_path, changes, expected):
    make(tmp_path)
    good = {"item": 1, "label": 1, "annotator": "ann", "request": "r", "seconds": 1.0}
    with pytest.raises(InputError, match=expected) as caught:
        clicks.record_label(tmp_path, **(good | changes))
    assert "\n" not in str(caught.value)
    assert rows(tmp_path, "SELECT count(*) FROM label") == [(0,)]


@pytest.mark.parametrize(
    "name",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "Oui\u00a0!",
        "\U0001f469\u200d\U0001f33e",
    ],
)
def test_names_may_be_in_any_script(tmp_path, name):
    make(tmp_path)
    added = project.add_class(tmp_path, name)
    assert project.read_classes(tmp_path)[added] == name


# --- many at once, and kill -9


def test_annotators_at_once_get_no_item_twice_and_lose_none(tmp_path):
    make(tmp_path, items=200, batch=120)
    shown = []

    def annotate(name):
        number = 0
        while items := clicks.next_items(tmp_path, name, 2):
            shown.append((name, items[0].id))
            number += 1
            clicks.record_label(tmp_path, items[0].id, 1, name, request=f"{name}/{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(annotate, ["ann", "bob", "eve", "joe"]))
    assert sorted(item for _, item in shown) == list(range(1, 121))
    assert Counter(rows(tmp_path, "SELECT annotator, item FROM label")) == Counter(shown)
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


LABELLER = """
import sys, types
from pathlib import Path

sys.modules["fastbadge"] = types.ModuleType("fastbadge")  # its own __init__ loads torch: 3 s
sys.modules["fastbadge"].__path__ = [sys.argv[3]]
from fastbadge.label import clicks

directory, name = Path(sys.argv[1]), sys.argv[2]
number = 0
while items := clicks.next_items(directory, name):
    number += 1
    item = items[0].id
    clicks.record_label(directory, item, 1, name, request=f"{name}/{number}")
    print(item, flush=True)
    if number % 3 == 0:
        undone = clicks.undo(directory, name, request=f"{name}/undo/{number}")
        print(-undone.item, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    directory = make(tmp_path / "p", items=4000, batch=4000)
    script = tmp_path / "labeller.py"
    script.write_text(LABELLER)
    moments = random.Random(0)
    for turn in range(2):
        names = [f"ann{turn}", f"bob{turn}"]
        processes = [
            subprocess.Popen(
                [sys.executable, script, directory, name, *fastbadge.__path__],
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in names
        ]
        try:
            firsts = [
                [p.stdout.readline() for _ in range(4)] for p in processes
            ]  # they are at work
            time.sleep(moments.uniform(0.1, 0.4))
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
        for name, process, first in zip(names, processes, firsts, strict=True):
            said = [int(line) for line in [*first, *process.communicate()[0].splitlines()] if line]
            assert process.returncode == -signal.SIGKILL and len(said) > 3
            kept = rows(
                directory, "SELECT item, undone FROM label WHERE annotator = ? ORDER BY id", name
            )
            labelled = [item for item in said if item > 0]
            # At most the click that was committed and not yet acknowledged is there beyond them.
            assert [item for item, _ in kept][: len(labelled)] == labelled
            assert len(kept) - len(labelled) in (0, 1)
            undone = [item for item, when in kept if when]
            taken_back = [-item for item in said if item < 0]
            assert undone[: len(taken_back)] == taken_back
            assert len(undone) - len(taken_back) in (0, 1)
    standing = rows(directory, "SELECT item FROM label WHERE undone IS NULL")
    assert len(set(standing)) == len(standing)  # handed to one only, in all processes
    assert rows(directory, "PRAGMA integrity_check") == [("ok",)]
