"""Everything public says what it is: shapes, units, errors stand in docstrings, and the reference is made of them."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Iterator

import pytest

PUBLIC = (
    "vtc", "vtc.api", "vtc.authoring", "vtc.backbones.base", "vtc.budget", "vtc.checkpoint", "vtc.cli", "vtc.engine",
    "vtc.errors", "vtc.interface", "vtc.job", "vtc.plugins", "vtc.registry", "vtc.results", "vtc.settings",
    "vtc.statistics", "vtc.store", "vtc.testing", "vtc.testing.check", "vtc.testing.runs",
)  # fmt: skip


def documented(value: object, key: str, owner: type | None) -> bool:
    """Whether a name has a docstring, its own or that of the method it overrides, or a word among its class's
    attributes.
    """
    return bool(inspect.getdoc(value)) or bool(owner and re.search(rf"^\s+(\w+, )*{key}\b", owner.__doc__ or "", re.M))


def members(module: types.ModuleType) -> Iterator[tuple[str, bool]]:
    """Its public classes and functions, with the methods and properties of the classes."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    for name in names:
        value = getattr(module, name)
        own = getattr(value, "__module__", "").startswith("vtc")
        if not own or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        yield name, documented(value, name, None)
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    yield f"{name}.{key}", documented(getattr(value, key), key, value)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    assert [key for key, said in members(module) if not said] == []


def test_a_name_without_a_docstring_is_seen() -> None:
    module = types.ModuleType("planted")
    exec(
        "class A:\n  'A.\\n\\n  c: said here.'\n  def b(self): ...\n  @property\n  def c(self): ...\ndef d(): ...",
        module.__dict__,
    )
    for value in (module.A, module.d):
        value.__module__ = "vtc.planted"
    assert [key for key, said in members(module) if not said] == ["A.b", "d"]
