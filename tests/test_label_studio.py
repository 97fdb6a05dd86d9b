"""The loop with Label Studio, against a small one of its own; the real one: test-label-studio."""

import random
import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
from PIL import Image

from fastbadge.cli import main
from fastbadge.errors import InputError, ProjectError
from fastbadge.label import project
from fastbadge.label.initialise import init_project
from fastbadge.label.project import Config, read_status, take_snapshot
from fastbadge.label.rounds import advance
from fastbadge.label.studio import loop
from fastbadge.label.studio.loop import Options, run
from fastbadge.label.studio.record import take_answers
from fastbadge.label.studio.server import Server
from fastbadge.label.studio.view import Answer
from studio_fake import CLASSES, LEGACY, PERSONAL, WORDS, Studio, drive, idle, pushed, rows, truth


@pytest.fixture(scope="session")
def make_project(tmp_path_factory):
    """Makes a project of texts with its first batch, or copies one that was made before."""
    templates = {}

    def make(tmp_path, items=60, batch=10, overlap=1):
        key = (items, batch, overlap)
        if key not in templates:
            folder = tmp_path_factory.mktemp("texts")
            draw = random.Random(0)
            lines = [f"{draw.choice(WORDS[CLASSES[i % 2]])} day number{i}" for i in range(items)]
            (folder / "t.csv").write_text("\n".join(["text", *lines]) + "\n")
            config = Config(
                kind="texts",
                source=str(folder / "t.csv"),
                features="tfidf",
                text_column="text",
                hidden=0,
                batch=batch,
                overlap=overlap,
            )
            init_project(folder / "p", config, CLASSES)
            advance(folder / "p")
            templates[key] = folder / "p"
        return Path(shutil.copytree(templates[key], tmp_path / "p"))

    return make


# --- the loop


def test_batches_are_pushed_answered_and_learned_from(tmp_path, make_project):
    directory, studio = make_project(tmp_path), Studio()
    lines = drive(directory, studio, *[studio.answer_all] * 4, idle, token=PERSONAL)
    (made,) = studio.projects.values()
    assert made["maximum_annotations"] == 1 and made["skip_queue"] == "IGNORE_SKIPPED"
    assert len(pushed(studio)) == len(set(pushed(studio))) == 40
    status = read_status(directory)
    assert (status.labelled, status.batches, status.waiting) == (30, 4, 10)
    assert status.per_annotator == {"ann@example.com": 30}
    texts = dict(rows(directory, "SELECT id, text FROM item"))
    for item, label, seconds in rows(directory, "SELECT item, class, seconds FROM label"):
        assert CLASSES[label - 1] == truth(texts[item]) and seconds == 2.5
    assert rows(directory, "SELECT count(*) FROM batch WHERE model IS NOT NULL") == [(3,)]
    assert "10 answers new, changed or taken back; 0 items waiting" in lines
    assert "10 tasks pushed" in lines and any(
        "trained" in line or "label" in line for line in lines
    )
    stored = b"".join(path.read_bytes() for path in directory.iterdir())
    assert PERSONAL.encode() not in stored and not any(PERSONAL in line for line in lines)


def test_it_ends_when_all_is_labelled(tmp_path, make_project):
    directory, studio = make_project(tmp_path, items=14), Studio()
    lines = []
    studio.before = lambda call, request: studio.answer_all() if call == "GET /api/tasks" else None
    server = Server("http://studio.test", LEGACY, transport=studio.transport())
    run(directory, server, Options(poll_seconds=1e-3), say=lines.append)
    assert lines[-1].startswith("all items are labelled")
    assert sorted(pushed(studio)) == list(range(1, 15)) and read_status(directory).labelled == 14


def test_nothing_is_trained_while_nothing_is_answered(tmp_path, make_project, monkeypatch):
    directory, studio = make_project(tmp_path, items=10), Studio()
    times = []

    def counted(path, advance=loop.advance):
        times.append(path)
        return advance(path)

    monkeypatch.setattr(loop, "advance", counted)
    most = [lambda: [studio.annotate(id, "sun") for id in studio.unanswered()[:-1]]]
    drive(directory, studio, idle, *most, *[idle] * 5)
    assert len(times) == 1  # with one item left, which found that there is none further


def test_what_stands_there_counts_and_what_is_taken_back_does_not(tmp_path, make_project):
    directory, studio = make_project(tmp_path, overlap=2), Studio()
    made = {}

    def answer():
        a, b, c, d, e, *_ = studio.tasks
        made[a] = studio.annotate(a, "sun")
        made["bob"] = studio.annotate(a, "rain", user=2)
        made[b] = studio.annotate(b, "sun")
        made[c] = studio.annotate(c, None, was_cancelled=True)
        made[d] = studio.annotate(d, None, lead_time=None)
        made[e] = studio.annotate(e, "rain", user=3)  # one who was deleted

    def change():
        a, b, *_ = studio.tasks
        made[a]["result"][0]["value"]["choices"] = ["rain"]
        made[a]["updated_at"] = studio.tasks[a]["updated_at"] = studio.now()
        studio.tasks[b]["annotations"].clear()
        studio.tasks[b]["updated_at"] = studio.now()

    def said():
        return rows(
            directory,
            "SELECT item, annotator, kind, class FROM label WHERE undone IS NULL "
            "ORDER BY item, annotator",
        )

    drive(directory, studio, idle, answer, idle)
    a, b, c, d, e = pushed(studio)[:5]
    first = said()
    assert first == sorted(
        [
            (a, "ann@example.com", "label", 1),
            (a, "bob@example.com", "label", 2),
            (b, "ann@example.com", "label", 1),
            (c, "ann@example.com", "cannot tell", None),
            (d, "ann@example.com", "cannot tell", None),
            (e, "Label Studio user 3", "label", 2),
        ]
    )
    assert rows(directory, "SELECT done FROM batch_item WHERE item = ?", a) == [(1,)]
    assert list(project.read_disputes(directory)) == [a]
    drive(directory, studio, idle, idle)  # started again, all of it is read again
    assert said() == first and rows(directory, "SELECT count(*) FROM label") == [(6,)]
    drive(directory, studio, idle, change, idle)
    expected = [(a, "ann@example.com", "label", 2) if row == first[0] else row for row in first]
    changed = {row for row in first if row[:2] == (a, "ann@example.com")}
    expected = set(first) - changed - {(b, "ann@example.com", "label", 1)}
    assert set(said()) == expected | {(a, "ann@example.com", "label", 2)}
    assert rows(directory, "SELECT count(*) FROM label") == [(7,)]  # history is kept
    snapshot = take_snapshot(directory)
    assert snapshot.class_N[a - 1] == 2 and not snapshot.answered_N[b - 1]


def test_a_task_deleted_there_leaves_the_label_it_gave_and_else_is_pushed_again(
    tmp_path, make_project
):
    directory, studio = make_project(tmp_path), Studio()

    def delete_two():
        one, two, *_ = studio.tasks
        del studio.tasks[one], studio.tasks[two]

    drive(directory, studio, idle, lambda: studio.annotate(next(iter(studio.tasks)), "sun"), idle)
    drive(directory, studio, delete_two, idle)
    assert read_status(directory).labelled == 1
    assert len(pushed(studio)) == len(set(pushed(studio))) == 9


def test_a_class_that_only_they_have_is_told_once_and_taken_when_it_is_ours(tmp_path, make_project):
    directory, studio = make_project(tmp_path), Studio()
    lines = drive(
        directory,
        studio,
        idle,
        lambda: studio.annotate(next(iter(studio.tasks)), "snow & ice"),
        idle,
        idle,
    )
    assert [line for line in lines if "'snow & ice' is chosen there" in line] == [lines[-1]]
    assert read_status(directory).labelled == 0
    drive(directory, studio, idle, lambda: project.add_class(directory, "snow & ice"), idle)
    assert read_status(directory).per_class["snow & ice"] == 1


def test_tasks_that_others_made_are_left_alone(tmp_path, make_project):
    directory, studio = make_project(tmp_path), Studio()

    def add():
        for meta in (None, {}, {"fastbadge_item": "1"}, {"fastbadge_item": 61}):
            id = studio.new_id()
            studio.tasks[id] = {"id": id, "meta": meta, "annotations": []}
            studio.annotate(id, "sun")

    drive(directory, studio, add, idle)
    assert read_status(directory).labelled == 0 and len(studio.tasks) == 14


def test_classes_added_later_are_added_to_their_view_as_it_is_by_then(tmp_path, make_project):
    directory, studio = make_project(tmp_path), Studio()
    drive(directory, studio, idle)
    (made,) = studio.projects.values()
    made["label_config"] = made["label_config"].replace("<View>", '<View><Header value="Hi" />')
    project.add_class(directory, "snow")
    drive(directory, studio, idle)
    assert '<Header value="Hi" />' in made["label_config"]
    names = [
        each.get("value") for each in ElementTree.fromstring(made["label_config"]).iter("Choice")
    ]
    assert names == ["sun", "rain", "snow"]
    made["label_config"] = "<View/>"
    project.add_class(directory, "hail")
    server = Server("http://studio.test", LEGACY, transport=studio.transport())
    studio.before = lambda call, request: None
    with pytest.raises(ProjectError, match='has no <Choices name="class"> any more'):
        run(directory, server, Options(), say=idle_line)


def idle_line(line):
    pass


def test_guesses_are_shown_if_wanted_and_never_of_validation_items(tmp_path, make_project):
    directory, studio = make_project(tmp_path), Studio()
    drive(directory, studio, *[studio.answer_all] * 3, idle, prelabel=True)
    (made,) = studio.projects.values()
    assert made["show_collab_predictions"] and made["model_version"] == "fastbadge"
    reason = dict(rows(directory, "SELECT item, reason FROM batch_item WHERE batch > 1"))
    guess = dict(
        rows(
            directory,
            "SELECT item, name FROM batch_item JOIN class ON class.id = predicted WHERE batch > 1",
        )
    )
    assert set(reason.values()) == {"badge", "validation"}
    for task in studio.tasks.values():
        item = task["meta"]["fastbadge_item"]
        if reason.get(item) != "badge":
            assert "predictions" not in task
            continue
        (prediction,) = task["predictions"]
        assert prediction["result"][0]["value"]["choices"] == [guess[item]]
        assert prediction["model_version"] == "fastbadge" and 0.5 <= prediction["score"] <= 1


# --- killed, and away


def kill(wanted, times=1):
    """Ctrl-C or kill -9, in effect, right after the server has carried out such a call."""
    left = [wanted] * times

    def after(call, request):
        if left and wanted in call:
            left.pop()
            raise KeyboardInterrupt

    return after


def test_killed_after_the_project_was_made_and_before_it_was_noted_it_is_found(
    tmp_path, make_project
):
    directory, studio = make_project(tmp_path), Studio()
    studio.after = kill("POST /api/projects")
    drive(directory, studio, idle)
    assert rows(directory, "SELECT project FROM studio") == [(None,)] and len(studio.projects) == 1
    drive(directory, studio, idle)
    assert rows(directory, "SELECT project FROM studio") == [(1,)] and len(studio.projects) == 1
    assert len(pushed(studio)) == 10


def test_killed_after_tasks_were_made_none_is_made_twice(tmp_path, make_project):
    directory, studio = make_project(tmp_path, batch=50), Studio()
    for number in (20, 40, 50):
        studio.after = kill("/import")
        drive(directory, studio, idle)
        assert len(pushed(studio)) == len(set(pushed(studio))) == number


class Waits:
    """In place of an event: nobody waits, how long is written down."""

    seconds: list = []  # noqa: RUF012

    def wait(self, seconds):
        self.seconds.append(seconds)

    def clear(self):
        pass


def test_while_the_server_is_away_it_waits_and_nothing_is_made_twice(
    tmp_path, make_project, monkeypatch
):
    directory, studio = make_project(tmp_path), Studio()
    monkeypatch.setattr(loop, "Event", Waits)
    monkeypatch.setattr(Waits, "seconds", [])
    left = ["lost"] + ["refused"] * 8

    def lose(call, request):
        if "/import" in call and left[0] == "lost":
            left.pop(0)
            raise httpx.ReadTimeout("timed out", request=request)

    def be_away():
        if left[:1] == ["refused"]:
            left.pop()
            raise httpx.ConnectError("Connection refused")

    studio.after = lose
    lines = drive(directory, studio, *[be_away] * 10, idle)
    assert Waits.seconds == [1, 2, 4, 8, 16, 32, 60, 60, 60, 1e-3, 1e-3]
    assert lines[2] == "http://studio.test does not answer (timed out); trying again in 1 s"
    assert lines[-1] == "http://studio.test answers again"
    assert len(pushed(studio)) == len(set(pushed(studio))) == 10


class Slow(Studio):
    """Imports that get no answer and are carried out later, in the turn `commit`."""

    def __init__(self, slow=1):
        super().__init__()
        self.slow, self.late = slow, []

    def answer(self, method, path, url, content):
        if method == "POST" and path[-1] == "import" and self.slow:
            self.slow -= 1
            self.late.append(content)
            raise httpx.ReadTimeout("timed out")
        return super().answer(method, path, url, content)

    def commit(self):
        while self.late:
            super().answer("POST", ["projects", "1", "import"], None, self.late.pop())


@pytest.mark.parametrize(
    ("looks", "deleted"),
    [
        (1, []),  # before the tasks are pushed again
        (2, [10]),  # that got no answer either
        (3, [20]),  # right after they were pushed at last
        (6, [20]),
    ],
)
def test_an_import_carried_out_late_leaves_no_item_in_two_tasks(
    tmp_path, make_project, monkeypatch, looks, deleted
):
    directory, studio = make_project(tmp_path), Slow(2)
    monkeypatch.setattr(loop, "Event", Waits)
    lines = drive(directory, studio, *[idle] * looks, studio.commit, *[idle] * 4)
    assert sorted(pushed(studio)) == sorted(set(pushed(studio))) and len(studio.tasks) == 10
    said = [line for line in lines if line.endswith("tasks deleted there: their items had another")]
    assert [int(line.split()[0]) for line in said] == deleted


def test_of_two_tasks_of_an_item_those_that_are_answered_stay(tmp_path, make_project, monkeypatch):
    """Whatever is broken off: the look that would have shown them, the deletions."""
    directory, studio = make_project(tmp_path), Slow(0)
    monkeypatch.setattr(loop, "Event", Waits)
    monkeypatch.setattr("fastbadge.label.studio.server._PAGE", 4)
    to_be_lost = ["GET /api/tasks"] * 6 + ["DELETE"]  # six pages, of which the last is lost
    kept = []

    def lose(call, request):
        if to_be_lost and call.startswith(to_be_lost[0]):
            del to_be_lost[0]
            if to_be_lost[:1] != ["GET /api/tasks"]:
                raise httpx.ReadTimeout("timed out", request=request)

    def appear():
        copies = [{k: task[k] for k in ("data", "meta")} for task in studio.tasks.values()]
        first = list(studio.tasks)
        studio.late.append(copies)
        studio.commit()
        second = list(studio.tasks)[10:]
        studio.annotate(first[0], "sun")
        studio.annotate(second[1], "rain")
        studio.annotate(first[2], "sun")
        studio.annotate(second[2], None, was_cancelled=True, user=2)
        kept.extend([first[0], second[1], first[2], second[2], *first[3:]])
        studio.after = lose

    drive(directory, studio, *[idle] * 4, appear, *[idle] * 40)  # a turn for each page of a look
    assert not to_be_lost and sorted(studio.tasks) == sorted(kept)
    said = rows(directory, "SELECT item, annotator, class FROM label ORDER BY item, annotator")
    one, two, three = (studio.tasks[id]["meta"]["fastbadge_item"] for id in kept[:3])
    ann, bob = studio.users.values()
    assert said == sorted([(one, ann, 1), (two, ann, 2), (three, ann, 1), (three, bob, None)])


def fail(directory, studio, match, error=ProjectError, **options):
    studio.before = lambda call, request: None
    server = Server("http://studio.test", LEGACY, transport=studio.transport())
    with closing(server), pytest.raises(error, match=match) as caught:
        run(directory, server, Options(**options), say=idle_line)
    assert "\n" not in str(caught.value)


def test_a_project_that_was_deleted_or_is_another_servers_is_told(tmp_path, make_project):
    directory, studio = make_project(tmp_path), Studio()
    drive(directory, studio, idle)
    (made,) = studio.projects.values()
    created, made["created_at"] = made["created_at"], "2026-01-01T00:00:00Z"
    fail(directory, studio, r"has no project 1 of .* pass --new-project")
    made["created_at"] = created
    server = Server("http://studio.test", LEGACY, transport=studio.transport())
    studio.before = lambda call, request: studio.projects.clear() if "tasks" in call else None
    with pytest.raises(ProjectError, match=r"projects/1 was deleted.*pass --new-project"):
        run(directory, server, Options(poll_seconds=1e-3), say=idle_line)
    fail(directory, studio, r"has no project 1 of .* pass --new-project")
    studio.tasks.clear()
    drive(directory, studio, idle, new_project=True)
    assert len(studio.projects) == 1 and len(pushed(studio)) == 10


def test_one_loop_at_a_time(tmp_path, make_project):
    directory, studio = make_project(tmp_path), Studio()
    drive(directory, studio, lambda: fail(directory, Studio(), "another command is serving"))


def test_what_cannot_be_labelled_there_or_asked_for_is_refused(tmp_path, make_project):
    directory, studio = make_project(tmp_path), Studio()
    fail(directory, studio, "--poll is 0", InputError, poll_seconds=0)
    fail(directory, studio, "--image-url is '/{name}' for texts", InputError, image_url="/{name}")
    fail(directory, studio, "nothing can listen", InputError, webhook="nowhere")
    np.save(tmp_path / "x.npy", np.eye(4))
    config = Config(kind="features", source=str(tmp_path / "x.npy"), features="given")
    init_project(tmp_path / "f", config, [])
    fail(tmp_path / "f", studio, "rows of features, which nobody can see", InputError)
    project.create_project(tmp_path / "n", project.read_config(directory), [])
    fail(tmp_path / "n", studio, "has no classes", InputError)


def test_the_command_says_in_one_line_that_nothing_answers(tmp_path, make_project, capfd):
    directory = make_project(tmp_path)
    (tmp_path / "token").write_text(LEGACY)
    words = ["label", "studio", str(directory), "--url", "http://127.0.0.1:9", "--token-file"]
    assert main([*words, str(tmp_path / "token")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "does not answer" in line and "start Label Studio or pass another --url" in line


def test_images_by_address_and_one_that_has_gone(tmp_path):
    folder, studio = tmp_path / "images", Studio()
    (folder / "a b").mkdir(parents=True)
    for number in range(4):
        shade = np.full((8, 8), 60 * number, dtype=np.uint8)
        Image.fromarray(shade).save(folder / "a b" / f"{number}#.png")
    config = Config(kind="images", source=str(folder), features="pixels", batch=4)
    init_project(tmp_path / "p", config, CLASSES)
    (folder / "a b" / "2#.png").unlink()
    lines = drive(tmp_path / "p", studio, idle)
    assert any("item 3 is left out: a b/2#.png is no longer in" in line for line in lines)
    assert sorted(pushed(studio)) == [1, 2, 4] and read_status(tmp_path / "p").missing == 1
    assert all(t["data"]["image"].startswith("data:image/png;") for t in studio.tasks.values())
    studio.tasks.clear()
    drive(tmp_path / "p", studio, idle, image_url="/data/local-files/?d=x/{name}&i={item}")
    assert {task["data"]["image"] for task in studio.tasks.values()} == {
        f"/data/local-files/?d=x/a%20b/{n}%23.png&i={n + 1}" for n in (0, 1, 3)
    }


# --- what is recorded, by chance


def test_labels_are_those_that_stand_there_whatever_happened_between(tmp_path, make_project):
    directory = make_project(tmp_path, items=20)
    draw, clock = random.Random(0), iter(range(10**6))
    there = {}  # task: annotations by id; task t shows item t % 5 + 1, so that items have two

    def answer(id):
        updated = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(clock))).isoformat()
        label = draw.choice([1, 2, None])
        kind = "cannot tell" if label is None else "label"
        return Answer(id, draw.choice("ab"), kind, label, None, updated)

    for turn in range(25):
        touched = draw.sample(range(10), 3)
        for task in touched:
            made = there.setdefault(task, {})
            for id in [*made, turn * 10 + task]:
                if draw.random() < 0.4:
                    made.pop(id, None)
                elif draw.random() < 0.5:
                    made[id] = answer(id)
        news = {task: (task % 5 + 1, list(there[task].values())) for task in touched}
        take_answers(directory, "m", news)
        assert take_answers(directory, "m", news) == 0
        expected = sorted(
            (task % 5 + 1, each.annotator, each.kind, each.label or 0)
            for task, made in there.items()
            for each in made.values()
        )
        standing = rows(
            directory,
            "SELECT item, annotator, kind, coalesce(class, 0) FROM label WHERE undone IS NULL",
        )
        assert sorted(standing) == expected


def test_of_one_annotators_answers_the_latest_counts(tmp_path, make_project):
    directory = make_project(tmp_path, items=20)
    late = Answer(8, "ann", "label", 1, None, "2026-01-02T00:00:00Z")
    early = Answer(9, "ann", "label", 2, None, "2026-01-01T00:00:00Z")
    assert take_answers(directory, "m", {1: (3, [late, early])}) == 2
    assert take_snapshot(directory).class_N[2] == 1
    times = rows(directory, "SELECT created FROM label ORDER BY id")
    assert times == [("2026-01-01T00:00:00+00:00",), ("2026-01-02T00:00:00+00:00",)]
