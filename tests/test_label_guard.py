"""The labelling server attacked: who may come in, what is served, what is read."""

import http.client
import io
import json
import re
import socket
from pathlib import Path

import pytest
from PIL import Image

from fastbadge.errors import InputError, ProjectError
from fastbadge.label import guard, project, server
from fastbadge.label.initialise import init_project
from fastbadge.label.project import Config
from label_client import GOOD, TOOLS, is_one_line, load, rows, served, texts

PAGE = Path(server.__file__).parent / "page"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of all kinds under wrong names, a link to the outside, and what is no image."""
    folder = tmp_path_factory.mktemp("served")
    source = folder / "images"
    source.mkdir()
    for i, kind in enumerate(["png", "jpeg", "gif", "bmp", "webp"]):
        Image.new("RGB", (4, 4), (40 * i, 0, 0)).save(source / f"{i}.png", kind)
    for i in range(5, 10):
        Image.new("RGB", (4, 4), (0, 20 * i, 0)).save(source / f"{i}.png")
    Image.new("RGB", (4, 4)).save(source / "t.png", "tiff")  # which no browser shows
    (folder / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    config = Config(kind="images", source=str(source), features="pixels")
    init_project(folder / "p", config, ["a", "b"])
    for i, becomes in [
        (5, b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        (6, b"<!doctype html><script>alert(1)</script>"),
        (7, folder / "secret.png"),
        (8, None),
        (9, b""),
    ]:
        (source / f"{i}.png").unlink()
        if isinstance(becomes, bytes):
            (source / f"{i}.png").write_bytes(becomes)
        elif becomes:
            (source / f"{i}.png").symlink_to(becomes)
    return folder


@pytest.fixture(scope="module")
def client(folder):
    with served(folder / "p") as client:
        yield client


# --- who may come in


def test_the_address_sets_a_cookie_and_leads_to_the_page(client, folder):
    answer = client.send("GET", f"/?token={client.token}", Cookie=None)
    assert (answer.status, answer.headers["Location"]) == (303, client.base)
    parts = answer.headers["Set-Cookie"].lower().split("; ")
    assert {"httponly", "samesite=strict", "path=/"} == set(parts[1:])
    assert client.token not in client.base and len(client.token) == 32
    page = client.send("GET", "/")  # without the token, once the cookie is there
    assert (page.status, page.headers["Location"]) == (303, client.base)
    assert client.get("").body == (PAGE / "index.html").read_bytes()
    file = folder / "p" / "server.token"
    assert file.stat().st_mode & 0o777 == 0o600
    assert guard.project_token(folder / "p") == client.token  # a server started anew has it too


def test_a_token_file_that_holds_none_is_refused(tmp_path):
    (tmp_path / "server.token").write_text("short\n")
    with pytest.raises(ProjectError, match="holds no token; remove it"):
        guard.project_token(tmp_path)


PLACES = ["", "page.js", "project", "numbers", "items/1", "items/1/image", "items/1/guess", "x"]


@pytest.mark.parametrize("path", ["/", *PLACES])
@pytest.mark.parametrize("cookie", [None, "", "a=b", "fastbadge-{key}=", "fastbadge-{key}={wrong}"])
def test_without_the_cookie_there_is_nothing(client, path, cookie):
    key, wrong = client.base.strip("/"), client.token[:-1] + "~"
    cookie = cookie and cookie.format(key=key, wrong=wrong)
    answer = client.send("GET", path if path == "/" else client.base + path, Cookie=cookie)
    assert answer.status == 401 and is_one_line(answer.body)


@pytest.mark.parametrize("token", ["", "x", "%00", "%F0%9F%98%80", "&token={token}", "{token}x"])
def test_a_wrong_token_opens_nothing(client, token):
    answer = client.send("GET", f"/?token={token.format(token=client.token)}", Cookie=None)
    if token.startswith("&"):  # of two the last counts, and is right
        assert answer.status == 303
    else:
        assert answer.status == 401 and "Set-Cookie" not in answer.headers


def test_the_cookie_is_found_among_others_and_in_any_header(client):
    for cookie in [f"a=b; {client.cookie}; c", [f"{client.cookie}", "a=b"], ["a=b", client.cookie]]:
        assert client.get("project", Cookie=cookie).status == 200


def test_the_page_of_another_project_gets_nothing_here(client):
    answer = client.send("POST", "/0123456789abcdef/next", b'{"annotator": "ann", "n": 1}')
    assert answer.status == 404


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]"]
)
def test_another_host_is_not_served(client, host):
    host = host and host.format(port=client.host.partition(":")[2])
    for path in ("/", f"/?token={client.token}", client.base + "project"):
        assert client.send("GET", path, Host=host).status == 400
    assert client.send("GET", "/", Host=[client.host, "evil.example"]).status == 400


def test_the_names_of_this_machine_are_served(client):
    port = client.host.partition(":")[2]
    for host in ("localhost", "LOCALHOST", "[::1]", "127.0.0.1"):
        assert client.get("project", Host=f"{host}:{port}").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://{host}"},
        {"Origin": "http://{host}/"},
        {"Origin": ["http://{host}", "http://evil.example"]},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": ["same-origin", "none"]},
    ],
)
def test_what_does_not_come_from_the_page_changes_nothing(client, folder, headers):
    filled = {
        name: [each.format(host=client.host) for each in value]
        if isinstance(value, list)
        else value and value.format(host=client.host)
        for name, value in headers.items()
    }
    answer = client.post("classes", {"name": "intruder"}, **filled)
    assert answer.status == 403 and is_one_line(answer.body)
    assert "intruder" not in project.read_classes(folder / "p").values()


def test_listening(monkeypatch):
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: Address already in use; pass another"):
            server.listen("127.0.0.1", port)
    for host, port, expected in [
        ("no.such.host.invalid", 0, "cannot listen at no.such.host.invalid"),
        ("203.0.113.1", 0, "cannot listen at 203.0.113.1, port 0: "),
        ("127.0.0.1", 70_000, "port is 70000; expected 0"),
    ]:
        with pytest.raises(InputError, match=expected) as caught:
            server.listen(host, port)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(socket, "gethostname", lambda: "Desk")
    monkeypatch.setattr(socket, "getfqdn", lambda: "desk.lan")
    everywhere = server.hosts_of("0.0.0.0", 80)
    assert {"desk", "desk:80", "desk.lan", "localhost:80", "127.0.0.1"} <= everywhere
    assert not {host for host in everywhere if host.startswith("0.0.0.0")}
    assert "desk:80" not in server.hosts_of("127.0.0.1", 80)


# --- what every answer says


def test_every_answer_forbids_what_the_page_does_not_need(client, monkeypatch, caplog):
    big = b" " * (guard.MOST_BYTES + 1)
    monkeypatch.setattr(project, "read_config", lambda directory: 1 / 0)  # a mistake of ours
    answers = [
        *(client.get(path) for path in [*PLACES, "page.css", "numbers.js", "icon.svg"]),
        client.send("GET", "/"),
        client.send("GET", "/", Cookie=None),
        client.send("GET", "/", Host="evil.example"),
        client.send("HEAD", client.base),
        client.send("DELETE", client.base),
        client.post("next", {}, Origin=None),
        client.post("next", {}),
        client.post("next", big),
        client.post("next", b"", Content_Type="text/plain"),
        client.get("items/8/image"),
    ]
    statuses = {200, 303, 400, 401, 403, 404, 405, 413, 415, 500}
    assert {answer.status for answer in answers} == statuses
    assert "ZeroDivisionError" in caplog.text  # the traceback is for the log, not for the page
    for answer in answers:
        policy = dict(
            part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; ")
        )
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self'",
            "connect-src": "'self'",
            "form-action": "'none'",
            "base-uri": "'none'",
            "frame-ancestors": "'none'",
        }
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers.get_all("Cache-Control") == ["no-store"] or answer.status == 200
        assert "Server" not in answer.headers and b"Traceback" not in answer.body


def test_the_page_keeps_its_own_policy():
    page = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", page)
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == {"icon.svg", "page.css", "page.js"}
    scripts = {path.name: path.read_text() for path in PAGE.glob("*.js")}
    assert len(scripts) == 3
    for script in scripts.values():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|\.write\(|eval|Function\(", script
        )
        assert not re.search(r"""https?://(?!www\.w3\.org/2000/svg)|"style"|srcdoc""", script)
    served = {name for name, _ in server._PAGE.values()}
    assert served == {path.name for path in PAGE.iterdir()}


# --- files


@pytest.mark.parametrize(
    ("item", "kind"),
    [(1, "image/png"), (2, "image/jpeg"), (3, "image/gif"), (4, "image/bmp"), (5, "image/webp")],
)
def test_images_have_the_type_of_their_content(client, folder, item, kind):
    answer = client.get(f"items/{item}/image")
    assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
    assert answer.headers["Cache-Control"] == "private, max-age=3600"
    assert answer.body == (folder / "images" / f"{item - 1}.png").read_bytes()


def test_an_image_that_browsers_do_not_show_goes_as_one_that_they_do(client):
    answer = client.get("items/11/image")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")
    with Image.open(io.BytesIO(answer.body)) as image:
        assert (image.format, image.size) == ("PNG", (4, 4))


@pytest.mark.parametrize(
    ("item", "status"), [(6, 404), (7, 404), (8, 404), (9, 404), (10, 404), (12, 404)]
)
def test_what_is_no_image_or_lies_outside_is_not_served(client, item, status):
    answer = client.get(f"items/{item}/image")
    assert answer.status == status and is_one_line(answer.body)
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert b"secret" not in answer.body and b"script" not in answer.body


def test_a_link_put_in_the_place_of_a_file_at_the_last_moment_is_not_served(client, monkeypatch):
    monkeypatch.setattr("fastbadge.label.sources._leads_into", lambda path, root: True)
    answer = client.get("items/8/image")
    assert answer.status == 404 and b"another file" in answer.body and b"secret" not in answer.body


BAD_IDS = (
    "0 -1 +1 01 1.0 1e3 0x1 %D9%A1 %C2%B2 1%00 1%0A %201 1%20 None 1;1 1/../1 %2e%2e "
    "..%2f..%2fsecret.png %2fetc%2fpasswd 9223372036854775808"
).split()


@pytest.mark.parametrize("number", ["", *BAD_IDS, "9" * 19, "9" * 5000], ids=lambda text: text[:30])
def test_an_id_that_is_none_finds_nothing(client, number):
    for path in (f"items/{number}", f"items/{number}/image", f"items/{number}/guess"):
        answer = client.get(path)
        assert answer.status == 404 and is_one_line(
            answer.body + b"\n" * (b"\n" not in answer.body)
        )


@pytest.mark.parametrize(
    "path",
    [
        "../../secret.png",
        "%2e%2e/%2e%2e/secret.png",
        "..%2f..%2f..%2fetc/passwd",
        "/etc/passwd",
        "page.js/../server.token",
        "server.token",
        "project.sqlite",
        "items/1/image/../../../project.sqlite",
        "items/1/image%00.txt",
        "page.js%00",
    ],
)
def test_nothing_else_is_served(client, path):
    assert client.get(path).status == 404
    assert client.send("GET", "/" + path).status == 404


def test_texts_are_no_files(tmp_path):
    with served(texts(tmp_path)) as client:
        answer = client.get("items/1/image")
        assert answer.status == 404 and answer.body == b"item 1 is no file but one of the texts\n"


# --- methods and bodies


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO", "POST"])
def test_other_methods_are_not_allowed(client, method):
    for path in ("", "project", "items/1", "items/1/image"):
        answer = client.send(method, client.base + path)
        assert answer.status == 405 and set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    assert client.get("clicks").status == 405


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"name": "\xff"}', 400),
        (json.dumps(GOOD).encode("utf-16"), 400),
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), 400),
        (b'{"seconds": NaN}', 400),
        (b'{"seconds": -Infinity}', 400),
        (b"[" * 60_000, 400),
        (b'{"a":' * 12_000, 400),
        (b'{"item": ' + b"9" * 5000 + b"}", 400),
        (b" " * 65_537, 413),
        (GOOD | {"item": 2**63}, 400),
        (GOOD | {"item": 10**400}, 400),
        (GOOD | {"item": 1.0}, 400),
        (GOOD | {"item": True}, 400),
        (GOOD | {"item": "1"}, 400),
        (GOOD | {"item": None}, 400),
        (GOOD | {"item": 99}, 400),
        (GOOD | {"label": 3}, 400),
        (GOOD | {"label": [1]}, 400),
        (GOOD | {"kind": "Label"}, 400),
        (GOOD | {"kind": {"a": "b"}}, 400),
        (GOOD | {"annotator": "a\0b"}, 400),
        (GOOD | {"annotator": "\ud800"}, 400),
        (GOOD | {"annotator": "a\nb"}, 400),
        (GOOD | {"annotator": " "}, 400),
        (GOOD | {"annotator": "a" * 101}, 400),
        (GOOD | {"request": ""}, 400),
        (GOOD | {"request": 7}, 400),
        (GOOD | {"n": 0}, 400),
        (GOOD | {"n": 61}, 400),
        (GOOD | {"n": None}, 400),
        (GOOD | {"seconds": -1}, 400),
        (GOOD | {"seconds": 10**400}, 400),
        (json.dumps(GOOD)[:-1].encode() + b', "seconds": 1e999}', 400),
        (GOOD | {"seconds": "1"}, 400),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_body_that_cannot_be_is_refused_in_one_line(client, folder, body, status):
    answer = client.post("clicks", body)
    assert answer.status == status and is_one_line(answer.body), answer.body
    assert rows(folder / "p", "SELECT count(*) FROM label") == [(0,)]


@pytest.mark.parametrize("n", [0, -1, 61, 10**30, None, "8"])
def test_a_number_of_items_out_of_range_is_refused(client, n):
    assert client.post("next", {"annotator": "ann", "n": n}).status == 400


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", ["application/json"] * 2]
)
def test_only_json_is_read(client, kind):
    assert client.post("classes", {"name": "c"}, Content_Type=kind).status == 415


def test_a_chunked_body_is_limited_too(client):
    answer = client.post(
        "classes", b'{"name": "' + b"x" * 66_000, Transfer_Encoding="chunked", Content_Length=None
    )
    assert answer.status == 413
    small = client.post("release", b'{"annotator": "ann"}', Transfer_Encoding="chunked")
    assert small.status == 200


def test_requests_that_can_be_read_two_ways_are_refused(client, monkeypatch):
    tools = load(TOOLS, monkeypatch)
    head = f"POST {client.base}release HTTP/1.1\r\nHost: {client.host}\r\n".encode()
    for lines in [
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: chunked\r\n folded: x\r\n\r\n0\r\n",
        b"Host: " + client.host.encode() + b"\r\n",
        b"X\x00: y\r\n",
    ]:
        answer = tools.answer_to(client.host, head + lines + b"\r\n{}")
        assert answer[9:12] in (b"400", b"401", b"501"), (lines, answer)


def test_a_connection_that_asks_for_nothing_is_closed(client, monkeypatch):
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.05)
    host, _, port = client.host.partition(":")
    kept = http.client.HTTPConnection(host, int(port), timeout=10)
    kept.request("GET", f"{client.base}project", headers={"Cookie": client.cookie})
    kept.getresponse().read()
    stranger = (
        f"POST {client.base}next HTTP/1.1\r\nHost: {client.host}\r\nContent-Length: 9\r\n\r\n"
    )
    for sent, answer in [
        (b"", b""),
        (b"GET / HTTP/1.1\r\n", b""),
        (stranger.encode(), b"HTTP/1.1 401"),
    ]:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            came = b""
            while part := connection.recv(65536):  # until it is closed
                came += part
            assert came.startswith(answer) and bool(came) == bool(answer)
    kept.request("GET", f"{client.base}project", headers={"Cookie": client.cookie})
    assert kept.getresponse().status == 200  # on the same connection
    kept.close()
