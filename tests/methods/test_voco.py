"""VoCo-LLaMA against the plain decoder under a 4-D mask, written pair by pair: prefill, decoding from the cache, later
turns, several images."""

from __future__ import annotations

import pytest
import torch

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import packed
from vtc.testing.runs import appended, generation, logits

TEXT = -1


def laid_out(backbone, method, ids, pixels):
    """One row: embeddings [L, D], and for each token (image it is of, whether it is visual); VoCo behind each image."""
    words = backbone.decoder.embed_tokens(ids)
    features = torch.cat(list(backbone.core.get_image_features(pixels).pooler_output)) if len(pixels) else None
    n = backbone.shape.visual_tokens
    x, what, seen = [], [], 0
    for i, token in enumerate(ids.tolist()):
        if token != backbone.image_token_id:
            x.append(words[i])
            what.append((TEXT, False))
            continue
        x.append(features[seen])
        what.append((seen // n, True))
        seen += 1
        if seen % n == 0:
            for m in range(method.tokens):
                x.append(method.registers[0 if len(method.registers) == 1 else m])
                what.append((seen // n - 1, False))
    return torch.stack(x), what


def masked(backbone, x, what):
    """Logits [L, V] of transformers' own decoder under the mask of section 3.2."""
    length = len(x)
    mask = torch.full((1, 1, length, length), torch.finfo(x.dtype).min, dtype=x.dtype)
    for q in range(length):
        for k in range(q + 1):
            image, visual = what[k]
            if not visual or what[q][0] == image:
                mask[0, 0, q, k] = 0
    decoder = backbone.decoder
    out = decoder(inputs_embeds=x[None], attention_mask=mask, position_ids=torch.arange(length)[None], use_cache=False)
    return backbone.model.lm_head(out.last_hidden_state[0])


def with_registers(backbone, tokens, seed=0, **options):
    method = build("voco", tokens, backbone.shape, **options).eval()
    with torch.no_grad():
        method.registers.copy_(torch.randn(method.registers.shape, generator=torch.Generator().manual_seed(seed)))
    return method


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("tokens", "shared", "seed"), [(1, False, 0), (3, False, 1), (3, True, 2), (16, False, 3)])
def test_prefill_and_decoding_are_those_of_the_explicit_mask(attention, tokens, shared, seed) -> None:
    """Rows of different lengths with one, two and no images; five tokens are decoded from the cache of each."""
    backbone = tiny_backbone(attention=attention, seed=seed)
    method = with_registers(backbone, tokens, seed, shared=shared)
    images, n = (1, 2, 0), backbone.shape.visual_tokens
    inputs = batch(backbone, images=images, seed=seed)
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = logits(backbone, inputs)
        report = engine.report
        out = generation(backbone, inputs)
    assert report.tokens_out == [tokens * i for i in images] and report.kept == [[], [], []]
    assert report.layers == [[(n + tokens) * i for i in images]] * backbone.shape.depth
    assert report.cached == [[tokens * i for i in images]] * backbone.shape.depth
    first, length = 0, inputs["input_ids"].shape[1]
    for row, count in enumerate(images):
        real = inputs["attention_mask"][row].bool()
        ids, pixels = inputs["input_ids"][row, real], inputs["pixel_values"][first : first + count]
        first += count
        whole = torch.cat([ids, out.sequences[row, length:]])
        with torch.no_grad():
            x, what = laid_out(backbone, method, whole, pixels)
            expected = masked(backbone, x, what)
        text = [i for i, (image, _) in enumerate(what) if image == TEXT]
        of_prompt = text[: len(text) - 5]
        mine = got[row, real][ids != backbone.image_token_id]
        assert (mine - expected[of_prompt]).abs().max() < 2e-4
        steps = torch.stack(out.logits)[:, row]
        assert (steps - expected[text[-6:-1]]).abs().max() < 2e-4


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_second_image_in_a_later_turn_sees_the_first_ones_voco_tokens_only(tokens) -> None:
    backbone = tiny_backbone()
    method = with_registers(backbone, tokens)
    inputs = batch(backbone)
    generator = torch.Generator().manual_seed(3)
    words = torch.randint(10, 60, (3, 4), generator=generator)
    image = torch.full((3, backbone.shape.visual_tokens), backbone.image_token_id)
    turn = appended(appended(inputs, words), words)
    turn = appended(appended(turn, image), words)
    pixels = torch.randn(inputs["pixel_values"].shape, generator=generator)
    seen = inputs["input_ids"].shape[1] + 8
    place = backbone.positions(turn)
    with torch.no_grad(), compressing(backbone, method) as engine:
        cache = backbone.model(**inputs, position_ids=place[:, : seen - 8], use_cache=True).past_key_values
        for at in (seen - 8, seen - 4):  # two questions from the cache
            backbone.model(
                input_ids=turn["input_ids"][:, at : at + 4],
                attention_mask=turn["attention_mask"][:, : at + 4],
                position_ids=place[:, at : at + 4],
                past_key_values=cache,
            )
        third = backbone.model(
            input_ids=turn["input_ids"][:, seen:],
            attention_mask=turn["attention_mask"],
            position_ids=place[:, seen:],
            pixel_values=pixels,
            past_key_values=cache,
        ).logits
        assert engine.report.tokens_out == [tokens] * 3
    texts = (turn["attention_mask"].sum(1) - 2 * image.shape[1]).max()
    assert {layer.get_seq_length() for layer in cache.layers} == {int(texts) + 2 * tokens}
    for row in range(3):
        ids = turn["input_ids"][row, turn["attention_mask"][row].bool()]
        with torch.no_grad():
            x, what = laid_out(backbone, method, ids, torch.stack([inputs["pixel_values"][row], pixels[row]]))
            expected = masked(backbone, x, what)
        assert (third[row, -4:] - expected[-4:]).abs().max() < 2e-4


def test_packed_questions_see_voco_tokens_only() -> None:
    """A change of the visual tokens behind the VoCo tokens' back shows nowhere: each question by itself, masked."""
    backbone = tiny_backbone()
    method = with_registers(backbone, 3)
    inputs, blocks = packed(backbone)
    with torch.no_grad(), compressing(backbone, method) as engine, engine.blocks(blocks):
        got = backbone.model(**inputs, use_cache=False).logits
    for row in range(2):
        for question in (1, 2, 3):
            own = ((blocks[row] == 0) | (blocks[row] == question)) & inputs["attention_mask"][row].bool()
            ids = inputs["input_ids"][row, own]
            with torch.no_grad():
                x, what = laid_out(backbone, method, ids, inputs["pixel_values"][row : row + 1])
                expected = masked(backbone, x, what)
            mine = got[row, own & (blocks[row] == question)]
            assert (mine[:-1] - expected[-len(mine) : -1]).abs().max() < 2e-4


def test_the_text_can_not_look_past_the_voco_tokens() -> None:
    """Without a way into the VoCo tokens nothing of the image arrives; with it, something does."""
    backbone = tiny_backbone()
    method = with_registers(backbone, 2)
    inputs = batch(backbone, before=(2, 2, 2), after=(5, 5, 5))
    others = inputs | {"pixel_values": inputs["pixel_values"].flip(0) + 1}
    with torch.no_grad(), compressing(backbone, method):
        seen = [logits(backbone, i)[:, -5:] for i in (inputs, others)]
        method.reduce = lambda tokens, layer, context: tokens  # none of them
        blind = [logits(backbone, i)[:, -5:] for i in (inputs, others)]
    assert (seen[0] - seen[1]).abs().max() > 1e-2
    assert (blind[0] - blind[1]).abs().max() < 1e-4


def test_flash_attention_is_refused_by_name() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    with compressing(backbone, build("voco", 2, backbone.shape)):
        backbone.decoder.config._attn_implementation = "flash_attention_2"
        with pytest.raises(UserError, match="method=voco: its mask needs attention=sdpa or eager"):
            backbone.model(**inputs)


def test_a_bottleneck_with_probes_is_refused() -> None:
    backbone = tiny_backbone()
    method = build("voco", 2, backbone.shape)
    method.probes = lambda: {1}
    with pytest.raises(UserError, match="method=voco: attention is not probed"), compressing(backbone, method):
        pass


def test_parameters_and_budgets() -> None:
    shape = tiny_backbone().shape
    assert build("voco", 8, shape).extra_parameters == 8 * shape.width
    assert build("voco", 8, shape, shared=True).extra_parameters == shape.width
    assert build("voco", None, shape).tokens == 1
    from vtc.budget import Budget
    from vtc.registry import methods

    with pytest.raises(UserError, match="compression=2: voco on"):
        methods.get("voco")(Budget(compression=2).resolve, shape)
    assert methods.get("voco")(Budget(ratio=0.25).resolve, shape).tokens == 4
