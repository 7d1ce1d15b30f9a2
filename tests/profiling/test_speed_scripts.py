"""The scripts of benchmarks/speed on a tiny model: rows are kept and gone on from, cases take turns as said, and what
is written to behave like FastV's authors' code gives what FastV gives.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import pytest
import speed
import torch

from vtc import results, shipped
from vtc.backbones.base import Backbone
from vtc.engine import decoding
from vtc.profiling import latency, machine
from vtc.testing import tiny_backbone


@pytest.fixture(autouse=True)
def scripts(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(shipped.root() / "benchmarks/speed"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in ("turns", "promised", "published", "protocol", "time_by_part", "decode"):
        sys.modules.pop(name, None)


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone(depth=4)


def run(script: Any, backbone: Backbone, monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys.modules["turns"].Session, "load", lambda session, fresh=False: backbone)
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    script.main()


def test_rows_are_kept_and_gone_on_from(backbone, monkeypatch, tmp_path, capsys) -> None:
    import promised

    out = tmp_path / "rows.json"
    words = ["--methods", "fastv", "divprune", "--tokens", "3", "5", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(promised, "TOGETHER", 2)
    run(promised, backbone, monkeypatch, *words, "--minutes", "0")
    assert "5 of 5 rows are missing" in capsys.readouterr().out and not out.exists()
    run(promised, backbone, monkeypatch, *words[:2], *words[3:], "--minutes", "9")
    few = json.loads(out.read_text())
    assert [(r["method"], r["tokens"]) for r in few["rows"]] == [("none", None), ("fastv", 3), ("fastv", 5)]
    assert "--minutes" not in few["command"]
    run(promised, backbone, monkeypatch, *words)
    rows = json.loads(out.read_text())["rows"]
    assert rows[:3] == few["rows"], "measured anew"
    assert [(r["method"], r["tokens"]) for r in rows[3:]] == [("divprune", 3), ("divprune", 5)]
    assert all(r["promised"] > 1 and r["own"][1] > 0 for r in rows[1:]) and rows[0]["promised"] == 1
    assert all(abs(r["realised"] - r["measured"][1] / r["promised"]) < 1e-3 for r in rows)
    assert all(r["control"][1] > 0 and r["of_control"] > 0 for r in rows)


def test_the_control_is_the_plain_prefill_with_layers_of_other_lengths(backbone) -> None:
    """By hand: half of the layers at 10 tokens, half at 4, of a decoder that takes 6 s for 10 and 2 s for 4."""
    import promised

    whole, mixed, own = promised.Work(9.0, (10,) * 4), promised.Work(5.0, (10, 10, 4, 4)), promised.Work(9.0, None)
    turns = [{None: 8.0, ("decoder", 10): 6.0, ("decoder", 4): 2.0, 0: 7.5}] * 2
    assert promised.controlled(turns, 0, mixed, whole) == {"control": [1.3333] * 3, "of_control": 0.8}
    assert promised.controlled(turns, 0, own, whole) == {}, "a method that runs passes of its own has no control"
    inputs = latency.example(backbone, 1, 12)
    visual, depth = backbone.shape.visual_tokens or 0, backbone.shape.depth
    fastv = promised.Work.of(backbone, promised.built("fastv", 3, backbone), inputs)
    assert fastv.lengths == (visual + 12,) * 2 + (3 + 12,) * (depth - 2)
    assert promised.Work.of(backbone, promised.built("fwd2bot", 3, backbone), inputs).lengths is None


def test_a_method_with_adapters_takes_its_turns_alone(backbone) -> None:
    import promised

    names = ["none", "fastv", "fastv", "fwd2bot", "voco", "single_forward", "divprune"]
    cases = [{"method": name, "asked": 4, "batch": batch} for batch in (1, 2) for name in names]
    got = [[case["method"] for case in group] for group in promised.groups(cases, backbone)]
    each = [["none"], ["fastv", "fastv"], ["fwd2bot"], ["voco"], ["single_forward"], ["divprune"]]
    assert got == each * 2


FEW = ["--tokens", "4", "--rounds", "2"]
LINES = {
    "published": FEW,
    "protocol": [*FEW, "--methods", "divprune", "--batch", "2", "--new-tokens", "2", "4"],
    "time_by_part": [*FEW, "--methods", "fastv", "--batch", "2"],
    "decode": ["--methods", "divprune:4", "--rows", "2", "--new-tokens", "20", "--rounds", "1"],
}


@pytest.mark.parametrize("name", LINES)
def test_a_script_measures_and_its_table_reads_it(backbone, monkeypatch, tmp_path, name: str) -> None:
    script, file = importlib.import_module(name), {"time_by_part": "time-by-part"}.get(name, name)
    for constant, value in {"COPIED": 2**16, "LAUNCHES": 10, "LEAST": 1e-4}.items():
        monkeypatch.setattr(machine, constant, value)
    monkeypatch.setattr(decoding, "BACKEND", "eager")
    run(script, backbone, monkeypatch, *LINES[name], "--out", str(tmp_path / speed.RESULTS / f"{file}.json"))
    rows = speed.rows(tmp_path, file)
    assert len(rows) == (4 if name == "published" else 1)
    if name == "decode":
        assert rows[0]["same_tokens"] and rows[0]["decoding"] == "compiled"
    parts = {"time_by_part": "speed_by_part", "decode": "speed_decoding"}
    if name != "protocol":
        table = speed.PARTS[parts.get(name, f"speed_{name}")](tmp_path)
        assert table.count("\n|") >= 1 + len(rows) and "python benchmarks/speed/script.py" in table


def test_targets_are_held_against_the_rows(tmp_path) -> None:
    """A figure just above its target is reached, one below isn't, and one that is missing isn't either."""
    row = {"batch": 1, "promised": 4.0, "measured": [3.5, 3.7, 3.8], "own": [0.01, 0.019, 0.02], "asked": 64}
    rows = [row | {"method": name, "tokens": 64, "realised": 0.91} for name in speed.SHARES]
    rows += [row | {"method": name, "tokens": 64, "realised": 0.5} for names in speed.OWN.values() for name in names]
    rows += [row | {"method": "none", "asked": 16, "tokens": None, "measured": [0.97, 0.99, 1.01], "realised": 0.99}]
    rows += [row | {"method": "slow", "asked": 16, "tokens": 16, "measured": [0.8, 0.9, 0.95], "realised": 0.2}]
    rows = list({(r["method"], r["asked"]): r for r in reversed(rows)}.values())

    def verdicts() -> list[str]:
        results.write_json(tmp_path / speed.RESULTS / "promised.json", {"rows": rows})
        return [line.split("|")[-2].strip() for line in speed.targets_part(tmp_path).splitlines()[2:]]

    assert verdicts() == ["reached", "reached", "reached", "reached", "**not reached**"]
    rows[:] = [r | {"measured": [0.9, 0.975, 1.0]} if r["method"] == "none" else r for r in rows]
    rows[:] = [r | {"own": [0.02, 0.021, 0.03]} if r["method"] in ("dart", "kmeans") else r for r in rows]
    rows[:] = [r | {"realised": 0.89} if r["method"] == "victor" else r for r in rows if r["method"] != "slow"]
    no = "**not reached**"
    assert verdicts() == [no, no, no, "reached", "reached"]
    assert speed.at_shape(tmp_path, "fastv", 64 / 576) == ("3.70×", "1.9 %")
    assert speed.at_shape(tmp_path, "fastv", 1 / 4) == ("–", "–")


@pytest.mark.parametrize("drops", [True, False])
def test_the_published_way_gives_what_fastv_gives(backbone, drops: bool) -> None:
    import contextlib

    import promised
    import published

    from vtc.engine import compressing

    inputs = latency.example(backbone, 2, 12)
    visual = backbone.visual(inputs["input_ids"][0]).nonzero()[:, 0]
    method = promised.built("fastv", 5, backbone)
    expected = published.logits(backbone, inputs, compressing(backbone, method))
    plain = published.logits(backbone, inputs, contextlib.nullcontext())
    kept = published.logits(backbone, inputs, published.published(backbone, visual, 2, 5, drops))
    whole = published.logits(backbone, inputs, published.published(backbone, visual, 2, None, drops))
    assert torch.allclose(kept, expected, atol=1e-5) and torch.allclose(whole, plain, atol=1e-5)
    assert not torch.allclose(kept, plain, atol=1e-4)
    assert backbone.decoder.config._attn_implementation == "sdpa" and "forward" not in vars(backbone.decoder)
