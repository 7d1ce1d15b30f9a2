"""Layers with linear attention (Qwen3.5), whose tokens go into a state: against transformers' own model, and against a
loop over its layers. transformers computes their states in float32 in any case, so that float64 goes as far as that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from observer import Observer
from torch import Tensor
from transformers import DynamicCache

from vtc.engine import compressing, run_decoder
from vtc.engine.cache import CACHE, CompressedCache
from vtc.engine.recurrent import Rows, questions
from vtc.errors import UserError
from vtc.interface import Context, TokenSequence
from vtc.methods import build
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import ALONG, collate, packed, rows
from vtc.testing.runs import generation, instance, logits
from vtc.testing.tiny_qwen import tiny_qwen3_5

CLOSE = 2e-5
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def double() -> Any:
    backbone = tiny_qwen3_5()
    backbone.model.double()
    return backbone


def in_double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), atol=CLOSE, rtol=0)


def row_of(backbone: Any, inputs: dict[str, Tensor], row: int, more: Tensor | None = None) -> tuple[Tensor, ...]:
    """Of one row without its padding, and with words [n] behind it: ids [L], embeddings [L, D], positions [3, L]."""
    real = inputs["attention_mask"][row].bool()
    ids = inputs["input_ids"][row, real]
    grids = inputs["image_grid_thw"]
    counts = [int((i == backbone.core.config.vision_start_token_id).sum()) for i in inputs["input_ids"]]
    features = backbone.core.get_image_features(inputs["pixel_values"], grids).pooler_output
    own = list(features)[sum(counts[:row]) : sum(counts[: row + 1])]
    x = backbone.decoder.embed_tokens(ids)
    if own:
        x[ids == backbone.image_token_id] = torch.cat(own)
    place = backbone.positions(inputs)[:, row, real]
    if more is not None:
        ids = torch.cat([ids, more])
        x = torch.cat([x, backbone.decoder.embed_tokens(more)])
        place = torch.cat([place, place.max() + 1 + torch.arange(len(more)).expand(3, -1)], 1)
    return ids, x, place


def by_layers(backbone: Any, x: Tensor, position: Tensor, changes: dict[int, Change] | None = None) -> Tensor:
    """Logits [L, V] of one row [L, D] of tokens at these positions [3, L], layer by layer, without a cache."""
    for number, layer in enumerate(backbone.decoder.layers):
        if changes and number in changes:
            x, position = changes[number](x, position)
        rope = backbone.decoder.rotary_emb(x[None], position[:, None])
        mask = torch.full((len(x), len(x)), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]
        seen = None if hasattr(layer, "linear_attn") else mask
        x = layer(x[None], attention_mask=seen, position_embeddings=rope)[0]
    return backbone.model.lm_head(backbone.decoder.norm(x))


def test_the_loop_over_layers_is_the_model() -> None:
    backbone = double()
    inputs = in_double(batch(backbone))
    assert [hasattr(layer, "linear_attn") for layer in backbone.decoder.layers] == [True, False] * 2
    plain = logits(backbone, inputs)
    for row in range(3):
        with torch.no_grad():
            _, x, place = row_of(backbone, inputs, row)
            assert close(by_layers(backbone, x, place), plain[row, inputs["attention_mask"][row].bool()])


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_where_nothing_is_dropped_it_is_the_model_bit_for_bit(layer: int, padding: str) -> None:
    backbone = double()
    inputs = in_double(batch(backbone, padding=padding))
    method = Observer(backbone.shape, layer, lambda tokens, context: None)
    real = inputs["attention_mask"].bool()
    results = []
    for engine in (None, method):
        with torch.no_grad(), compressing(backbone, engine or build("none", None, backbone.shape)):
            one = [logits(backbone, inputs)[real]]
            if padding == "left":
                one += [torch.stack(generation(backbone, inputs, 8).logits)]
                one += [generation(backbone, inputs, 8, num_beams=3).sequences]
            results.append(one)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def pruned_rows(backbone, method):
    """Each row of a batch with its answer by itself: embeddings, positions, the places of the tokens that the method
    leaves, and the logits [1 + steps, V] behind the prefill and of each step from the cache."""
    inputs = in_double(batch(backbone))
    with torch.no_grad(), compressing(backbone, method) as engine:
        prefill, out = logits(backbone, inputs), generation(backbone, inputs, 6)
        kept = engine.report.kept
    for row in range(3):
        made = out.sequences[row, inputs["input_ids"].shape[1] :]
        start = int((inputs["attention_mask"][row] == 0).sum())
        with torch.no_grad():
            ids, x, place = row_of(backbone, inputs, row, made)
        stays = (ids != backbone.image_token_id).nonzero()[:, 0].tolist() + [n - start for n in kept[row]]
        yield x, place, sorted(stays), torch.stack([prefill[row, -1], *(step[row] for step in out.logits)])


def test_what_is_dropped_before_the_llm_is_gone_from_all_states() -> None:
    """As transformers' own model on the embeddings that are left, one row at a time; so are steps from the cache."""
    backbone = double()
    method = build("random", 5, backbone.shape).eval()
    for x, place, stays, got in pruned_rows(backbone, method):
        with torch.no_grad():
            own = backbone.decoder(inputs_embeds=x[None, stays], position_ids=place[:, None, stays], use_cache=False)
            expected = backbone.model.lm_head(own.last_hidden_state)[0]
        assert close(got[0], expected[-len(got)])
        assert close(got[1:], expected[-len(got) : -1])


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_what_is_dropped_between_layers_stays_in_the_states_before(layer: int) -> None:
    """The layers before have read it: prefill and steps are those of a loop over the layers that drops it there."""
    backbone = double()
    method = build("random", 5, backbone.shape, layer=layer, layer_scale="none").eval()
    for x, place, stays, got in pruned_rows(backbone, method):
        with torch.no_grad():
            drop = {layer: lambda x, place, stays=stays: (x[stays], place[:, stays])}
            expected, whole = by_layers(backbone, x, place, drop), by_layers(backbone, x, place)
        assert not close(expected[-1], whole[-1])
        assert close(got[0], expected[-len(got)])
        assert close(got[1:], expected[-len(got) : -1])


def test_registers_go_through_the_states_like_words() -> None:
    backbone = double()
    method = instance(backbone, lambda b, tokens: build("victor", tokens, b.shape, layer=2, layer_scale="none"), 3)
    registers = method.registers.detach().double()
    inputs = in_double(batch(backbone, (3,), (6,), (1,)))
    with torch.no_grad(), compressing(backbone, method.double()):
        got = logits(backbone, inputs)[0, -1]
    with torch.no_grad():
        ids, x, place = row_of(backbone, inputs, 0)
        visual = (ids == backbone.image_token_id).nonzero()[:, 0]
        end = int(visual[-1]) + 1
        follows = int(place[:, visual].max()) + 1 + torch.arange(3).expand(3, -1)
        x = torch.cat([x[:end], registers, x[end:]])
        place = torch.cat([place[:, :end], follows, place[:, end:] + 3], 1)
        stays = [n for n in range(len(x)) if not visual[0] <= n < end]
        expected = by_layers(backbone, x, place, {2: lambda x, place: (x[stays], place[:, stays])})[-1]
    assert close(got, expected)


# ---------------------------------------------------------------------- rows laid out anew
def test_rows_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        member = torch.rand(3, 2, 7, generator=generator) < 0.6
        member[0, 0, 0] = True
        hidden = torch.randn(3, 7, 2, generator=generator)
        laid = Rows.of(member)
        there = laid.there(hidden)
        for row in range(3):
            for q in range(2):
                own = hidden[row, member[row, q]]
                n, at = len(own), 2 * row + q
                assert torch.equal(laid.mask[at], torch.arange(there.shape[1]) >= there.shape[1] - n)
                assert torch.equal(there[at, there.shape[1] - n :], own)
        stamp = torch.arange(6.0)[:, None, None]
        back = laid.again(there + 100 * stamp, torch.zeros_like(hidden))
        for row, q, column in ((r, q, c) for r in range(3) for q in (1, 0) for c in range(7)):
            if not member[row, :, column].any():
                assert (back[row, column] == 0).all()
            elif member[row, q, column] and (q == 0 or not member[row, 0, column]):
                assert torch.allclose(back[row, column], hidden[row, column] + 100 * (2 * row + q), atol=1e-4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_packed_questions_are_as_if_each_were_alone(layer: int) -> None:
    backbone = double()
    inputs, block = packed(backbone)
    inputs = in_double(inputs)
    method = build("random", 5, backbone.shape, layer=layer, layer_scale="none").eval()
    inputs.pop("labels")
    with torch.no_grad(), compressing(backbone, method) as engine, engine.blocks(block):
        together = backbone.model(**inputs).logits
    for q in (1, 2, 3):
        one = ((block[:1] == 0) | (block[:1] == q)) & inputs["attention_mask"][:1].bool()
        alone = {n: inputs[n][:1][one][None] for n in ALONG if n in inputs}
        alone["position_ids"] = inputs["position_ids"][:, :1, one[0]]
        pixels = {"pixel_values": inputs["pixel_values"][:64], "image_grid_thw": inputs["image_grid_thw"][:1]}
        with torch.no_grad(), compressing(backbone, method):
            expected = backbone.model(**alone, **pixels).logits
        length = int((block[0] == q).sum())
        # The place of a question's last token holds the state that the next question begins from.
        assert close(together[0, block[0] == q][:-1], expected[0, -length:-1])


def test_questions_are_each_behind_the_prefix() -> None:
    block = torch.tensor([[0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]]).bool()
    laid = questions(block, mask)
    tokens = torch.arange(12).view(2, 6, 1)
    there = laid.there(tokens)[..., 0]
    assert [row[real].tolist() for row, real in zip(there, laid.mask, strict=True)] == [
        [0, 1, 2, 3], [0, 1, 4], [7, 8, 9], [7, 8]
    ]  # fmt: skip


def test_padding_in_a_pass_of_the_methods_own_leaves_no_trace() -> None:
    """Between tokens too: what stands there is laid aside, and zeros come back for it."""
    backbone = double()
    x = torch.randn(3, 12, backbone.shape.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, :4] = mask[1, 3:7] = mask[2, 10:] = False
    with torch.no_grad():
        got = run_decoder(backbone, x, mask)
        for row in range(3):
            alone = backbone.decoder(inputs_embeds=x[row : row + 1, mask[row]], use_cache=False).last_hidden_state
            assert close(got[row, mask[row]], alone[0])
        whole = backbone.decoder(inputs_embeds=x, use_cache=False).last_hidden_state
        assert torch.equal(run_decoder(backbone, x), whole)


# ---------------------------------------------------------------------- attention
@pytest.mark.parametrize("padding", ["left", "right"])
def test_what_a_method_reads_is_what_the_layers_that_attend_pay(padding: str) -> None:
    """Of a layer that ran, of one about to run, and what is watched; queries come with a gate, and half of a head is
    rotated. Eager attention in float64 makes NaN of padding in front, which states would take in."""
    backbone = double() if padding == "right" else tiny_qwen3_5()
    inputs = batch(backbone, padding=padding)
    inputs = in_double(inputs) if padding == "right" else inputs
    backbone.model.set_attn_implementation("eager")
    place = backbone.positions(inputs)
    with torch.no_grad():
        paid = backbone.model(**inputs, position_ids=place, output_attentions=True).attentions
    assert len(paid) == 2
    real, every = inputs["attention_mask"].bool(), {"all": lambda tokens: tokens.mask}

    def behind(tokens: TokenSequence, context: Context) -> Any:
        return context.attention_rows[1], context.last_layer_attention(tokens.visual)[0], context.keys[1]

    def ahead(tokens: TokenSequence, context: Context) -> Any:
        return context.next_layer_attention(tokens), context.next_layer_states(tokens)

    for layer, ask, probed in ((2, behind, {1}), (3, ahead, ())):
        method = Observer(backbone.shape, layer, ask, probed)
        with torch.no_grad(), compressing(backbone, method) as engine, engine.watching_attention(every) as watched:
            backbone.model(**inputs, position_ids=place)
        assert [seen.layer for seen in watched] == [1, 3]
        own, visual = paid[layer // 2 if ask is ahead else 0], backbone.visual(inputs["input_ids"])
        for n in range(len(real)):
            last = int(real[n].nonzero().max())
            assert close(method.observed[0][n], own[n].mean(0)[last])
            if ask is behind:
                assert close(method.observed[1][n], own[n].amax(0)[visual[n]].mean(0))
            for seen, weights in zip(watched, paid, strict=True):
                for q, column in enumerate(seen.queries[n].tolist()):
                    if seen.real[n, q]:
                        assert close(seen.weights[n, q], weights[n].mean(0)[column])


# ---------------------------------------------------------------------- caches
def test_states_go_where_rows_go_and_start_anew() -> None:
    backbone = tiny_qwen3_5()
    method = build("random", 5, backbone.shape, layer=2, layer_scale="none").eval()
    inputs = collate(backbone, rows(backbone, (4, 4), (6, 6), (1, 1)))
    token = inputs["input_ids"][:, -1:]

    def step(cache: Any, ids: Tensor, place: Tensor) -> Tensor:
        with torch.no_grad():
            return backbone.model(input_ids=ids, position_ids=place, **{CACHE: cache}).logits[:, -1]

    with torch.no_grad(), compressing(backbone, method):
        place = backbone.positions(inputs)
        after = place.amax((0, 2))[None, :, None].expand(3, -1, -1) + 1

        def filled() -> Any:
            return backbone.model(**inputs, position_ids=place, use_cache=True)[CACHE]

        expected = step(filled(), token, after)
        twice, one, fresh = filled(), filled(), filled()
        assert isinstance(twice, CompressedCache) and twice.has_states
        twice.batch_repeat_interleave(2)
        both = step(twice, token.repeat_interleave(2, 0), after.repeat_interleave(2, 1))
        assert torch.allclose(both, expected.repeat_interleave(2, 0), atol=1e-5)
        one.batch_select_indices(torch.tensor([1]))
        assert torch.allclose(step(one, token[1:], after[:, 1:]), expected[1:], atol=1e-5)
        fresh.reset()
        assert fresh.get_seq_length() == 0 and not fresh.has_previous_state(0)
        with pytest.raises(ValueError, match="^can't crop a cache with states of linear attention") as error:
            twice.crop(-1)
        assert "\n" not in str(error.value)


def test_a_cache_without_places_for_states_is_refused() -> None:
    backbone = tiny_qwen3_5()
    method = build("random", 5, backbone.shape)
    with (
        torch.no_grad(),
        compressing(backbone, method),
        pytest.raises(UserError, match="^cache: it has no place for the states of linear attention"),
    ):
        backbone.model(**batch(backbone), **{CACHE: DynamicCache()})


def test_linear_attention_of_a_family_that_has_none_is_refused() -> None:
    backbone = tiny_backbone()
    backbone.decoder.config.layer_types = ["linear_attention", *["full_attention"] * 3]
    with pytest.raises(UserError, match="layers with linear_attention; only full attention"):
        compressing(backbone, build("random", 5, backbone.shape)).__enter__()
