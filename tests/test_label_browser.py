"""The labelling page in Chromium: by keyboard, two at once, and with a server that dies."""

import io
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from fastbadge.label import clicks
from fastbadge.label.background import summarise
from fastbadge.label.initialise import init_project
from fastbadge.label.project import Config, read_items
from fastbadge.label.schema import connected
from test_report_browser import CHROMIUM, browser  # noqa: F401  (a fixture)

pytest.importorskip("uvicorn", reason="the extra label is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (make browser)")

CLASSES = ["dark", "light"]


def project_of(folder, images):
    """A project of grey squares, of which those with odd names are light."""
    source = folder / "squares"
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(images):
        grey = rng.integers(0, 90, (16, 16)) + (150 if i % 2 else 10)
        Image.fromarray(grey.astype(np.uint8)).save(source / f"{i:03}.png")
    config = Config(
        kind="images", source=str(source), features="pixels", strategy="badge", batch=10, seed=0
    )
    directory = folder / "labels"
    init_project(directory, config, ["dark", "light"])
    return directory


def start(directory, port=0):
    """A server of its own process, and the address that it prints."""
    command = [sys.executable, "-m", "fastbadge", "label", "serve", str(directory)]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in server.stdout:
        if found := re.search(r"http://\S+", line):
            return server, found[0]
    raise AssertionError(server.stderr.read())


@contextmanager
def stopped(server):
    try:
        yield
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A project that several people label, one a test, and its address."""
    directory = project_of(tmp_path_factory.mktemp("shared"), images=240)
    server, url = start(directory)
    with stopped(server):
        yield directory, url


@pytest.fixture
def open_page(browser, shared):  # noqa: F811  (shared: pages are closed before servers)
    """Opens an address in a browser of its own; afterwards nothing was said on any console."""
    contexts, troubles = [], []

    def open_(url, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(url)
        return page

    open_.troubles = troubles
    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


def shown(page):
    """The name of the item on the screen, once one is there."""
    name = page.locator("#stage .name")
    name.wait_for()
    return name.inner_text()


def truth(name):
    return "light" if int(re.search(r"\d+", name)[0]) % 2 else "dark"


def label_one(page):
    """Answer the item on the screen with its key, rightly; its name."""
    name = shown(page)
    page.keyboard.press("2" if truth(name) == "light" else "1")
    until(lambda: page.evaluate("document.querySelector('#stage .name')?.textContent") != name)
    return name


def until_saved(page):
    keys = "Object.keys(localStorage).filter((key) => key.includes(':click:')).length"
    until(lambda: page.evaluate(keys) == 0)


def until(holds):
    """Wait; not playwright's way, which the page's Content-Security-Policy forbids."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def annotator(page):
    return page.locator("#annotator").input_value()


def recorded(directory, *annotators):
    """(name, class) of every answer of theirs that stands, in the order of the clicks."""
    names = {item.id: item.name for item in read_items(directory)}
    with connected(directory) as connection:
        rows = connection.execute(
            "SELECT label.item, annotator, class.name FROM label LEFT JOIN class "
            "ON class.id = label.class WHERE undone IS NULL ORDER BY label.id"
        ).fetchall()
    return [(names[item], label) for item, who, label in rows if who in annotators]


def answers(directory, who):
    """(name, class) of the answers of theirs that count."""
    query = "SELECT item.name, class.name FROM answer JOIN item ON item.id = item JOIN class "
    with connected(directory) as connection:
        return connection.execute(
            query + "ON class.id = class WHERE annotator = ? ORDER BY answer.id", (who,)
        ).fetchall()


def label_as_another(directory, name):
    """Somebody else labels the item of that name, wrongly."""
    item = next(item for item in read_items(directory) if item.name == name)
    label = 1 if truth(name) == "light" else 2
    clicks.record_label(directory, item.id, label, "another", request=f"another {name}")


def leases(directory, who):
    with connected(directory) as connection:
        query = "SELECT count(*) FROM assignment WHERE annotator = ?"
        return connection.execute(query, (who,)).fetchone()[0]


def batches(directory):
    with connected(directory) as connection:
        return connection.execute("SELECT count(*) FROM batch").fetchone()[0]


def test_thirty_items_by_the_keyboard_with_an_undo_and_a_reload(shared, open_page):
    directory, url = shared
    before = batches(directory)
    page = open_page(url)
    assert "token" not in page.url
    done = [label_one(page) for _ in range(15)]
    page.keyboard.press("u")
    page.get_by_text("Taken back").wait_for(state="attached")
    assert shown(page) == done[-1]  # it is there again
    until_saved(page)
    page.reload()
    assert shown(page) == done.pop()
    while len(done) < 30:
        done.append(label_one(page))
    until_saved(page)
    assert len(set(done)) == 30
    assert recorded(directory, annotator(page)) == [(name, truth(name)) for name in done]
    assert batches(directory) >= before + 2  # they came while it went on


def test_two_browsers_never_have_the_same_item(shared, open_page):
    directory, url = shared
    pages = [open_page(url), open_page(url)]
    done = [label_one(page) for _ in range(8) for page in pages]
    for page in pages:
        until_saved(page)
    people = [annotator(page) for page in pages]
    assert len(set(people)) == 2
    assert len(set(done)) == len(done)
    assert sorted(recorded(directory, *people)) == sorted((name, truth(name)) for name in done)


def test_undo_takes_back_what_its_own_tab_shows(shared, open_page):
    directory, url = shared
    page = open_page(url)
    tab = page.context.new_page()
    tab.goto(url)
    assert shown(tab) == shown(page)
    first = label_one(page)
    until_saved(page)
    tab.keyboard.press("1" if truth(first) == "light" else "2")
    tab.keyboard.press("u")
    until_saved(tab)
    said = tab.locator("#stage .said")
    until(lambda: said.count() and said.inner_text() == f"Your answer: {truth(first)}")
    tab.keyboard.press("ArrowRight")
    second = label_one(tab)
    until_saved(tab)
    page.keyboard.press("u")
    until_saved(page)
    assert shown(page) == first != second
    assert answers(directory, annotator(page)) == [(second, truth(second))]


def test_a_skip_withdraws_and_an_undo_brings_back_what_nobody_else_has(shared, open_page):
    directory, url = shared
    page = open_page(url)
    name = label_one(page)
    said = page.locator("#stage .said")

    def skip():
        before = shown(page)
        page.keyboard.press("s")
        until(lambda: shown(page) != before)
        until_saved(page)

    page.keyboard.press("ArrowLeft")
    assert said.inner_text() == f"Your answer: {truth(name)}" and shown(page) == name
    skip()
    page.keyboard.press("ArrowLeft")
    assert said.inner_text() == "Your answer: skipped" and shown(page) == name
    assert answers(directory, annotator(page)) == []
    page.keyboard.press("u")
    until_saved(page)
    assert said.inner_text() == f"Your answer: {truth(name)}" and shown(page) == name
    assert answers(directory, annotator(page)) == [(name, truth(name))]
    page.keyboard.press("ArrowRight")
    name = shown(page)
    skip()
    label_as_another(directory, name)
    page.keyboard.press("u")
    page.get_by_text(f"Taken back, but somebody else has it now: {name}").wait_for()
    assert shown(page) != name
    page.locator("#banner").click()  # it lies over the header
    assert not page.locator("#banner").is_visible()


def test_a_page_that_is_closed_gives_its_items_back_and_sends_its_clicks_later(shared, open_page):
    directory, url = shared
    page = open_page(url)
    shown(page)
    who = annotator(page)
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    page.route("**/clicks", lambda route: None)  # never arrives
    name = label_one(page)
    page.goto("about:blank")
    assert leases(directory, who) > 0 and answers(directory, who) == []
    page.unroute("**/clicks")
    page.goto(url)
    until_saved(page)
    assert answers(directory, who) == [(name, truth(name))]
    tab = page.context.new_page()
    tab.goto(url)
    shown(tab)
    with tab.expect_response("**/next"):  # it has the same items, and takes them again
        page.goto("about:blank")
    until(lambda: leases(directory, who) > 0)
    tab.goto("about:blank")
    until(lambda: leases(directory, who) == 0)


def overlap(a, b):
    return all(
        a[start] < b[start] + b[size] and b[start] < a[start] + a[size]
        for start, size in (("x", "width"), ("y", "height"))
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone(shared, open_page, tmp_path, scheme):
    directory, url = shared
    page = open_page(
        url, viewport={"width": 360, "height": 740}, has_touch=True, color_scheme=scheme
    )
    name = shown(page)
    page.locator("#classes").get_by_role("button", name=truth(name)).tap()
    until_saved(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    buttons = page.locator("#classes button, .actions button").all()
    boxes = [part.bounding_box() for part in [page.locator("#stage"), *buttons]]
    for i, box in enumerate(boxes):
        assert box["height"] >= 40 and 0 <= box["x"] <= box["x"] + box["width"] <= 360
        assert not any(overlap(box, other) for other in boxes[:i])
    assert boxes[2]["y"] + boxes[2]["height"] < 740  # both classes are in reach of the thumb
    name_now, image = shown(page), page.locator("#stage img")
    until(lambda: image.evaluate("image => image.complete"))
    page.screenshot(path=tmp_path / "phone.png")
    seen = Image.open(tmp_path / "phone.png").convert("L")
    assert seen.size == (360, 740)
    assert (seen.getpixel((4, 700)) > 128) == (scheme == "light")  # the paper
    box = image.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    square = np.asarray(seen.crop((int(x) - 40, int(y) - 40, int(x) + 40, int(y) + 40)))
    assert (square.mean() > 128) == (truth(name_now) == "light")
    assert recorded(directory, annotator(page)) == [(name, truth(name))]


def test_the_guess_is_shown_to_those_who_ask(shared, open_page):
    directory, url = shared
    page = open_page(url)
    shown(page)
    page.route("**/guess", fulfilled(json={"class": 2}))
    held = []
    page.route("**/clicks", lambda route: held.append(route))
    first = label_one(page)
    guess = page.get_by_text("The model's guess:").first
    assert guess.count() == 0
    name = shown(page)
    page.keyboard.press("g")
    guess.wait_for()
    until(lambda: held)
    held.pop().continue_()  # the answer to the click before, which draws the page anew
    page.unroute("**/clicks")
    until_saved(page)
    assert guess.inner_text() == "The model's guess: light"
    page.route("**/guess", fulfilled(body="null"))
    page.keyboard.press("g")
    page.locator("#stage").get_by_text("The model has no guess for this one.").wait_for()
    page.keyboard.press("s")  # skipped: it comes again behind the others
    until(lambda: shown(page) != name)
    until_saved(page)
    assert recorded(directory, annotator(page)) == [(first, truth(first)), (name, None)]


def test_the_grid_is_labelled_with_arrows_and_keys(shared, open_page):
    directory, url = shared
    page = open_page(url)
    shown(page)
    page.get_by_role("button", name="Grid").click()
    page.locator(".tile").nth(7).wait_for()
    here = page.locator(".tile[aria-current]")
    first = here.get_attribute("aria-label")
    page.keyboard.press("ArrowRight")
    second = here.get_attribute("aria-label")
    assert first == page.locator(".tile").first.get_attribute("aria-label") != second
    page.keyboard.press("2" if truth(second) == "light" else "1")
    until_saved(page)
    assert recorded(directory, annotator(page)) == [(second, truth(second))]


def test_a_class_added_by_one_comes_to_the_others(shared, open_page):
    first, second = open_page(shared[1]), open_page(shared[1])
    shown(first), shown(second)
    second.locator("#classes button").nth(1).focus()
    first.locator("#name").fill("neither")
    first.keyboard.press("Enter")
    added = second.locator("#classes button").nth(2)
    added.wait_for()
    assert added.inner_text().split() == ["3", "neither"]
    assert second.evaluate("document.activeElement.textContent") == "2light"


def test_a_server_that_dies_under_the_page_loses_no_click(tmp_path, open_page):
    directory = project_of(tmp_path, images=40)
    server, url = start(directory)
    with stopped(server):
        page = open_page(url)
        done = [label_one(page) for _ in range(3)]
        until_saved(page)
        server.kill()
        server.wait()
    done += [label_one(page) for _ in range(3)]
    page.get_by_text("Not connected. 3 clicks wait in this browser.").wait_for()
    assert len(recorded(directory, annotator(page))) == 3
    server, _ = start(directory, port=int(re.search(r":(\d+)/", url)[1]))
    with stopped(server):
        until_saved(page)
        page.get_by_text("Not connected").wait_for(state="hidden")
        done.append(label_one(page))
        until_saved(page)
        who = annotator(page)
        page.context.close()
    assert recorded(directory, who) == [(name, truth(name)) for name in done]
    # Chromium itself says on the console that nobody answered.
    assert all("ERR_CONNECTION_REFUSED" in line for line in open_page.troubles)
    open_page.troubles.clear()


def answer_instead(page, **answers):
    """Has the page opened anew with these answers of the server to what is below its address."""
    for path, answer in answers.items():
        page.route(f"**/{path}", fulfilled(json=answer))
    page.reload()


def fulfilled(**answer):
    return lambda route: route.fulfill(**answer)


def summary_of(directory, **status):
    """What the server counts in that project, but with this status."""
    summary = summarise(directory)
    return {"summary": {**summary, "status": {**summary["status"], **status}}, "trouble": ""}


@pytest.mark.parametrize("view", ["One", "Grid"])
def test_behind_the_last_item_the_page_says_that_it_is_the_last(shared, open_page, view):
    directory, url = shared
    page = open_page(url)
    shown(page)
    page.get_by_role("button", name=view).click()
    items = [{"id": i, "name": f"{i}.png", "text": ""} for i in (1, 2, 3)]
    end = {"items": [], "choosing": False}
    numbers = summary_of(directory, waiting=0, labelled=240)
    answer_instead(page, next={"items": items, "choosing": False}, clicks=end, numbers=numbers)
    page.locator("#stage img").first.wait_for()
    for _ in items:
        page.keyboard.press("1")
    page.get_by_text("All labelled").wait_for()
    assert page.locator("#stage img").count() == 0


def test_before_any_answer_nothing_is_said_of_a_model(shared, open_page):
    directory, url = shared
    page = open_page(url)
    none = {"items": [], "choosing": True}
    answer_instead(page, next=none, numbers=summary_of(directory, labelled=0))
    page.get_by_text("Choosing the first items.").wait_for()
    assert page.get_by_text("The model learns from the answers so far.").count() == 0
    answer_instead(page, numbers=summary_of(directory, labelled=1))
    page.get_by_text("The model learns from the answers so far.").wait_for()


def test_an_image_that_cannot_be_shown_is_not_labelled(shared, open_page):
    directory, url = shared
    page = open_page(url)
    page.route("**/image", fulfilled(body="no image", content_type="image/png"))
    page.reload()
    page.get_by_text("This image cannot be shown").wait_for()
    name = shown(page)
    until(lambda: page.locator("#classes button:disabled").count() >= len(CLASSES))
    page.keyboard.press("1")
    assert shown(page) == name
    page.keyboard.press("t")
    until_saved(page)
    assert recorded(directory, annotator(page)) == [(name, None)]
    page.unroute("**/image")
    page.keyboard.press("ArrowLeft")  # tried again
    until(lambda: page.locator("#classes button:enabled").count() >= len(CLASSES))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_transparent_pixels_are_as_grey_as_for_the_model(shared, open_page, scheme):
    page = open_page(shared[1], color_scheme=scheme)
    file = io.BytesIO()
    Image.new("RGBA", (400, 100)).save(file, "PNG")
    page.route("**/image", fulfilled(body=file.getvalue(), content_type="image/png"))
    page.reload()
    page.locator(".fitted img").wait_for()
    box = page.locator("#stage img").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(4, rel=0.01)
    with Image.open(io.BytesIO(page.screenshot())) as screen:
        middle, left = box["x"] + box["width"] / 2, box["x"] + 2
        top, above = box["y"] + 2, box["y"] - 10
        colours = [screen.convert("RGB").getpixel(at) for at in [(middle, top), (left, top)]]
        assert colours == [(128, 128, 128)] * 2
        assert screen.convert("RGB").getpixel((middle, above)) != (128, 128, 128)


def project_with(*names):
    classes = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return {"name": "squares", "kind": "images", "overlap": 1, "classes": classes}


def test_forty_classes_leave_the_image_and_the_other_answers_in_sight(shared, open_page):
    page = open_page(shared[1], viewport={"width": 390, "height": 844}, has_touch=True)
    names = [f"Class of tits, {i}" for i in range(40)]
    numbers = {"summary": None, "trouble": ""}
    answer_instead(page, project=project_with(*names), numbers=numbers)
    shown(page)
    last = page.locator("#classes button").last
    last.scroll_into_view_if_needed()
    assert page.evaluate("scrollY") == 0
    assert page.locator("#classes").bounding_box()["height"] <= 0.45 * 844
    for each in page.locator("#stage img, .actions button").all():
        box = each.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844


def test_the_name_of_a_class_is_broken_only_where_there_is_no_room(shared, open_page):
    page = open_page(shared[1], viewport={"width": 390, "height": 844}, has_touch=True)
    names = ["Hippopotamuses", "Pseudopseudohypoparathyroidism", "a" * 90]
    numbers = {"summary": None, "trouble": ""}
    answer_instead(page, project=project_with(*names), numbers=numbers)
    shown(page)
    lines = [
        name.evaluate("e => e.getClientRects().length && e.offsetHeight / 23.2")
        for name in page.locator("#classes bdi").all()
    ]
    assert [round(each) for each in lines][:2] == [1, 1] and lines[2] > 1.5
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_box_of_a_new_class_is_left_by_adding_one_and_by_escape(shared, open_page):
    page = open_page(shared[1])
    held = "document.activeElement.id"
    answer_instead(page, project=project_with(), classes=project_with("new")["classes"])
    page.get_by_text("No classes yet: add the first one below.").wait_for()
    page.locator("#name").fill("new")
    page.keyboard.press("Enter")
    until(lambda: page.evaluate(held) == "stage")
    assert not page.get_by_text("No classes yet").is_visible()
    page.locator("#name").focus()
    page.keyboard.press("Escape")
    assert page.evaluate(held) == "stage"


def test_undo_is_offered_where_there_may_be_something_to_take_back(shared, open_page):
    page = open_page(shared[1])
    shown(page)
    undo = page.locator("#undo")
    assert undo.is_disabled()
    page.keyboard.press("s")
    until(undo.is_enabled)
    until_saved(page)
    page.reload()
    shown(page)
    assert undo.is_enabled()
    for _ in range(2):
        page.keyboard.press("u")
        until_saved(page)
    until(undo.is_disabled)


def test_looking_again_at_what_the_model_doubts(shared, open_page):
    directory, url = shared
    page = open_page(url)
    shown(page)
    item = next(item for item in read_items(directory) if item.name == "239.png")
    doubt = {"item": item.id, "name": item.name, "label": "dark", "suggested": "light"}
    found = {"doubts": [doubt], "found": 1, "labels": 50}
    asked = []
    page.route("**/doubts", lambda route: (asked.append(route), route.fulfill(json={})))
    answer_instead(page, numbers=summary_of(directory) | {"doubts": None})
    page.get_by_role("button", name="Find doubtful labels").click()
    page.get_by_text("Looking for labels that the model doubts.").wait_for()
    page.route("**/numbers", fulfilled(json=summary_of(directory) | {"doubts": found}))
    page.get_by_text("The model doubts 1 of 50 labels.").wait_for()
    assert page.get_by_text("Label: dark; the model: light").is_visible() and len(asked) == 1
    page.locator("#doubts").get_by_role("button", name="Look again").click()
    until(lambda: shown(page) == "239.png")


def poll(page):
    """What the page does every few seconds: ask for items and numbers."""
    until_saved(page)  # before that it does not
    with page.expect_response("**/next"), page.expect_response("**/numbers"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def stays_while_the_page_polls(page):
    page.evaluate(
        "text = document.querySelector('#stage .text'); text.focus(); text.scrollTop = 300;"
        "getSelection().selectAllChildren(text)"
    )
    selected = page.evaluate("`${getSelection()}`")
    poll(page)
    assert page.evaluate("[text.scrollTop, document.activeElement === text]") == [300, True]
    assert page.evaluate("`${getSelection()}`") == selected != ""
    page.get_by_role("button", name="Grid").click()
    third = page.locator(".tile").nth(2)
    third.focus()
    assert len(third.locator(".text").inner_text()) <= 400
    poll(page)
    page.keyboard.press("Enter")
    assert third.get_attribute("aria-current") == "true"


def test_looking_again_at_what_others_differ_on(shared, open_page):
    directory, url = shared
    page = open_page(url)
    page.get_by_role("button", name="Grid").click()
    name, other = (label_in_grid(page) for _ in range(2))
    label_as_another(directory, name), label_as_another(directory, other)
    differ = page.locator("details", has_text="Annotators differ")
    until_saved(page)
    label_in_grid(page)  # so that the disputes are counted
    until(lambda: poll(page) or differ.count())
    differ.locator("summary").click()
    again = differ.locator("li", has_text=name).get_by_role("button")
    again.focus()
    label_in_grid(page, by="cannot")
    told = page.locator("aside").get_by_text("1 could not be told.")
    until(lambda: poll(page) or told.count())
    assert page.evaluate("document.activeElement.textContent") == "Look again"
    page.keyboard.press("Enter")
    tile = page.locator(f'.tile[aria-label^="{name}"]')
    until(lambda: tile.get_attribute("aria-current") == "true")
    assert tile.count() == 1 and tile.locator(".said").inner_text() == truth(name)
    assert page.locator(".tile img").count() == page.locator(".tile").count()
    page.reload()
    until(lambda: page.locator(".tile").count())
    differ.locator("summary").click()
    again.click()
    until(lambda: tile.count() and tile.get_attribute("aria-current") == "true")
    assert tile.locator(".said").inner_text() == truth(name)


def label_in_grid(page, by="class"):
    here = page.locator(".tile[aria-current]")
    name = re.match(r"\d+\.png", here.get_attribute("aria-label"))[0]
    page.locator(f'.tile[aria-label="{name}"]').wait_for()
    page.keyboard.press("t" if by == "cannot" else "2" if truth(name) == "light" else "1")
    page.locator(f'.tile.answered[aria-label^="{name}"]').wait_for()
    return name


def test_what_a_text_or_a_name_contains_is_never_markup(tmp_path, open_page):
    markup = '<img src=x onerror="alert(1)"><b>bold</b> & "quoted"'
    table = tmp_path / "texts.csv"
    quoted = markup.replace('"', '""') + "\nand on" * 100
    rows = "".join(f'"{quoted}, {i}"\n' for i in range(20))
    table.write_text(f"text\n{rows}", encoding="utf-8")
    config = Config(kind="texts", source=str(table), text_column="text", features="tfidf", batch=10)
    directory = tmp_path / "labels"
    init_project(directory, config, ["<i>one</i>", "a\"b'&c"])
    server, url = start(directory)
    with stopped(server):
        page = open_page(url)
        page.get_by_text(markup).wait_for()
        page.get_by_role("button", name="<i>one</i>").click()
        until_saved(page)
        page.locator("aside").get_by_text("<i>one</i>").wait_for()
        assert page.locator("main img, main b, main i, aside i").count() == 0
        stays_while_the_page_polls(page)
        ((_, label),) = recorded(directory, annotator(page))
        page.context.close()
    assert label == "<i>one</i>"


def test_a_stop_ends_in_one_line(tmp_path):
    server, url = start(project_of(tmp_path, images=20))
    assert url.startswith("http://127.0.0.1:")
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=30)
    assert server.returncode in (0, 130)
    assert "Traceback" not in out + err
