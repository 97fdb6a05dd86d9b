"""A Label Studio server: the part of its REST interface that the loop needs.

No call is tried twice: one that got no answer may have been carried out. The loop begins its step
again, which looks first at what is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastbadge.errors import FastbadgeError, InputError, ProjectError

try:
    import httpx
except ModuleNotFoundError as error:
    raise InputError(f"label studio needs {error.name}; pip install 'fastbadge[label]'") from error

OLDEST = (1, 23)

_ADVICE = "pass the address of its page"

# On SQLite and two cores 1,000 tasks with their annotations take 2.3 s, without them 0.3 s.
_PAGE = 200
_TIMEOUT_SECONDS = 60.0
_LEGACY = re.compile(r"[!-~]{8,}")
_PERSONAL = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")  # a JSON web token
_AWAY = {429, 500, 502, 503, 504}  # 500: its SQLite file was locked too long, among others
_ANNOTATION = ("id", "updated_at", "result", "completed_by", "was_cancelled", "lead_time")

T = TypeVar("T")


class AwayError(FastbadgeError):
    """The server did not answer, or said that it cannot at the moment."""


class RefusedError(ProjectError):
    """The server does not do what it was asked for."""


class GoneError(RefusedError):
    """What was asked for is not there any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """A project in Label Studio.

    Args:
        id: its number there.
        created: when it was made, to the microsecond; tells it from another server's of that id.
        view: its labelling view, XML.
    """

    id: int
    created: str
    view: str


def read_token(path: Path) -> str:
    """The token in a file, of either kind; white space around it does not count.

    Raises:
        InputError: no such file, or none that holds a token. What it holds is not shown.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a token of Label Studio: {error}") from error
    if not (_PERSONAL.fullmatch(token) or _LEGACY.fullmatch(token)):
        raise InputError(
            f"{path} holds no token of Label Studio; expected one word, a personal access token or "
            "a legacy token, from Account & Settings there"
        )
    return token


class Server:
    """A Label Studio, as one of its users.

    Args:
        url: where its page opens.
        token: of `read_token`.
        transport: in place of the network, for tests.

    Raises:
        InputError: `url` is no address.
    """

    def __init__(self, url: str, token: str, *, transport: httpx.BaseTransport | None = None):
        self.url = url.rstrip("/")
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise InputError(f"{url!r} is no address: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise InputError(f"{url!r} is no address; expected such as http://localhost:8080")
        personal = _PERSONAL.fullmatch(token)
        auth = _Personal(token, self.url) if personal else _Legacy(token)
        self._client = httpx.Client(
            base_url=self.url, auth=auth, timeout=_TIMEOUT_SECONDS, transport=transport
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def check(self) -> str:
        """The e-mail address of the token's user.

        Raises:
            AwayError: nothing answers.
            ProjectError: another server or version, or a token that is refused.
        """
        try:
            release = self._call("GET", "/api/version/", lambda found: str(found["release"]))
            email = self._call("GET", "/api/current-user/whoami", lambda user: str(user["email"]))
        except RefusedError as error:
            raise ProjectError(f"{error}; {_ADVICE}") from error
        numbers = re.match(r"(\d{1,9})\.(\d{1,9})", release)
        if numbers is None or tuple(map(int, numbers.groups())) < OLDEST:
            raise ProjectError(
                f"{self.url} is Label Studio {_line(release)}; expected "
                f"{'.'.join(map(str, OLDEST))} or newer"
            )
        return email

    def emails(self) -> dict[int, str]:
        """E-mail addresses of its users, by id."""
        return self._call(
            "GET", "/api/users/", lambda users: {user["id"]: str(user["email"]) for user in users}
        )

    def make_project(self, title: str, description: str, view: str, overlap: int) -> Place:
        """Make a project; a skipped task is not shown to others, as "cannot tell" is here."""
        settings = {
            "title": title,
            "description": description,
            "label_config": view,
            "maximum_annotations": overlap,
            "skip_queue": "IGNORE_SKIPPED",
            "sampling": "Sequential sampling",
            "enable_empty_annotation": False,
            "show_collab_predictions": False,
        }
        return self._call("POST", "/api/projects/", _place, json=settings)

    def project(self, id: int) -> Place:
        """A project.

        Raises:
            GoneError: it was deleted, or is not for this user.
        """
        return self._call("GET", f"/api/projects/{id}/", _place)

    def find_project(self, marker: str) -> Place | None:
        """The project whose description holds the marker."""
        page = 1
        while True:
            query = {"page": page, "page_size": 100, "include": "id,description"}
            described, more = self._call("GET", "/api/projects/", _described, params=query)
            for id, description in described.items():
                if marker in description:
                    return self.project(id)
            if not more:
                return None
            page += 1

    def change_project(self, id: int, changes: Mapping[str, Any]) -> None:
        """Change settings of a project, such as its labelling view."""
        self._call("PATCH", f"/api/projects/{id}/", _nothing, json=dict(changes))

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """`id` and `meta` of all tasks."""
        return self._tasks(project, {"include": "id,meta"}, [], _task)

    def changed_tasks(self, project: int, since: str | None) -> Iterator[dict[str, Any]]:
        """Tasks with their annotations, of all or of those that changed after a time of its own.

        An annotation made, changed or deleted changes its task; `updated_at` is such a time.
        """
        filters = [] if since is None else [_filter("updated_at", "Datetime", since)]
        names = ",".join(dict.fromkeys(["id", "meta", "annotations", *_ANNOTATION]))
        return self._tasks(project, {"fields": "all", "include": names}, filters, _annotated)

    def _tasks(
        self,
        project: int,
        query: Mapping[str, str],
        filters: Sequence[Mapping[str, Any]],
        read: Callable[[Any], dict[str, Any]],
    ) -> Iterator[dict[str, Any]]:
        last = 0  # by ids, not by pages: those shift under a reader when a task is deleted
        while True:
            conditions = [_filter("id", "Number", last), *filters]
            chosen = {
                "filters": {"conjunction": "and", "items": conditions},
                "ordering": ["tasks:id"],
            }
            params = {"project": project, "page_size": _PAGE, "query": json.dumps(chosen), **query}
            page = self._call(
                "GET",
                "/api/tasks/",
                lambda found: [read(task) for task in found["tasks"]],
                params=params,
            )
            yield from page
            if len(page) < _PAGE:
                return
            last = page[-1]["id"]

    def add_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Add tasks, all or none."""
        self._call("POST", f"/api/projects/{project}/import", _nothing, json=list(tasks))

    def delete_task(self, id: int) -> None:
        """Delete a task, if it is there."""
        with suppress(GoneError):
            self._call("DELETE", f"/api/tasks/{id}/", _nothing)

    def add_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> int:
        """Have an address called when annotations change; the id of that order."""
        orders = self._call(
            "GET",
            "/api/webhooks/",
            lambda found: {int(order["id"]): order["url"] for order in found},
            params={"project": project},
        )
        for id, there in orders.items():
            if there == url:  # of a loop that was killed
                self.remove_webhook(id)
        order = {
            "project": project,
            "url": url,
            "headers": dict(headers),
            "send_payload": False,
            "send_for_all_actions": False,
            "actions": [
                "ANNOTATION_CREATED",
                "ANNOTATIONS_CREATED",
                "ANNOTATION_UPDATED",
                "ANNOTATIONS_DELETED",
            ],
        }
        return self._call("POST", "/api/webhooks/", lambda made: int(made["id"]), json=order)

    def remove_webhook(self, id: int) -> None:
        """Take such an order back."""
        self._call("DELETE", f"/api/webhooks/{id}/", _nothing)

    def _call(self, method: str, path: str, read: Callable[[Any], T], **content: Any) -> T:
        try:
            response = self._client.request(method, path, **content)
        except httpx.RequestError as error:
            raise AwayError(f"{self.url} does not answer ({_line(str(error))})") from error
        return _read(self.url, response, read)


def _read(
    url: str,
    response: httpx.Response,
    read: Callable[[Any], T],
    refused: Sequence[int] = (401, 403),
) -> T:
    """What `read` finds in an answer; an error of one line where it is none of a Label Studio."""
    method, path = response.request.method, response.request.url.path
    status, detail = response.status_code, _detail(response)
    if status in _AWAY:
        raise AwayError(f"{url} cannot answer at the moment ({status} {detail})")
    if status in refused:
        raise ProjectError(
            f"{url} refuses the token ({detail}); make another in Account & Settings there"
        )
    if response.is_redirect:
        to = _line(response.headers.get("location", "nowhere"))
        raise ProjectError(f"{url} leads to {to}; {_ADVICE}")
    if status == 404:
        raise GoneError(f"{url} has no {path} ({detail})")
    if response.is_error:
        raise RefusedError(f"{url} refuses {method} {path} ({status} {detail})")
    got = _line(response.headers.get("content-type", "nothing"))
    try:
        found = None if status == 204 else response.json()
        got = "other JSON than expected"
        return read(found)
    except Exception as error:  # whatever reading a thing of another form ends in
        raise ProjectError(
            f"{url} is no Label Studio (it answers {method} {path} with {got}); {_ADVICE}"
        ) from error


class _Legacy(httpx.Auth):
    """The token as it is."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Token {self._token}"
        yield request


class _Personal(httpx.Auth):
    """A token exchanged for others that live five minutes, anew whenever one is refused."""

    requires_response_body = True

    def __init__(self, token: str, url: str) -> None:
        self._token, self._url, self._access = token, url, ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._access:
            request.headers["Authorization"] = f"Bearer {self._access}"
            if (yield request).status_code != 401:
                return
        refresh = httpx.Request(
            "POST", f"{self._url}/api/token/refresh/", json={"refresh": self._token}
        )
        try:
            self._access = _read(
                self._url, (yield refresh), lambda found: str(found["access"]), (400, 401, 403)
            )
        except RefusedError as error:  # no GoneError: nothing was deleted
            raise ProjectError(f"{error}; {_ADVICE}") from error
        request.headers["Authorization"] = f"Bearer {self._access}"
        yield request


def _filter(column: str, kind: str, than: int | str) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": "greater", "type": kind, "value": than}


def _place(project: Mapping[str, Any]) -> Place:
    return Place(int(project["id"]), str(project["created_at"]), str(project["label_config"]))


def _described(found: Mapping[str, Any]) -> tuple[dict[int, str], bool]:
    """Descriptions of a page of projects by id, and whether there are more pages."""
    described = {int(each["id"]): each["description"] or "" for each in found["results"]}
    return described, bool(found["next"])


def _task(task: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": int(task["id"]), "meta": task["meta"]}


def _annotated(task: Mapping[str, Any]) -> dict[str, Any]:
    made = [{name: each[name] for name in _ANNOTATION} for each in task["annotations"]]
    return _task(task) | {"updated_at": str(task["updated_at"]), "annotations": made}


def _nothing(found: object) -> None:
    pass


def _detail(response: httpx.Response) -> str:
    """What the server says of an error, in one line."""
    if not response.is_error:
        return ""
    try:
        said = response.json()
        text = str(said.get("validation_errors") or said["detail"])
    except (ValueError, KeyError, AttributeError, RecursionError):
        text = response.reason_phrase
    return _line(text)


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
