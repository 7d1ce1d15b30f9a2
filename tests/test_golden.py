"""Numbers don't change under a version that stays (`tests/golden/golden.py` says why)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import golden

from vtc.interface import Context, TokenSequence
from vtc.methods.fastv import FastV

ENTRIES = [
    pytest.param(file, name, version, compute, id=f"{file}-{name}")
    for file, components in golden.FILES.items()
    for name, version, compute in components()
]


@pytest.mark.parametrize(("file", "name", "version", "compute"), ENTRIES)
def test_numbers_belong_to_their_version(file, name, version, compute) -> None:
    entry = golden.stored(file)[name]
    assert entry["version"] == version, f"run python tests/golden/golden.py: {name} has version {version} now"
    difference = golden.differs(entry["numbers"], compute())
    assert difference is None, f"{file}: {name}{difference}: raise its version, then run python tests/golden/golden.py"


@pytest.mark.parametrize("file", golden.FILES)
def test_every_component_has_numbers(file) -> None:
    assert set(golden.stored(file)) == {name for name, _, _ in golden.FILES[file]()}


def test_a_changed_number_is_noticed(monkeypatch) -> None:
    honest = FastV.score

    def upside_down(self, tokens: TokenSequence, context: Context):
        return -honest(self, tokens, context)

    monkeypatch.setattr(FastV, "score", upside_down)
    compute = next(c for name, _, c in golden.of_methods() if name == "fastv")
    assert "kept" in (golden.differs(golden.stored("methods")["fastv"]["numbers"], compute()) or "")


def test_a_number_under_the_same_version_is_not_written(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(golden, "HERE", tmp_path)
    numbers = {"value": 1.0}
    monkeypatch.setattr(golden, "FILES", {"few": lambda: iter([("one", 1, lambda: numbers)])})
    assert golden.main() == 0
    written = (tmp_path / "few.json").read_text()
    numbers["value"] = 1.1
    assert golden.main() == 1
    assert "raise its version" in capsys.readouterr().out
    assert (tmp_path / "few.json").read_text() == written
    monkeypatch.setattr(golden, "FILES", {"few": lambda: iter([("one", 2, lambda: numbers)])})
    assert golden.main() == 0
    assert golden.stored("few")["one"] == {"version": 2, "numbers": {"value": 1.1}}
