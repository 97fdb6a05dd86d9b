"""The report in headless Chromium: quiet, self-contained, and its controls do what they say."""

import os
import shutil

import pytest

from test_report import run_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (make browser)")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    from fastbadge.lab.report import render_report

    path = tmp_path_factory.mktemp("report") / "report.html"
    many = run_of("badge", "random", "entropy", "albl", "bald", "coreset")
    runs = [run_of("badge", "random", "margin", "entropy"), many]
    path.write_text(render_report(runs, command="fastbadge report a b"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def open_page(browser, url):
    """Opens the report; afterwards nothing was said on the console and nothing was asked for."""
    contexts, troubles = [], []

    def open_(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))

        def watch(route):
            if route.request.url == url or route.request.url.startswith("data:"):
                route.continue_()
            else:
                troubles.append(route.request.url)
                route.abort()

        page.route("**/*", watch)
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


def test_a_click_on_the_legend_hides_a_line_and_shows_it_again(open_page):
    page = open_page()
    chart = page.locator("#run-0 .chart").first
    line = chart.locator('g.linear g.series[data-series="1"] path.line')
    button = chart.get_by_role("button", name="Random")
    assert line.is_visible() and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert not line.is_visible() and button.get_attribute("aria-pressed") == "false"
    others = chart.locator("g.linear g.series path.line")
    assert [others.nth(i).is_visible() for i in range(4)] == [True, False, True, True]
    button.press("Enter")  # by the keyboard as well
    assert line.is_visible() and button.get_attribute("aria-pressed") == "true"


def test_the_logarithmic_axis(open_page):
    page = open_page()
    chart = page.locator("#run-0 .chart").first
    button = chart.get_by_role("button", name="Logarithmic horizontal axis")
    linear, log = chart.locator("g.linear"), chart.locator("g.log")
    assert linear.is_visible() and not log.is_visible()
    button.click()
    assert log.is_visible() and not linear.is_visible()
    button.click()
    assert linear.is_visible() and not log.is_visible()


def test_hovering_and_arrow_keys_tell_the_figures(open_page):
    page = open_page()
    chart = page.locator("#run-0 .chart").first
    svg, tip = chart.locator("svg[tabindex]"), chart.locator(".tip")
    assert not tip.is_visible()
    box = svg.bounding_box()
    svg.hover(position={"x": box["width"] - 30, "y": box["height"] / 2})
    assert tip.is_visible()
    said = tip.inner_text()
    assert "200 labels" in said and "BADGE" in said and "±" in said
    inside = tip.bounding_box()
    assert inside["x"] >= 0 and inside["x"] + inside["width"] <= box["x"] + box["width"]
    chart.get_by_role("button", name="BADGE").click()  # leaves the chart too
    assert not tip.is_visible()
    svg.press("ArrowRight")
    assert "20 labels" in tip.inner_text() and "BADGE" not in tip.inner_text()
    svg.press("ArrowRight")
    assert "40 labels" in tip.inner_text()
    svg.press("Escape")
    assert not tip.is_visible()


def test_on_paper_everything_is_unfolded_on_white(open_page):
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.locator("details:not([open])").count() > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    assert page.pdf().startswith(b"%PDF")


RELATIVE_LUMINANCE = """(color) => {
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_lines_stand_out_in_both_schemes(open_page, scheme):
    page = open_page(color_scheme=scheme)

    def luminance(locator, which):
        color = locator.evaluate(f"(e) => getComputedStyle(e).{which}")
        return page.evaluate(RELATIVE_LUMINANCE, color)

    ground = luminance(page.locator("body"), "backgroundColor")
    assert (ground > 0.9) if scheme == "light" else (ground < 0.05)

    def contrast(locator, which):
        low, high = sorted((ground, luminance(locator, which)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(page.locator("h1"), "color") > 12
    assert contrast(page.locator("p.note").first, "color") > 4.5  # WCAG 2, text
    lines = page.locator("#run-0 .chart").first.locator("g.linear path.line")
    for i in range(4):
        assert contrast(lines.nth(i), "stroke") > 2.2
    cells = page.locator(".matrix tbody td")
    assert cells.count() == 12  # three strategies that both runs have, and their means


def test_a_telephone_needs_no_sideways_scrolling(open_page):
    page = open_page(viewport={"width": 375, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_a_telephone_cuts_no_words(open_page):
    page = open_page(viewport={"width": 390, "height": 844})
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    boxes = page.evaluate(
        """[...document.querySelectorAll("figcaption, .chart:not(.is-log) .linear text, h3, p")]
          .map((e) => e.getBoundingClientRect()).filter((b) => b.width)
          .map((b) => [b.left, b.right])"""
    )
    assert len(boxes) > 100
    assert min(left for left, _ in boxes) >= 0 and max(right for _, right in boxes) <= 390


def test_the_band_of_one_among_many_lines_is_shown_where_it_is_pointed_at(open_page):
    page = open_page()
    chart = page.locator("#run-1 .chart").first
    bands = chart.locator("g.linear path.band")
    assert bands.count() == 6 and not any(bands.nth(i).is_visible() for i in range(6))
    chart.get_by_role("button", name="ALBL").hover()
    assert [bands.nth(i).is_visible() for i in range(6)] == [i == 3 for i in range(6)]
    page.mouse.move(0, 0)
    assert not bands.nth(3).is_visible()
    assert page.locator("#run-0 .chart").first.locator("g.linear path.band").first.is_visible()


def test_a_screenshot(open_page, tmp_path):
    page = open_page(viewport={"width": 1000, "height": 900})
    # To look at: FASTBADGE_SCREENSHOT=report.png pytest tests/test_report_browser.py
    path = os.environ.get("FASTBADGE_SCREENSHOT", tmp_path / "report.png")
    assert page.screenshot(path=path, full_page=True).startswith(b"\x89PNG")
    from PIL import Image

    with Image.open(path) as image:
        assert image.width == 1000 and image.height > 3000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 200  # something is drawn
