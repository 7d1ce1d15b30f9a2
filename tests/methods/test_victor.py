"""Victor against algorithm 1, written out."""

from __future__ import annotations

import pytest
import torch
from reference import decoder, embedded

from vtc.engine import compressing
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
