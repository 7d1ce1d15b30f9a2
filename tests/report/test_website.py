"""The site: a page for every method, no link, anchor or docstring that is broken, every page in the menu."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import website

from vtc import shipped
from vtc.registry import methods

ROOT = shipped.root()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as `make docs` builds it, with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "docs/tools/website.py"), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder / "html"


class Requests(HTMLParser):
    """What a browser would fetch for a page from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: list[str] = []

    def handle_starttag(self, tag: str, attributes) -> None:
        values = dict(attributes)
        address = values.get("src") or (values.get("href") if tag == "link" else None) or ""
        if address.startswith(("http:", "https:", "//")) and values.get("rel") != "canonical":
            self.hosts.append(address)


def test_it_is_whole_and_asks_no_other_host(site: Path) -> None:
    built_in = [name for name in methods.names() if methods.path(name)]
    assert {folder.name for folder in (site / "methods").iterdir() if folder.is_dir()} == set(built_in)
    for page in site.rglob("*.html"):
        requests = Requests()
        requests.feed(page.read_text(encoding="utf-8"))
        assert not requests.hosts, page
    assert "vtc/methods/victor.py" in (site / "methods/victor/index.html").read_text(encoding="utf-8")
    assert "keep_visual" in (site / "reference/vtc.interface/index.html").read_text(encoding="utf-8")
    assert "(methods/victor/)" in (site / "llms.txt").read_text(encoding="utf-8")
    assert "# victor" in (site / "llms-full.txt").read_text(encoding="utf-8")


def test_links_lead_to_pages_of_the_site_or_become_their_words() -> None:
    def linked(text: str) -> str:
        return website.relinked(text, "docs/train.md", ROOT)

    assert linked("[a](../README.md#x) [b](pocket.md)") == "[a](index.md#x) [b](pocket.md)"
    assert linked("[`conf/training`](../conf/training) [c](#here)") == "`conf/training` [c](#here)"
    assert linked("![p](images/pareto-tokens.png)") == "![p](images/pareto-tokens.png)"
    assert linked("[d](https://a.b/c)") == "[d](https://a.b/c)"
    with pytest.raises(ValueError, match=r"train.md links to nowhere.md"):
        linked("[e](nowhere.md)")


def test_a_page_that_the_menu_lacks_is_refused(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(website, "pages", lambda root: {"index.md": "# a", "lost.md": "# b"})
    monkeypatch.setattr(website, "navigation", lambda entries, texts: ["index.md"])
    with pytest.raises(ValueError, match=r"nav lacks lost.md"):
        website.write(ROOT, tmp_path)
