"""Gemma 3: 4×4 (here 2×2) patches averaged into a visual token, one size of pictures, no pan and scan."""

from __future__ import annotations

import pytest
import torch
from checkpoints import settings_of, shape_of
from PIL import Image

from vtc.backbones import wrap
from vtc.engine import attention, compress_images
from vtc.errors import UserError
from vtc.methods import build
from vtc.registry import families
from vtc.testing.models import picture
from vtc.testing.tiny_gemma import TOKENS, tiny_gemma3

# As google/gemma-3-4b-it brings it with its processor.
PUBLISHED = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""


@pytest.mark.parametrize(
    ("name", "millions", "depth", "heads", "kv_heads", "head"),
    [
        ("gemma3_4b", 4300, 34, 8, 4, 256),
        ("gemma3_12b", 12187, 48, 16, 8, 256),
        ("gemma3_27b", 27432, 62, 32, 16, 128),
    ],
)
def test_released_sizes_need_no_network(
    name: str, millions: int, depth: int, heads: int, kv_heads: int, head: int
) -> None:
    """As many parameters as the hub counts in the checkpoints; 16 × 16 visual tokens of 64 × 64 patches."""
    settings = settings_of({"name": name})
    shape = shape_of({"name": name})
    assert (shape.depth, shape.heads, shape.kv_heads, shape.head_width) == (depth, heads, kv_heads, head)
    assert (shape.grid, shape.visual_tokens, shape.vision.merge, shape.vision.tokens) == ((16, 16), 256, 4, 4096)
    made = families.get(settings.family).skeleton(settings)
    assert made.shape == shape
    assert round(sum(p.numel() for p in made.model.parameters()) / 1e6) == millions
    text = made.decoder.config
    assert text.sliding_window == 1024 and text.layer_types.count("full_attention") == depth // 6
    assert made.context == 131072
    with pytest.raises(UserError, match=f"image_size=672: {name} has one size of images"):
        shape_of({"name": name, "image_size": 672})


def test_the_tower_and_the_projector_make_the_models_own_features() -> None:
    """What a method reads of the tower, cell by cell, is what the model's projector makes visual tokens of."""
    backbone = tiny_gemma3()
    generator = torch.Generator().manual_seed(0)
    images = [picture(backbone, generator, size) for size in ((16, 16), (40, 20), (9, 31))]
    inputs = dict(backbone.inputs(["what"] * 3, [[image] for image in images]))
    assert inputs["pixel_values"].shape == (3, 3, 16, 16)  # whatever their aspect
    with torch.no_grad():
        expected = backbone.core.get_image_features(inputs["pixel_values"])
        features = backbone.image_features(dict(inputs))
        tower = backbone.tower_pictures("image", {}, expected.last_hidden_state)
        projected = backbone.project(tower.patch_features())
    assert backbone.grids(inputs, features) == [(4, 4)] * 3
    assert torch.equal(torch.stack(features), expected.pooler_output)
    assert torch.allclose(projected, expected.pooler_output, atol=1e-5)
    for row in range(4):  # by loops: token (row, column) is the mean of its 2 × 2 patches
        for column in range(4):
            patches = [(2 * row + i) * 8 + 2 * column + j for i in range(2) for j in range(2)]
            mean = expected.last_hidden_state[:, patches].mean(1)
            assert torch.allclose(tower.patch_features()[:, 4 * row + column], mean, atol=1e-6)


def test_the_prompt_is_that_of_the_released_template() -> None:
    backbone = tiny_gemma3()
    ours = backbone.prompt("what is this"), backbone.conversation([("one", "red"), ("two", "blue")])
    backbone.processor.chat_template = PUBLISHED.replace("{{ bos_token }}\n", "{{ bos_token }}", 1)
    assert (backbone.prompt("what is this"), backbone.conversation([("one", "red"), ("two", "blue")])) == ours
    assert ours[0] == ("<start_of_turn>user\n<start_of_image>what is this<end_of_turn>\n<start_of_turn>model\n")
    assert ours[1][1] == ("red<end_of_turn>", True)
    ids = backbone.inputs(["what is this"], [[Image.new("RGB", (20, 30))]])["input_ids"]
    assert int((ids == backbone.image_token_id).sum()) == TOKENS and ids[0, 0] == backbone.tokenizer.bos_token_id
    assert int((ids == backbone.tokenizer.bos_token_id).sum()) == 1


def test_pan_and_scan_is_off_whatever_the_processor_says(monkeypatch) -> None:
    backbone = tiny_gemma3()
    usual = type(backbone.processor).images_kwargs
    monkeypatch.setitem(usual, "do_pan_and_scan", True)
    monkeypatch.setitem(usual, "pan_and_scan_min_crop_size", 8)
    wide = Image.new("RGB", (90, 30), "red")
    own = backbone.processor(text=["<start_of_image>"], images=[[wide]], return_tensors="pt")
    assert len(own["pixel_values"]) > 1  # the processor by itself would cut it
    for inputs in (backbone.inputs(["what"], [[wide]]), backbone.row("<start_of_image>", [wide])):
        assert len(inputs["pixel_values"]) == 1
        assert int((inputs["input_ids"] == backbone.image_token_id).sum()) == TOKENS


def test_rows_with_and_without_pictures() -> None:
    backbone = tiny_gemma3()
    wide = Image.new("RGB", (48, 16), "white")
    inputs = backbone.inputs(["what", "one two", "three"], [[wide], [], [wide, wide]])
    visual = backbone.visual(inputs["input_ids"])
    assert visual.sum(1).tolist() == [TOKENS, 0, 2 * TOKENS]
    assert torch.equal(inputs["token_type_ids"] == 1, visual)
    assert [len(r) for r in backbone.image_features(dict(inputs))] == [TOKENS] * 3
    with pytest.raises(UserError, match="reads images, not videos"):
        backbone.inputs(["what"], [[]], [[[wide, wide]]])


def test_what_it_cant_do_is_refused_in_one_line() -> None:
    backbone = tiny_gemma3()
    with pytest.raises(UserError, match="no images can be stored, its visual tokens see each other both ways") as error:
        compress_images(backbone, build("divprune", 5, backbone.shape), [Image.new("RGB", (16, 16))])
    assert "\n" not in str(error.value)
    backbone.model.config.text_config.use_bidirectional_attention = True
    with pytest.raises(UserError, match="every token of its decoder sees those behind it; it can't generate$"):
        wrap(backbone.model)


def test_text_in_a_methods_own_pass_is_known_though_embeddings_are_scaled() -> None:
    """A word's embedding is its row of the table times the root of the width."""
    backbone = tiny_gemma3()
    embed = backbone.decoder.embed_tokens
    with torch.no_grad():
        words = embed(torch.tensor([[20, 30]]))
        assert torch.allclose(words, embed.weight[[20, 30]] * 32**0.5)
        made = torch.cat([words, torch.ones(1, 1, 32)], 1)
        tokens = attention._own_tokens(made, None, None, embed)
    assert tokens.role.tolist() == [[attention.TEXT, attention.TEXT, attention.REGISTER]]


def test_a_smaller_picture_is_averaged_in_the_same_squares():
    """Against loops over the cells, and with the size that the configuration states again afterwards."""
    backbone = tiny_gemma3()
    vision, projector = backbone.shape.vision, backbone.projector
    generator = torch.Generator().manual_seed(3)
    for cells in (2, backbone.shape.grid[0]):
        side = cells * vision.merge
        pixels = torch.randn(2, 3, *[side * vision.patch_size] * 2, generator=generator)
        with torch.no_grad():
            outputs = backbone.core.get_image_features(pixels, interpolate_pos_encoding=True)
            patches = outputs.last_hidden_state.view(2, side, side, -1)
            squares = [
                patches[:, y : y + vision.merge, x : x + vision.merge].flatten(1, 2).mean(1)
                for y in range(0, side, vision.merge)
                for x in range(0, side, vision.merge)
            ]
            expected = projector.mm_soft_emb_norm(torch.stack(squares, 1)) @ projector.mm_input_projection_weight
        torch.testing.assert_close(outputs.pooler_output, expected)
