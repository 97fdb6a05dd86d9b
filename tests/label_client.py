"""Requests to a labelling server that runs in a thread, right or wrong in any part."""

import http.client
import importlib.util
import json
import sqlite3
import sys
import threading
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

from fastbadge.label import guard, project, server
from fastbadge.label.background import Background
from fastbadge.label.project import Config, Found, Pick

TOOLS = Path(__file__).parents[1] / "benchmarks" / "label_server.py"
NAMES = count()
GOOD = {"request": "r", "annotator": "ann", "item": 1, "kind": "label", "label": 1, "n": 1}


class Client:
    """Requests to one server; whatever headers are passed replace those of the page."""

    def __init__(self, address):
        self.host, _, query = address.removeprefix("http://").partition("/?")
        self.token = query.removeprefix("token=")
        self.cookie = self.base = ""
        answer = self.send("GET", "/?" + query)
        assert answer.status == 303
        self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        self.base = answer.headers["Location"]

    def send(self, method, path, body=None, **headers):
        """Any request; headers given as None are left out, lists are repeated."""
        usual = {"Host": self.host, "Cookie": self.cookie}
        if method not in ("GET", "HEAD"):
            usual |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        given = usual | {name.replace("_", "-"): value for name, value in headers.items()}
        chunked = given.get("Transfer-Encoding") == "chunked"
        with closing(http.client.HTTPConnection(self.host, timeout=20)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in given.items():
                for each in value if isinstance(value, list) else [value]:
                    if each is not None:
                        connection.putheader(name, each)
            if isinstance(body, bytes) and not chunked and "Content-Length" not in given:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body, encode_chunked=chunked)
            answer = connection.getresponse()
            answer.body = answer.read()
        return answer

    def get(self, path, **headers):
        return self.send("GET", self.base + path, **headers)

    def post(self, path, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", self.base + path, body, **headers)

    def ask(self, path, body=None):
        answer = self.get(path) if body is None else self.post(path, body)
        assert answer.status == 200, answer.body
        assert answer.headers["Content-Type"] == "application/json"
        return json.loads(answer.body)

    def click(self, item, annotator="ann", kind="label", n=1, **more):
        body = {"item": item, "annotator": annotator, "kind": kind, "n": n, "request": name()}
        return self.ask("clicks", body | ({"label": 1} if kind == "label" else {}) | more)

    def next(self, annotator, n=3):
        return [item["id"] for item in self.ask("next", {"annotator": annotator, "n": n})["items"]]


def name():
    return f"request {next(NAMES)}"


@contextmanager
def served(directory, behind=None):
    """A server in a thread; its rounds stand still unless a background is passed."""
    listener = server.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    token = guard.project_token(directory)
    hosts = server.hosts_of("127.0.0.1", port)
    app = server.create_app(directory, behind or Background(directory), token=token, hosts=hosts)
    uvicorn = server.create_server(app)
    thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Client(f"http://127.0.0.1:{port}/?token={token}")
    finally:
        uvicorn.should_exit = True
        thread.join()


def texts(directory, items=20, batch=10, **changes):
    """A project of texts whose first items make a batch."""
    config = Config(kind="texts", source="/data/t.csv", features="tfidf", text_column="text")
    settings = {field: getattr(config, field) for field in config.__slots__} | changes
    project.create_project(directory, Config(**settings), ["cat", "dog"])
    found = [Found(f"{i:064x}", str(i), f"text {i}") for i in range(items)]
    project.add_items(directory, found, first=1)
    picks = [Pick(item, "validation", 1.5, 2, 0.75) for item in range(1, batch + 1)]
    project.record_round(directory, picks, strategy="badge", seed=0, model=None, after=0)
    return directory


def rows(directory, query):
    with closing(sqlite3.connect(directory / "project.sqlite")) as connection:
        return connection.execute(query).fetchall()


def load(file, monkeypatch):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, module)
    spec.loader.exec_module(module)
    return module


def is_one_line(body):
    return body.endswith(b"\n") and body.count(b"\n") == 1 and len(body) > 5
