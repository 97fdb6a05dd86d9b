"""An address on which Label Studio can say that something has happened, so that nobody waits."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

from fastbadge.errors import FastbadgeError, InputError, ProjectError
from fastbadge.label.studio.server import Server

HEADER = "X-Fastbadge-Secret"


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # whoever called has gone


@contextmanager
def called(server: Server, project: int, address: str) -> Iterator[Event]:
    """An event that is set when annotations change there, as long as the block runs.

    A call without the secret, which is new each time, sets nothing; what a call says is not read.

    Args:
        server: which is told the address, and when the block ends that it is no longer wanted.
        project: there.
        address: HOST:PORT of this machine, as the server reaches it.

    Raises:
        InputError: no such address on this machine.
        ProjectError: the server does not want it.
    """
    event, secret = Event(), secrets.token_urlsafe(32)

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for a call to come in

        def do_POST(self) -> None:
            right = hmac.compare_digest(self.headers.get(HEADER, "").encode(), secret.encode())
            if right:
                event.set()
            self.send_response(204 if right else 403)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    host, _, port = address.rpartition(":")
    try:
        listener = _Listener((host, int(port)), Handler)
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(
            f"--webhook is {address!r}, where nothing can listen ({error}); expected HOST:PORT"
        ) from error
    with listener:
        Thread(target=listener.serve_forever, daemon=True).start()
        try:
            url = f"http://{host}:{listener.server_port}/"
            try:
                order = server.add_webhook(project, url, {HEADER: secret})
            except ProjectError as error:
                raise ProjectError(
                    f"{error}; an address in a private network is allowed to it by "
                    "SSRF_PROTECTION_ENABLED=false; else leave out --webhook"
                ) from error
            try:
                yield event
            finally:
                with suppress(FastbadgeError):  # it may be away; the next loop removes the order
                    server.remove_webhook(order)
        finally:
            listener.shutdown()
