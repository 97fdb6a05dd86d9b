"""The labelling server: one page, and what it asks for. `guard` says who may ask.

Below the project's key:

    GET  ""                    the page; its style, scripts and icon beside it
    GET  project               kind of the items, overlap, classes, keys to what is shown
    POST next                  annotator, n: the next items, theirs for ten minutes
    POST clicks                request, annotator, n, item, kind, label, seconds: the next items
    POST undo                  request, annotator, n, click (its request; null for the latest):
                               the item whose click was taken back, as items/ID; the next items
    POST release               annotator: gives back what they have on the screen
    POST classes               name: all classes
    GET  items/ID?annotator=   one item, their answer that stands, and whether it is lent to them
    GET  items/ID/image        its file
    GET  items/ID/guess        what the model took it for, for people who ask
    GET  numbers               see `background.summarise`

A click is committed when it is answered. When an annotator cannot be given as many items as the
page would like to have in hand, the next batch is chosen in the background; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastbadge.errors import FastbadgeError, InputError, ProjectError
from fastbadge.label import clicks, project
from fastbadge.label.background import Background
from fastbadge.label.guard import Guard, project_token, read_json
from fastbadge.label.images import as_shown
from fastbadge.label.schema import kept_open
from fastbadge.label.sources import read_image

Body: TypeAlias = Mapping[str, Any]

_PAGE = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "outbox.js": ("outbox.js", "text/javascript"),
    "numbers.js": ("numbers.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
_MOST_ITEMS = 60
_HEAD_SECONDS = 10.0


class Desk:
    """What the page may ask for, answered by the project.

    Bodies are what came from outside, and are read before anything is done; `clicks` and `project`
    check the rest.
    """

    def __init__(self, directory: Path, background: Background) -> None:
        self.directory, self.background = directory, background

    def project(self) -> Any:
        """What stays as it is while people label."""
        config = project.read_config(self.directory)
        return {
            "name": self.directory.resolve().name,
            "kind": config.kind,
            "overlap": config.overlap,
            "classes": self._classes(),
        }

    def numbers(self) -> Any:
        """The latest numbers, and what the background is about."""
        background = self.background
        return {
            "summary": background.summary,
            "choosing": background.choosing,
            "trouble": background.trouble,
        }

    def next(self, body: Body) -> Any:
        """Items for an annotator."""
        return self._next(_text(body, "annotator"), _count(body))

    def click(self, body: Body) -> Any:
        """Record a click."""
        annotator, n = _text(body, "annotator"), _count(body)
        item, request = _whole(body, "item"), _text(body, "request")
        kind, seconds = _text(body, "kind"), _seconds(body)
        if kind == "label":
            label = _whole(body, "label")
            clicks.record_label(
                self.directory, item, label, annotator, request=request, seconds=seconds
            )
        elif kind in ("cannot tell", "skip"):
            record = clicks.skip if kind == "skip" else clicks.record_cannot_tell
            record(self.directory, item, annotator, request=request, seconds=seconds)
        else:
            raise InputError("kind is another; expected label, cannot tell or skip")
        self.background.note_change()
        return self._next(annotator, n)

    def undo(self, body: Body) -> Any:
        """Take back a click of the annotator."""
        annotator, n = _text(body, "annotator"), _count(body)
        request = _text(body, "request")
        click = None if body.get("click") is None else _text(body, "click")
        undone = clicks.undo(self.directory, annotator, request=request, click=click)
        self.background.note_change()
        return {"undone": undone and self.item(undone.item, annotator), **self._next(annotator, n)}

    def release(self, body: Body) -> Any:
        """Give back an annotator's items."""
        clicks.release(self.directory, _text(body, "annotator"))
        return {}

    def add_class(self, body: Body) -> Any:
        """Add a class."""
        project.add_class(self.directory, _text(body, "name"))
        self.background.note_change()
        return self._classes()

    def item(self, item: int, annotator: str) -> Any:
        """One item, and what it is to an annotator."""
        shown = _shown(project.read_item(self.directory, item))
        answer, leased = clicks.read_standing(self.directory, item, annotator.strip())
        said = answer and {name: getattr(answer, name) for name in ("request", "kind", "label")}
        return {**shown, "answer": said, "leased": leased}

    def guess(self, item: int) -> Any:
        """The class that the model took an item for, without its softmax, which is not calibrated.

        None for validation items, too: who sees a guess tends to agree with it, and the accuracy
        would flatter the model.
        """
        project.read_item(self.directory, item)
        pick = project.read_pick(self.directory, item)
        if pick is None or pick.predicted is None or pick.reason == "validation":
            return None
        return {"class": pick.predicted}

    def image(self, item: int) -> Response:
        """The file of an image, with the type that it has; a PNG where browsers do not show it."""
        config, found = project.read_config(self.directory), project.read_item(self.directory, item)
        if config.kind != "images":
            raise InputError(f"item {item} is no file but one of the {config.kind}")
        shown, kind = as_shown(read_image(Path(config.source), found))
        return Response(shown, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    def _next(self, annotator: str, n: int) -> dict[str, Any]:
        items = clicks.next_items(self.directory, annotator, n)
        # Fewer than the page likes to have in hand: the next batch is due.
        choosing = self.background.want_batch() if len(items) < n else self.background.choosing
        return {"items": [_shown(item) for item in items], "choosing": choosing}

    def _classes(self) -> Any:
        classes = project.read_classes(self.directory)
        return [{"id": id, "name": name} for id, name in classes.items()]


def create_app(
    directory: Path, background: Background, *, token: str, hosts: frozenset[str]
) -> Guard:
    """The server as an ASGI application.

    Args:
        directory: of the project.
        background: running, for as long as the application.
        token: that the address and the cookie must hold.
        hosts: values of the Host header that are served.
    """
    desk = Desk(directory, background)

    def reading(path: str, read: Callable[[], Any]) -> Route:
        return Route(path, lambda _: _json(read), methods=["GET"])  # in a thread, as all below

    def writing(path: str, write: Callable[[Body], Any]) -> Route:
        async def answer(request: Request) -> Response:
            return await run_in_threadpool(_json, write, await read_json(request))

        return Route(path, answer, methods=["POST"])

    def of_item(path: str, read: Callable[..., Any], *query: str) -> Route:
        def find(request: Request) -> Response:
            number = request.path_params["item"]
            if not re.fullmatch("[1-9][0-9]{0,18}", number):
                raise HTTPException(404, "there is no such item")
            try:
                asked = (request.query_params.get(name, "") for name in query)
                return _json(read, int(number), *asked)
            except InputError as error:
                raise HTTPException(404, str(error)) from error

        return Route(path, find, methods=["GET"])

    routes = [
        *(_asset(f"/{path}", *what) for path, what in _PAGE.items()),
        reading("/project", desk.project),
        reading("/numbers", desk.numbers),
        writing("/next", desk.next),
        writing("/clicks", desk.click),
        writing("/undo", desk.undo),
        writing("/release", desk.release),
        writing("/classes", desk.add_class),
        of_item("/items/{item}", desk.item, "annotator"),
        of_item("/items/{item}/image", desk.image),
        of_item("/items/{item}/guess", desk.guess),
    ]
    app = Starlette(exception_handlers={HTTPException: _refuse, FastbadgeError: _refuse})
    guard = Guard(app, token, hosts)
    app.router.redirect_slashes = False
    app.router.routes.append(Mount(f"/{guard.key}", routes=routes))
    return guard


class _Protocol(H11Protocol):
    """HTTP/1.1, for those who send the head of a request in time, which uvicorn does not ask for.

    Once it is there the guard closes the connection of whoever has no token.
    """

    scope: Any  # None before the first head has come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(_HEAD_SECONDS, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self.scope is None:
            self.transport.close()


def create_server(app: Guard) -> uvicorn.Server:
    """What runs the application: HTTP/1.1 by h11, which refuses requests that can be read two ways.

    It says nothing but errors: its log would hold the token.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)


def serve(
    directory: Path, *, host: str = "127.0.0.1", port: int = 8765, ready: Callable[[str], None]
) -> None:
    """Serve a project until Ctrl-C.

    Args:
        directory: of the project.
        host: name or address to listen at; one that is not loopback is reached from elsewhere by
            whoever has the token.
        port: 0 for any that is free.
        ready: called with the address to open, when it answers.

    Raises:
        ProjectError: no project there, or one that cannot be used.
        InputError: a host or port that cannot be listened at.
    """
    directory = Path(directory)
    waiting = project.count_waiting(directory)
    token = project_token(directory)
    listener = listen(host, port)
    port = listener.getsockname()[1]
    background = Background(directory)
    app = create_app(directory, background, token=token, hosts=hosts_of(host, port))
    with listener, kept_open(directory), background.running():
        if not waiting:
            background.want_batch()
        ready(f"http://{_in_url(reachable(host))}:{port}/?token={token}")
        create_server(app).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: it cannot, and why.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"port is {port}; expected 0 (any that is free) to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.create_server(address[:2], family=family)
        # Says that it is TCP, else asyncio does not switch off the delay of small packets: 40 ms.
        return socket.socket(family, made.type, socket.IPPROTO_TCP, fileno=made.detach())
    except (OSError, UnicodeError) as error:
        # create_server adds the address once more to the text of an error with a number.
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number in errno.errorcode else error.args[-1]
        raise InputError(
            f"cannot listen at {host}, port {port}: {reason}; pass another --host, or --port 0"
        ) from error


def hosts_of(host: str, port: int) -> frozenset[str]:
    """What the Host header may say: the names of this machine that were asked for, no others.

    >>> sorted(hosts_of("127.0.0.1", 8765))
    ['127.0.0.1:8765', '[::1]:8765', 'localhost:8765']
    """
    names = {"localhost", "127.0.0.1", "::1", host, reachable(host)}
    if host in _ANY:
        names |= {socket.gethostname(), socket.getfqdn()}
    written = {_in_url(name.lower()) for name in names - set(_ANY)}
    # A browser leaves out the port that is usual.
    return frozenset({f"{name}:{port}" for name in written} | (written if port == 80 else set()))


def reachable(host: str) -> str:
    """The host to open where it listens at all addresses: the one that other machines see."""
    if host not in _ANY:
        return host
    family, far = _ANY[host]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((far, 9))  # sends nothing: it only looks up the way
            return str(probe.getsockname()[0])
        except OSError:  # no network
            return "localhost"


# Addresses that mean all, and one of those kept for documentation, far away.
_ANY = {
    "0.0.0.0": (socket.AF_INET, "192.0.2.1"),
    "::": (socket.AF_INET6, "2001:db8::1"),
}


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _asset(path: str, name: str, kind: str) -> Route:
    content = files("fastbadge.label").joinpath("page", name).read_bytes()
    return Route(path, lambda _: Response(content, media_type=kind), methods=["GET"])


def _json(answer: Callable[..., Any], *arguments: Any) -> Response:
    """What was answered, as JSON unless it is a response already."""
    value = answer(*arguments)
    if isinstance(value, Response):
        return value
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")


def _refuse(_: Request, error: Exception) -> Response:
    """Any error on purpose, in one line."""
    if isinstance(error, HTTPException):
        return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
    return PlainTextResponse(f"{error}\n", 500 if isinstance(error, ProjectError) else 400)


def _shown(item: project.Item) -> dict[str, Any]:
    return {"id": item.id, "name": item.name, "text": item.text}


def _text(body: Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise InputError(f"{name} is a {type(value).__name__}; expected a string")
    return value


def _whole(body: Body, name: str) -> int:
    value = body.get(name)
    if type(value) is not int:  # True is one otherwise
        raise InputError(f"{name} is a {type(value).__name__}; expected a whole number")
    return value


def _count(body: Body) -> int:
    n = _whole(body, "n")
    if not 1 <= n <= _MOST_ITEMS:
        raise InputError(f"n is {n}; expected 1 to {_MOST_ITEMS}")
    return n


def _seconds(body: Body) -> float | None:
    value = body.get("seconds")
    if value is not None and type(value) not in (int, float):
        raise InputError(f"seconds is a {type(value).__name__}; expected a number or null")
    if value is not None and not 0 <= value < 1e9:  # also what no float can hold
        raise InputError("seconds is out of range; expected 0 to 1e9")
    return value
