"""Victor against algorithm 1, written out."""

from __future__ import annotations

import pytest
import torch
from reference import decoder, embedded

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.testing import batch, tiny_backbone


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_equals_algorithm_1(layer: int) -> None:
    backbone = tiny_backbone()
    method = build("victor", 3, backbone.shape, layer=layer, layer_scale="none")
    inputs = batch(backbone)
    with torch.no_grad():
        method.registers.normal_()
        with compressing(backbone, method):
            got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    n = backbone.shape.visual_tokens
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        first = int((ids == backbone.image_token_id).nonzero()[0])
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            x = torch.cat([x[: first + n], method.registers, x[first + n :]])  # [x_V; x_R; x_T]
            keep = [*range(first), *range(first + n, len(x))]
            out = decoder(backbone, x, torch.arange(len(x)), {layer: lambda x, p, keep=keep: (x[keep], p[keep])})
            expected = backbone.model.lm_head(out)
        after = len(ids) - first - n
        assert (got[row, -after:] - expected[-after:]).abs().max() < 1e-4
        # the slot before the first text token predicts it, so it holds the last register
        assert (got[row, -after - 1] - expected[-after - 1]).abs().max() < 1e-4


def test_parameters_are_m_times_d_and_all_it_adds() -> None:
    backbone = tiny_backbone()
    method = build("victor", 8, backbone.shape)
    assert method.extra_parameters == 8 * backbone.shape.width
    assert [n for n, _ in method.named_parameters()] == ["registers"]


def test_papers_layer_3_scales_with_depth() -> None:
    from dataclasses import replace

    shape = tiny_backbone().shape
    for depth, layer in {32: 3, 40: 4, 6: 2, 64: 6}.items():
        assert build("victor", 8, replace(shape, depth=depth)).layers() == {0, layer}


def registers_of(kind: str, method, backbone, visual):
    """x_R [M, D] of one image with visual tokens [N, D], written out."""
    m = method.tokens
    if kind == "zeros":
        return torch.zeros(m, backbone.shape.width)
    if kind == "image_token":
        word = backbone.tokenizer("image", add_special_tokens=False)["input_ids"]
        return backbone.decoder.embed_tokens.weight[word[0]].expand(m, -1)
    if kind == "pooled":
        runs = [[i for i in range(len(visual)) if i * m // len(visual) == g] for g in range(m)]
        return torch.stack([visual[run].mean(0) for run in runs])
    return {"head": method.registers[:m], "tail": method.registers[-m:]}[kind]


@pytest.mark.parametrize("kind", ["zeros", "image_token", "pooled", "head", "tail"])
@pytest.mark.parametrize("drop", [True, False])
def test_other_registers_and_none_dropped(kind: str, drop: bool) -> None:
    """Figures 9, 14 and 16: algorithm 1 with other x_R, and without its line 5."""
    if kind in ("head", "tail"):
        options = {"subset": kind, "trained_tokens": 7}
    else:
        options = {"registers": kind}
    backbone, layer = tiny_backbone(), 2
    method = build("victor", 3, backbone.shape, layer=layer, layer_scale="none", drop=drop, **options)
    method.attach(backbone)
    inputs = batch(backbone)
    with torch.no_grad(), compressing(backbone, method) as engine:
        if method.registers is not None:
            method.registers.normal_()
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    n = backbone.shape.visual_tokens
    left = 3 if drop else n + 3
    assert engine.report.layers == [[n + 3] * 3] * layer + [[left] * 3] * (backbone.shape.depth - layer)
    assert engine.report.layers[-1][0] == method.layer_tokens()[-1]
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        first = int((ids == backbone.image_token_id).nonzero()[0])
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            x = torch.cat([x[: first + n], registers_of(kind, method, backbone, x[first : first + n]), x[first + n :]])
            keep = [*range(first), *range(first + n, len(x))] if drop else list(range(len(x)))
            out = decoder(backbone, x, torch.arange(len(x)), {layer: lambda x, p, keep=keep: (x[keep], p[keep])})
            expected = backbone.model.lm_head(out)
        after = len(ids) - first - n
        assert (got[row, -after:] - expected[-after:]).abs().max() < 1e-4


def test_the_last_visual_tokens_instead_of_registers() -> None:
    """Figure 15 (A.6)."""
    backbone, layer, m = tiny_backbone(), 2, 3
    method = build("victor", m, backbone.shape, layer=layer, layer_scale="none", keep_last=True)
    assert list(method.parameters()) == [] and method.layers() == {layer}
    inputs = batch(backbone)
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    assert engine.report.tokens_out == [m] * 3
    n = backbone.shape.visual_tokens
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        first = int((ids == backbone.image_token_id).nonzero()[0])
        keep = [*range(first), *range(first + n - m, len(ids))]
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            out = decoder(backbone, x, torch.arange(len(x)), {layer: lambda x, p, keep=keep: (x[keep], p[keep])})
            expected = backbone.model.lm_head(out)
        after = len(ids) - first - n
        assert (got[row, -after:] - expected[-after:]).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options, words",
    [
        ({"registers": "learned"}, "method.registers=learned.*learnable"),
        ({"subset": "middle", "trained_tokens": 8}, "method.subset=middle.*head"),
        ({"subset": "head"}, "trained_tokens"),
        ({"trained_tokens": 8}, "method.subset"),
        ({"subset": "head", "trained_tokens": 2}, "fewer than tokens=3"),
        ({"keep_last": True, "registers": "zeros"}, "keep_last"),
        ({"keep_last": True, "drop": False}, "keep_last"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build("victor", 3, tiny_backbone().shape, **options)


def test_weights_of_more_registers_are_found_and_checked_as_such() -> None:
    """Figure 14: `tokens` are used, `trained_tokens` are what the checkpoint must hold."""
    from vtc.configuration import parse

    part = ["method=victor", "tokens=4", "method.subset=tail"]
    job = parse([*part, "method.trained_tokens=36"])
    assert job.weights.name == "victor-36" and job.compressor.tokens == 4
    assert len(job.compressor.build().registers) == 36
    with pytest.raises(UserError, match="trained for tokens=36, not tokens=16"):
        parse([*part, "method.trained_tokens=16", f"checkpoint={job.weights}"]).check()
