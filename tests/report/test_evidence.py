"""What is said to stand behind a method is there: the test that it names, weights, the record of authors' code."""

from __future__ import annotations

import ast
from pathlib import Path

import evidence
import pytest

from vtc import shipped
from vtc.interface import Compressor
from vtc.registry import methods

ROOT = shipped.root()
BUILT_IN = [name for name in methods.names() if methods.path(name)]


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_reference_that_a_method_names_is_a_test(name: str) -> None:
    reference = vars(methods.get(name)).get("reference")
    if reference is None:
        assert evidence.of(name, ROOT).reference == evidence.NONE
        return
    file, _, test = reference.partition("::")
    assert (ROOT / "tests" / "methods" / file).is_file(), reference
    assert test in functions_of(ROOT / "tests" / "methods" / file), reference
    text = (ROOT / "tests" / "methods" / file).read_text()
    cls = methods.get(name).__name__
    assert name in text or cls in text or name == "none", f"{file} says nothing of {name}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_weights_that_are_named_are_shipped(name: str) -> None:
    words, there = evidence.of(name, ROOT).weights, [*(ROOT / evidence.WEIGHTS).glob(f"{name}-*/weights.safetensors")]
    assert words.startswith("pocket, ") == bool(there)
    for budget in (word for word in words.replace(",", "").split() if word.isdigit()):
        assert (ROOT / evidence.WEIGHTS / f"{name}-{budget}" / "weights.safetensors").is_file()


def test_each_method_says_what_is_compared_or_why_it_is_not() -> None:
    for name in BUILT_IN:
        recorded, why = name in evidence.parity(ROOT), vars(methods.get(name)).get("incomparable")
        assert not (recorded and why), f"{name}: it was compared, and says that it can't be"
        assert evidence.of(name, ROOT).parity.startswith("none") != recorded


def test_what_was_not_done_is_none(tmp_path: Path) -> None:
    class Bare(Compressor):
        name = "bare"

    (tmp_path / evidence.WEIGHTS).mkdir(parents=True)
    assert evidence._parity("bare", Bare, tmp_path) == "none"
    assert evidence._weights("bare", Bare, tmp_path) == "needs none" and evidence._order("bare", ROOT) == "none"
    inherited = type("Below", (methods.get("fastv"),), {"name": "below"})
    assert "reference" not in vars(inherited), "a class doesn't inherit what was shown of its base"


def test_the_orders_of_papers_are_counted_by_method() -> None:
    every = evidence.judged(ROOT)
    named = {name for one in every for name in one.methods}
    assert {name for name in BUILT_IN if evidence.of(name, ROOT).order != evidence.NONE} == named & set(BUILT_IN)
    victor = [one.judgement.verdict for one in every if "victor" in one.methods]
    assert evidence.of("victor", ROOT).order.startswith(f"{victor.count('agrees')} as in the papers")
