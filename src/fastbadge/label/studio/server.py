"""A Label Studio server: the part of its REST interface that the loop needs.

No call is tried twice: one that got no answer may have been carried out. The loop begins its step
again, which looks first at what is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbadge.errors import FastbadgeError, InputError, ProjectError

try:
    import httpx
except ModuleNotFoundError as error:
    raise InputError(f"label studio needs {error.name}; pip install 'fastbadge[label]'") from error

OLDEST = (1, 23)

# On SQLite and two cores 1,000 tasks with their annotations take 2.3 s, without them 0.3 s.
_PAGE = 200
_TIMEOUT_SECONDS = 60.0
_LEGACY = re.compile(r"[!-~]{8,}")
_PERSONAL = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")  # a JSON web token
_AWAY = {429, 500, 502, 503, 504}  # 500: its SQLite file was locked too long, among others
_ANNOTATIONS = "id,meta,updated_at,annotations,result,completed_by,was_cancelled,lead_time"


class AwayError(FastbadgeError):
    """The server did not answer, or said that it cannot at the moment."""


class GoneError(ProjectError):
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
        refresh = f"{self.url}/api/token/refresh/"
        auth = _Personal(token, refresh) if personal else _Legacy(token)
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
        found = self._call("GET", "/api/version/")
        release = found.get("release") if isinstance(found, dict) else None
        numbers = re.match(r"(\d+)\.(\d+)", str(release))
        if numbers is None:
            raise ProjectError(f"{self.url} is no Label Studio; pass the address of its page")
        if tuple(map(int, numbers.groups())) < OLDEST:
            raise ProjectError(
                f"{self.url} is Label Studio {release}; expected {'.'.join(map(str, OLDEST))} "
                "or newer"
            )
        return str(self._call("GET", "/api/current-user/whoami")["email"])

    def emails(self) -> dict[int, str]:
        """E-mail addresses of its users, by id."""
        return {user["id"]: user["email"] for user in self._call("GET", "/api/users/")}

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
        return _place(self._call("POST", "/api/projects/", json=settings))

    def project(self, id: int) -> Place:
        """A project.

        Raises:
            GoneError: it was deleted, or is not for this user.
        """
        return _place(self._call("GET", f"/api/projects/{id}/"))

    def find_project(self, marker: str) -> Place | None:
        """The project whose description holds the marker."""
        page = 1
        while True:
            query = {"page": page, "page_size": 100, "include": "id,description"}
            found = self._call("GET", "/api/projects/", params=query)
            for project in found["results"]:
                if marker in (project["description"] or ""):
                    return self.project(project["id"])
            if not found["next"]:
                return None
            page += 1

    def change_project(self, id: int, changes: Mapping[str, Any]) -> None:
        """Change settings of a project, such as its labelling view."""
        self._call("PATCH", f"/api/projects/{id}/", json=dict(changes))

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """`id` and `meta` of all tasks."""
        return self._tasks(project, {"include": "id,meta"}, [])

    def changed_tasks(self, project: int, since: str | None) -> Iterator[dict[str, Any]]:
        """Tasks with their annotations, of all or of those that changed after a time of its own.

        An annotation made, changed or deleted changes its task; `updated_at` is such a time.
        """
        filters = [] if since is None else [_filter("updated_at", "Datetime", since)]
        return self._tasks(project, {"fields": "all", "include": _ANNOTATIONS}, filters)

    def _tasks(
        self, project: int, query: Mapping[str, str], filters: Sequence[Mapping[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        last = 0  # by ids, not by pages: those shift under a reader when a task is deleted
        while True:
            conditions = [_filter("id", "Number", last), *filters]
            chosen = {
                "filters": {"conjunction": "and", "items": conditions},
                "ordering": ["tasks:id"],
            }
            params = {"project": project, "page_size": _PAGE, "query": json.dumps(chosen), **query}
            page = self._call("GET", "/api/tasks/", params=params)["tasks"]
            yield from page
            if len(page) < _PAGE:
                return
            last = page[-1]["id"]

    def add_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Add tasks, all or none."""
        self._call("POST", f"/api/projects/{project}/import", json=list(tasks))

    def delete_task(self, id: int) -> None:
        """Delete a task, if it is there."""
        with suppress(GoneError):
            self._call("DELETE", f"/api/tasks/{id}/")

    def add_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> int:
        """Have an address called when annotations change; the id of that order."""
        for old in self._call("GET", "/api/webhooks/", params={"project": project}):
            if old["url"] == url:  # of a loop that was killed
                self.remove_webhook(old["id"])
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
        return int(self._call("POST", "/api/webhooks/", json=order)["id"])

    def remove_webhook(self, id: int) -> None:
        """Take such an order back."""
        self._call("DELETE", f"/api/webhooks/{id}/")

    def _call(self, method: str, path: str, **content: Any) -> Any:
        try:
            response = self._client.request(method, path, **content)
        except httpx.RequestError as error:
            raise AwayError(f"{self.url} does not answer ({_line(str(error))})") from error
        status, detail = response.status_code, _detail(response)
        if status in _AWAY:
            raise AwayError(f"{self.url} cannot answer at the moment ({status} {detail})")
        if status in (401, 403):
            raise ProjectError(
                f"{self.url} refuses the token ({detail}); make another in Account & Settings there"
            )
        if response.is_redirect:
            raise ProjectError(
                f"{self.url} leads to {response.headers['location']}; pass the address of its page"
            )
        if status == 404:
            raise GoneError(f"{self.url} has no {path} ({detail})")
        if response.is_error:
            raise ProjectError(f"{self.url} refuses {method} {path} ({status} {detail})")
        if status == 204:
            return None
        try:
            return response.json()
        except ValueError as error:
            raise ProjectError(
                f"{self.url} is no Label Studio; pass the address of its page"
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

    def __init__(self, token: str, refresh_url: str) -> None:
        self._token, self._refresh_url, self._access = token, refresh_url, ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._access:
            request.headers["Authorization"] = f"Bearer {self._access}"
            if (yield request).status_code != 401:
                return
        answer = yield httpx.Request("POST", self._refresh_url, json={"refresh": self._token})
        if answer.status_code in (400, 401, 403):
            raise ProjectError(
                f"{self._refresh_url} refuses the token ({_detail(answer)}); make another in "
                "Account & Settings there"
            )
        if answer.is_error:
            raise AwayError(
                f"{self._refresh_url} cannot answer at the moment ({answer.status_code})"
            )
        self._access = str(answer.json()["access"])
        request.headers["Authorization"] = f"Bearer {self._access}"
        yield request


def _filter(column: str, kind: str, than: int | str) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": "greater", "type": kind, "value": than}


def _place(project: Mapping[str, Any]) -> Place:
    return Place(project["id"], project["created_at"], project["label_config"])


def _detail(response: httpx.Response) -> str:
    """What the server says of an error, in one line."""
    if not response.is_error:
        return ""
    try:
        said = response.json()
        text = str(said.get("validation_errors") or said["detail"])
    except (ValueError, KeyError, AttributeError):
        text = response.reason_phrase
    return _line(text)


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
