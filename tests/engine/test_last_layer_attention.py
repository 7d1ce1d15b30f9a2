"""`Context.last_layer_attention` against the weights that eager attention returned of the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from observer import Observer
from reference import attention_weights, embedded

from vtc.engine import compressing, probe
from vtc.interface import Context, TokenSequence
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import packed


def own_and_cross(tokens: TokenSequence, context: Context) -> tuple[torch.Tensor, ...]:
    return context.last_layer_attention(tokens.visual, context.prompt(tokens))


def observed(backbone, layer: int, inputs: dict[str, torch.Tensor], ask=own_and_cross, **extra: Any) -> Any:
    method = Observer(backbone.shape, layer, ask, {layer - 1})
    position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), compressing(backbone, method):
        backbone.model(**inputs, position_ids=position[:, -inputs["input_ids"].shape[1] :], **extra)
    return method.observed


@pytest.mark.parametrize("chunk", [128, 5])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("layer", "padding"), [(1, "left"), (3, "left"), (2, "right")])
def test_of_each_query_the_greatest_head(kv_heads: int, layer: int, padding: str, chunk: int, monkeypatch) -> None:
    """By loops over queries and heads, whatever part of the queries is computed at once."""
    monkeypatch.setattr(probe, "CHUNK", chunk)
    backbone = tiny_backbone(kv_heads=kv_heads)
    inputs = batch(backbone, padding=padding)
    own, cross = observed(backbone, layer, inputs, use_cache=False)
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        visual = (ids == backbone.image_token_id).nonzero()[:, 0].tolist()
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            weights = attention_weights(backbone, x, layer - 1)
        for paid, queries in ((own, visual), (cross, range(visual[-1] + 1, len(ids)))):
            expected = [
                sum(max(float(head[i, j]) for head in weights) for i in queries) / len(queries) for j in range(len(ids))
            ]
            assert torch.allclose(paid[row, real], torch.tensor(expected), atol=1e-5)
            assert not paid[row, ~real].any()


def test_a_row_without_queries_gets_zeros() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)

    def ask(tokens: TokenSequence, context: Context) -> tuple[torch.Tensor, ...]:
        first = torch.arange(len(tokens.mask))[:, None] == 0
        return context.last_layer_attention(tokens.visual & first, tokens.visual)

    some, every = observed(backbone, 1, inputs, ask)
    assert torch.equal(some[0], every[0]) and not some[1:].any() and every[1:].any()


def test_cached_tokens_take_their_share() -> None:
    """An image in the second turn, whose text is all that pays: what the first turn's keys get is missing."""
    backbone = tiny_backbone()
    inputs = batch(backbone, before=(6, 9, 7), after=(4, 4, 4))
    cut = inputs["input_ids"].shape[1] - 16 - 4 - 2
    whole = observed(backbone, 2, inputs)
    method = Observer(backbone.shape, 2, own_and_cross, {1})
    position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), compressing(backbone, method):
        cache = backbone.model(
            input_ids=inputs["input_ids"][:, :cut],
            attention_mask=inputs["attention_mask"][:, :cut],
            position_ids=position[:, :cut],
            use_cache=True,
        ).past_key_values
        backbone.model(
            input_ids=inputs["input_ids"][:, cut:],
            attention_mask=inputs["attention_mask"],
            position_ids=position[:, cut:],
            pixel_values=inputs["pixel_values"],
            past_key_values=cache,
        )
    for got, expected in zip(method.observed, whole, strict=True):
        assert torch.allclose(got, expected[:, cut:], atol=1e-5)


def test_packed_questions_see_their_own() -> None:
    """Each question by itself behind the image; their texts count alike."""
    backbone = tiny_backbone()
    inputs, blocks = packed(backbone)
    del inputs["labels"]
    method = Observer(backbone.shape, 2, own_and_cross, {1})
    with torch.no_grad(), compressing(backbone, method) as engine, engine.blocks(blocks):
        backbone.model(**inputs, use_cache=False)
    own, cross = method.observed
    for row in range(2):
        real, rows = inputs["attention_mask"][row].bool(), []
        for question in (1, 2, 3):
            place = (real & ((blocks[row] == 0) | (blocks[row] == question))).nonzero()[:, 0]
            with torch.no_grad():
                x = embedded(backbone, inputs["input_ids"][row, place], inputs["pixel_values"][row : row + 1])
                greatest = attention_weights(backbone, x, 1).amax(0)
            wide = torch.zeros(len(place), len(real))
            wide[:, place] = greatest
            rows.append(wide[blocks[row, place] == question])
            image = inputs["input_ids"][row, place] == backbone.image_token_id
            assert torch.allclose(own[row], wide[image].mean(0), atol=1e-5)
        assert torch.allclose(cross[row], torch.cat(rows).mean(0), atol=1e-5)


def test_a_layer_that_was_not_probed_is_refused() -> None:
    backbone = tiny_backbone()
    method = Observer(backbone.shape, 2, own_and_cross, {0})
    with torch.no_grad(), compressing(backbone, method), pytest.raises(Exception, match="layer 1 is none that probes"):
        backbone.model(**batch(backbone))
