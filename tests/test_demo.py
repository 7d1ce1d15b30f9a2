"""`action=demo`: what stands behind the page, and the page itself in headless Chromium, a click from end to end.

`VTC_BROWSER` names the browser's program, else it is looked for on PATH. Where there is none the test of the page is
skipped, unless `VTC_BROWSER_REQUIRED=1`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from vtc.api import Model
from vtc.cli import main
from vtc.configuration import parse
from vtc.demo import Comparison, serve
from vtc.pocket.scenes import draw_scene, scene_rng

QUESTION = "how many objects are there?"
BROWSER = os.environ.get("VTC_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
REQUIRED = os.environ.get("VTC_BROWSER_REQUIRED") == "1"


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return draw_scene(scene_rng(0, "demo", 1), "test", things=4).image()


def test_both_sides_are_what_the_models_say(scene: Image.Image) -> None:
    comparison = Comparison(parse(["action=demo", "method=[fastv,fwd2bot]", "tokens=16"]))
    for name, side in zip(
        ("fastv", "fwd2bot"), comparison.answer(scene, QUESTION, "fastv", "fwd2bot", 16), strict=True
    ):
        plain = Model(job := parse([f"method={name}", "tokens=16"]), *job.load()).generate(scene, QUESTION)
        assert side.answer == plain.text and "16 of 144" in side.costs
        assert f"{plain.flops_ratio:.0%} of the uncompressed" in side.costs
        assert re.search(r"\| time \| \d+ ms", side.costs)
        assert side.picture is not None and side.picture.size == (480, 480)
    left = comparison.answer(scene, QUESTION, "fastv", "none", 16)[0].picture
    shown = Model(job := parse(["method=fastv", "tokens=16"]), *job.load()).show(scene, QUESTION)
    clear = (np.asarray(shown) == np.asarray(scene.convert("RGB"))).all(-1)
    large = np.asarray(left.resize(scene.size, Image.Resampling.BOX)).astype(int)
    assert (np.abs(large - np.asarray(shown).astype(int))[clear].max()) <= 1, "the squares are those of `Model.show`"
    # A method that can't: its side says why, the other one answers.
    cannot, can = comparison.answer(scene, QUESTION, "fwd2bot", "fastv", 5)
    assert cannot.picture is None and "method=fwd2bot tokens=5: it needs training" in cannot.answer and not cannot.costs
    assert can.answer and "5 of 144" in can.costs


def test_methods_are_those_that_run_here() -> None:
    methods = Comparison(parse(["action=demo"])).methods()
    assert {"none", "fastv", "divprune", "fwd2bot", "victor", "avgpool"} <= {*methods}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method=[fastv,divprune,tome]"], "method=[fastv,divprune,tome]: the page compares two"),
        (["method=[fastv,fastvv]"], "method=fastvv: unknown"),
        (["tokens=500"], "tokens=500: allowed: a whole number from 1 to 144"),
        (["ratio=0.1"], "ratio=0.1: the page begins with one number of tokens"),
        (["demo.port=80"], "demo.port=80: allowed: a whole number from 1024 to 65535"),
    ],
)
def test_what_it_refuses(words: list[str], line: str, capsys) -> None:
    assert main(["action=demo", *words]) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.strip().splitlines()) == 1


def test_without_gradio_it_says_how_to_get_it(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("vtc.demo.find_spec", lambda name: None)
    assert main(["action=demo"]) == 2
    assert "vtc: action=demo: needs Gradio, which is not installed; pip install 'vtc[demo]'" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None and not REQUIRED, reason="no browser on PATH, and VTC_BROWSER isn't set")
def test_a_click_from_end_to_end(scene: Image.Image, tmp_path) -> None:
    pytest.importorskip("gradio")
    from playwright.sync_api import sync_playwright

    scene.save(tmp_path / "scene.png")
    page, address = serve(parse(["action=demo", "method=[fastv,fwd2bot]", "tokens=16"]))
    expected = [
        Model(job := parse([f"method={name}", "tokens=16"]), *job.load()).generate(scene, QUESTION).text
        for name in ("fastv", "fwd2bot")
    ]
    foreign: list[str] = []
    errors: list[str] = []
    try:
        assert address.startswith("http://127.0.0.1:") and page.share_url is None
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1400, "height": 1000})
            tab.on("request", lambda r: foreign.append(r.url) if not _is_local(r.url) else None)
            tab.on("pageerror", lambda e: errors.append(str(e)))
            tab.goto(address)
            tab.set_input_files("input[type=file]", str(tmp_path / "scene.png"))
            tab.get_by_label("Question").fill(QUESTION)
            tab.wait_for_selector("img")
            tab.get_by_role("button", name="Ask", exact=True).click()
            for label, text in zip(("One method: answer", "Another: answer"), expected, strict=True):
                tab.wait_for_function(
                    "([label, text]) => [...document.querySelectorAll('label')].some(l => l.innerText.includes(label) "
                    "&& l.querySelector('textarea, input')?.value === text)",
                    arg=[label, text],
                    timeout=120_000,
                )
            assert tab.get_by_text("16 of 144").count() == 2 and tab.locator("img").count() >= 3
            assert not tab.locator("button[aria-label*='hare']").count(), "nothing is shared"
            if folder := os.environ.get("VTC_SCREENSHOTS"):
                tab.screenshot(path=f"{folder}/demo-1400.png", full_page=True)
                tab.set_viewport_size({"width": 390, "height": 900})
                tab.screenshot(path=f"{folder}/demo-390.png", full_page=True)
            tab.set_viewport_size({"width": 390, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390, "nothing stands out of a phone's screen"
            browser.close()
    finally:
        page.close()
    assert not foreign and not errors


def _is_local(url: str) -> bool:
    return re.match(r"(http|ws)s?://(127\.0\.0\.1|localhost)[:/]", url) is not None or url.startswith(
        ("data:", "blob:")
    )
