"""One browser for all tests of the report's page."""

from __future__ import annotations

import pytest
from reader import BROWSER


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    assert BROWSER, "VTC_BROWSER_REQUIRED=1, and there is no browser"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
