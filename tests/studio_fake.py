"""Label Studio as far as `fastbadge label studio` sees it, in memory."""

import json
import sqlite3
from base64 import urlsafe_b64encode
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from fastbadge.label.studio.loop import Options, run
from fastbadge.label.studio.server import Server

LEGACY = "0123456789abcdef0123456789abcdef01234567"
PERSONAL = ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in (b"{}", b"{1}", b"s"))
CLASSES = ["sun", "rain"]
WORDS = {"sun": ["warm", "bright", "dry"], "rain": ["wet", "grey", "cold"]}


class Studio:
    """As much of Label Studio as the loop sees, in memory; its clock moves with each change."""

    def __init__(self, release="1.23.2"):
        self.release = release
        self.projects, self.tasks, self.hooks = {}, {}, {}
        self.users = {1: "ann@example.com", 2: "bob@example.com"}
        self.access = set()
        self.calls = []
        self.before = self.after = lambda call, request: None
        self.clock, self.last = datetime(2026, 11, 24, tzinfo=UTC), 0

    def new_id(self):
        self.last += 1
        return self.last

    def now(self):
        self.clock += timedelta(seconds=1)
        return self.clock.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    # What people do there.

    def annotate(self, task, chosen, user=1, **changes):
        result = [{"from_name": "class", "value": {"choices": [chosen]}}] if chosen else []
        made = {"id": self.new_id(), "result": result, "completed_by": user, "lead_time": 2.5}
        made |= {"was_cancelled": False, "updated_at": self.now()} | changes
        self.tasks[task]["annotations"].append(made)
        self.tasks[task]["updated_at"] = self.now()
        return made

    def unanswered(self):
        return [id for id, task in self.tasks.items() if not task["annotations"]]

    def answer_all(self):
        for id in self.unanswered():
            self.annotate(id, truth(self.tasks[id]["data"]["text"]))

    # What the loop asks for.

    def transport(self):
        return httpx.MockTransport(self.handle)

    def handle(self, request):
        path = request.url.path.rstrip("/")
        call = f"{request.method} {path}"
        self.calls.append(call)
        content = json.loads(request.content) if request.content else None
        self.before(call, request)
        if path == "/api/token/refresh":
            if content["refresh"] != PERSONAL:
                return httpx.Response(401, json={"detail": "Token is invalid"})
            self.access.add(token := f"access{self.new_id()}")
            return httpx.Response(200, json={"access": token})
        kind, _, token = request.headers["Authorization"].partition(" ")
        known = self.access if kind == "Bearer" else {LEGACY}
        if token not in known and path != "/api/version":
            return httpx.Response(401, json={"detail": "Invalid token."})
        status, answer = self.answer(request.method, path.split("/")[2:], request.url, content)
        self.after(call, request)
        return httpx.Response(status, json=answer)

    def answer(self, method, path, url, content):
        match method, path:
            case "GET", ["version"]:
                return 200, {"release": self.release}
            case "GET", ["current-user", "whoami"]:
                return 200, {"email": self.users[1]}
            case "GET", ["users"]:
                return 200, [{"id": id, "email": email} for id, email in self.users.items()]
            case "GET", ["projects"]:
                return 200, {"results": list(self.projects.values()), "next": None}
            case "POST", ["projects"]:
                id = self.new_id()
                self.projects[id] = content | {"id": id, "created_at": self.now()}
                return 201, self.projects[id]
            case _, ["projects", id, *_] if int(id) not in self.projects:
                return 404, {"detail": "No Project matches the given query."}
            case "GET", ["projects", id]:
                return 200, self.projects[int(id)]
            case "PATCH", ["projects", id]:
                self.projects[int(id)] |= content
                return 200, self.projects[int(id)]
            case "POST", ["projects", _, "import"]:
                for task in content:
                    made = {"id": self.new_id(), "annotations": [], "updated_at": self.now()}
                    self.tasks[made["id"]] = task | made
                return 201, {}
            case "GET", ["tasks"]:
                if int(url.params["project"]) not in self.projects:
                    return 404, {"detail": "No Project matches the given query."}
                return 200, {"tasks": self.listed(url.params)}
            case "DELETE", ["tasks", id]:
                return (404, {}) if self.tasks.pop(int(id), None) is None else (204, None)
            case "GET", ["webhooks"]:
                return 200, list(self.hooks.values())
            case "POST", ["webhooks"]:
                id = self.new_id()
                self.hooks[id] = content | {"id": id}
                return 201, self.hooks[id]
            case "DELETE", ["webhooks", id]:
                del self.hooks[int(id)]
                return 204, {}
        raise AssertionError((method, path))

    def listed(self, params):
        conditions = json.loads(params["query"])["filters"]["items"]
        columns = [each["filter"].rpartition(":")[2] for each in conditions]
        least = {name: each["value"] for name, each in zip(columns, conditions, strict=True)}
        found = [
            task
            for id, task in sorted(self.tasks.items())
            if id > least["id"] and task["updated_at"] > least.get("updated_at", "")
        ]
        return found[: int(params["page_size"])]


def truth(text):
    return next(name for name, words in WORDS.items() if set(words) & set(text.split()))


def drive(directory, studio, *turns, token=LEGACY, **options):
    """Run the loop; each look at the answers is preceded by one turn, the last by Ctrl-C."""
    left = iter(turns)
    lines = []

    def before(call, request):
        if call == "GET /api/tasks" and "annotations" in request.url.params["include"]:
            turn = next(left, None)
            if turn is None:
                raise KeyboardInterrupt
            turn()

    studio.before = before
    server = Server("http://studio.test", token, transport=studio.transport())
    with closing(server), pytest.raises(KeyboardInterrupt):
        run(directory, server, Options(poll_seconds=1e-3, **options), say=lines.append)
    return lines


def rows(directory, query, *values):
    with closing(sqlite3.connect(directory / "project.sqlite")) as connection:
        return connection.execute(query, values).fetchall()


def pushed(studio):
    return [task["meta"]["fastbadge_item"] for task in studio.tasks.values()]


def idle():
    pass
