"""The code that CONTRIBUTING shows does what it says there."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import pytest
import yaml

from vtc import shipped
from vtc.cli import actions
from vtc.configuration import choices, parse
from vtc.registry import sources
from vtc.settings import BenchmarkSettings
from vtc.testing import CONTRACTS, tiny_backbone
from vtc.testing.tiny_llava import tiny_llava_next


def blocks(language: str) -> list[str]:
    page = (shipped.root() / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return [textwrap.dedent(code) for code in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


def shown(name: str) -> Any:
    """The class of this name."""
    code = next(code for code in blocks("python") if f"class {name}(" in code)
    module: dict[str, Any] = {"__name__": "shown"}
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), module)
    return module[name]


@pytest.mark.parametrize("backbone", [tiny_backbone, lambda: tiny_backbone(tower="siglip"), tiny_llava_next])
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_the_method_holds_the_contracts(contract, backbone) -> None:
    method = shown("KeyNorm")
    contract(backbone(), lambda model, tokens: method(tokens, model.shape), 9)


def test_the_benchmark_draws_what_it_asks(monkeypatch) -> None:
    """Built in, one line in the registry makes it a choice; it needs no file in `conf/`."""
    dots = shown("Dots")
    source = dots(BenchmarkSettings(name="dots"))
    rows = [row for task in dots.tasks for row in source.rows(task)]
    assert [row["answer"] for row in rows] == [str(count) for count in range(1, 10)]
    assert [row["image"].tobytes() for row in rows] == [
        row["image"].tobytes() for task in dots.tasks for row in source.rows(task)
    ]
    assert all((255, 0, 0) in row["image"].getdata() for row in rows)
    monkeypatch.setitem(sources._registered, "dots", dots)
    assert choices.choices("benchmark")["dots"] == "Dots to count, from one to nine, drawn."
    assert parse(["benchmark=dots"]).benchmark.tasks == dots.tasks
    monkeypatch.setattr(sources, "_registered", {})
    monkeypatch.setitem(sources._builtin, "dots", "vtc.pocket.tasks:PocketTasks")
    assert "dots" in choices.unconfigured("benchmark") and "jsonl" not in choices.unconfigured("benchmark")


def test_the_file_of_an_action_is_like_ours() -> None:
    (file,) = blocks("yaml")
    assert yaml.safe_load(file) == {"action": "<name>"}
    for name in actions.ACTIONS:
        lines = choices.configured("action")[name].read_text(encoding="utf-8").splitlines()
        assert lines[0] == file.splitlines()[0] and f"action: {name}" in lines
