"""`action=new_method`: what is written runs as it is, holds the contracts, and is what the example is made of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtc import plugins, shipped
from vtc.authoring import rendered
from vtc.cli import main
from vtc.configuration import parse
from vtc.registry import methods
from vtc.settings import METHOD_KINDS

EXAMPLE = shipped.root() / "examples" / "vtc-plugin-example"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(methods, "_files", {})
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", METHOD_KINDS)
def test_what_is_written_passes_its_own_test(kind: str, folder: Path, capsys) -> None:
    assert main(["action=new_method", "name=quick_brown2", f"kind={kind}"]) == 0
    out = capsys.readouterr().out
    assert f"a working {kind}" in out and "action=check method=./quick_brown2.py" in out
    assert ("action=train" in out) == (kind in ("resampler", "self"))
    assert sorted(file.name for file in folder.iterdir()) == ["quick_brown2.py", "test_quick_brown2.py"]
    assert len((folder / "quick_brown2.py").read_text().splitlines()) <= 40
    job = parse(["method=./quick_brown2.py:QuickBrown2", "tokens=16"])
    assert job.method.name == "quick_brown2" and job.compressor.tokens == 16
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_quick_brown2.py"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout[-3000:]


def test_the_example_package_is_made_by_the_template() -> None:
    """`python docs/tools/example.py` writes it anew."""
    files = rendered("loudest", "pruner", "vtc_plugin_example.loudest")
    assert (EXAMPLE / "src/vtc_plugin_example/loudest.py").read_text() == files["loudest.py"]
    assert (EXAMPLE / "tests/test_loudest.py").read_text() == files["test_loudest.py"]


@pytest.mark.parametrize(
    ("words", "line"),
    [(["name=My-Method"], "name=My-Method: allowed: small letters, digits and _"), ([], "name=null: a name is needed"),
     (["name=fastv"], "name=fastv: there is a method of this name: FastV"),
     (["name=mine", "kind=prune"], "kind=prune: allowed: pruner, merger, tower, resampler, self; did"),
     (["name=taken"], "name=taken: taken.py is there already")],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(words: list[str], line: str, folder: Path, capsys) -> None:
    (folder / "taken.py").write_text("mine")
    assert main(["action=new_method", *words]) == 2
    assert line in capsys.readouterr().err
    assert [file.name for file in folder.iterdir()] == ["taken.py"] and (folder / "taken.py").read_text() == "mine"
