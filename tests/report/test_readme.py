"""README.md and the committed results agree, and what it shows as an example is the file that is tested."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import equal
import pytest
import readme
from fabricated import make

from vtc import results, shipped
from vtc.configuration import choices
from vtc.report.collection import collect

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


def test_the_rows_of_each_budget_are_a_table(tmp_path: Path) -> None:
    """The best one first; what has no row at a budget is named, and why."""
    shape = results.load(shipped.root() / equal.RESULTS / "rows" / "uncompressed")["backbone"]["shape"]
    for name, tokens, score in (
        ("none", None, 0.9), ("fastv", 16, 0.6), ("vcc", 16, 0.5), ("fastv", 4, 0.3), ("divprune", 4, 0.5)
    ):  # fmt: skip
        make(tmp_path, name, tokens, score)
    for path in list(tmp_path.rglob("result.json")):
        result = results.load(path)
        results.write(path.parent, result | {"backbone": result["backbone"] | {"shape": shape}})
    (setting,), _ = collect(sorted(tmp_path.rglob("result.json")))
    part = readme.by_budget(setting, tmp_path)
    sixteen = part.index("**16 of 144 visual tokens**")
    assert "| fastv | 0.500 ±0.011 |" in part[sixteen:] and "62.5 %" in part[sixteen:]
    four = part.index("<details><summary><b>4 of 144 visual tokens</b>")
    assert four < part.index("| divprune |") < part.index("| fastv |") < part.index("</details>"), "the best first"
    assert "Not offered at this budget: vcc.\n" in part[:sixteen]  # it leaves 9 or more
    assert "Not run at this budget: divprune.\n" in part[sixteen:]


def test_a_part_without_results_says_so(tmp_path: Path) -> None:
    assert "No result is committed yet" in readme.result_part(tmp_path)
    (tmp_path / equal.TABLE).parent.mkdir(parents=True)
    shutil.copyfile(ROOT / equal.TABLE, tmp_path / equal.TABLE)
    assert "Nothing is finished yet" in readme.budgets_part(tmp_path)
    assert "None was scored yet" in equal.shipped_part(tmp_path)
    part = readme.budgets_part(tmp_path)
    assert readme.filled("a\n<!-- begin budgets -->\nold\n<!-- end budgets -->\nb", tmp_path) == (
        f"a\n<!-- begin budgets -->\n{part}<!-- end budgets -->\nb"
    )
