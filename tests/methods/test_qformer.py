"""The Q-Former against loops over queries and heads, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
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
from torch import Tensor, nn
from tower_reference import double, equals, rows

from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.qformer import QFormer
from vtc.testing import tiny_backbone


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
