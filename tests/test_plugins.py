"""Plug-ins of other packages, broken in every way: each is named, none takes the others along."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vtc import registry
from vtc.cli import main
from vtc.errors import UserError
from vtc.registry import BROKEN, Registry

BUILTIN = {"json": "json:JSONDecoder"}


def package(site: Path, name: str, entries: bytes, metadata: bytes | None = None) -> None:
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_bytes(f"Name: {name}\n".encode() if metadata is None else metadata)
    (folder / "entry_points.txt").write_bytes(b"[vtc.tested]\n" + entries)


@pytest.fixture
def site(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "BROKEN", set())
    monkeypatch.setattr(registry, "UNREADABLE", set())
    package(tmp_path, "good", b"good = json:JSONEncoder\n")
    return tmp_path


@pytest.mark.parametrize(
    ("entries", "metadata"),
    [(b"mine\n", None), (b"mine = not a ::: path\n", None), (b"mine = json\n", None), (b"mine = \xff:X\n", None),
     (b"mine = json:loads\n", b"\xff\xfe"), (b"a+b = json:loads\n", None), (b"a b = json:loads\n", None)],
)  # fmt: skip
def test_what_cannot_be_read_is_named_and_left_out(entries: bytes, metadata: bytes | None, site: Path) -> None:
    package(site, "bad", entries, metadata)
    assert Registry("method", "vtc.tested", BUILTIN).names() == ["good", "json"]
    (line,) = registry.BROKEN
    assert "bad-1.0.dist-info: left out" in line


@pytest.mark.parametrize("entry", ["no_such_module:X", "exits:X", "bad_syntax:X", "json:nope"])
def test_what_cannot_be_imported_is_one_line(entry: str, site: Path) -> None:
    (site / "exits.py").write_text("raise SystemExit(3)")
    (site / "bad_syntax.py").write_text("def (")
    package(site, "bad", f"mine = {entry}\n".encode())
    tested = Registry("method", "vtc.tested", BUILTIN)
    assert tested.describe("mine") == f"plug-in {entry} of bad"
    with pytest.raises(UserError, match=f"method=mine: its plug-in {entry} can't be imported"):
        tested.get("mine")
    sys.modules.pop("exits", None)


def test_another_kind_of_thing_is_refused(site: Path) -> None:
    package(site, "bad", b"mine = json:loads\n")
    with pytest.raises(UserError, match="method=mine: its plug-in json:loads has no reduce"):
        Registry("method", "vtc.tested", BUILTIN, needed=("reduce",)).get("mine")


def test_two_of_one_name_are_both_named(site: Path) -> None:
    package(site, "one", b"mine = json:loads\n")
    package(site, "two", b"mine = json:dumps\njson = json:dumps\n")
    tested = Registry("method", "vtc.tested", BUILTIN)
    with pytest.raises(UserError, match="json:.* of (one|two) and .* of (one|two) have this name"):
        tested.get("mine")
    with pytest.raises(UserError, match="method=json: vtc's json:JSONDecoder and plug-in json:dumps of two"):
        tested.get("json")


def test_help_names_what_is_broken(monkeypatch, capsys) -> None:
    monkeypatch.setattr("vtc.cli.command.BROKEN", {"plug-ins of x: left out"})
    assert main(["--help"]) == 0
    assert capsys.readouterr().err == "vtc: plug-ins of x: left out\n" and isinstance(BROKEN, set)
