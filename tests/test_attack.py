"""benchmarks/reliability: its verdicts are right, so that a count of no faults says something."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import pytest

from vtc import shipped

FOLDER = Path(shipped.path("benchmarks")) / "reliability"


@pytest.fixture
def attack(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("attack")
    for name in ("attack", "overrides", "rows", "pictures", "checkpoints", "reports", "outputs", "kills"):
        sys.modules.pop(name, None)


def fail() -> None:
    raise ValueError("planted")


@pytest.mark.parametrize(
    ("argv", "changes", "verdict"),
    [
        (["--version"], {"right": "works"}, "right"),
        (["--version"], {"right": "refused"}, "silent"),
        (["--version"], {"check": lambda outcome: "another number"}, "silent"),
        (["--version"], {"before": fail}, "traceback"),
        (["--version"], {"before": lambda: time.sleep(60), "seconds": 0.2}, "hang"),
        (["--nope"], {"right": "refused"}, "right"),
        (["--nope"], {"right": "either"}, "right"),
        (["--nope"], {"right": "works"}, "refused"),
        (["--nope"], {"before": lambda: print("more", file=sys.stderr)}, "wordy"),
    ],
)
def test_each_outcome_has_its_verdict(attack, tmp_path: Path, argv, changes, verdict) -> None:
    case = attack.Case("planted", argv, **changes)
    assert attack.verdict(case, attack.run(case, tmp_path))[0] == verdict


@pytest.mark.parametrize(
    ("kind", "least"), [("overrides", 393), ("rows", 164), ("pictures", 60), ("checkpoints", 54), ("reports", 135)]
)
def test_there_are_as_many_cases_as_in_the_first_attack_and_each_has_a_name(attack, tmp_path, kind, least) -> None:
    names = [case.name for case in importlib.import_module(kind).cases(tmp_path)]
    assert len(names) >= least
    assert len(set(names)) == len(names)
