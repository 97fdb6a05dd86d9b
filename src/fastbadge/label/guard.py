"""Who may speak to the labelling server, and what every answer says to the browser.

The server is reached by any page that the browser has open, and by any name that somebody's DNS
points at this machine. So, in front of everything: the Host must be one that is served (a name that
was rebound to this machine is not), a cookie must hold the token (SameSite, so that no other site
sends it along), and what changes something must come from a page of this server (Origin). Bodies
are JSON of at most 64 KiB.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastbadge.errors import ProjectError

MOST_BYTES = 64 << 10
_BODY_SECONDS = 10.0
_TOKEN_FILE = "server.token"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def project_token(directory: Path) -> str:
    """The random token of a project's server, made when it is first asked for.

    It is kept in the project, readable to its owner alone, so that a page that is open goes on when
    the server was started anew. Remove the file for another one.

    Raises:
        ProjectError: it can be neither read nor made.
    """
    path = directory / _TOKEN_FILE
    draft = directory / f".{_TOKEN_FILE}.{os.getpid()}"
    try:
        if not path.exists():
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(24))
            try:
                os.link(draft, path)  # whole, and only one where two servers start at once
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{path} cannot be used: {error}; remove it, or mend it") from error
    if len(token) < 20:
        raise ProjectError(f"{path} holds no token; remove it, then start the server again")
    return token


@dataclass(frozen=True, slots=True)
class Guard:
    """An application behind the checks.

    Args:
        app: gets what passes.
        token: that the address and the cookie must hold.
        hosts: values of the Host header that are served.
    """

    app: ASGIApp
    token: str
    hosts: frozenset[str]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        """Name the project by its token: first part of all paths but the address itself.

        So a page of one project cannot write into another that is served at the same address
        later, nor see an image of it from the browser's cache.
        """
        object.__setattr__(self, "key", sha256(self.token.encode()).hexdigest()[:16])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it pass."""
        assert scope["type"] == "http"  # uvicorn is told to do no more

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._answer(Request(scope)) or self.app
        await answer(scope, receive, send_with_headers)

    def _answer(self, request: Request) -> Response | None:
        """What is answered here and now; None for a request that may pass."""
        headers = request.headers
        host = headers.getlist("host")
        if len(host) != 1 or host[0].lower() not in self.hosts:
            return _refusal(
                400, "this host is not served; open the address that the server printed"
            )
        token = request.query_params.get("token")
        reading = request.method in ("GET", "HEAD")
        if request.url.path == "/" and reading and token is not None:
            if not self._is_token(token):
                return _refusal(401, "the token is wrong; open the address that the server printed")
            answer = RedirectResponse(f"/{self.key}/", 303)
            answer.set_cookie(self._cookie, self.token, httponly=True, samesite="strict")
            return answer
        if not any(map(self._is_token, self._cookies(headers))):
            return _refusal(401, "no access; open the address that the server printed")
        if not reading:
            ours = headers.getlist("origin") == [f"http://{host[0].lower()}"]
            if not ours or set(headers.getlist("sec-fetch-site")) - {"same-origin"}:
                return _refusal(403, "this did not come from the server's own page")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > MOST_BYTES:
            return _refusal(413, f"expected at most {MOST_BYTES} bytes")
        if request.url.path == "/" and reading:
            return RedirectResponse(f"/{self.key}/", 303)
        return None

    @property
    def _cookie(self) -> str:
        return f"fastbadge-{self.key}"  # cookies do not tell ports apart

    def _cookies(self, headers: Headers) -> list[str]:
        """What cookies of our name hold."""
        parts = ";".join(headers.getlist("cookie")).split(";")
        pairs = (part.strip().partition("=") for part in parts)
        return [value for name, _, value in pairs if name == self._cookie]

    def _is_token(self, value: str) -> bool:
        return secrets.compare_digest(value.encode(errors="replace"), self.token.encode())


async def read_json(request: Request) -> dict[str, Any]:
    """The object that a request carries.

    Raises:
        HTTPException: 415, 413, 408 or 400, with a line that says why.
    """
    kinds = request.headers.getlist("content-type")
    if [kind.partition(";")[0].strip().lower() for kind in kinds] != ["application/json"]:
        raise HTTPException(415, "expected application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:  # of a chunked body, which does not say its length
                    raise HTTPException(
                        413, f"expected at most {MOST_BYTES} bytes", {"Connection": "close"}
                    )
    except TimeoutError as error:
        raise HTTPException(408, "the body did not come", {"Connection": "close"}) from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body was cut off") from error
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "expected JSON in UTF-8, without NaN and Infinity") from error
    if not isinstance(value, dict):
        raise HTTPException(400, f"got a {type(value).__name__}; expected an object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _refusal(status: int, words: str) -> Response:
    # Closed, so that a body which nobody reads is not waited for.
    return PlainTextResponse(f"{words}\n", status, {"Connection": "close"})
