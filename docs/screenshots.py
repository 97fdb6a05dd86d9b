"""The picture of the labelling page in the README: docs/img/labelling.png.

    python docs/screenshots.py

Needs Chromium and playwright. Makes the project of examples/label_digits, answers 300 items with
what they show, and takes the page on a desktop, as a grid in the dark, and on a telephone.
"""

from __future__ import annotations

import csv
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from fastbadge.cli import main as fastbadge

ROOT = Path(__file__).parents[1]
ANSWERS = 300
HEIGHT, GAP = 760, 24


def take(url: str, truth: dict[str, str], folder: Path) -> list[Path]:
    """The three pictures."""
    paths = [folder / f"{name}.png" for name in ("desktop", "grid", "phone")]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        wide: dict[str, Any] = {"viewport": {"width": 1060, "height": HEIGHT}}
        page = browser.new_page(**wide, color_scheme="light")
        page.goto(url)
        page.locator("#annotator").fill("Ada")
        page.locator("#annotator").press("Enter")
        page.locator("#annotator").blur()
        for _ in range(ANSWERS):
            name = page.locator("#stage .name").inner_text()
            page.keyboard.press(truth[name])
            page.locator("#stage .name", has_not_text=name).wait_for()
        page.wait_for_timeout(6_000)  # the numbers are counted anew
        page.screenshot(path=paths[0])
        page = browser.new_page(**wide, color_scheme="dark")
        page.goto(url)
        page.locator("#stage .name").wait_for()
        page.get_by_role("button", name="Grid").click()
        page.locator(".tile").nth(11).wait_for()
        page.wait_for_timeout(3_000)
        page.screenshot(path=paths[1])
        page = browser.new_page(
            viewport={"width": 390, "height": HEIGHT}, color_scheme="light", has_touch=True
        )
        page.goto(url)
        page.locator("#stage .name").wait_for()
        page.wait_for_timeout(3_000)
        page.screenshot(path=paths[2])
        browser.close()
    return paths


def main() -> None:
    """Make the project, serve it, take the pictures and put them in a row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, project = folder / "digits", folder / "labels" / "digits"
        script = ROOT / "examples" / "label_digits" / "make_images.py"
        subprocess.run([sys.executable, script, images], check=True)
        with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
            truth = {row["name"]: row["label"] for row in csv.DictReader(file)}
        classes = ",".join(map(str, range(10)))
        fastbadge(["label", "init", str(images), "--classes", classes, "--project", str(project)])
        server = subprocess.Popen(
            [sys.executable, "-m", "fastbadge", "label", "serve", str(project), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            found = next(filter(None, (re.search(r"http://\S+", line) for line in server.stdout)))
            pictures = [Image.open(path) for path in take(found[0], truth, folder)]
            width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
            row = Image.new("RGB", (width, HEIGHT), "white")
            left = 0
            for picture in pictures:
                row.paste(picture, (left, 0))
                left += picture.width + GAP
            row.quantize(128).save(ROOT / "docs" / "img" / "labelling.png", optimize=True)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


if __name__ == "__main__":
    main()
