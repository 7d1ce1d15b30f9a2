"""Names → classes, without importing what nobody asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from vtc.errors import UserError
from vtc.registry import Registry, families, methods


def test_every_builtin_can_be_had_and_described() -> None:
    assert {"none", "random", "avgpool", "fastv", "llavolta", "victor", "fwd2bot"} <= set(methods.names())
    assert {"llava", "qwen2_5_vl", "smolvlm"} <= set(families.names())
    for registry in (methods, families):
        for name in registry.names():
            assert isinstance(registry.get(name), type)
            assert registry.describe(name) and "\n" not in registry.describe(name)
    assert all(methods.get(name).name == name for name in methods._builtin)
    for name in families._builtin:
        family = families.get(name)
        assert family.model_type == name and {"model_type", "model_class", "version"} <= set(vars(family))


def test_an_unknown_name_says_what_there_is_and_what_is_near() -> None:
    with pytest.raises(UserError, match=r"method=fastvv: unknown; allowed: .*did you mean 'fastv'\?") as error:
        methods.get("fastvv")
    assert "\n" not in str(error.value)


def test_listing_names_and_resolving_none_imports_no_torch() -> None:
    code = "import sys, vtc.registry, vtc.budget, vtc.errors; from vtc.registry import methods as m; "
    code += "[m.describe(n) for n in m.names()]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_registered_classes_and_plugins_are_found(monkeypatch) -> None:
    registry = Registry("method", "vtc.none_such", {})

    @registry.register("mine")
    class Mine:
        """What it does.

        More.
        """

    assert registry.get("mine") is Mine and registry.describe("mine") == "What it does."
    entries = [EntryPoint("dict", "builtins:dict", "g"), EntryPoint("broken", "no_such_module:X", "g")]
    monkeypatch.setattr("vtc.registry.entry_points", lambda group: entries)
    fresh = Registry("method", "g", {})
    assert fresh.names() == ["broken", "dict"] and fresh.get("dict") is dict
    assert "builtins:dict" in fresh.describe("dict")
    with pytest.raises(UserError, match="method=broken: its plug-in no_such_module:X can't be imported"):
        fresh.get("broken")
