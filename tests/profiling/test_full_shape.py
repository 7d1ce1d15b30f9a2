"""The script that measures every method at the depth of a 7B LLaVA, on a model narrow enough for a test."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import readme
import torch

from vtc import registry, shipped

SCRIPT = shipped.root() / "benchmarks/speed/full_shape.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("full_shape", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process reset its peak")
def test_methods_compress_and_generate_at_full_depth(script) -> None:
    result = script.run(16, ("none", "fastv", "m3"))
    shape = result["shape"]
    assert (shape["depth"], shape["visual_tokens"], shape["width"], shape["vision"]["depth"]) == (32, 576, 256, 24)
    assert result["weight_bytes"] == 4 * result["parameters"]
    found = {row["method"]: row for row in result["methods"]}
    assert found["none"]["tokens_out"] == found["none"]["tokens_in"] == [576, 576]
    assert found["fastv"]["tokens_out"] == [64, 64] and found["fastv"]["tokens"] == 64
    assert found["m3"]["tokens"] == 64 and found["none"]["tokens"] is None
    for row in result["methods"]:
        assert row["exact"] and row["new_tokens"] == 8 and row["seconds"] > 0
        cache = 2 * 2 * 32 * 256 * 4 * (sum(row["tokens_out"]) // 2)  # keys and values of two rows
        assert row["peak_bytes"] > (cache if row["method"] != "fastv" else 0)


def test_a_peak_is_what_was_in_use_at_most(script) -> None:
    with script.Peak(torch.device("cpu")) as peak:
        held = torch.ones(40 << 20, dtype=torch.uint8)
        del held
        small = torch.ones(1 << 20, dtype=torch.uint8)
    assert 39 << 20 < peak.bytes < 60 << 20 and small.numel()  # the kernel counts in batches of pages


def test_the_committed_file_has_every_method_at_the_stated_shape() -> None:
    measured = json.loads((shipped.root() / readme.SHAPE).read_text())
    assert {row["method"] for row in measured["methods"]} >= set(registry.methods._builtin)
    assert (measured["shape"]["depth"], measured["shape"]["visual_tokens"]) == (32, 576)
    assert all(row["exact"] and row["new_tokens"] == 8 for row in measured["methods"])
