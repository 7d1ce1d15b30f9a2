"""LLaVA-NeXT: tiles and newline tokens, images of any size, prompts, sizes, loading, refusals by name."""

from __future__ import annotations

import pytest
import torch
from checkpoints import load, settings_of, shape_of
from PIL import Image

from vtc.backbones import anyres, wrap
from vtc.backbones.llava_next import LlavaNext
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.testing.tiny_llava import NEXT_RESOLUTIONS, tiny_llava_next

REAL = {
    "llava_next_vicuna_7b": ("llama", 32, 4096, 32, 32064),
    "llava_next_vicuna_13b": ("llama", 40, 5120, 40, 32064),
    "llava_next_mistral_7b": ("mistral", 32, 4096, 8, 32064),
    "llava_next_34b": ("llama", 60, 7168, 8, 64064),
    "llava_next_llama3_8b": ("llama", 32, 4096, 8, 128320),
    "llava_next_72b": ("qwen2", 80, 8192, 64, 152064),
    "llava_next_110b": ("qwen2", 80, 8192, 8, 152064),
}
SIZES = [(16, 16), (9, 30), (24, 10), (40, 31), (7, 5)]  # (width, height)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


@pytest.fixture(scope="module")
def free() -> LlavaNext:
    """Images as they are."""
    return tiny_llava_next(image_size=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tiny")
    backbone = tiny_llava_next("mistral")
    backbone.model.save_pretrained(path)
    backbone.processor.save_pretrained(path)
    return str(path)


def test_an_image_is_its_base_tile_its_unpadded_grid_and_a_newline_behind_each_row(free: LlavaNext) -> None:
    inputs = free.inputs(
        ["what is this", "one", "two three"], [[noise(s) for s in SIZES[:2]], [], [*map(noise, SIZES[2:])]]
    )
    kwargs = dict(inputs)
    features = free.image_features(kwargs)
    assert features is not None and kwargs["pixel_values"] is None
    plain = free.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    assert len(features) == len(SIZES) and all(map(torch.equal, features, plain))
    assert free.grids(kwargs, features) == [None] * len(SIZES)
    newline = free.core.image_newline
    for (width, height), seen in zip(SIZES, features, strict=True):
        made = anyres.layout((height, width), free.model.config)
        ends = [4 + (made.columns + 1) * (row + 1) - 1 for row in range(made.rows)]
        assert len(seen) == made.tokens
        assert (seen == newline).all(1).nonzero()[:, 0].tolist() == ends
    assert len({len(f) for f in features}) == 4  # sizes that differ


@pytest.mark.parametrize("name", ["fastv", "divprune", "avgpool"])
def test_each_image_of_any_size_keeps_its_budget_and_a_whole_one_nothing_less(free: LlavaNext, name: str) -> None:
    """12 tokens are more than the smallest image has: it stays whole; the others keep 12 each."""
    method = build(name, 12, free.shape, **({"dims": 1} if name == "avgpool" else {}))
    inputs = free.inputs(
        ["what is this", "one", "two three"], [[noise(s) for s in SIZES[:2]], [], [*map(noise, SIZES[2:])]]
    )
    counts = [24, 22, 14, 24, 10]
    with torch.no_grad():
        plain = free.model(**inputs).logits
        with compressing(free, method) as engine:
            free.model(**inputs)
            assert engine.report.images == [2, 0, 3]
            assert engine.report.tokens_in == [sum(counts[:2]), 0, sum(counts[2:])]
            assert engine.report.tokens_out == [24, 0, 12 + 12 + 10]
        with compressing(free, build(name, 24, free.shape, **({"dims": 1} if name == "avgpool" else {}))):
            assert torch.equal(free.model(**inputs).logits, plain)


def test_with_image_size_every_image_has_the_same_number_of_tokens() -> None:
    backbone = tiny_llava_next(image_size=16)
    inputs = backbone.inputs(["what is this", "one"], [[noise(SIZES[1])], [noise(SIZES[3]), noise(SIZES[4])]])
    assert backbone.shape.visual_tokens == 24 and backbone.shape.grid is None
    assert (inputs["input_ids"] == backbone.image_token_id).sum(1).tolist() == [24, 48]
    assert (inputs["image_sizes"] == 16).all()
    assert tiny_llava_next(image_size=8).shape.visual_tokens == 10
    with pytest.raises(UserError, match="image_size=15: model cuts squares of 8, 16 pixels into tiles"):
        tiny_llava_next(image_size=15)


def test_prompts_are_the_chat_templates(free: LlavaNext) -> None:
    assert free.prompt("What is it?", 2) == "USER: <image>\n<image>\nWhat is it? ASSISTANT:"
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    asked[0]["content"][0]["image"] = noise((16, 16))
    ids = free.processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert ids["input_ids"][0] == free.inputs(["What is it?"], [[noise((16, 16))]])["input_ids"][0].tolist()
    said = free.conversation([("one", "red"), ("two", "blue")], images=1)
    assert said == [
        ("USER: <image>\none ASSISTANT:", False),
        (" red</s>", True),
        ("USER: two ASSISTANT:", False),
        (" blue</s>", True),
    ]


def test_a_template_that_begins_the_text_itself_begins_it_once() -> None:
    backbone = tiny_llava_next(image_size=None)
    backbone.processor.chat_template = (
        "{{ bos_token }}[INST] {% for p in messages[0].content %}{% if p.type == 'image' %}"
        "<image>\n{% else %}{{ p.text }}{% endif %}{% endfor %} [/INST]"
    )
    assert backbone.prompt("one") == "[INST] <image>\none [/INST]"
    ids = backbone.inputs(["one"], [[noise((16, 16))]])["input_ids"]
    assert (ids == backbone.tokenizer.bos_token_id).sum() == 1
    backbone.processor.chat_template = None
    assert backbone.prompt("one", 1) == "USER: <image>\none ASSISTANT:"
    assert backbone.conversation([("one", "red")])[1] == (" red</s>", True)


@pytest.mark.parametrize(("name", "sizes"), REAL.items())
def test_the_real_sizes_need_no_network(name: str, sizes: tuple) -> None:
    """What is known of them is what the family reads off a configuration of transformers' own."""
    kind, depth, width, kv_heads, vocab = sizes
    cls = LlavaNext
    shape = shape_of({"name": name})
    assert (shape.depth, shape.width, shape.kv_heads, shape.vocab) == (depth, width, kv_heads, vocab)
    assert shape.visual_tokens is None and shape.grid is None
    config = cls.configuration(settings_of({"name": name}))
    assert config.model_type == "llava_next" and config.text_config.model_type == kind
    assert config.image_grid_pinpoints == [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    assert LlavaNext.shape_from(config, name) == shape
    assert shape_of({"name": name, "image_size": 672}).visual_tokens == 2928


def test_any_folder_of_the_architecture_loads(folder: str) -> None:
    cfg = {"name": "llava_next_mistral_7b", "pretrained": folder, "dtype": "float32", "device": "cpu", "image_size": 16}
    backbone = load(cfg)
    assert backbone.shape == shape_of(cfg) and backbone.shape.visual_tokens == 24
    assert shape_of(cfg | {"image_size": None}).visual_tokens is None
    plain = tiny_llava_next("mistral")
    assert backbone.model.config.image_grid_pinpoints == NEXT_RESOLUTIONS
    inputs, again = (b.inputs(["what is this"], [[noise((9, 30))]]) for b in (plain, backbone))
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    with torch.no_grad():
        assert torch.allclose(backbone.model(**again).logits, plain.model(**inputs).logits, atol=1e-5)
    assert type(wrap(backbone.model)) is LlavaNext
    with pytest.raises(UserError, match="a llava_next model; this backbone reads llava ones"):
        shape_of(cfg | {"name": "llava15_7b", "image_size": None})


@pytest.mark.parametrize("image_size", [None, 16])
@pytest.mark.parametrize(
    "name",
    [
        "downsample", "m3", "mqt", "qformer", "quecc", "single_forward", "tokenpacker", "tome",
    ],
)  # fmt: skip
def test_what_needs_one_grid_of_patches_says_so_by_name(name: str, image_size: int | None) -> None:
    with pytest.raises(UserError, match=f"method={name}: "):
        build(name, 4, tiny_llava_next(image_size=image_size).shape)


def test_pooling_over_a_grid_is_refused_and_pooling_in_raster_order_is_not(free: LlavaNext) -> None:
    with pytest.raises(UserError, match="method=avgpool: it needs a rectangular grid .* has none, use dims=1"):
        build("avgpool", 4, free.shape)
    assert build("avgpool", 4, free.shape, dims=1).tokens == 4
    with pytest.raises(UserError, match="method=avgpool: it needs a rectangular grid .* has none"):
        build("avgpool+fastv", 2, free.shape, avgpool={"tokens": 4})
