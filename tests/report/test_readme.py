"""README.md and the committed results agree, and what it shows as an example is the file that is tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import readme
from fabricated import make

from vtc import results, shipped
from vtc.configuration import choices

ROOT = shipped.root()
README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_pages_are_what_the_committed_files_say() -> None:
    pages = {name: (ROOT / name).read_text() for name in readme.PAGES}
    for name, text in pages.items():
        assert readme.filled(text, ROOT) == text, f"{name}: run python docs/tools/readme.py"
    assert {part["name"] for text in pages.values() for part in readme.PART.finditer(text)} == set(readme.PARTS)


def test_the_example_is_about_thirty_lines() -> None:
    code = (ROOT / readme.EXAMPLE).read_text()
    assert code in README
    assert len([line for line in code.splitlines() if line.strip()]) <= 32


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_two_commands_come_first() -> None:
    commands = re.findall(r"^    (make \w+)", README, re.MULTILINE)
    assert commands[:2] == ["make bench", "make test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_commands_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for command in re.findall(r"python -m vtc ([^\n`#]+)", text):
        for key, values in re.findall(r"(?<![.\w])(action|backbone|benchmark)=([\w,]+)", command):
            for value in values.split(","):
                assert value in {*choices.configured(key), *choices.choices(key)}, f"{page.name}: {key}={value}"
        for values in re.findall(r"(?<![.\w])method=([\w,]+)", command):
            assert set(values.split(",")) <= {*choices.choices("method"), "loudest"}, f"{page.name}: method={values}"


def test_parts_from_results(tmp_path: Path) -> None:
    """With results committed the sweep's part is their table; without, it says that there is none."""
    assert "No sweep is committed yet" in readme.sweep_part(tmp_path)
    assert "No result is committed yet" in readme.result_part(tmp_path)
    folder = tmp_path / readme.RESULTS
    make(folder, "none", None, 0.9)
    make(folder, "fastv", 16, 0.6)
    (folder / "notes.json").write_text("{}")
    part = readme.sweep_part(tmp_path)
    assert "**16 of 144 visual tokens**" in part and "| fastv | 0.500 ±0.011 |" in part and "62.5 %" in part
    make(folder, "fastv", 4, 0.3)
    make(folder, "divprune", 4, 0.5)
    part = readme.sweep_part(tmp_path)
    four = part.index("<details><summary><b>4 of 144 visual tokens</b>")
    assert four < part.index("| divprune |") < part.index("| fastv |") < part.index("</details>"), "the best first"
    assert "No run at this budget: divprune." in part[part.index("**16 of 144") :]
    shape = results.load(shipped.root() / readme.RESULTS / "pocket-none" / "result.json")["backbone"]["shape"]
    for path in folder.rglob("result.json"):
        result = results.load(path)
        results.write(path.parent, result | {"backbone": result["backbone"] | {"shape": shape}})
    make(folder, "victor", 4, 0.5)
    make(folder, "vcc", 16, 0.5)
    part = readme.sweep_part(tmp_path)
    assert "Not offered at this budget: vcc.\n" in part[: part.index("**16 of 144")]  # it leaves 9 or more
    assert "No weights at this budget: victor. No run at this budget: divprune.\n" in part[part.index("**16 of 144") :]
    assert readme.filled("a\n<!-- begin sweep -->\nold\n<!-- end sweep -->\nb", tmp_path) == (
        f"a\n<!-- begin sweep -->\n{part}<!-- end sweep -->\nb"
    )
