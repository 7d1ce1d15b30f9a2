"""Draws the figures of docs/visualize.md anew, on pocket.

python docs/tools/pictures.py          # the figure of action=visualize
python docs/tools/pictures.py demo     # and the page of action=demo, in a browser (VTC_BROWSER, or Chromium on PATH)
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

from vtc import shipped
from vtc.cli import main

QUESTION = "how many objects are there?"
IMAGES = shipped.root() / "docs" / "images"
COLOURS = 256  # of the files: they are drawings, and stay small so


def scene(folder: Path) -> Path:
    """A scene of pocket's test split."""
    from vtc.pocket.scenes import draw_scene, scene_rng

    file = folder / "scene.png"
    draw_scene(scene_rng(0, "docs", 0), "test", things=4).image().save(file)
    return file


def stored(picture: Image.Image, name: str) -> None:
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)


def visualized(folder: Path) -> None:
    words = [f"image={scene(folder)}", f"question={QUESTION}", "method=[fastv,kmeans,victor]", "tokens=16"]
    figures = "visualize.figures=[kept,attention,layers]"
    if main(["action=visualize", *words, figures, f"output_dir={folder}"]):
        raise SystemExit(1)
    figure = Image.open(folder / "visualize" / "visualize.png")
    stored(figure.resize((1200, round(1200 * figure.height / figure.width)), Image.Resampling.LANCZOS), "visualize.png")


def demonstrated(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    from vtc.configuration import parse
    from vtc.demo import serve

    page, address = serve(parse(["action=demo", "method=[fastv,fwd2bot]", "tokens=16"]))
    program = os.environ.get("VTC_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.goto(address)
        tab.set_input_files("input[type=file]", str(scene(folder)))
        tab.get_by_label("Question").fill(QUESTION)
        tab.get_by_role("button", name="Ask", exact=True).click()
        tab.get_by_text("16 of 144").nth(1).wait_for(timeout=120_000)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=str(folder / "demo.png"), full_page=True)
        browser.close()
    page.close()
    stored(Image.open(folder / "demo.png"), "demo.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        visualized(Path(name))
        if "demo" in sys.argv[1:]:
            demonstrated(Path(name))
