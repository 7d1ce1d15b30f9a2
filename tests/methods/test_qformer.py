"""The Q-Former against loops over queries and heads, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image
from projectors import (
    attend,
    context_of,
    every_parameter_learns,
    gelu,
    norm,
    random_tower,
    randomised,
    shape_of,
    states,
)
from reference import decoder
from torch import Tensor, nn
from tower_reference import double, equals, rows

from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.qformer import QFormer
from vtc.testing import tiny_backbone
from vtc.testing.runs import generation, logits
from vtc.testing.tiny_llava import tiny_llava_next, tiny_llava_onevision
from vtc.testing.tiny_qwen import tiny_qwen2_5_vl, tiny_qwen2_vl, tiny_qwen3_vl
from vtc.testing.tiny_tiles import tiny_idefics3, tiny_internvl, tiny_smolvlm


def linear(x: Tensor, module: nn.Linear) -> Tensor:
    return module.weight @ x + module.bias


def attended(block: nn.Module, z: list[Tensor], sources: list[Tensor], heads: int) -> list[Tensor]:
    """BERT's attention: each query over the sources, an output map, the residual, then the norm."""
    at, out = block.attention, block.output
    keys, values = [linear(s, at.key) for s in sources], [linear(s, at.value) for s in sources]
    found = [linear(attend(linear(q, at.query), keys, values, heads), out.dense) for q in z]
    return [norm(q + new, out.LayerNorm) for q, new in zip(z, found, strict=True)]


def read(method: QFormer, features: Tensor, heads: int) -> Tensor:
    """[M, D] of one image's features [N, C]."""
    image = [norm(f, method.norm) for f in features]
    z = [norm(q, method.blocks.layernorm) for q in method.queries]
    for number, layer in enumerate(method.blocks.encoder.layer):
        z = attended(layer.attention, z, z, heads)
        if number in (0, 2, 4, 6):
            z = attended(layer.crossattention, z, image, heads)
        wide, narrow = layer.intermediate_query.dense, layer.output_query
        z = [norm(q + linear(gelu(linear(q, wide)), narrow.dense), narrow.LayerNorm) for q in z]
    return torch.stack([linear(q, method.project) for q in z])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("grid", "tokens", "options", "heads"),
    [((3, 3), 4, {}, 4), ((2, 5), 1, {"layers": 3, "width": 12, "heads": 3}, 3), ((4, 4), 6, {"layers": 1}, 4)],
)
@torch.no_grad()
def test_equals_loops_over_queries_and_heads(grid, tokens, options, heads, seed) -> None:
    shape = shape_of(grid)
    method = randomised(build("qformer", tokens, shape, **options), seed)
    assert len(method.blocks.encoder.layer) == options.get("layers", 4) and not method.tower().projects
    tower = random_tower(shape, 2, seed, [])
    got = method(tower.features, context_of(shape, tower))
    for image in range(2):
        assert (got[image] - read(method, tower.features[image], heads)).abs().max() < 1e-10


@pytest.mark.parametrize(("seed", "grid", "tokens"), [(0, 4, 5), (1, 3, 2)])
def test_the_llm_reads_what_it_makes_of_each_image(seed: int, grid: int, tokens: int) -> None:
    backbone = double(seed, grid)
    method = randomised(build("qformer", tokens, backbone.shape, layers=2), seed)
    inputs = rows(backbone, (1, 2, 0), seed)
    seen = states(backbone, inputs["pixel_values"])[-2]
    equals(backbone, method, inputs, [read(method, image, 2) for image in seen])


def noise(height: int, width: int, seed: int) -> Image.Image:
    draw = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8).numpy())


def patches_of_clip(backbone: Backbone, clip: list[Image.Image]) -> list[Tensor]:
    """The same as `patches_of`, of each picture of a video."""
    inputs = backbone.inputs(["one"], [[]], [[clip]])
    pixels, grids = inputs["pixel_values_videos"].to(backbone.dtype), inputs["video_grid_thw"]
    return list(backbone.vision_tower(pixels, grid_thw=grids).last_hidden_state.chunk(int(grids[0, 0])))


def patches_of(backbone: Backbone, image: Image.Image) -> Tensor:
    """[N, C] what the tower makes of every patch of one picture that it sees alone, by its own output."""
    inputs = backbone.inputs(["one"], [[image]])
    pixels, tower = inputs["pixel_values"].to(backbone.dtype), backbone.vision_tower
    if "image_grid_thw" in inputs:
        return tower(pixels, grid_thw=inputs["image_grid_thw"]).last_hidden_state
    pixels = pixels.flatten(0, -4)
    if backbone.shape.vision.cls:
        return tower(pixel_values=pixels).last_hidden_state[0, 1:]
    patch = backbone.shape.vision.patch_size
    mask = torch.ones(1, *(side // patch for side in pixels.shape[-2:]), dtype=torch.bool)
    return tower(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state[0]


def in_place(backbone: Backbone, ids: Tensor, images: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[L, D] of a row in which each image is its new tokens, and [L] which of them are text."""
    embedded, visual = backbone.decoder.embed_tokens(ids), backbone.visual(ids).tolist()
    parts, text, at, image = [], [], 0, 0
    while at < len(ids):
        parts.append(images[image] if visual[at] else embedded[at : at + 1])
        text += [not visual[at]] * len(parts[-1])
        at, image = (at + sizes[image], image + 1) if visual[at] else (at + 1, image)
    return torch.cat(parts), torch.tensor(text)


SIZES = [[(32, 32), (40, 16)], [(8, 24)], []]  # of the images of each row, in pixels
FAMILIES = {
    "qwen2": (lambda: tiny_qwen2_vl(image_size=None), SIZES),
    "qwen2.5": (lambda: tiny_qwen2_5_vl(image_size=None), SIZES),
    "qwen3": (lambda: tiny_qwen3_vl(image_size=None), SIZES),
    "internvl": (tiny_internvl, [[(16, 16)] * 2, [(20, 30)], []]),
    "idefics3": (tiny_idefics3, [[(16, 16)] * 2, [(20, 30)], []]),
    "smolvlm": (lambda: tiny_smolvlm(None, tiles=False), [[(16, 16)] * 2, [(20, 30)], []]),
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_reads_every_patch_of_each_picture_by_itself(family: str) -> None:
    """The merger, or pixel shuffle, and the projector aren't run; nothing of one picture is in the tokens of another,
    and the text stands behind so many tokens as behind words.
    """
    make, rows_of = FAMILIES[family]
    backbone = make()
    backbone.model.double()
    method = randomised(build("qformer", 3, backbone.shape, layers=3, heads=2), 1).eval()
    images = [[noise(*size, 10 * r + i) for i, size in enumerate(row)] for r, row in enumerate(rows_of)]
    clips = [[], [[noise(24, 40, 90 + i) for i in range(4)]], []] if "qwen" in family else [[], [], []]
    inputs = dict(backbone.inputs(["what is this ?", "one two", "left"], images, clips))
    ran: list[str] = []
    hook = next(m for m in backbone.projector.modules() if isinstance(m, nn.Linear)).register_forward_hook(
        lambda *_: ran.append("projector")
    )
    with compressing(backbone, method):
        got, after = logits(backbone, inputs), torch.stack(generation(backbone, inputs, 2).logits, 1)
        beams = generation(backbone, inputs, 2, num_beams=2).sequences
        assert torch.equal(beams, generation(backbone, inputs, 2, num_beams=2, use_cache=False).sequences)
    hook.remove()
    assert not ran
    for row, pictures in enumerate(images):
        seen = [patches_of(backbone, image) for image in pictures]
        seen += [picture for clip in clips[row] for picture in patches_of_clip(backbone, clip)]
        merged = backbone.shape.vision.merge**2
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        x, text = in_place(backbone, ids, [read(method, p, 2) for p in seen], [len(p) // merged for p in seen])
        want = backbone.model.lm_head(decoder(backbone, x, torch.arange(len(x))))
        real = got[row][inputs["attention_mask"][row].bool()]
        assert (real[~backbone.visual(ids)] - want[text]).abs().max() < 1e-5
        assert (after[row, 0] - want[-1]).abs().max() < 1e-5


def test_tiles_of_one_picture_are_refused() -> None:
    for shape in (
        tiny_internvl(image_size=32).shape,
        tiny_idefics3(image_size=None).shape,
        tiny_llava_next().shape,
        tiny_llava_onevision().shape,
    ):
        with pytest.raises(
            UserError, match="method=qformer: it reads an image as one picture, .* its tiles one by one"
        ):
            build("qformer", 4, shape)


def test_sizes_follow_the_tower_and_parameters_are_those_of_the_paper() -> None:
    c, shape = 1024, replace(shape_of((24, 24), 1024, 24, -2, heads=16), width=4096)
    with torch.device("meta"):
        method = build("qformer", 32, shape)
        as_blip = build(
            "qformer",
            32,
            replace(shape, width=2560, vision=replace(shape.vision, width=1408)),
            layers=12,
            width=768,
            heads=12,
        )
    own, image, wide = 4 * (c * c + c) + 2 * c, 4 * (c * c + c) + 2 * c, 8 * c * c + 5 * c + 2 * c
    blocks = 12 * (own + wide) + 6 * image + 2 * c
    assert method.extra_parameters == 32 * c + 2 * c + blocks + c * 4096 + 4096
    # "188M parameters" (section 3.1) count BERT's embeddings and the feed-forwards that read text, which are left out
    without = sum(p.numel() for p in as_blip.blocks.parameters())
    text = 12 * (8 * 768**2 + 7 * 768) + (30522 + 512) * 768
    assert abs(without + text - 188e6) < 3e6


def test_every_parameter_learns() -> None:
    shape = shape_of((3, 3))
    method = randomised(build("qformer", 3, shape, layers=3))
    tower = random_tower(shape, 2, 0, [])
    made = method(tower.features, context_of(shape, tower))
    keys = [n for n, _ in method.named_parameters() if n.endswith("key.bias")]
    assert keys  # a constant added to every key changes no attention: their gradient is nought but for rounding
    every_parameter_learns(method, made)


def test_dropout_is_for_training_alone() -> None:
    shape = shape_of((3, 3))
    method = randomised(build("qformer", 3, shape, dropout=0.5))
    tower = random_tower(shape, 1, 0, [])
    one, two = (method(tower.features, context_of(shape, tower)) for _ in range(2))
    assert torch.equal(one, two)
    method.train()
    assert not torch.equal(method(tower.features, context_of(shape, tower)), one)


def test_defaults_and_refusals() -> None:
    shape = tiny_backbone().shape
    assert build("qformer", None, shape_of((24, 24))).tokens == 32 and build("qformer", None, shape).tokens == 16
    for options, what in (
        ({"layers": 0}, "method.layers=0"),
        ({"width": 1.5}, "method.width=1.5"),
        ({"heads": True}, "method.heads=true"),
        ({"heads": 3}, "method.heads=3: .*method.width=16"),
        ({"dropout": 1}, "method.dropout=1"),
    ):
        with pytest.raises(UserError, match=what):
            build("qformer", 4, shape, **options)
