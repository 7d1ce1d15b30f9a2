"""What the pages show works: each command is composed, each piece of Python is run, but for those that are named here
with what they need and isn't there.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from vtc import plugins, shipped
from vtc.authoring import rendered
from vtc.cli import help
from vtc.configuration import compose, overrides, parse
from vtc.errors import UserError
from vtc.registry import families, methods
from vtc.testing import CONTRACTS

ROOT = shipped.root()
PAGES = [
    "README.md",
    "AGENTS.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]
PAGES += ["examples/vtc-plugin-example/README.md"]
COMMAND = re.compile(
    r"^(?:`|    +|)(?:accelerate launch [^\n]*?-m vtc|python -m vtc|vtc(?= +(?:-|[\w.]+=))) +((?:[^\n`\\]|\\\n)+)",
    re.MULTILINE,
)
# A part of a command → what it needs that isn't here.
NEEDS = {
    "<": "a place to fill in", "…": "a place to fill in", "$": "a variable of the shell",
    "hydra/launcher=": "a cluster", "method=loudest": "the example package, installed",
    "action=inspect": "the reader's own action",
}  # fmt: skip
# What a refusal says of what the reader has and this test hasn't.
ABSENT = ("no such file", "no such folder", "no config.json there", "the recipe needs it")
# The first line of a piece of Python → what it needs that isn't here.
READERS_OWN = {'"""KeyNorm': "run by tests/test_contributing.py", '"""Dots': "run by tests/test_contributing.py"}


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    """The arguments of every command of vtc's on a page, comments behind them aside."""
    lines = [match[1].replace("\\\n", " ") for match in COMMAND.finditer(text(page))]
    return [re.split(r"\s#\s|\s{3,}(?=[a-z])", line)[0].strip() for line in lines]


SHOWN = sorted({(page, line) for page in PAGES for line in commands(page) if not any(need in line for need in NEEDS)})


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path: Path) -> None:
    """A folder as the reader has it: with the example, and the method that `action=new_method` wrote."""
    monkeypatch.setattr(methods, "_files", {})
    monkeypatch.setattr(plugins, "_loaded", {})
    for name, content in rendered("my_method", "pruner").items():
        (tmp_path / name).write_text(content)
    for shown in ("examples", "benchmarks"):
        os.symlink(ROOT / shown, tmp_path / shown)
    monkeypatch.chdir(tmp_path)


def test_there_is_something_to_test() -> None:
    assert len(SHOWN) > 60 and {page for page, _ in SHOWN} >= {"README.md", "docs/methods.md", "docs/train.md"}


@pytest.mark.parametrize("page", sorted({page for page, _ in SHOWN}))
def test_a_command_that_a_page_shows_is_understood(page: str) -> None:
    wrong = []
    for line in (line for where, line in SHOWN if where == page):
        try:
            words = [word for word in shlex.split(line) if word != "--version"]
            sweeping = words[:1] in (["-m"], ["--multirun"])
            if "--help" in words:
                assert help.text([word for word in words if word != "--help"])
            elif sweeping:
                compose.prepare(overrides.spelled_out(words[1:]), sweeping=True)
            elif "--cfg" not in words:
                parse(words)
        except (UserError, ValueError) as error:
            if not any(absent in str(error) for absent in ABSENT):
                wrong.append(f"{line}: {error}")
    assert not wrong, "\n".join(wrong)


PYTHON = [
    (page, textwrap.dedent(code))
    for page in PAGES
    for code in re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)
]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[f"{p}-{n}" for n, (p, _) in enumerate(PYTHON)])
def test_the_python_that_a_page_shows_runs(page: str, code: str) -> None:
    if any(code.lstrip().startswith(start) for start in READERS_OWN):
        return
    from vtc.pocket.scenes import draw_scene, scene_rng

    draw_scene(scene_rng(0, "docs", 0), "test", things=3).image().save("photo.png")
    with methods.taken_back(), families.taken_back():  # what it registers is no other test's business
        exec(compile(code, page, "exec", dont_inherit=True), {"__name__": "shown"})


def test_every_contract_has_its_heading() -> None:
    headings = re.findall(r"^## (\w+)$", text("docs/contracts.md"), re.MULTILINE)
    assert headings == [contract.__name__ for contract in CONTRACTS]


def test_what_is_named_as_needing_something_is_still_shown() -> None:
    everything = "".join(map(text, PAGES))
    assert [need for need in NEEDS if need not in everything] == []
    codes = [code for _, code in PYTHON]
    assert all(any(code.lstrip().startswith(start) for code in codes) for start in READERS_OWN)
