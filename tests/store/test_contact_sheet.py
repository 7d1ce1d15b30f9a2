"""docs/store.md shows what its commands print."""

from __future__ import annotations

import re

import store as page

from vtc import shipped


def without_scores(text: str) -> list[str]:
    """Lines as words, scores aside: their last digit is the machine's."""
    return [re.sub(r"\d\.\d{3}", "", line).split() for line in text.splitlines()]


def test_photographs_are_indexed_and_found(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setattr(page, "SCENES", 0)
    page.prepare()
    text = (shipped.root() / page.PAGE).read_text(encoding="utf-8")
    parts = [part for part in page.PART.finditer(text) if "store=photos" in part["command"]]
    assert len(parts) == 2
    for part in parts:
        shown = [line.strip() for line in part[0].splitlines() if line.startswith("    ")]
        assert shown[0] == f"$ {part['command']}"
        assert without_scores(page.printed(part["command"])) == without_scores("\n".join(shown[1:]))
    sheet = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert sheet.count("data:image/jpeg;base64,") == 4 and "coffee.png" in sheet
