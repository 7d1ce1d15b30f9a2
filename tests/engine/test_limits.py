"""What a model can't answer is refused by name: prompts past its context, and numbers that are none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from vtc.engine import compressing, embed_images, embed_texts
from vtc.errors import NotFinite, SampleError
from vtc.interface import TokenMerger
from vtc.methods import build
from vtc.testing import batch, tiny_backbone
from vtc.testing.runs import generation, instance
from vtc.testing.tiny_qwen import tiny_qwen2_5_vl

NEW = 5


def within(backbone, context: int) -> None:
    backbone.decoder.config.max_position_embeddings = context


# 4 words, an image of 16 visual tokens, 6 words: positions 0…25. Before the LLM the gap closes, behind that it stays.
@pytest.mark.parametrize(
    ("name", "tokens", "options", "positions"),
    [
        ("none", None, {}, 26),
        ("divprune", 5, {}, 15),
        ("fastv", 5, {}, 26),
        ("random", 5, {"layer": 0}, 15),
        ("victor", 3, {}, 29),  # its registers stand behind the image until this has gone
        ("voco", 2, {}, 28),
        ("avgpool", 4, {}, 14),
    ],
)
def test_a_prompt_and_its_answer_fit_into_the_context_exactly(name, tokens, options, positions) -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone, (4,), (6,), (1,))
    method = build(name, tokens, backbone.shape, **options).eval()
    with compressing(backbone, method), torch.no_grad():
        within(backbone, positions + NEW)
        generation(backbone, inputs, NEW)
        within(backbone, positions + NEW - 1)
        message = f"{positions + NEW - 1} positions .* takes {positions}, with 5 new tokens {positions + NEW}"
        with pytest.raises(SampleError, match=message):
            generation(backbone, inputs, NEW)
        within(backbone, positions)
        backbone.model(**inputs)
        within(backbone, positions - 1)
        with pytest.raises(SampleError, match=f"takes {positions}$"):
            backbone.model(**inputs)


@pytest.mark.parametrize("name", ["none", "fastv", "divprune"])
def test_padding_takes_no_positions_and_the_longest_row_counts(name) -> None:
    backbone = tiny_backbone()
    method = build(name, None if name == "none" else 5, backbone.shape).eval()
    inputs = batch(backbone, (4, 2), (6, 1), (1, 1))
    with compressing(backbone, method), torch.no_grad():
        positions = 15 if name == "divprune" else 26
        within(backbone, positions + NEW)
        generation(backbone, inputs, NEW)
        within(backbone, positions + NEW - 1)
        with pytest.raises(SampleError, match=f"takes {positions},"):
            generation(backbone, inputs, NEW)


@pytest.mark.parametrize("name", ["none", "fastv", "divprune"])
def test_without_a_stated_length_decoding_ends_where_the_context_does(name) -> None:
    """`max_length` counts what `generate` counts; the positions are fewer where the gap is closed."""
    backbone = tiny_backbone()
    method = build(name, None if name == "none" else 5, backbone.shape).eval()
    inputs = batch(backbone, (4,), (6,), (1,))
    positions = 15 if name == "divprune" else 26
    with compressing(backbone, method), torch.no_grad():
        within(backbone, positions + 3)  # the last token of an answer is never read
        backbone.model.generate(**inputs, max_length=30, do_sample=False)
        with pytest.raises(SampleError, match=f"takes {positions + 4}$"):
            backbone.model.generate(**inputs, max_length=31, do_sample=False)


def test_a_second_turn_goes_on_counting() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone, (4,), (6,), (1,))
    with compressing(backbone, build("fastv", 5, backbone.shape).eval()), torch.no_grad():
        cache = backbone.model(**inputs, use_cache=True).past_key_values
        within(backbone, 26)
        with pytest.raises(SampleError, match="takes 29$"):
            backbone.model(
                input_ids=inputs["input_ids"][:, :3],
                attention_mask=torch.ones(1, 29, dtype=torch.long),
                past_key_values=cache,
            )


@pytest.mark.parametrize("name", ["none", "fastv"])
def test_in_a_grid_the_largest_place_counts(name) -> None:
    """M-RoPE: an image of 4×4 tokens moves what is behind it by four positions, not by sixteen."""
    backbone = tiny_qwen2_5_vl()
    inputs = batch(backbone, (4,), (6,), (1,))
    last = int(backbone.positions(inputs).max()) + 1
    assert last < inputs["input_ids"].shape[1]
    method = build(name, None if name == "none" else 5, backbone.shape).eval()
    with compressing(backbone, method), torch.no_grad():
        within(backbone, last + NEW)
        generation(backbone, inputs, NEW)
        within(backbone, last + NEW - 1)
        with pytest.raises(SampleError, match=f"takes {last}, with 5 new tokens"):
            generation(backbone, inputs, NEW)


def test_passes_that_a_method_asks_for_are_within_the_context_too() -> None:
    """Fwd2Bot's first pass sees the whole image, and texts of any length are embedded."""
    from vtc.engine import encode_texts

    backbone = tiny_backbone()
    method = build("fwd2bot", 4, backbone.shape).eval()
    method.attach(backbone)
    inputs = batch(backbone, (1,), (1,), (1,))
    within(backbone, 20)
    with compressing(backbone, method), torch.no_grad(), pytest.raises(SampleError, match="20 positions"):
        backbone.model(**inputs)
    words = torch.full((1, 21), 8)
    with torch.no_grad(), pytest.raises(SampleError, match="20 positions"):
        encode_texts(backbone, build("none", None, backbone.shape), words, torch.ones_like(words))


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_type": "default"}, 1000),
        ({"rope_type": "linear", "factor": 4.0}, 4000),
        ({"rope_type": "dynamic", "factor": 2.0}, 2000),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}, 4000),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250}, 1000),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 500}, 1000),
        ({"rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": 500}, 1000),
        ({"rope_type": "default", "mrope_section": [2, 1, 1]}, 1000),
        (None, 1000),
    ],
)
def test_rope_scaling_makes_the_context_longer(rope, context, monkeypatch) -> None:
    backbone = tiny_backbone()
    config = SimpleNamespace(max_position_embeddings=1000, rope_parameters=rope)
    monkeypatch.setattr(type(backbone), "decoder", SimpleNamespace(config=config))
    assert backbone.context == context
    monkeypatch.setattr(type(backbone), "decoder", SimpleNamespace(config=SimpleNamespace()))
    assert backbone.context is None


def test_windows_that_only_the_size_tells_of_are_refused() -> None:
    backbone = tiny_backbone()
    backbone.decoder.config.sliding_window = 8
    with pytest.raises(Exception, match="sliding_attention"), compressing(backbone, build("fastv", 5, backbone.shape)):
        pass


def broken(backbone, name: str, value: float = float("nan")) -> None:
    with torch.no_grad():
        backbone.model.get_parameter(name).flatten()[0] = value


@pytest.mark.parametrize("method", ["none", "fastv", "divprune", "avgpool", "victor"])
@pytest.mark.parametrize(
    "module",
    [
        "model.vision_tower.encoder.layers.0.mlp.fc1",
        "model.multi_modal_projector.linear_2",
        "model.language_model.layers.1.self_attn.v_proj",
        "model.language_model.layers.3.mlp.down_proj",
        "model.language_model.norm",
        "lm_head",
    ],
)
def test_logits_that_are_no_numbers_name_the_layer_and_the_method(method: str, module: str) -> None:
    backbone = tiny_backbone()
    broken(backbone, f"{module}.weight")
    message = rf"^backbone=model, method={method}: {module} isn't finite$"
    made = build(method, None if method == "none" else 4, backbone.shape).eval()
    with compressing(backbone, made), torch.no_grad(), pytest.raises(NotFinite, match=message):
        generation(backbone, batch(backbone))


def test_numbers_that_the_method_makes_are_its_own() -> None:
    class Divides(TokenMerger):
        name = "divides"

        def assign(self, tokens, context):
            groups = torch.zeros(tokens.images[0].shape, dtype=torch.long)
            return groups, torch.full(groups.shape, float("nan"))

    backbone = tiny_backbone()
    message = "method=divides: what it leaves before layer 0 isn't finite"
    with compressing(backbone, Divides(1, backbone.shape)), torch.no_grad(), pytest.raises(NotFinite, match=message):
        generation(backbone, batch(backbone))
    victor = build("victor", 4, backbone.shape).eval()
    with torch.no_grad():
        victor.registers.fill_(float("inf"))
    with compressing(backbone, victor), torch.no_grad(), pytest.raises(NotFinite, match="leaves before layer 0"):
        generation(backbone, batch(backbone))


def test_values_beyond_float16_say_so() -> None:
    backbone = tiny_backbone()
    backbone.model.half()
    with torch.no_grad():
        backbone.projector.linear_2.weight.mul_(1e5)
    inputs = batch(backbone)
    inputs["pixel_values"] = inputs["pixel_values"].half()
    message = "linear_2 isn't finite; float16 ends at 65,504, dtype=bf16"
    plain = build("none", None, backbone.shape)
    with compressing(backbone, plain), torch.no_grad(), pytest.raises(NotFinite, match=message):
        generation(backbone, inputs)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_one_token_in_an_answer_is_enough(how: dict) -> None:
    """Every step's logits count, not those of the prompt alone."""
    backbone = tiny_backbone()
    inputs = batch(backbone, (4,), (6,), (1,))
    with compressing(backbone, build("fastv", 4, backbone.shape).eval()), torch.no_grad():
        answer = generation(backbone, inputs, **how).sequences[0, -NEW:].tolist()
        token = next(t for t in answer[:-1] if t not in inputs["input_ids"][0].tolist())
        backbone.decoder.embed_tokens.weight[token] = float("nan")
        with pytest.raises(NotFinite, match="method=fastv: model.language_model.embed_tokens isn't finite"):
            generation(backbone, inputs, **how)


def test_embeddings_that_are_no_numbers_are_named_too() -> None:
    backbone = tiny_backbone()
    broken(backbone, "model.language_model.layers.1.mlp.up_proj.weight")
    image = Image.new("RGB", (16, 16), (200, 0, 0))
    for name in ("none", "avgpool", "fwd2bot"):
        method = build(name, None if name == "none" else 4, backbone.shape).eval()
        message = f"method={name}: model.language_model.layers.1.mlp.up_proj.* isn't finite"
        for embed, things in ((embed_images, [image]), (embed_texts, ["red"])):
            with pytest.raises(NotFinite, match=message):
                embed(backbone, method, things)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "fitprune", "vcc", "sparsevlm", "quecc"])
def test_without_a_cache_the_choice_is_the_prompts(name: str, beams: int) -> None:
    """Rows of different lengths, padded on either side; no one says where the prompts end."""
    backbone = tiny_backbone()
    method = instance(backbone, lambda b, tokens: build(name, tokens, b.shape), 4)
    inputs = batch(backbone, images=(1, 2, 1))
    with compressing(backbone, method) as engine, torch.no_grad():
        cached = generation(backbone, inputs, num_beams=beams)
        plain = generation(backbone, inputs, num_beams=beams, use_cache=False)
        assert torch.equal(cached.sequences, plain.sequences)
        for one, other in zip(cached.logits, plain.logits, strict=True):
            assert (one - other).abs().max() < 1e-3
        kept = engine.report.kept
        backbone.model(**inputs)
        assert beams > 1 or engine.report.kept == kept  # what the whole of it kept is what the prompt keeps
        config = GenerationConfig(use_cache=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)
        again = backbone.model.generate(
            inputs["input_ids"],
            generation_config=config,
            **{k: v for k, v in inputs.items() if k != "input_ids"},
            suppress_tokens=list(backbone.placeholders),
            num_beams=beams,
        )
        assert torch.equal(again, cached.sequences)
