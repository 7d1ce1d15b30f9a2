"""FastV against a mask over an eager pass that returns its attention weights."""

from __future__ import annotations

import pytest
import torch
from reference import attention_weights, decoder, embedded

from vtc.engine import compressing
from vtc.methods import build
from vtc.testing import batch, tiny_backbone


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_equals_a_mask_over_what_the_last_token_attends_to_least(kv_heads: int, layer: int) -> None:
    backbone = tiny_backbone(kv_heads=kv_heads)
    method = build("fastv", 5, backbone.shape, layer=layer, layer_scale="none")
    inputs = batch(backbone)
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
        kept = engine.report.kept
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            weights = attention_weights(backbone, x, layer - 1)
            visual = (ids == backbone.image_token_id).nonzero()[:, 0]
            score = weights[:, -1].mean(0)[visual]  # last row, mean over heads
            best = visual[score.topk(5).indices]
            offset = int((~real).sum())
            assert kept[row] == sorted((best + offset).tolist())
            hide = torch.zeros(len(ids), dtype=torch.bool)
            hide[visual] = True
            hide[best] = False
            expected = backbone.model.lm_head(decoder(backbone, x, torch.arange(len(ids)), hidden_from={layer: hide}))
        text = ids != backbone.image_token_id
        assert (got[row, real][text] - expected[text]).abs().max() < 1e-4


def test_the_answer_has_no_say_in_the_choice() -> None:
    """With labels, the last PROMPT token chooses, not the end of the answer."""
    backbone = tiny_backbone()
    method = build("fastv", 5, backbone.shape)
    inputs = batch(backbone, before=(2, 2), after=(8, 8), images=(1, 1))
    prompt = {k: v if k == "pixel_values" else v[:, :-4] for k, v in inputs.items()}
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**prompt)
        chosen = engine.report.kept
        backbone.model(**inputs, labels=labels)
        assert engine.report.kept == chosen
        backbone.model(**inputs)
        assert engine.report.kept != chosen  # else this test shows nothing


def test_default_is_half() -> None:
    backbone = tiny_backbone()
    assert build("fastv", None, backbone.shape).tokens == 8


def test_layer_0_has_no_attention_before_it() -> None:
    from vtc.errors import UserError

    with pytest.raises(UserError, match="method.layer=0"):
        build("fastv", 5, tiny_backbone().shape, layer=0)


def test_packed_questions_are_refused() -> None:
    from vtc.errors import UserError
    from vtc.testing.contracts import packed

    backbone = tiny_backbone()
    inputs, blocks = packed(backbone)
    with (
        pytest.raises(UserError, match="one question"),
        compressing(backbone, build("fastv", 5, backbone.shape)) as engine,
        engine.blocks(blocks),
    ):
        backbone.model(**inputs)
