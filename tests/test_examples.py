"""What stands in `examples/`: the notebooks run, and FEATHER is what its equations say, by a loop in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vtc import plugins, shipped
from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.registry import methods
from vtc.testing import CONTRACTS, batch, check_compressor, tiny_backbone

FILE = shipped.root() / "examples" / "feather.py"
TWICE = {"early": 1, "late": 3, "layer_scale": "none"}  # a decoder of four layers has one for both, as they scale
SOME = ("it_runs", "budget_is_exact", "layers_are_as_announced", "kept_are_sorted_and_unique", "cached_equals_uncached")


@pytest.fixture(autouse=True)
def feather(monkeypatch) -> None:
    monkeypatch.setattr(methods, "_files", {})
    monkeypatch.setattr(plugins, "_loaded", {})
    assert plugins.load(FILE) == ["feather"]


def test_it_is_short() -> None:
    assert len(Path(FILE).read_text().splitlines()) <= 60


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
def test_it_holds_contracts_on_three_families(family: str) -> None:
    """Some of them here; `action=check` runs all."""
    chosen = [contract for contract in CONTRACTS if contract.__name__ in SOME]
    report = check_compressor("feather", family, options=TWICE, contracts=chosen)
    assert report.passed and len(report.findings) == len(SOME), report


def attention(backbone: Backbone, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    """[L]: what the last token pays to each in this layer, without positions, in float64; the mean over heads."""
    block = backbone.decoder.layers[layer]
    states = block.input_layernorm(hidden).double()
    query, key = (states @ getattr(block.self_attn, f"{name}_proj").weight.double().T for name in ("q", "k"))
    width = block.self_attn.head_dim
    queries, keys = query.unflatten(-1, (-1, width)), key.unflatten(-1, (-1, width))
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    rows = [(keys[:, head] @ queries[-1, head] / width**0.5).softmax(0) for head in range(queries.shape[1])]
    return torch.stack(rows).mean(0)


def test_what_is_kept_is_what_the_paper_keeps() -> None:
    backbone = tiny_backbone()
    inputs = {name: value[:1] for name, value in batch(backbone, (3,), (5,), (1,)).items()}
    method = methods.get("feather")(4, backbone.shape, **TWICE)
    entering: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    reduce = method.reduce

    def watching(tokens, layer, context):
        entering[layer] = tokens.hidden[0], tokens.origin[0]
        return reduce(tokens, layer, context)

    method.reduce = watching
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**inputs)
    visual = backbone.visual(inputs["input_ids"])[0].nonzero()[:, 0].tolist()
    assert [layer[0] for layer in engine.report.layers] == [16, 9, 9, 4] == method.layer_tokens()
    hidden, origin = entering[1]
    with torch.no_grad():
        score = dict(zip(origin.tolist(), attention(backbone, 1, hidden).tolist(), strict=True))
        uniform = visual[::3]
        others = sorted((v for v in visual if v not in uniform), key=lambda v: -score[v])
        early = sorted([*uniform, *others[: 9 - len(uniform)]])
        hidden, origin = entering[3]
        assert [o for o in origin.tolist() if o in visual] == early
        score = dict(zip(origin.tolist(), attention(backbone, 3, hidden).tolist(), strict=True))
    assert engine.report.kept == [sorted(sorted(early, key=lambda v: -score[v])[:4])]


@pytest.mark.parametrize("notebook", sorted((shipped.root() / "examples").glob("*.ipynb")), ids=lambda file: file.stem)
def test_a_notebook_runs_from_top_to_bottom(notebook: Path, monkeypatch, tmp_path: Path, capsys) -> None:
    """With fewer samples, and some of the contracts: what is shown works, and says what the text around it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "_registered", {})
    monkeypatch.setattr(
        "vtc.testing.check_compressor",
        lambda name: check_compressor(name, contracts=[c for c in CONTRACTS if c.__name__ in SOME]),
    )
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells), "outputs are left out of the repository"
    names: dict[str, object] = {"__name__": "__main__"}
    for source in code:
        exec(compile(source.replace("limit=20", "limit=2"), notebook.name, "exec", dont_inherit=True), names)
    said = capsys.readouterr().out
    assert ("16 of 144 tokens" in said) if notebook.stem == "first_steps" else ("unusual {'pocket2_existence'" in said)
