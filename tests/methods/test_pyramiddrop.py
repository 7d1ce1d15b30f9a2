"""PyramidDrop against eager attention, layer by layer, over tokens that a mask hides."""

from __future__ import annotations

import pytest
import torch
from reference import decoder, embedded
from test_vcc import one_layer_weights

from vtc.budget import Budget
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.pyramiddrop import pyramid, remaining, stages_of
from vtc.registry import methods
from vtc.testing import batch, tiny_backbone


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(("layers", "counts"), [([1, 2, 3], [9, 5, 3]), ([1, 3], [7, 3]), ([2], [3])])
def test_equals_masks_over_what_the_last_token_attends_to_least(kv_heads: int, layers, counts) -> None:
    """16 tokens to 3: each stage ranks those that are left by the layer that comes next."""
    backbone = tiny_backbone(kv_heads=kv_heads)
    inputs = batch(backbone)
    method = build("pyramiddrop", 3, backbone.shape, layers=layers, layer_scale="none")
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
        kept, seen = engine.report.kept, [layer[0] for layer in engine.report.layers]
    assert [seen[layer] for layer in layers] == counts
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        there, hides, entered = torch.ones(len(ids), dtype=torch.bool), {}, {}
        text, place = ids != backbone.image_token_id, torch.arange(len(ids))
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            for layer, count in zip(layers, counts, strict=True):
                note = {layer: lambda h, position, at=layer, into=entered: (into.setdefault(at, h), position)}
                decoder(backbone, x, place, changes=note, hidden_from=dict(hides))
                weights = one_layer_weights(backbone, entered[layer][there], place[there], layer)[:, -1].mean(0)
                score = torch.full((len(ids),), -1.0)
                score[there] = weights
                best = score.masked_fill(text, -1).topk(count).indices
                there = text.clone()
                there[best] = True
                hides[layer] = ~there
            expected = backbone.model.lm_head(decoder(backbone, x, place, hidden_from=hides))
        assert kept[row] == [int(i) + int((~real).sum()) for i in (there & ~text).nonzero()[:, 0]]
        assert (got[row, real][text] - expected[text]).abs().max() < 1e-4


@pytest.mark.parametrize(("layers", "ratios", "counts"), [([1, 2, 3], [0.6, 0.3], [10, 5, 3]), ([1, 3], None, [7, 3])])
def test_renumbered_equals_a_sequence_that_only_ever_had_what_is_left(layers, ratios, counts) -> None:
    """From each stage on the tokens are numbered 0, 1, 2 …; the next stage ranks them by these numbers."""
    backbone = tiny_backbone(kv_heads=2)
    inputs = batch(backbone)
    options = {"layers": layers, "layer_scale": "none", "ratios": ratios, "renumber": True}
    method = build("pyramiddrop", 3, backbone.shape, **options)
    assert [method.layer_tokens()[layer] for layer in layers] == counts
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
        assert [[layer[0] for layer in engine.report.layers][layer] for layer in layers] == counts
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        text, left = ids != backbone.image_token_id, [torch.ones(len(ids), dtype=torch.bool)]

        def stage(layer: int, count: int, text=text, left=left):
            def drop(hidden, position):
                weights = one_layer_weights(backbone, hidden, position, layer)[:, -1].mean(0)
                score = torch.full((len(text),), -1.0)
                score[left[0]] = weights
                there = text.clone()
                there[score.masked_fill(text, -1).topk(count).indices] = True
                kept, left[0] = there[left[0]], there
                return hidden[kept], torch.arange(int(kept.sum()))

            return drop

        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            changes = {layer: stage(layer, count) for layer, count in zip(layers, counts, strict=True)}
            expected = backbone.model.lm_head(decoder(backbone, x, torch.arange(len(ids)), changes=changes))
        assert (got[row, real][text] - expected[text[left[0]]]).abs().max() < 1e-4


@pytest.mark.parametrize("ratios", [[0.5], [0.3, 0.5], [0.5, 1.5], "0.5,0.2", [True, 0.1]])
def test_ratios_that_cannot_be_are_named(ratios) -> None:
    with pytest.raises(UserError, match="method.ratios=.*: (allowed|2 stages come before the last)"):
        build("pyramiddrop", 5, tiny_backbone(depth=32).shape, ratios=ratios)


def test_an_eighth_is_the_papers_pyramid() -> None:
    shape = tiny_backbone(depth=32, grid=24).shape
    method = build("pyramiddrop", None, shape)
    assert method.layer_tokens() == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8


@pytest.mark.parametrize("length", [9, 100, 576, 2880])
def test_the_same_share_at_every_stage_and_the_budget_at_the_end(length: int) -> None:
    for tokens in {1, 2, length // 7, length // 2, length - 1, length}:
        counts = [length]
        for part in (1 / 4, 1 / 3, 1 / 2, 1):
            counts.append(remaining(counts[-1], tokens, part))
        assert counts[-1] == tokens and counts == sorted(counts, reverse=True)
        for n, count in enumerate(counts):
            assert abs(count - length * (tokens / length) ** (n / 4)) <= 1


def test_stages_that_fall_on_one_layer_act_at_once() -> None:
    shape = tiny_backbone(depth=4, grid=8).shape
    assert stages_of([8, 16, 24], 4, "auto") == {2: 2 / 3, 3: 1.0}
    assert pyramid(8, shape, {2: 2 / 3, 3: 1.0}) == [64, 64, 16, 8]


def test_budgets_in_every_form() -> None:
    cls, shape = methods.get("pyramiddrop"), tiny_backbone(depth=32, grid=24).shape
    assert cls(Budget(ratio=0.125).resolve, shape).tokens == 72
    assert cls(Budget(compression=32 / 15).resolve, shape).tokens == 72  # (1 + 1/2 + 1/4 + 1/8) · 8 of 32 layers
    with pytest.raises(UserError, match="compression=9"):
        cls(Budget(compression=9).resolve, shape)


@pytest.mark.parametrize("layers", [[], [16, 8], [8, 8], "8,16", [8, 40], [1.5], ["a", 3]])
def test_bad_layers(layers) -> None:
    with pytest.raises(UserError, match="method.layers"):
        build("pyramiddrop", 5, tiny_backbone(depth=32).shape, layers=layers)
