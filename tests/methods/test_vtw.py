"""VTW, and Victor's floor, against a decoder whose second half sees text alone."""

from __future__ import annotations

import pytest
import torch
from reference import decoder, embedded

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build, make
from vtc.testing import batch, tiny_backbone


def withdrawn(backbone, inputs, row, layer, registers=None):
    """Logits [L, V] of the text behind the image, with nothing of the image from `layer` on; and their number."""
    n = backbone.shape.visual_tokens
    ids = inputs["input_ids"][row, inputs["attention_mask"][row].bool()]
    first = int((ids == backbone.image_token_id).nonzero()[0])
    x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
    more = 0 if registers is None else len(registers)
    if registers is not None:
        x = torch.cat([x[: first + n], registers, x[first + n :]])
    text = [*range(first), *range(first + n + more, len(x))]
    out = decoder(backbone, x, torch.arange(len(x)), {layer: lambda x, p: (x[text], p[text])})
    return backbone.model.lm_head(out), len(ids) - first - n


@pytest.mark.parametrize("name, options", [("vtw", {}), ("victor", {"withdraw": True})])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_text_alone_goes_on_at_its_own_positions(name: str, options: dict, layer: int) -> None:
    backbone = tiny_backbone()
    method = build(name, None if name == "vtw" else 3, backbone.shape, layer=layer, layer_scale="none", **options)
    registers = getattr(method, "registers", None)
    inputs = batch(backbone)
    with torch.no_grad():
        if registers is not None:
            registers.normal_()
        with compressing(backbone, method) as engine:
            got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
        for row in range(3):
            expected, after = withdrawn(backbone, inputs, row, layer, registers)
            assert (got[row, -after:] - expected[-after:]).abs().max() < 1e-4
    assert engine.report.layers[layer:] == [[0] * 3] * (backbone.shape.depth - layer)
    assert method.layer_tokens() == [c[0] for c in engine.report.layers]


def test_nothing_is_its_only_budget() -> None:
    shape = tiny_backbone().shape
    assert make("vtw", None, shape).layer_tokens()[-1] == 0
    with pytest.raises(UserError, match="vtw on .* offers 0"):
        make("vtw", 4, shape)


def test_a_floor_that_keeps_visual_tokens_is_none() -> None:
    shape = tiny_backbone().shape
    for other in ({"drop": False}, {"keep_last": True}):
        with pytest.raises(UserError, match="method.withdraw=true"):
            make("victor", 3, shape, withdraw=True, **other)
