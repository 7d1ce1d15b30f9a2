"""What arithmetic alone refuses is refused without torch, in the words in which it is refused with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtc import shipped
from vtc.cli import actions, refusals
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.registry import methods

BACKBONES = ("pocket", "llava15_7b", "qwen2vl_2b")
BUDGETS = ({}, {"tokens": 1}, {"tokens": 36}, {"tokens": 500}, {"ratio": 0.1})
# One process says it of all cases, from stand-ins or not, and what it has imported.
SAY = """
import json, sys
from dataclasses import replace
from vtc.budget import Budget
from vtc.cli import refusals
from vtc.configuration import parse
from vtc.registry import methods
from vtc.settings import MethodSettings

said = {}
for backbone in BACKBONES:
    job = parse([f"backbone={backbone}"])
    for name in [*methods.names(), "visionzip+fastv", "fastv+visionzip"]:
        for budget in BUDGETS:
            one = replace(job, method=MethodSettings(name), budget=Budget(**budget))
            told = refusals._reason(one, trained=True)
            if REAL:  # what it put there finds nothing that isn't imported already, and goes again
                sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, refusals._Finder)]
            said[f"{backbone} {name} {budget}"] = told
print(json.dumps([said, getattr(sys.modules.get("torch"), "__file__", None)]))
"""
REAL = "import torch, safetensors.torch, transformers, peft\n"


def said(real: bool) -> tuple[dict[str, str], str | None]:
    start = f"BACKBONES, BUDGETS, REAL = {BACKBONES!r}, {BUDGETS!r}, {real}\n" + (REAL if real else "")
    environment = {**os.environ, "PYTHONPATH": str(shipped.root())}
    done = subprocess.run([sys.executable, "-c", start + SAY], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    words, torch = json.loads(done.stdout.splitlines()[-1])
    return words, torch


def test_stand_ins_refuse_what_torch_refuses() -> None:
    """Every method on backbones with and without a fixed number of tokens: the same words, or none in their place."""
    (early, stand_in), (late, torch) = said(False), said(True)
    assert stand_in is None and torch is not None
    refused = {case: words for case, words in late.items() if words}
    assert len(late) == len(BACKBONES) * len(BUDGETS) * (len(methods.names()) + 2) and len(refused) > 100
    assert {case: words for case, words in early.items() if words and words != late[case]} == {}
    assert sum(bool(words) for words in early.values()) > 0.9 * len(refused)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["method=fastv", "tokens=500"], "tokens=500: fastv on pocket offers 1 to 144"),
        (["method=m3", "tokens=5"], "tokens=5: m3 on pocket offers 1, 4, 9, 16, 36, 144"),
        (["method=fastv", "tokens=4", "method.layer=99"], "method.layer=99: this decoder has 6 layers"),
        (["method=fwd2bot", "tokens=5"], "method=fwd2bot tokens=5: it needs training"),
        (["action=train", "method=victor", "tokens=500"], "tokens=500: victor on pocket offers 1 to 144"),
        (
            ["method=tome", "tokens=5", "backbone=qwen2vl_2b"],
            "method=tome: patches that merge in the tower leave no grid",
        ),
        (
            ["method=fitprune", "tokens=5", "backbone=qwen2vl_2b"],
            "method.recipe=null: no recipe of fitprune comes with",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refusal_imports_no_torch(words: list[str], reason: str, tmp_path: Path) -> None:
    code = f"import sys; from vtc.cli import main; print(main({words!r}), 'torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(shipped.root())}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "2 False" and done.stderr.startswith(f"vtc: {reason}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_what_only_torch_can_say_is_left_to_it() -> None:
    """A child that can't say refuses nothing; here torch is imported, and none is asked."""
    import torch  # noqa: F401

    job = parse(["method=fastv", "tokens=500"])
    assert refusals.refusal(job, trained=True) is None
    with pytest.raises(UserError, match="fastv on pocket offers"):
        actions.perform(job)
    with pytest.raises(refusals._Undecided):
        bool(refusals._stand_in("is_available")())
    with pytest.raises(refusals._Undecided):
        refusals._stand_in("dtype") == "float16"  # noqa: B015
