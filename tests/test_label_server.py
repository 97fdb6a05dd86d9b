"""The labelling server over real sockets: the loop of annotators, and the rounds behind it."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
from sklearn.datasets import load_digits

from fastbadge.label import background, project
from fastbadge.label.audit import find_doubts
from fastbadge.label.background import Background
from fastbadge.label.initialise import init_project
from fastbadge.label.project import Config, Found, Pick
from label_client import GOOD, TOOLS, Client, is_one_line, load, rows, served, texts

# --- labelling


def test_the_loop_of_an_annotator(tmp_path):
    with served(texts(tmp_path)) as client:
        assert client.ask("project") == {
            "name": tmp_path.name,
            "kind": "texts",
            "overlap": 1,
            "classes": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        first = client.ask("next", {"annotator": "ann", "n": 3})
        assert first["items"][0] == {"id": 1, "name": "0", "text": "text 0"}
        after = client.click(1, label=2, seconds=1.5, n=3)
        assert [item["id"] for item in after["items"]] == [2, 3, 4]
        client.click(2, kind="cannot tell")
        assert client.click(3, kind="skip", n=9)["items"][-1]["id"] == 3
        item = {"id": 3, "name": "2", "text": "text 2"}
        assert client.ask("items/3") == item | {"answer": None, "leased": False}
        assert rows(tmp_path, "SELECT item, kind, class, seconds, annotator FROM label") == [
            (1, "label", 2, 1.5, "ann"),
            (2, "cannot tell", None, None, "ann"),
            (3, "skip", None, None, "ann"),
        ]


def test_a_guess_is_a_class_and_never_of_a_validation_item(tmp_path):
    picks = [Pick(11, "badge", 1.5, 2, 0.75), Pick(12, "validation", 1.5, 2, 0.75), Pick(13, "t")]
    round_ = {"strategy": "badge", "seed": 0, "model": None, "after": 1}
    project.record_round(texts(tmp_path), picks, **round_)
    with served(tmp_path) as client:
        assert client.ask("items/11/guess") == {"class": 2}
        for item in (12, 13, 14):  # for validation, before there was a model, in no batch
            assert client.ask(f"items/{item}/guess") is None


def test_undo_and_what_is_sent_twice(tmp_path):
    with served(texts(tmp_path)) as client:
        for _ in range(2):
            client.click(1, request="same")
        other = client.post("clicks", GOOD | {"request": "same", "label": 2})
        assert other.status == 400 and b"was another click" in other.body
        assert rows(tmp_path, "SELECT count(*) FROM label") == [(1,)]
        client.click(2)
        back = {"annotator": "ann", "n": 2, "request": "back"}
        for _ in range(2):
            answer = client.ask("undo", back)
            assert answer["undone"]["id"] == 2
            assert [item["id"] for item in answer["items"]] == [2, 3]
        assert client.post("undo", back | {"request": "further", "n": 0}).status == 400  # not done
        assert client.ask("undo", back | {"request": "further"})["undone"]["id"] == 1
        assert client.ask("undo", back | {"request": "too far"})["undone"] is None


def test_undo_takes_back_the_click_that_it_names_whichever_tab_made_it(tmp_path):
    with served(texts(tmp_path)) as client:
        client.click(1, request="one"), client.click(2, request="two")
        client.click(3, annotator="bob", request="three")
        back = {"annotator": "ann", "n": 1}
        undone = client.ask("undo", back | {"request": "1", "click": "one"})["undone"]
        item = {"id": 1, "name": "0", "text": "text 0"}
        assert undone == item | {"answer": None, "leased": True}
        for click in ("one", "three", "no such"):  # again, another's, none
            body = back | {"request": f"not {click}", "click": click}
            assert client.ask("undo", body)["undone"] is None
        assert client.post("undo", back | {"request": "4", "click": 2}).status == 400
        assert rows(tmp_path, "SELECT item FROM label WHERE undone IS NULL") == [(2,), (3,)]


def test_undo_says_whether_the_item_is_the_annotators_again(tmp_path):
    with served(texts(tmp_path, batch=1)) as client:
        client.click(1, kind="skip"), client.ask("release", {"annotator": "ann"})
        assert client.next("bob") == [1]
        back = {"annotator": "ann", "n": 1, "request": "1"}
        for _ in range(2):
            undone = client.ask("undo", back)["undone"]
            assert (undone["id"], undone["answer"], undone["leased"]) == (1, None, False)
        client.click(1, annotator="bob", request="first")
        client.click(1, annotator="bob", label=2)
        undone = client.ask("undo", back | {"annotator": "bob", "request": "2"})["undone"]
        assert undone["answer"] == {"request": "first", "kind": "label", "label": 1}
        assert client.ask("items/1?annotator=bob") == undone


def test_no_item_is_with_two_annotators_unless_overlap_is_asked_for(tmp_path):
    with served(texts(tmp_path / "one")) as client:
        assert client.next("ann") == [1, 2, 3] and client.next("bob") == [4, 5, 6]
        assert client.next("ann") == [1, 2, 3]  # a page reloaded
        client.ask("release", {"annotator": "ann"})
        assert client.next("eve") == [1, 2, 3]
    with served(texts(tmp_path / "two", overlap=2)) as client:
        assert client.next("ann") == client.next("bob") == [1, 2, 3]
        assert client.next("eve") == [4, 5, 6]


def test_nothing_that_people_write_is_markup(tmp_path):
    nasty = "</script><img src=x onerror=alert(1)>\u2028\u202e"
    config = Config(kind="texts", source="/t.csv", features="tfidf", text_column="text")
    project.create_project(tmp_path, config, ["__proto__"])
    project.add_items(tmp_path, [Found("0" * 64, "0", nasty)], first=1)
    with served(tmp_path) as client:
        assert client.ask("items/1")["text"] == nasty
        name = "<b onclick='alert(1)'>&amp;</b>"
        assert client.ask("classes", {"name": name})[-1] == {"id": 2, "name": name}
        assert client.ask("classes", {"name": name})[-1]["id"] == 2  # once
        refused = client.post("classes", {"name": "<script>\n"})
        assert refused.status == 200  # white space around a name is none of it
        refused = client.post("classes", {"name": "<script>\n</script>"})
        assert refused.status == 400
        assert refused.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_a_project_that_cannot_be_used_is_an_error_of_one_line(tmp_path):
    with served(texts(tmp_path)) as client:
        with closing(sqlite3.connect(tmp_path / "project.sqlite")) as connection:
            connection.execute("PRAGMA user_version = 9")
        answer = client.get("project")
        assert answer.status == 500 and is_one_line(answer.body)
        assert b"schema version 9" in answer.body


def test_short_of_items_the_next_batch_is_asked_for_and_not_otherwise(tmp_path):
    asleep = Background(texts(tmp_path))  # nobody works: what was wanted stays so
    with served(tmp_path, asleep) as client:
        assert client.ask("next", {"annotator": "ann", "n": 8})["choosing"] is False
        assert client.click(1, n=9)["choosing"] is False
        assert client.click(2, n=9)["choosing"] is True
        assert client.ask("numbers") == {
            "summary": None,
            "choosing": True,
            "trouble": "",
            "doubts": None,
        }
        asleep.trouble = "no memory"  # tried again later
        assert client.ask("numbers")["choosing"] is client.click(3, n=9)["choosing"] is False


# --- the background


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_batches_come_from_behind_and_the_numbers_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(background, "_LEAST_REST_SECONDS", 0.02)
    digits = load_digits()
    np.save(tmp_path / "x.npy", digits.data[:80] / 16)
    config = Config(
        kind="features", source=str(tmp_path / "x.npy"), features="given", batch=20, share=0.5
    )
    directory = tmp_path / "p"
    init_project(directory, config, [str(c) for c in range(10)])
    behind = Background(directory)
    me, labelled, came = {"annotator": "ann", "n": 8}, [], 0
    with behind.running(), served(directory, behind) as client:
        while True:
            answer = client.ask("next", me)
            if answer["choosing"]:
                until(lambda: not client.ask("numbers")["choosing"])
                before, answer = answer["items"], client.ask("next", me)
                assert answer["items"][: len(before)] == before  # ready before these are done
                came += len(answer["items"]) > len(before) > 0
            if not answer["items"]:
                break
            item = answer["items"][0]["id"]
            client.click(item, label=int(digits.target[item - 1]) + 1)
            labelled.append(item)
        assert sorted(labelled) == list(range(1, 81)) and came == 3
        until(lambda: client.ask("numbers")["summary"]["status"]["labelled"] == 80)
        summary = client.ask("numbers")["summary"]
        assert [each["name"] for each in summary["classes"]] == [str(c) for c in range(10)]
        labels = [each["labels"] for each in summary["classes"]]
        assert labels == np.bincount(digits.target[:80]).tolist()
        assert summary["annotators"] == [["ann", 80]]
        assert summary["numbers"]["accuracy"]["total"] == summary["numbers"]["slice_size"] >= 30
        assert summary["disputes"] == []
        client.click(1, annotator="bob", kind="cannot tell")
        until(lambda: client.ask("numbers")["summary"]["disputes"])
        truth = str(digits.target[0])
        assert client.ask("numbers")["summary"]["disputes"] == [
            {"item": 1, "name": "0", "answers": [["ann", truth], ["bob", "cannot tell"]]}
        ]
        wrong = [item for item in range(1, 81) if digits.target[item - 1] == 0]
        for item in wrong[:2]:
            client.click(item, label=2)
        client.ask("doubts")
        until(lambda: client.ask("numbers")["doubts"])
        found, labels = find_doubts(directory)
        doubts = client.ask("numbers")["doubts"]
        assert (doubts["found"], doubts["labels"]) == (len(found), labels)
        assert doubts["doubts"] == [
            {"item": d.item, "name": str(d.item - 1), "label": d.label, "suggested": d.suggested}
            for d in found
        ]
        process, asked, ask = behind._process, threading.Event(), behind._ask
        monkeypatch.setattr(behind, "_ask", lambda order: asked.set() or ask(order))
        process.send_signal(signal.SIGSTOP)  # so that it is at work for sure when it is killed
        client.click(2)
        assert asked.wait(60)
        process.kill()  # as by a system that is out of memory
        until(lambda: client.ask("numbers")["trouble"])
        assert "ended with status -9" in client.ask("numbers")["trouble"]
        client.click(3)
        until(lambda: not client.ask("numbers")["trouble"])
        assert process.pid != behind._process.pid
    assert behind._process.returncode is not None


def test_a_process_that_cannot_start_or_ends_in_a_line_is_told_and_tried_again(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(background, "_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(background, "_LEAST_REST_SECONDS", 0.02)
    popen, calls = subprocess.Popen, []

    def fails_twice(command, **options):
        calls.append(command)
        if len(calls) == 1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        if len(calls) == 2:  # as if it was killed when a part of the answer was out
            command = [sys.executable, "-c", "print('{', end='')"]
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", fails_twice)
    behind = Background(texts(tmp_path))
    behind.want_batch()
    with behind.running():
        until(lambda: "cannot be started: Cannot allocate memory" in behind.trouble)
        assert not behind.choosing
        behind.note_change()
        until(lambda: "ended with status" in behind.trouble)
        until(lambda: behind.summary and not behind.trouble)  # tried again of itself


def test_why_no_batch_can_be_chosen_is_told(tmp_path):
    answer = background._answer(texts(tmp_path), "advance")
    assert "features.npy cannot be read" in answer["error"]
    assert "there are 0 labels to judge" in background._answer(tmp_path, "audit")["error"]
    assert background._answer(tmp_path, "count")["summary"]["status"]["waiting"] == 10


# --- the command


def test_the_command_prints_one_address_and_ends_in_one_line(tmp_path):
    texts(tmp_path)
    command = [sys.executable, "-m", "fastbadge", "label", "serve", str(tmp_path), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        client = Client(process.stdout.readline().strip())
        client.click(1)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and err == "fastbadge: stopped; every click is saved\n"
    assert rows(tmp_path, "SELECT item FROM label") == [(1,)]
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


# --- random requests


def test_random_requests(tmp_path, monkeypatch):
    tools = load(TOOLS, monkeypatch)

    def seen(request, answer):
        if answer and b"Invalid HTTP request received." not in answer:  # by h11, before us
            assert b"content-security-policy: default-src 'none';" in answer, (request, answer)

    directory = tools.make_target(tmp_path / "target")
    with served(directory) as client:
        address = f"http://{client.host}/?token={client.token}"
        statuses = tools.bombard(directory, address, 400, seed=1, seen=seen)
    assert statuses["200"] > 50 and {"400", "401", "403", "404", "413", "415"} <= set(statuses)
