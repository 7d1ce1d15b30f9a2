"""Image downsampling, against PIL's bicubic on float pixels and the tower's layers run one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tower_reference import double, equals, every_case, rows

from vtc.budget import Budget
from vtc.engine import compressing, encode_images
from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.downsample import Downsample
from vtc.testing import tiny_backbone
from vtc.testing.runs import generation, logits


def small(backbone, pixels: torch.Tensor, side: int) -> torch.Tensor:
    """[side², C]: features of one image [3, H, W] at `side` patches a side."""
    edge = side * backbone.shape.vision.patch_size
    planes = [
        np.asarray(Image.fromarray(p.float().numpy()).resize((edge, edge), Image.Resampling.BICUBIC)) for p in pixels
    ]
    tower, shape = backbone.vision_tower, backbone.shape.vision
    patches = tower.embeddings.patch_embedding(torch.tensor(np.stack(planes)).double()[None]).flatten(2).transpose(1, 2)
    table = tower.embeddings.position_embedding.weight
    full = backbone.shape.grid[0]
    grid = table[1:].T.reshape(1, shape.width, full, full)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic").flatten(2)[0].T
    x = torch.cat([tower.embeddings.class_embedding[None] + table[:1], patches[0] + grid])[None]
    x = tower.pre_layrnorm(x)
    for layer in tower.encoder.layers[: shape.depth - 1]:
        x = layer(x, None)
    return x[0, 1:]


@every_case
@pytest.mark.parametrize("side", [1, 2])
def test_equals_a_tower_run_on_a_smaller_image(seed: int, grid: int, images: tuple, side: int) -> None:
    backbone = double(seed, grid)
    inputs = rows(backbone, images, seed)
    method = build("downsample", side * side, backbone.shape)
    with torch.no_grad():
        made = [backbone.projector(small(backbone, p, side)) for p in inputs["pixel_values"]]
    equals(backbone, method, inputs, made)


def test_the_tower_sees_fewer_patches_once() -> None:
    backbone = tiny_backbone()
    inputs, seen = rows(backbone), []
    inputs["pixel_values"] = inputs["pixel_values"].float()
    hook = backbone.tower_layers[0].register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    with compressing(backbone, build("downsample", 4, backbone.shape)):
        generation(backbone, inputs)
        logits(backbone, inputs)
    hook.remove()
    assert seen == [5, 5]


def test_every_token_is_the_plain_model() -> None:
    backbone = tiny_backbone()
    inputs = rows(backbone)
    inputs["pixel_values"] = inputs["pixel_values"].float()
    plain = logits(backbone, inputs)
    with compressing(backbone, build("downsample", 16, backbone.shape)):
        assert torch.equal(logits(backbone, inputs), plain)


def test_embedding_inside_an_engine_shrinks_once() -> None:
    backbone = tiny_backbone()
    method, pixels = build("downsample", 4, backbone.shape), torch.randn(2, 3, 16, 16)
    alone = encode_images(backbone, method, pixels)
    with compressing(backbone, method):
        assert torch.equal(encode_images(backbone, method, pixels), alone)


def test_budgets_are_squares() -> None:
    shape = tiny_backbone().shape
    assert list(Downsample(None, shape).offers()) == [1, 4, 9, 16]
    assert build("downsample", None, shape).tokens == 4
    assert Downsample(Budget(ratio=0.5).resolve, shape).tokens == 9
    assert Downsample(Budget(compression=4).resolve, shape).tokens == 4
    with pytest.raises(UserError, match="tokens=5: downsample on .* offers 1, 4, 9, 16"):
        build("downsample", 5, shape)
    with pytest.raises(UserError, match="square grid"):
        build("downsample", 4, replace(shape, grid=None))
