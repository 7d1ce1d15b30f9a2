"""A reader of the report's page: headless Chromium, and what it complained of.

`VTC_BROWSER` names the browser's program, else it is looked for on PATH.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

BROWSER = os.environ.get("VTC_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
REQUIRED = os.environ.get("VTC_BROWSER_REQUIRED") == "1"
NEEDED = pytest.mark.skipif(BROWSER is None and not REQUIRED, reason="no browser on PATH, and VTC_BROWSER isn't set")


class Reader:
    """A page that is open, and what the browser complained of."""

    def __init__(self, browser, file: Path, address: str = "", width: int = 1400) -> None:
        self.page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
        self.page.set_default_timeout(120_000)  # a machine that does much besides takes its time
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else self.complaints.append(r.url),
        )
        self.page.goto(f"file://{file}{address}")
        self.page.wait_for_selector("body[data-ready]")

    def rows(self) -> list[list[str]]:
        return self.page.eval_on_selector_all(
            "#board-table tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))"
        )

    def names(self) -> list[str]:
        return [row[1].split()[0] for row in self.rows()]

    def drawn(self, figure: str) -> list[dict]:
        """The traces of a figure, scrolled to and drawn."""
        self.page.eval_on_selector(f"#{figure}", "e => e.scrollIntoView()")
        self.page.wait_for_selector(f"#{figure}[data-drawn]")
        self.page.wait_for_timeout(150)
        return self.page.eval_on_selector(
            f"#{figure}",
            "e => (e.data ?? []).map(t => ({name: t.name, meta: t.meta, x: [...t.x], y: [...t.y], z: t.z}))",
        )

    def opened(self, row: str) -> str:
        """What the dialog of a row's run says; its facts are unpacked first, so it opens some time behind the click."""
        self.page.click(f"#board-table {row}")
        self.page.wait_for_selector("#run[open]")
        return self.page.inner_text("#run")

    def questions(self) -> list[str]:
        return self.page.eval_on_selector_all(".sample h3", "all => all.map(e => e.innerText)")

    def done(self) -> None:
        assert self.page.evaluate("window.hurt") is None, "a text of a result became markup"
        assert self.complaints == []
        self.page.context.close()
