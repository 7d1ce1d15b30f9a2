"""What methods keep is what the code of their authors was recorded to keep, on the same inputs (benchmarks/parity)."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from vtc import shipped

RECORD = json.loads((shipped.root() / "benchmarks/results/parity.json").read_text())["methods"]


@pytest.fixture(scope="module")
def parity():
    """The script that made the record, as a module."""
    file = shipped.root() / "benchmarks" / "parity" / "parity.py"
    spec = importlib.util.spec_from_file_location("parity", file)
    sys.modules["parity"] = module = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["parity"]


@pytest.mark.parametrize("name", RECORD)
def test_it_keeps_what_its_authors_code_keeps(name: str, parity) -> None:
    authors = parity.AUTHORS[name]
    assert (RECORD[name]["repository"], RECORD[name]["commit"]) == (authors.repository, authors.commit)
    assert len(RECORD[name]["cases"]) == len(parity.CASES)
    for case in RECORD[name]["cases"]:
        assert parity.equal(case["kept"], parity.OURS[name](case)) == case["equal"], case["seed"]
        assert case["equal"], "what differs is to be named in the method's docstring, and left out here"


def test_every_case_was_recorded_and_another_choice_is_seen(parity) -> None:
    assert set(RECORD) == set(parity.AUTHORS) == set(parity.OURS)
    case = next(case for case in RECORD["divprune"]["cases"])
    assert not parity.equal(case["kept"][1:], parity.OURS["divprune"](case))
    assert not parity.equal([[1, 2], [0.5]], [[1, 2], [0.501]])
