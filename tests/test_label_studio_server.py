"""The loop with the real Label Studio, on SQLite, started here: make test-label-studio."""

import json
import os
import queue
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fastbadge.label.initialise import init_project
from fastbadge.label.project import Config, read_status, take_snapshot

pytestmark = pytest.mark.label_studio

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / ".venv-label-studio" / "bin" / "label-studio"
ADMIN, PASSWORD, LEGACY = "admin@example.com", "no secret 123", "0123456789abcdef" * 2
DIGITS = load_digits()
CLASSES = [*map(str, range(8)), "$8", 'n < "9" & more']
PATIENCE_SECONDS = 300  # a first start takes 37 s alone on two cores, 114 s on busy ones


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(condition, what):
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, f"waited for {what} for {PATIENCE_SECONDS} s"
        time.sleep(0.1)
    return found


class Studio:
    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        settings = {
            "HOME": self.folder,
            "LABEL_STUDIO_BASE_DATA_DIR": self.folder / "data",
            "LABEL_STUDIO_USERNAME": ADMIN,
            "LABEL_STUDIO_PASSWORD": PASSWORD,
            "LABEL_STUDIO_USER_TOKEN": LEGACY,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LOCAL_FILES_SERVING_ENABLED": "true",
            "LOCAL_FILES_DOCUMENT_ROOT": self.folder,
            "SSRF_PROTECTION_ENABLED": "false",  # its webhooks may call this machine
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
        }
        where = ["--internal-host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "start", "--no-browser", *where, "--data-dir", self.folder / "data"],
                env={"PATH": os.environ["PATH"]} | {k: str(v) for k, v in settings.items()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(self.answers, "Label Studio")

    def answers(self):
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            return httpx.get(f"{self.url}/api/version", timeout=10).is_success
        except httpx.TransportError:
            return False

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Person:
    """Someone with an account, who answers through the interface that the page uses."""

    def __init__(self, studio, email, *, sign_up=False):
        self.client = httpx.Client(base_url=studio.url, timeout=60)
        page = "/user/signup/" if sign_up else "/user/login/"
        self.client.get(page)
        form = {"email": email, "password": PASSWORD}
        form |= {"csrfmiddlewaretoken": self.client.cookies["csrftoken"]}
        assert self.client.post(page, data=form).status_code == 302
        made = self.call("POST", "/api/token/")
        self.token = made["token"]

    def call(self, method, path, **content):
        headers = {"X-CSRFToken": self.client.cookies["csrftoken"]}
        response = self.client.request(method, path, headers=headers, **content)
        assert response.is_success, (method, path, response.text)
        return response.json() if response.content else None

    def tasks(self, project):
        query = {"project": project, "fields": "all", "page_size": 1000}
        return self.call("GET", "/api/tasks/", params=query)["tasks"]

    def answer(self, task, name):
        chosen = {"from_name": "class", "to_name": "item", "type": "choices"}
        chosen |= {"value": {"choices": [name]}}
        content = {"result": [chosen], "lead_time": 1.5}
        return self.call("POST", f"/api/tasks/{task['id']}/annotations/", json=content)


class Loop:
    """`fastbadge label studio` as a process, and what it says."""

    def __init__(self, directory, studio, token, *options):
        file = directory.parent / f"{directory.name}.token"
        file.write_text(token)
        words = ["label", "studio", directory, "--url", studio.url, "--token-file", file, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastbadge", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said, self.lines = [], queue.Queue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put("(end)")

    def wait_for(self, pattern):
        """The next line that matches."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.said.append(self.lines.get(timeout=max(end - time.monotonic(), 0)))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} among {self.said}") from None
            assert self.said[-1] != "(end)", self.said
            if found := re.search(pattern, self.said[-1]):
                return found

    def stop(self, number):
        self.process.send_signal(number)
        return self.ended()

    def ended(self):
        """Its exit status."""
        self.process.wait(timeout=PATIENCE_SECONDS)
        self.reader.join()
        self.process.stdout.close()
        return self.process.returncode


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    assert PROGRAM.is_file(), f"no {PROGRAM}; run: make test-label-studio"
    made = Studio(tmp_path_factory.mktemp("studio"))
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def ann(studio):
    person = Person(studio, ADMIN)
    with closing(person.client):
        yield person


@pytest.fixture(scope="module")
def bob(studio):
    person = Person(studio, "bob@example.com", sign_up=True)
    with closing(person.client):
        yield person


@pytest.fixture
def start_loop(studio):
    """Starts loops, and ends those that a failed test leaves."""
    started = []

    def start(directory, token, *options):
        started.append(Loop(directory, studio, token, *options))
        return started[-1]

    yield start
    for loop in started:
        if loop.process.returncode is None:
            loop.stop(signal.SIGKILL)


def digits_project(folder, name, **changes):
    source = folder / f"{name}_images"
    source.mkdir()
    for number in range(60):
        grey = (DIGITS.images[number] * 16).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey).save(source / f"{number:02} {DIGITS.target[number]}.png")
    config = Config(kind="images", source=str(source), features="pixels", batch=10, **changes)
    init_project(folder / name, config, CLASSES)
    return folder / name


def truth(task):
    return CLASSES[int(Path(task["data"]["name"]).stem.split()[1])]


def answer(people, tasks):
    for number, task in enumerate(tasks):
        people[number % len(people)].answer(task, truth(task))


def unanswered(person, project):
    return [task for task in person.tasks(project) if not task["annotations"]]


def check_agreement(directory, person, project):
    """The project holds just what stands in Label Studio, and every item has one task at most."""
    tasks = person.tasks(project)
    items = [task["meta"]["fastbadge_item"] for task in tasks]
    assert len(items) == len(set(items))
    emails = {user["id"]: user["email"] for user in person.call("GET", "/api/users/")}
    there = []
    for item, task in zip(items, tasks, strict=True):
        for made in task["annotations"]:
            chosen = made["result"][0]["value"]["choices"][0] if made["result"] else None
            there.append((item, emails[made["completed_by"]], chosen))
    with closing(sqlite3.connect(directory / "project.sqlite")) as connection:
        here = connection.execute(
            "SELECT item, annotator, name FROM label LEFT JOIN class ON class.id = label.class "
            "WHERE undone IS NULL"
        ).fetchall()
    assert sorted(here, key=str) == sorted(there, key=str) and here
    return len(tasks)


def test_a_project_from_the_first_batch_through_kills_of_both_sides(
    tmp_path, studio, start_loop, ann, bob
):
    directory = digits_project(tmp_path, "p")
    loop = start_loop(directory, LEGACY, "--poll", "0.3", "--prelabel")
    project = int(loop.wait_for(r"people label at .*/projects/(\d+)")[1])
    loop.wait_for("10 tasks pushed")
    tasks = unanswered(ann, project)
    assert len(tasks) == 10 and all(t["data"]["image"].startswith("data:image/") for t in tasks)

    # An import that was given up and carried out later.
    again = [{"data": task["data"], "meta": task["meta"]} for task in tasks[8:]]
    ann.call("POST", f"/api/projects/{project}/import", json=again)
    loop.wait_for("2 tasks deleted there: their items had another")
    assert [task["id"] for task in unanswered(ann, project)] == [task["id"] for task in tasks]

    # Two people; what is taken back and changed.
    answer([ann, bob], tasks[:8])
    loop.wait_for("10 tasks pushed")
    second = [task for task in unanswered(ann, project) if task["predictions"]]
    assert second and all(t["predictions"][0]["model_version"] == "fastbadge" for t in second)
    made = ann.answer(tasks[8], CLASSES[0])
    ann.call("DELETE", f"/api/annotations/{made['id']}/")
    made = bob.answer(tasks[8], CLASSES[0])
    chosen = {"value": {"choices": [CLASSES[8]]}, "from_name": "class", "to_name": "item"}
    change = {"result": [chosen | {"type": "choices"}]}
    bob.call("PATCH", f"/api/annotations/{made['id']}/", json=change)
    skipped = {"result": [], "was_cancelled": True}
    ann.call("POST", f"/api/tasks/{tasks[9]['id']}/annotations/", json=skipped)
    eventually(lambda: read_status(directory).cannot_tell == 1, "what was skipped")
    eventually(lambda: read_status(directory).labelled == 9, "what was changed")
    item = tasks[8]["meta"]["fastbadge_item"]
    eventually(lambda: take_snapshot(directory).class_N[item - 1] == 9, "the changed class")
    check_agreement(directory, ann, project)

    # The loop is killed, answers come in, the loop is started again, by a token of the other kind.
    assert loop.stop(signal.SIGKILL) == -signal.SIGKILL
    answer([bob, ann], unanswered(ann, project)[:8])
    loop = start_loop(directory, ann.token, "--poll", "0.3")
    assert loop.wait_for(r"people label at .*/projects/(\d+)")[1] == str(project)
    loop.wait_for("8 answers new")
    loop.wait_for("10 tasks pushed")
    assert check_agreement(directory, ann, project) == 30

    # Label Studio is killed and started again.
    studio.kill()
    loop.wait_for("does not answer.*trying again")
    studio.start()
    loop.wait_for("answers again")
    answer([ann, bob], unanswered(ann, project))
    loop.wait_for("10 tasks pushed")
    eventually(lambda: read_status(directory).waiting == 10, "the next batch")
    assert loop.stop(signal.SIGINT) == 130
    assert check_agreement(directory, ann, project) == 40
    status = read_status(directory)
    assert set(status.per_annotator) == {ADMIN, "bob@example.com"}
    assert status.labelled == 29 and status.cannot_tell == 1 and status.batches == 4

    # It is deleted there.
    ann.call("DELETE", f"/api/projects/{project}/")
    loop = start_loop(directory, LEGACY)
    loop.wait_for(f"has no project {project} of .*--new-project")
    assert loop.ended() == 2


def test_images_from_local_files_and_a_webhook_in_place_of_polling(studio, start_loop, ann):
    folder = studio.folder
    directory = digits_project(folder, "q", strategy="random")
    options = ["--image-url", "/data/local-files/?d=q_images/{name}", "--poll", "3600"]
    loop = start_loop(directory, LEGACY, *options, "--webhook", f"127.0.0.1:{free_port()}")
    project = int(loop.wait_for(r"people label at .*/projects/(\d+)")[1])
    storage = {"project": project, "path": str(folder / "q_images"), "use_blob_urls": True}
    ann.call("POST", "/api/storages/localfiles/", json=storage | {"title": "images"})
    loop.wait_for("10 tasks pushed")
    tasks = unanswered(ann, project)
    for task in tasks[:2]:
        image = ann.client.get(task["data"]["image"])
        assert image.headers["content-type"] == "image/png"
        assert image.content == (folder / "q_images" / task["data"]["name"]).read_bytes()
    ann.answer(tasks[0], truth(tasks[0]))
    loop.wait_for("1 answers new")  # in less than the hour between two looks
    assert len(ann.call("GET", "/api/webhooks/", params={"project": project})) == 1
    assert loop.stop(signal.SIGINT) == 130
    assert ann.call("GET", "/api/webhooks/", params={"project": project}) == []


def test_a_token_that_is_refused_and_one_that_is_taken_back_are_one_line(tmp_path, start_loop, bob):
    directory = digits_project(tmp_path, "r")
    for token in ("f" * 32, bob.token[:-4] + "aaaa"):
        loop = start_loop(directory, token)
        loop.wait_for("refuses the token")
        assert loop.ended() == 2
        assert token not in json.dumps(loop.said)
