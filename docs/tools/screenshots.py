"""Makes the pictures of the report's page in docs/images, of the README's sweep, in headless Chromium.

    python docs/tools/screenshots.py [index.html]

Without a page the sweep is run, which takes some minutes, and `action=report` makes it. `VTC_BROWSER` names the
browser's program, else it is looked for on PATH.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vtc import shipped

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

SHOTS = {  # picture → state in the page's address, element it shows, what is chosen before
    "page-leaderboard": ("", "#board", ()),
    "page-tradeoffs": ("#?axis=flops", "#trade", ()),
    "page-samples": ("", "#samples", (("#kind", "split"),)),
}
SWEEP = ("method=fwd2bot,victor,llavolta,fastv", "tokens=4,16,36")
STYLE = "#controls { position: static !important } html { scroll-padding-top: 0 !important }"
SIZE: ViewportSize = {"width": 1100, "height": 760}


def report(folder: Path) -> Path:
    """The page of the README's sweep."""
    from vtc.cli import main as vtc

    runs, page = folder / "runs", folder / "report"
    for words in (
        ["-m", *SWEEP, f"output_dir={runs}"],
        ["action=report", f"report.inputs=[{runs}]", f"report.output={page}", "report.figures=[]"],
    ):
        if vtc(words):
            raise RuntimeError(f"python -m vtc {' '.join(words)} failed")
    return page / "index.html"


def main(argv: list[str]) -> int:
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    browser = os.environ.get("VTC_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    images = shipped.root() / "docs/images"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        file = Path(argv[0]).resolve() if argv else report(Path(folder))
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for name, (state, element, choices) in SHOTS.items():
            page = chromium.new_page(viewport=SIZE)
            page.set_default_timeout(120_000)
            page.goto(f"file://{file}{state}")
            page.wait_for_selector("body[data-ready]")
            for select, choice in choices:
                known = page.eval_on_selector_all(f"{select} option", "all => all.map(o => [o.value, o.label])")
                page.select_option(select, next(value for value, label in known if choice in (value, label)))
            page.add_style_tag(content=STYLE)
            page.eval_on_selector(element, "e => e.scrollIntoView()")
            if element == "#trade":
                page.wait_for_selector("#pareto[data-drawn]")
            page.wait_for_timeout(3000)  # figures are drawn, pictures decoded
            page.eval_on_selector(element, "e => e.scrollIntoView()")  # what was drawn above it has moved it
            page.wait_for_timeout(500)
            page.screenshot(path=images / f"{name}.png")
            page.close()
        chromium.close()
    print("\n".join(f"docs/images/{name}.png" for name in SHOTS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
