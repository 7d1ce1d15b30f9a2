"""Layers that attend in sliding windows, and images whose tokens see each other both ways, against masks that are
written out pair by pair and against transformers' own weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from observer import Observer
from reference import embedded
from torch import Tensor

from vtc.engine import compressing, probe, run_decoder
from vtc.engine.cache import CACHE, CompressedCache
from vtc.errors import UserError
from vtc.interface import Context, TokenSequence
from vtc.methods import build
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import collate, image_row, packed, picture, rows, text_row, words
from vtc.testing.runs import appended, generation, instance, logits
from vtc.testing.tiny_gemma import TOKENS, tiny_gemma3
from vtc.testing.tiny_qwen import tiny_qwen3_vl

WINDOW = 12  # of the tiny model: fewer than an image has tokens


def double(window: int = WINDOW) -> Any:
    backbone = tiny_gemma3(window)
    backbone.model.double()
    return backbone


def in_double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def decoder(
    backbone: Any,
    x: Tensor,
    position: list[int],
    image: list[int],
    changes: dict[int, Callable[[Tensor, list[int], list[int]], tuple[Tensor, list[int], list[int]]]] | None = None,
) -> Tensor:
    """Logits [L, V] of one row [L, D] of tokens at these positions, of these images (-1: of none)."""
    config = backbone.decoder.config
    for number, layer in enumerate(backbone.decoder.layers):
        if changes and number in changes:
            x, position, image = changes[number](x, position, image)
        kind, lowest = config.layer_types[number], torch.finfo(x.dtype).min
        mask = torch.full((len(x), len(x)), lowest, dtype=x.dtype)
        for q in range(len(x)):
            for k in range(len(x)):
                sees = k <= q or (image[q] >= 0 and image[q] == image[k])
                if kind == "sliding_attention":
                    sees = sees and position[q] - position[k] < config.sliding_window
                if sees:
                    mask[q, k] = 0
        rope = backbone.decoder.rotary_emb(x[None], torch.tensor(position)[None], kind)
        x = layer(x[None], attention_mask=mask[None, None], position_embeddings=rope)[0]
    return backbone.model.lm_head(backbone.decoder.norm(x))


def images_of(backbone: Any, ids: Tensor) -> list[int]:
    """Of each token which image it is of, -1 for text: a new one begins behind text."""
    out, number = [], -1
    for n, token in enumerate(ids.tolist()):
        visual = token == backbone.image_token_id
        number += visual and (n == 0 or out[-1] < 0)
        out.append(number if visual else -1)
    return out


def test_the_windows_and_both_ways_are_the_models_own() -> None:
    """The masks that this file writes out are transformers'."""
    backbone = double()
    inputs = in_double(batch(backbone, images=(1, 2, 0)))
    config = backbone.decoder.config
    assert config.sliding_window < TOKENS and {*config.layer_types} == {"sliding_attention", "full_attention"}
    plain, first = logits(backbone, inputs), 0
    for row, count in enumerate((1, 2, 0)):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][first : first + count] if count else None)
            expected = decoder(backbone, x, list(range(len(ids))), images_of(backbone, ids))
        assert torch.allclose(plain[row, real], expected, atol=1e-9)
        first += count


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("tokens", [5, TOKENS - 1])
def test_the_window_goes_by_positions_in_the_prefill_and_from_the_cache(layer: int, tokens: int) -> None:
    """Before the LLM what is dropped leaves the windows, which reach further back then; between its layers the others
    keep their positions, and their distance. 20 tokens are generated, more than a window."""
    backbone = double()
    method = build("random", tokens, backbone.shape, layer=layer).eval()
    inputs = in_double(batch(backbone, images=(1, 2, 1)))
    with torch.no_grad(), compressing(backbone, method) as engine:
        prefill, out = logits(backbone, inputs), generation(backbone, inputs, 20)
        kept = engine.report.kept
    first = 0
    for row, count in enumerate((1, 2, 1)):
        real = inputs["attention_mask"][row].bool()
        start = int((~real).sum())
        ids = torch.cat([inputs["input_ids"][row, real], out.sequences[row, len(real) :]])
        stays = (ids != backbone.image_token_id).nonzero()[:, 0].tolist()
        stays = sorted(stays + [column - start for column in kept[row]])

        def reduced(x: Tensor, position: list[int], image: list[int], stays: list[int] = stays) -> Any:
            places = list(range(len(stays))) if layer == 0 else stays
            return x[stays], places, [image[n] for n in stays]

        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][first : first + count])
            expected = decoder(backbone, x, list(range(len(ids))), images_of(backbone, ids), {layer: reduced})
        first += count
        prompt = len(expected) - 20
        assert torch.allclose(prefill[row, -1], expected[prompt - 1], atol=1e-9)
        steps = torch.stack([step[row] for step in out.logits])
        assert torch.allclose(steps.double(), expected[prompt - 1 : -1], atol=1e-4)  # generate() makes them float32


def test_what_a_method_inserts_sees_all_that_is_before_it_and_nothing_behind() -> None:
    """Victor's registers: text to the mask, behind an image whose tokens see each other both ways."""
    backbone = double()
    method = instance(backbone, lambda b, tokens: build("victor", tokens, b.shape, layer=2, layer_scale="none"), 3)
    registers = method.registers.detach().double()
    inputs = in_double(batch(backbone, (3,), (6,), (1,)))
    with torch.no_grad(), compressing(backbone, method.double()):
        got = logits(backbone, inputs)[0, -1]
    ids = inputs["input_ids"][0]
    image = images_of(backbone, ids)
    end = max(n for n, number in enumerate(image) if number >= 0) + 1
    with torch.no_grad():
        x = embedded(backbone, ids, inputs["pixel_values"])
        x = torch.cat([x[:end], registers, x[end:]])
        image = image[:end] + [-1] * 3 + image[end:]

        def drop(x: Tensor, position: list[int], image: list[int]) -> Any:
            stays = [n for n, number in enumerate(image) if number < 0]
            return x[stays], [position[n] for n in stays], [-1] * len(stays)

        expected = decoder(backbone, x, list(range(len(x))), image, {2: drop})[-1]
    assert torch.allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("layer", [0, 2])
def test_no_key_beyond_a_window_is_seen(layer: int) -> None:
    """The caches of sliding layers hold every token: what stands there beyond the window of the next token makes no
    difference, and what stands at its edge does.
    """
    backbone = double()
    method = build("random", 5, backbone.shape, layer=2).eval()
    inputs = in_double(batch(backbone, (4,), (20,), (1,)))
    question = torch.tensor([[20]])

    def step(spoilt: int | None) -> Tensor:
        with torch.no_grad(), compressing(backbone, method):
            cache = backbone.model(**inputs, use_cache=True)[CACHE]
            assert isinstance(cache, CompressedCache) and not any(cache.is_sliding)
            held = cache.layers[layer].get_seq_length()
            assert held > WINDOW + 1  # the next token and the last eleven are a window
            if spoilt is not None:
                cache.layers[layer].values[:, :, : held - spoilt] += 1e3
            whole = appended(inputs, question)
            return backbone.model(input_ids=question, attention_mask=whole["attention_mask"], **{CACHE: cache}).logits

    honest = step(None)
    assert torch.equal(step(WINDOW - 1), honest)
    assert not torch.allclose(step(WINDOW - 2), honest)


def test_an_image_behind_a_cache_whose_windows_have_let_go_of_tokens() -> None:
    """Text first, uncompressed, longer than the window; then an image: as in one pass."""
    backbone = double()
    method = build("random", 5, backbone.shape, layer=2).eval()
    generator = torch.Generator().manual_seed(2)
    before = text_row(words(backbone, 30, generator))
    after = image_row(backbone, picture(backbone, generator)) + text_row(words(backbone, 4, generator))
    whole, first = in_double(collate(backbone, [before + after])), collate(backbone, [before])
    with torch.no_grad(), compressing(backbone, method):
        expected = logits(backbone, whole)
        cache = backbone.model(**first, use_cache=True)[CACHE]
        assert any(cache.is_sliding) and cache.layers[0].keys.shape[2] == WINDOW - 1
        more = {name: whole[name][:, 30:] for name in ("input_ids", "token_type_ids")}
        got = backbone.model(
            **more,
            pixel_values=whole["pixel_values"],
            attention_mask=whole["attention_mask"],
            **{CACHE: cache},
        ).logits
    assert torch.allclose(got[:, -1], expected[:, -1], atol=1e-9)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_what_a_method_reads_of_attention_is_what_the_layers_pay(layer: int, padding: str) -> None:
    """Rows of a layer that ran, of one that is about to, and those that are watched; one layer slides, one doesn't."""
    backbone = tiny_gemma3()
    inputs = batch(backbone, padding=padding)
    backbone.model.set_attn_implementation("eager")
    with torch.no_grad():
        paid = backbone.model(**inputs, output_attentions=True).attentions
    real = inputs["attention_mask"].bool()

    def ask(tokens: TokenSequence, context: Context) -> Any:
        greatest, following = context.last_layer_attention(tokens.visual)[0], context.next_layer_attention(tokens)
        return context.attention_rows[layer - 1], greatest, following, context.keys[layer - 1]

    method = Observer(backbone.shape, layer, ask, {layer - 1})
    every = {"all": lambda tokens: tokens.mask}
    with torch.no_grad(), compressing(backbone, method) as engine, engine.watching_attention(every) as watched:
        backbone.model(**inputs)
    row, greatest, following, keys = method.observed
    own = paid[layer - 1]
    visual, rows_of = backbone.visual(inputs["input_ids"]), {seen.layer: seen for seen in watched}
    for n in range(len(real)):
        last = int(real[n].nonzero().max())
        assert torch.allclose(row[n], own[n].mean(0)[last], atol=1e-5)
        assert torch.allclose(following[n], paid[layer][n].mean(0)[last], atol=1e-5)
        assert torch.allclose(greatest[n], own[n].amax(0)[visual[n]].mean(0), atol=1e-5)
        for number, weights in enumerate(paid):
            seen = rows_of[number]
            for q, column in enumerate(seen.queries[n].tolist()):
                if seen.real[n, q]:
                    assert torch.allclose(seen.weights[n, q], weights[n].mean(0)[column], atol=1e-5)
    attention, hidden = backbone.decoder.layers[layer - 1].self_attn, []
    hook = attention.k_norm.register_forward_hook(lambda m, a, o: hidden.append(o))
    with torch.no_grad():
        backbone.model(**inputs)
    hook.remove()
    assert torch.allclose(keys[real], hidden[0].transpose(1, 2).flatten(2)[real], atol=1e-5)  # [B, H, L, d] there


@pytest.mark.parametrize("length", [1, 2, 4, 7])
@pytest.mark.parametrize("make", [tiny_gemma3, tiny_qwen3_vl])
def test_projections_are_token_by_token_in_front_of_heads_or_behind(make: Callable[[], Any], length: int) -> None:
    """Gemma 3 norms [B, H, L, d], Qwen3 [B, L, H, d]; also where there are as many tokens as heads."""
    backbone = make()
    attention = backbone.decoder.layers[1].self_attn
    x = torch.randn(2, length, backbone.shape.width, generator=torch.Generator().manual_seed(0))
    place = torch.arange(length).expand(2, -1)
    kind = ("full_attention",) if backbone.windows else ()
    rope = backbone.decoder.rotary_emb(x, place if backbone.windows else place.expand(3, -1, -1), *kind)
    with torch.no_grad(), probe.projections(attention) as projected:
        attention(x, position_embeddings=rope, attention_mask=None)
    for name in ("q", "k"):
        heads = getattr(attention, f"{name}_proj")(x).unflatten(-1, (-1, attention.head_dim))
        expected = torch.stack([getattr(attention, f"{name}_norm")(head) for head in heads.unbind(2)], 2)
        assert torch.allclose(projected[name], expected.flatten(2), atol=1e-6)


def test_a_methods_own_pass_has_the_windows_too() -> None:
    """`run_decoder`: as the decoder by itself; both ways as transformers has it for embeddings."""
    backbone = double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 30, backbone.shape.width, generator=generator, dtype=torch.float64)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[0, :4] = False
    config = backbone.decoder.config
    for bidirectional in (False, True):
        config.use_bidirectional_attention = bidirectional
        with torch.no_grad():
            whole = backbone.decoder(inputs_embeds=x).last_hidden_state
            alone = backbone.decoder(inputs_embeds=x[:1, 4:]).last_hidden_state
            config.use_bidirectional_attention = False
            assert torch.allclose(run_decoder(backbone, x, bidirectional=bidirectional), whole, atol=1e-9)
            got = run_decoder(backbone, x, mask, bidirectional=bidirectional)
        assert torch.allclose(got[0, 4:], alone[0], atol=1e-9) and torch.allclose(got[1], whole[1], atol=1e-9)


def test_calls_that_dont_say_which_tokens_are_visual_are_causal() -> None:
    """As transformers has it without `token_type_ids`."""
    backbone = double()
    inputs = in_double(batch(backbone))
    silent = {name: value for name, value in inputs.items() if name != "token_type_ids"}
    method = Observer(backbone.shape, 2, lambda tokens, context: None, {1})
    both, causal = logits(backbone, inputs), logits(backbone, silent)
    real = inputs["attention_mask"].bool()
    assert not torch.allclose(both[real], causal[real], atol=1e-3)
    with compressing(backbone, method):
        for given, plain in ((inputs, both), (silent, causal)):
            assert torch.allclose(logits(backbone, given)[real], plain[real], atol=1e-9)


def test_packed_questions_stay_apart_in_windows() -> None:
    """Each behind an image gives what it gives alone, where rows of a window hold tokens of the one before it."""
    backbone = double()
    inputs, block = packed(backbone)
    inputs = in_double(inputs)
    assert int((block[0] == 1).sum()) < WINDOW
    method = Observer(backbone.shape, 1, lambda tokens, context: None, {0})
    inputs.pop("labels")
    with torch.no_grad(), compressing(backbone, method) as engine, engine.blocks(block):
        together = backbone.model(**inputs).logits
    one = (block[:1] == 0) | (block[:1] == 2)
    one &= inputs["attention_mask"][:1].bool()
    alone = {n: inputs[n][:1][one][None] for n in ("input_ids", "attention_mask", "token_type_ids", "position_ids")}
    with torch.no_grad(), compressing(backbone, method):
        expected = backbone.model(**alone, pixel_values=inputs["pixel_values"][:1]).logits
    # The place of a question's last token holds the state that the next question begins from.
    length = int((block[0] == 2).sum())
    assert torch.allclose(together[0, block[0] == 2][:-1], expected[0, -length:-1], atol=1e-9)


def test_windows_of_a_family_that_has_none_are_refused() -> None:
    backbone = tiny_backbone()
    backbone.decoder.config.layer_types = ["sliding_attention"] * 4
    with pytest.raises(UserError, match="layers with sliding_attention"):
        compressing(backbone, build("random", 5, backbone.shape)).__enter__()
    gemma = tiny_gemma3()
    gemma.decoder.config.layer_types = ["linear_attention", *gemma.decoder.config.layer_types[1:]]
    with pytest.raises(UserError, match="layers with linear_attention; only"):
        compressing(gemma, build("random", 5, gemma.shape)).__enter__()


def test_attention_that_takes_no_masks_is_refused() -> None:
    backbone = tiny_gemma3()
    backbone.decoder.config._attn_implementation = "flex_attention"
    method = build("random", 5, backbone.shape)
    with (
        pytest.raises(UserError, match="its windows need attention=sdpa or eager$"),
        torch.no_grad(),
        compressing(backbone, method),
    ):
        backbone.model(**batch(backbone))


def test_rows_of_text_and_rows_of_images_have_positions_of_their_own() -> None:
    """Beams repeat rows, and the positions by which windows are told go with them."""
    backbone = double()
    method = build("random", 5, backbone.shape, layer=2).eval()
    inputs = in_double(collate(backbone, rows(backbone, (2, 5), (30, 20), (1, 1))))
    options: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": 3}
    with torch.no_grad(), compressing(backbone, method):
        cached = backbone.model.generate(**inputs, **options)
        plain = backbone.model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached, plain)
