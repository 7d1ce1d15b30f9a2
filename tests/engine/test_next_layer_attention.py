"""`Context.next_layer_attention` and `Context.prompt` against the weights that eager attention returns when the layer
runs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from observer import Observer
from reference import attention_weights, embedded

from vtc.engine import compressing
from vtc.interface import Compressor, Context, TokenSequence, merge_images
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import packed


def observed(backbone, layer: int, inputs: dict[str, torch.Tensor], ask, **extra: Any) -> Any:
    method = Observer(backbone.shape, layer, ask)
    position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), compressing(backbone, method):
        backbone.model(**inputs, position_ids=position[:, -inputs["input_ids"].shape[1] :], **extra)
    return method.observed


def rows_of(backbone, inputs: dict[str, torch.Tensor], layer: int):
    """(real [L], weights [H, l, l] of the real tokens, which of them are visual) of each row; one image a row."""
    for row in range(len(inputs["input_ids"])):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            yield real, attention_weights(backbone, x, layer), ids == backbone.image_token_id


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_last_prompt_token_pays_what_it_will_pay(kv_heads: int, layer: int, padding: str) -> None:
    backbone = tiny_backbone(kv_heads=kv_heads)
    inputs = batch(backbone, padding=padding)
    attention = observed(backbone, layer, inputs, lambda tokens, context: context.next_layer_attention(tokens))
    for row, (real, weights, _) in enumerate(rows_of(backbone, inputs, layer)):
        assert torch.allclose(attention[row, real], weights[:, -1].mean(0), atol=1e-5)
        assert not attention[row, ~real].any()


@pytest.mark.parametrize("layer", [0, 2])
def test_several_queries_over_some_tokens(layer: int) -> None:
    """The prompt's text behind the image, with the softmax over the visual tokens alone."""
    backbone = tiny_backbone()
    inputs = batch(backbone)
    everything, visual = observed(
        backbone,
        layer,
        inputs,
        lambda t, c: (
            c.next_layer_attention(t, queries=c.prompt(t)),
            c.next_layer_attention(t, queries=c.prompt(t), over=t.visual),
        ),
    )
    for row, (real, weights, image) in enumerate(rows_of(backbone, inputs, layer)):
        behind = weights[:, int(image.nonzero()[-1]) + 1 :]
        assert torch.allclose(everything[row, real], behind.mean((0, 1)), atol=1e-5)
        expected = behind * image / (behind * image).sum(-1, keepdim=True)
        assert torch.allclose(visual[row, real], expected.mean((0, 1)), atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("layer", [0, 2])
def test_the_greatest_of_heads_and_queries(layer: int, kv_heads: int) -> None:
    """Rows with texts of different lengths, so that the shorter ones have places without a query."""
    backbone = tiny_backbone(kv_heads=kv_heads)
    inputs = batch(backbone)

    def ask(t: TokenSequence, c: Context) -> torch.Tensor:
        return c.next_layer_attention(t, queries=c.prompt(t), greatest=True)

    attention = observed(backbone, layer, inputs, ask)
    for row, (real, weights, image) in enumerate(rows_of(backbone, inputs, layer)):
        behind = weights[:, int(image.nonzero()[-1]) + 1 :]
        assert torch.allclose(attention[row, real], behind.amax((0, 1)), atol=1e-5)
        assert not attention[row, ~real].any()


def test_queries_that_see_nothing_do_not_count() -> None:
    """Text in front of the image sees none of it."""
    backbone = tiny_backbone()
    inputs = batch(backbone)
    some, none = observed(
        backbone,
        1,
        inputs,
        lambda t, c: (
            c.next_layer_attention(t, queries=t.mask & ~t.visual, over=t.visual),
            c.next_layer_attention(t, queries=t.mask & ~t.visual & ~c.prompt(t), over=t.visual),
        ),
    )
    behind = observed(backbone, 1, inputs, lambda t, c: c.next_layer_attention(t, queries=c.prompt(t), over=t.visual))
    assert torch.allclose(some, behind, atol=1e-6) and not none.any()


def test_of_tokens_as_they_would_be() -> None:
    """Asked of a sequence without every other token, the weights are those of a pass in which they are hidden."""
    backbone = tiny_backbone()
    inputs = batch(backbone, before=(2, 2), after=(6, 6), images=(1, 1))

    def ask(t: TokenSequence, c: Context) -> tuple[torch.Tensor, torch.Tensor]:
        kept = ~t.visual | (torch.arange(t.mask.shape[1]) % 2 == 0)
        return kept, c.next_layer_attention(t.keep(kept))

    kept, attention = observed(backbone, 2, inputs, ask)
    for row, (_, weights, _) in enumerate(rows_of(backbone, inputs, 2)):
        left = weights[:, -1] * kept[row]
        expected = (left / left.sum(-1, keepdim=True)).mean(0)[kept[row]]
        assert torch.allclose(attention[row], expected, atol=1e-5)


def test_cached_tokens_are_seen_too() -> None:
    """An image in the second turn: the first turn's keys take their share of the softmax."""
    backbone = tiny_backbone()
    inputs = batch(backbone, before=(6, 9, 7), after=(4, 4, 4))
    cut = inputs["input_ids"].shape[1] - 16 - 4 - 2

    def ask(t: TokenSequence, c: Context) -> torch.Tensor:
        return c.next_layer_attention(t)

    whole = observed(backbone, 2, inputs, ask)
    method = Observer(backbone.shape, 2, ask)
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
    assert torch.allclose(method.observed, whole[:, cut:], atol=1e-5)
    assert (method.observed.sum(1) < 0.99).all()  # else the cache shows nothing


def test_the_prompt_ends_where_the_answer_begins() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone, images=(1, 1, 0))
    length = inputs["input_ids"].shape[1]
    labels = inputs["input_ids"].clone()
    labels[:, : length - 2] = -100

    def ask(t: TokenSequence, c: Context) -> torch.Tensor:
        return c.prompt(t)

    without, answered = observed(backbone, 1, inputs, ask), observed(backbone, 1, inputs, ask, labels=labels)
    for row in range(2):
        last = int((inputs["input_ids"][row] == backbone.image_token_id).nonzero()[-1])
        assert without[row].nonzero()[:, 0].tolist() == list(range(last + 1, length))
        assert answered[row].nonzero()[:, 0].tolist() == list(range(last + 1, length - 2))
    labels[:, last + 1 :] = inputs["input_ids"][:, last + 1 :]  # row 1 answers right behind its image
    assert observed(backbone, 1, inputs, ask, labels=labels)[1].nonzero()[:, 0].tolist() == [last]


@pytest.mark.parametrize("answered", [False, True])
def test_packed_questions_pay_together(answered: bool) -> None:
    """The mean over the questions, each by itself behind the image; a prompt is the text of all of them."""
    backbone = tiny_backbone()
    inputs, blocks = packed(backbone)
    labels = inputs.pop("labels")
    for row, block in enumerate(blocks):
        for q in (1, 2):  # the third is answered from its first token on: the end of the prefix asks it
            labels[row, (block == q).nonzero()[: q + 1, 0]] = -100
    labels = labels if answered else None
    method = Observer(backbone.shape, 2, lambda t, c: (c.next_layer_attention(t), c.prompt(t)))
    with torch.no_grad(), compressing(backbone, method) as engine, engine.blocks(blocks, labels):
        backbone.model(**inputs, use_cache=False)
    attention, prompt = method.observed
    for row in range(2):
        real, rows, text = inputs["attention_mask"][row].bool(), [], []
        expected = torch.zeros(len(real))
        for q in (1, 2, 3):
            own = (real & ((blocks[row] == 0) | (blocks[row] == q))).nonzero()[:, 0]
            first = int((blocks[row, own] == q).nonzero()[0])
            end = first + {1: 1, 2: 2, 3: -1}[q] if answered else len(own) - 1
            with torch.no_grad():
                x = embedded(backbone, inputs["input_ids"][row, own], inputs["pixel_values"][row : row + 1])
                rows.append(attention_weights(backbone, x, 2)[:, end].mean(0))
            expected[own] += rows[-1] / 3
            text += own[first : end + 1].tolist()
        assert torch.allclose(attention[row], expected, atol=1e-5)
        assert prompt[row].nonzero()[:, 0].tolist() == sorted(text)


@pytest.mark.parametrize("layer", [0, 2])
def test_packed_questions_ask_each_for_itself(layer: int) -> None:
    """The tokens of every question's prompt count alike, and each sees the prefix and its own question alone."""
    backbone = tiny_backbone()
    inputs, blocks = packed(backbone)
    labels = inputs.pop("labels")
    for row in range(2):
        for question in (1, 2, 3):  # of 4 words and more; the third question has no answer
            words = (blocks[row] == question).nonzero()[:, 0]
            words = words[inputs["attention_mask"][row, words] > 0]
            labels[row, words[:2] if question < 3 else words] = -100
    method = Observer(
        backbone.shape,
        layer,
        lambda t, c: (c.prompt(t), c.next_layer_attention(t), c.next_layer_attention(t, queries=c.prompt(t))),
    )
    with torch.no_grad(), compressing(backbone, method) as engine, engine.blocks(blocks, labels):
        backbone.model(**inputs, use_cache=False)
    prompt, last, all_words = method.observed
    for row in range(2):
        mask, ends, rows, asked = inputs["attention_mask"][row].bool(), [], [], []
        for question in (1, 2, 3):
            own = ((blocks[row] == 0) | (blocks[row] == question)) & mask & (labels[row] == -100)
            ids, place = inputs["input_ids"][row, own], own.nonzero()[:, 0]
            with torch.no_grad():
                x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
                weights = attention_weights(backbone, x, layer).mean(0)
            wide = torch.zeros(len(ids), len(mask))
            wide[:, place] = weights
            words = blocks[row, place] == question
            ends.append(wide[-1])
            rows.append(wide[words])
            asked += place[words].tolist()
        assert prompt[row].nonzero()[:, 0].tolist() == sorted(asked)
        assert torch.allclose(last[row], torch.stack(ends).mean(0), atol=1e-5)
        assert torch.allclose(all_words[row], torch.cat(rows).mean(0), atol=1e-5)


class Proportional(Compressor):
    """Before layer 1 merges the visual tokens in pairs and threes, which attention counts so often; asks before 2, 3.

    Attributes:
        asked: what the last prompt token would pay in layer 2, by either way of asking; of a turn each.
    """

    def __init__(self, shape: Any) -> None:
        super().__init__(None, shape)
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def layers(self) -> set[int]:
        return {1, 2, 3}

    def probes(self) -> set[int]:
        return {2}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if layer == 1:
            _, real = tokens.images
            groups = torch.tensor([0, 0, 1, 1, 1]).repeat(4)[: real.shape[1]] + torch.arange(real.shape[1]) // 5 * 2
            return merge_images(tokens, groups.expand_as(real), proportional=True)
        if layer == 2:
            context.memo["asked"] = context.next_layer_attention(tokens)
        else:
            self.asked.append((context.memo["asked"], context.attention_rows[2]))
        return tokens


def test_what_is_counted_several_times_is_paid_as_often_in_later_turns_too() -> None:
    backbone = tiny_backbone()
    backbone.model.set_attn_implementation("eager")
    method, returned, cache, mask = Proportional(backbone.shape), [], None, torch.ones(2, 0)
    attention = backbone.decoder.layers[2].self_attn
    hook = attention.register_forward_hook(lambda module, args, output: returned.append(output[1].mean(1)))
    with torch.no_grad(), compressing(backbone, method):
        for _ in range(2):  # the second turn, with an image of its own, sees the sizes of the first one's tokens
            inputs = batch(backbone, before=(3, 5), after=(4, 4), images=(1, 1))
            mask = inputs["attention_mask"] = torch.cat([mask, inputs["attention_mask"]], 1)
            cache = backbone.model(**inputs, past_key_values=cache, use_cache=True).past_key_values
    hook.remove()
    for weights, asked in zip(returned, method.asked, strict=True):
        for row in asked:
            torch.testing.assert_close(row, weights[:, -1, -row.shape[1] :], atol=1e-5, rtol=1e-4)
