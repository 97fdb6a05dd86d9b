"""What the loop with Label Studio is made of: tokens and addresses, what is shown, the webhook."""

import io
import urllib.request
from base64 import b64decode
from urllib.error import HTTPError
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
from PIL import Image

from fastbadge.errors import InputError, ProjectError
from fastbadge.label.studio import view
from fastbadge.label.studio.server import AwayError, GoneError, Server, read_token
from fastbadge.label.studio.view import Answer
from fastbadge.label.studio.webhook import HEADER, called
from studio_fake import LEGACY, PERSONAL, Studio

# --- tokens and addresses


def test_both_kinds_of_token_are_told_apart_and_a_personal_one_is_renewed(tmp_path):
    (tmp_path / "token").write_text(f"  {PERSONAL}\n")
    studio = Studio()
    server = Server(
        "http://studio.test/", read_token(tmp_path / "token"), transport=studio.transport()
    )
    assert server.check() == "ann@example.com"
    assert studio.calls.count("POST /api/token/refresh") == 1
    studio.access.clear()  # it has expired
    assert server.emails() == studio.users and server.emails() == studio.users
    assert studio.calls.count("POST /api/token/refresh") == 2
    (tmp_path / "token").write_text(LEGACY)
    studio = Studio()
    Server(
        "http://studio.test", read_token(tmp_path / "token"), transport=studio.transport()
    ).check()
    assert "POST /api/token/refresh" not in studio.calls


@pytest.mark.parametrize(
    "content", ["", "two words here", "a.b", "schlüssel-schlüssel", "\x00" * 40]
)
def test_a_file_without_a_token_is_refused_and_not_shown(tmp_path, content):
    (tmp_path / "token").write_text(content)
    with pytest.raises(InputError, match="holds no token") as caught:
        read_token(tmp_path / "token")
    assert not content or content not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read as a token"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    "url", ["studio", "ftp://host", "http://", "http://me:pw@host", "http://h:port", ""]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InputError, match="is no address"):
        Server(url, LEGACY)


def refuse(error):
    def transport(request):
        raise error("Connection refused", request=request)

    return transport


def redirect(to):
    return lambda _: httpx.Response(301, headers={"location": to} if to else {})


@pytest.mark.parametrize("token", [LEGACY, PERSONAL])
@pytest.mark.parametrize(
    ("answer", "error", "expected"),
    [
        (Studio("1.12.1").handle, ProjectError, r"is Label Studio 1\.12\.1; expected 1\.23 or"),
        (Studio("9" * 5000).handle, ProjectError, r"is Label Studio 9*; expected 1\.23 or"),
        (lambda _: httpx.Response(200, html="<p>"), ProjectError, "with text/html.*; pass the add"),
        (lambda _: httpx.Response(200), ProjectError, "with nothing.*; pass the address of its pa"),
        (lambda _: httpx.Response(204), ProjectError, "with other JSON than.*; pass the address"),
        (lambda _: httpx.Response(200, json=[]), ProjectError, "with other JSON than .*; pass the"),
        (lambda _: httpx.Response(200, json={}), ProjectError, "with other JSON than .*; pass the"),
        (lambda _: httpx.Response(200, text="[" * 9**5), ProjectError, "with text/plain.*; pass"),
        (redirect("https://x/y"), ProjectError, "leads to https://x/y; pass the address of its"),
        (redirect(""), ProjectError, "leads to nowhere; pass the address of its page"),
        (
            lambda _: httpx.Response(404),
            ProjectError,
            r"has no /api/.*\(Not Found\); pass the addr",
        ),
        (
            lambda _: httpx.Response(418, text="a\nb"),
            ProjectError,
            r"refuses .*\(418 I'm a.*; pass",
        ),
        (lambda _: httpx.Response(503, text="a\nb"), AwayError, "at the moment"),
        (refuse(httpx.ConnectError), AwayError, r"does not answer \(Connection refused\)"),
    ],
)
def test_another_server_than_expected_is_one_line(token, answer, error, expected):
    with pytest.raises(error, match=expected) as caught:
        Server("http://studio.test", token, transport=httpx.MockTransport(answer)).check()
    assert "\n" not in str(caught.value) and token not in str(caught.value)
    assert len(str(caught.value)) < 400 and not isinstance(caught.value, GoneError)


@pytest.mark.parametrize(
    "ask",
    [
        lambda server: server.check(),
        lambda server: server.emails(),
        lambda server: server.project(1),
        lambda server: server.make_project("", "", "", 1),
        lambda server: server.find_project("marker"),
        lambda server: list(server.tasks(1)),
        lambda server: list(server.changed_tasks(1, None)),
        lambda server: server.add_webhook(1, "http://x", {}),
    ],
)
@pytest.mark.parametrize(
    "found", ["7", "null", "[{}]", '{"tasks": [{}]}', '{"results": [7]}', '{"id": Infinity}']
)
def test_an_answer_of_another_form_is_one_line_whatever_was_asked(ask, found):
    """As of a proxy that begins to answer in its place."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=found))
    with pytest.raises(ProjectError, match="with other JSON than expected") as caught:
        ask(Server("http://studio.test", LEGACY, transport=transport))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("token", ["x" * 40, PERSONAL + "x"])
def test_a_token_that_is_refused_is_one_line_without_it(token):
    server = Server("http://studio.test", token, transport=Studio().transport())
    with pytest.raises(ProjectError, match=r"refuses the token \((Invalid|Token)") as caught:
        server.check()
    assert token not in str(caught.value) and "\n" not in str(caught.value)


# --- what is shown


@pytest.mark.parametrize(
    "name", ['<b>"R & D"</b>', "a  b", "a b", "A b", "$5", "$text", "'", "]]>", "日本語", "&amp;"]
)
def test_any_name_of_a_class_is_itself_there_and_back(name):
    root = ElementTree.fromstring(view.make_view("images", {1: "x", 2: name}))
    _, choice = root.iter("Choice")
    recorded = choice.get("alias") or choice.get("value")  # as its page does
    assert recorded == name
    assert choice.get("value").replace("\u200b", "") == name
    annotation = {"id": 1, "was_cancelled": False, "lead_time": 1, "completed_by": 1}
    annotation |= {"result": [{"from_name": "class", "value": {"choices": [recorded]}}]}
    annotation |= {"updated_at": "2026-01-01T00:00:00Z"}
    read = view.read_annotation(annotation, {"x": 1, name: 2}, {1: "a@b"})
    assert read == Answer(1, "a@b", "label", 2, 1, "2026-01-01T00:00:00Z")


def test_an_image_goes_as_it_is_or_smaller_and_upright(tmp_path):
    small, large = tmp_path / "s.PNG", tmp_path / "l.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (900, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise[:20, :30]).save(small)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(noise).save(large, quality=95, exif=exif)
    kind, _, content = view.image_as_uri(small.name, small.read_bytes()).partition(";base64,")
    assert kind == "data:image/png" and b64decode(content) == small.read_bytes()
    kind, _, content = view.image_as_uri(large.name, large.read_bytes()).partition(";base64,")
    with Image.open(io.BytesIO(b64decode(content))) as image:
        assert kind == "data:image/jpeg" and image.size == (576, 1280)
    Image.fromarray(noise[:20, :30]).save(tmp_path / "misnamed", "tiff")  # browsers do not show it
    kind, _, content = view.image_as_uri("t.png", (tmp_path / "misnamed").read_bytes()).partition(
        ";base64,"
    )
    with Image.open(io.BytesIO(b64decode(content))) as image:
        assert kind == "data:image/png" and image.size == (30, 20) and image.format == "PNG"
    with pytest.raises(InputError, match=r"l\.jpg cannot be decoded"):
        view.image_as_uri(large.name, b"x" * (1 << 19))


# --- the webhook


def test_a_call_with_the_secret_wakes_the_loop_and_no_other_does():
    studio = Studio()
    server = Server("http://studio.test", LEGACY, transport=studio.transport())
    with called(server, 1, "127.0.0.1:0") as event:
        (order,) = studio.hooks.values()
        assert order["project"] == 1 and not order["send_payload"]

        def call(headers, method="POST"):
            request = urllib.request.Request(
                order["url"], b"{}", order["headers"] | headers, method=method
            )
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status

        for headers, method, status in (
            ({HEADER: ""}, "POST", 403),
            ({HEADER: "ä" * 43}, "POST", 403),
            ({}, "GET", 501),
        ):
            with pytest.raises(HTTPError) as caught:
                call(headers, method)
            assert caught.value.code == status and not event.is_set()
            caught.value.close()
        assert call({}) == 204 and event.is_set()
        url = order["url"]
    assert not studio.hooks
    studio.hooks[7] = {"id": 7, "url": url}  # as a loop that was killed leaves it
    with called(server, 1, url.removeprefix("http://").rstrip("/")):
        assert len(studio.hooks) == 1 and 7 not in studio.hooks
