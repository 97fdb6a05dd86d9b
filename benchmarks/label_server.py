"""The labelling server from outside: a browser without a screen, an annotator, random requests."""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastbadge.label import project
from fastbadge.label.initialise import init_project
from fastbadge.label.schema import connected

Truth: TypeAlias = NDArray[np.int64]

IN_HAND = 8  # as the page


class Browser:
    """One connection that is kept, and the cookie that opening the address sets."""

    def __init__(self, address: str) -> None:
        self.host = urlsplit(address).netloc
        self.connection = http.client.HTTPConnection(self.host, timeout=60)
        self.cookie = self.base = ""
        self.connection.request("GET", "/?" + urlsplit(address).query)
        with self.connection.getresponse() as answer:
            answer.read()
            assert answer.status == 303, answer.status
            self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
            self.base = answer.headers["Location"]

    def close(self) -> None:
        """Give the connection up."""
        self.connection.close()

    def get(self, path: str) -> bytes:
        """What lies at a path below the project's key."""
        return self._asked("GET", path, None)

    def ask(self, path: str, body: Any = None) -> Any:
        """JSON from a path, of a GET or, with a body, of a POST."""
        return json.loads(self._asked("GET" if body is None else "POST", path, body))

    def _asked(self, method: str, path: str, body: Any) -> bytes:
        headers = {"Cookie": self.cookie}
        if body is not None:
            headers |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body)
        self.connection.request(method, self.base + path, content, headers)
        with self.connection.getresponse() as answer:
            answered = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answered.decode(errors='replace')}")
        return answered


class Annotator:
    """Labels whatever the server gives, with as many items in hand as the page has."""

    def __init__(self, browser: Browser, truth: Truth, in_hand: int = IN_HAND) -> None:
        self.browser, self.truth, self.labels = browser, truth, 0
        self.me = {"annotator": "simulated", "n": in_hand}
        self.items: list[dict[str, Any]] = []

    def click(self) -> float | None:
        """Label an item; the seconds it took, or None where no item was there."""
        if not self.items:
            self.items = self.browser.ask("next", self.me)["items"]
            return None
        item = self.items[0]["id"]
        click = {"kind": "label", "item": item, "label": int(self.truth[item - 1]) + 1}
        start = perf_counter()
        answer = self.browser.ask("clicks", self.me | click | {"request": str(uuid4())})
        seconds = perf_counter() - start
        self.items = answer["items"]
        self.labels += 1
        return seconds


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """`fastbadge label serve` in a process of its own; the address."""
    command = [sys.executable, "-m", "fastbadge", "label", "serve", str(directory), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://"), address
            yield address
        finally:
            process.terminate()


def label_by_http(directory: Path, truth: Truth) -> Generator[int, None, None]:
    """Label as the page does; yields how many labels there are, whenever a batch was chosen.

    Labels that came while the model learned are counted, though it does not know them.
    """
    with server(directory) as address:
        annotator = Annotator(Browser(address), truth)
        batches = 0
        while True:
            if annotator.click() is None:
                time.sleep(0.02)
            with connected(directory) as connection:
                (found,) = connection.execute("SELECT count(*) FROM batch").fetchone()
            if found > batches:
                batches = found
                yield annotator.labels


def time_of_clicks(directory: Path, truth: Truth, clicks: int = 600) -> dict[str, float]:
    """Milliseconds from sending a click to having the next items, while rounds go on behind.

    Twenty clicks a second, and as many items in hand as the server gives: so many that it chooses
    the next batch as soon as one is chosen.
    """
    milliseconds: dict[bool, list[float]] = {True: [], False: []}
    with server(directory) as address:
        annotator = Annotator(Browser(address), truth, in_hand=60)
        while len(milliseconds[True]) < clicks:
            training = annotator.browser.ask("numbers")["choosing"]
            seconds = annotator.click()
            if seconds is not None:
                milliseconds[training].append(1000 * seconds)
            time.sleep(0.05)
    return {
        f"{name}_{figure}": float(value)
        for name, times in (("training", milliseconds[True]), ("idle", milliseconds[False]))
        for figure, value in {
            "clicks": len(times),
            **{f"p{share}_ms": np.percentile(times or [np.nan], share) for share in (50, 95, 99)},
        }.items()
    }


def time_to_open(directory: Path) -> dict[str, float]:
    """Seconds until a browser has what the page shows first: its files, items, images, numbers."""
    with server(directory) as address:
        Browser(address).ask("next", {"annotator": "first", "n": IN_HAND})
        watch = Browser(address)
        while watch.ask("numbers")["summary"] is None or watch.ask("numbers")["choosing"]:
            time.sleep(0.1)
        start = perf_counter()
        browser = Browser(address)
        for path in ("", "page.css", "page.js", "outbox.js", "numbers.js", "icon.svg", "project"):
            browser.get(path)
        items = browser.ask("next", {"annotator": "second", "n": IN_HAND})["items"]
        first = browser.get(f"items/{items[0]['id']}/image")
        shown = perf_counter() - start
        assert first.startswith(b"\x89PNG") and len(items) == IN_HAND
        for item in items[1:]:
            browser.get(f"items/{item['id']}/image")
        assert browser.ask("numbers")["summary"]
        return {"first_item_seconds": shown, "all_seconds": perf_counter() - start}


# --- random requests

SECRET = b"nothing outside the pool"
_METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "G\u00c4T")
_PATHS = (
    "project numbers next next clicks clicks clicks undo release classes page.js icon.svg items/1 "
    "items/2/image "
    "items/3/guess items/4/image items/5/image items/999/image items/0 items/-1/image items/1e3 "
    "items/%31/image items/\u0661/image items/%D9%A1/image items/1%00/image items/+1/image "
    "items/../../secret.png items/..%2f..%2fsecret.png %2e%2e/secret.png ../project.sqlite "
    "items/1/image/../../../server.token items/4/image?x=/etc/passwd .. . // items//image"
).split()
_NUMBERS: tuple[Any, ...] = (
    0,
    1,
    2,
    3,
    -1,
    61,
    2**31,
    2**63,
    10**400,
    1.0,
    True,
    None,
    "1",
    [],
    1e300,
    "\ud800",
)
_STRINGS: tuple[Any, ...] = (
    "ann",
    "bob",
    "",
    " ",
    "x" * 101,
    "a\0b",
    "\ud800",
    "<b>",
    "../..",
    7,
    None,
    [],
    {},
)


def make_target(folder: Path) -> Path:
    """A project of six images: one is a link now that leads out, one is no image any more."""
    source = folder / "images"
    source.mkdir(parents=True)
    for i in range(6):
        Image.new("L", (4, 4), 40 * i).save(source / f"{i}.png")
    (folder / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n" + SECRET)
    config = project.Config(kind="images", source=str(source), features="pixels", batch=3)
    init_project(folder / "project", config, ["a", "b"])
    (source / "3.png").unlink()
    (source / "3.png").symlink_to(folder / "secret.png")
    (source / "4.png").write_bytes(SECRET)
    return folder / "project"


def random_request(draw: random.Random, browser: Browser) -> bytes:
    """A request that is right in some parts, as it comes over the wire."""

    def mostly(right: str, *wrong: str) -> str:
        return right if draw.random() < 0.94 else draw.choice(wrong)

    origin = f"http://{browser.host}"
    path = draw.choice(_PATHS)
    if draw.random() < 0.05:
        path = "".join(chr(draw.randrange(33, 300)) for _ in range(draw.randrange(3000)))
    if draw.random() < 0.02:
        path = "items/" + "9" * draw.choice((18, 19, 20, 5000))
    base = mostly(browser.base, "/", "/0123456789abcdef/", "", f"{origin}/", "/?token=")
    writes = path in ("next", "clicks", "undo", "release", "classes")
    method = mostly("POST" if writes else "GET", *_METHODS)
    headers = [
        mostly(f"Host: {browser.host}", "Host: evil.example", "X: y", "Host: a\r\nHost: b"),
        mostly(f"Cookie: {browser.cookie}", "X: y", "Cookie: a=b", f"Cookie: {browser.cookie}x"),
        mostly(f"Origin: {origin}", "X: y", "Origin: null", "Origin: http://evil.example"),
        mostly("Content-Type: application/json", "X: y", "Content-Type: text/plain"),
        mostly("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site", "X: y"),
        mostly("X: y", f"X: {'z' * 70_000}", "X: \u00e4\udc00", "Expect: 100-continue", "X y"),
        mostly("X: y", "Upgrade: websocket\r\nConnection: Upgrade", "Range: bytes=0-9999999999"),
    ]
    body = _random_body(draw)
    if draw.random() < 0.15:
        headers.append("Transfer-Encoding: chunked")
        size = draw.choice((1, 100, 40_000))
        parts = [body[i : i + size] for i in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
    else:
        length = len(body) if draw.random() < 0.95 else draw.choice((0, 5, 10**6, 10**30, -1))
        headers.append(f"Content-Length: {length}")
    draw.shuffle(headers)
    head = "\r\n".join([f"{method} {base}{path} HTTP/1.1", *headers, "Connection: close", "", ""])
    return head.encode(errors="surrogatepass") + body


def _random_body(draw: random.Random) -> bytes:
    chance = draw.random()
    if chance < 0.1:
        return draw.randbytes(draw.randrange(200))
    if chance < 0.15:
        return draw.choice((b"[" * 60_000, b'{"a":' * 10_000, b" " * 70_000, b"9" * 5000, b"NaN"))
    body: dict[str, Any] = {
        "request": str(draw.random()),
        "annotator": draw.choice(("ann", "bob")),
        "name": draw.choice(("a", "b", "<script>alert(1)</script>")),
        "kind": draw.choice(("label", "label", "skip", "cannot tell")),
        "item": draw.randrange(1, 7),
        "label": draw.randrange(1, 3),
        "n": draw.choice((1, 8, 60)),
        "seconds": draw.choice((None, 1, 2.5)),
    }
    for name in draw.sample(list(body), draw.choice((0, 0, 1, 2))):
        body[name] = draw.choice((*_STRINGS, *_NUMBERS, float("nan"), float("inf")))
    if draw.random() < 0.1:
        del body[draw.choice(list(body))]
    text = json.dumps(body, ensure_ascii=draw.random() < 0.7)
    return text.encode("utf-16" if draw.random() < 0.05 else "utf-8", errors="surrogatepass")


def answer_to(host: str, request: bytes) -> bytes:
    """All that comes back; nothing where the connection was closed on us."""
    name, _, port = host.partition(":")
    answer = b""
    with socket.create_connection((name, int(port)), timeout=1) as connection:
        try:
            connection.sendall(request)
            while part := connection.recv(65536):
                answer += part
        except (ConnectionError, TimeoutError):
            pass  # a request that ends too early for its own length is waited for
    return answer


def bombard(
    directory: Path,
    address: str,
    requests: int,
    *,
    seed: int,
    seen: Callable[[bytes, bytes], None] = lambda request, answer: None,
) -> dict[str, int]:
    """Random requests; how many were answered with which status. `seen` gets each with its answer.

    Raises:
        AssertionError: an error of the server, something from outside the pool, a broken file.
    """
    draw = random.Random(seed)
    statuses: dict[str, int] = {}
    with closing(Browser(address)) as browser:
        inside = [SECRET, b"SQLite format", browser.cookie.partition("=")[2].encode()]
        for _ in range(requests):
            request = random_request(draw, browser)
            answer = answer_to(browser.host, request)
            answer = re.sub(rb"^HTTP/1.1 100 [^\r]*\r\n\r\n", b"", answer)
            status = answer[9:12].decode() or "closed"
            statuses[status] = statuses.get(status, 0) + 1
            assert not status.startswith("5"), (request, answer)
            assert not any(secret in answer for secret in inside), (request, answer)
            seen(request, answer)
        assert browser.ask("project")["kind"] == "images"
    with closing(sqlite3.connect(directory / "project.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return dict(sorted(statuses.items()))
