"""ToMe, token by token: a tower of loops with its own attention, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tower_reference import double, equals, every_case, rows

from vtc.backbones import recomputation
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.tome import ToMe, merged, schedule
from vtc.testing import tiny_backbone
from vtc.testing.runs import generation


def attend(block, x, size):
    """Attention with its residual, softmax(q k / √d + log s), head by head; and the mean of the keys over heads."""
    h, heads = block.layer_norm1(x), block.self_attn.num_heads
    q, k, v = (p(h).chunk(heads, -1) for p in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj))
    parts = [
        ((q[i] @ k[i].T) / q[i].shape[1] ** 0.5 + torch.tensor(size).double().log()).softmax(-1) @ v[i]
        for i in range(heads)
    ]
    return x + block.self_attn.out_proj(torch.cat(parts, -1)), torch.stack(k).mean(0)


def merge(x, keys, size, r: int):
    """Lists of tokens; CLS is the first and stays."""
    a, b = list(range(0, len(x), 2)), list(range(1, len(x), 2))
    pairs = []
    for i in a[1:]:
        similar = [float(torch.cosine_similarity(keys[i], keys[j], dim=0)) for j in b]
        pairs.append((max(similar), i, b[similar.index(max(similar))]))
    pairs = sorted(pairs, key=lambda p: -p[0])[:r]
    groups = {j: [j] for j in range(len(x))}
    for _, i, j in pairs:
        groups[j].append(i)
        del groups[i]
    tokens = [sum(x[i] * size[i] for i in g) / sum(size[i] for i in g) for g in groups.values()]
    return torch.stack(tokens), [sum(size[i] for i in g) for g in groups.values()]


def tower(backbone, pixels, merges: list[int]):
    net = backbone.vision_tower
    x = net.pre_layrnorm(net.embeddings(pixels[None]))[0]
    size = [1] * len(x)
    for layer, r in enumerate(merges):
        block = net.encoder.layers[layer]
        x, keys = attend(block, x, size)
        x, size = merge(x, keys, size, r)
        x = x + block.mlp(block.layer_norm2(x))
    return x[1:]


@every_case
@pytest.mark.parametrize("fewer", [1, 3, None])
@pytest.mark.parametrize("level", [-2, -1])
def test_equals_the_paper_by_loops(seed: int, grid: int, images: tuple, fewer: int | None, level: int) -> None:
    backbone = double(seed, grid)
    backbone.model.config.vision_feature_layer = level
    backbone.shape = type(backbone).shape_from(backbone.model.config, "tiny")
    inputs = rows(backbone, images, seed)
    tokens = ToMe(None, backbone.shape).offers()[0] if fewer is None else grid * grid - fewer
    layers = 1 if level == -2 else 2
    with torch.no_grad():
        features = [tower(backbone, p, schedule(grid * grid, tokens, layers)) for p in inputs["pixel_values"]]
        made = [backbone.projector(f) for f in features]
    assert all(len(m) == tokens for m in made)
    equals(backbone, build("tome", tokens, backbone.shape), inputs, made)


@pytest.mark.parametrize(("patches", "tokens", "layers"), [(576, 64, 23), (576, 1, 23), (144, 16, 4), (144, 9, 4)])
def test_the_schedule_is_exact_and_even(patches: int, tokens: int, layers: int) -> None:
    merges = schedule(patches, tokens, layers)
    left = fewer = patches
    for r in merges:
        assert 0 <= r <= left // 2
        left -= r
        fewer -= min(max(merges) - 1, fewer // 2)
    assert left == tokens and len(merges) == layers
    assert fewer > tokens  # with a smaller r they would be too many


def test_size_and_weight_of_what_was_merged_before_count() -> None:
    hidden = torch.tensor([[[0.0], [1.0], [2.0], [5.0]]])
    keys = torch.tensor([[[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]]])
    mean, size = merged(hidden, keys, torch.tensor([[1.0, 1.0, 3.0, 1.0]]), 1, extra=1)
    assert mean.flatten().tolist() == [0.0, 1.0, (3 * 2 + 5) / 4] and size.tolist() == [[1.0, 1.0, 4.0]]
    without = merged(hidden, keys, torch.ones(1, 4), 1, extra=0)[0]  # no CLS: the first may merge too
    assert without.flatten().tolist() == [0.5, 2.0, 5.0]


def test_the_tower_gets_cheaper_and_is_given_back() -> None:
    backbone = tiny_backbone()
    inputs, seen = rows(backbone), []
    inputs["pixel_values"] = inputs["pixel_values"].float()
    hook = backbone.tower_layers[1].register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    with compressing(backbone, build("tome", 9, backbone.shape)):
        generation(backbone, inputs)
    hook.remove()
    assert seen == [10] and all("forward" not in layer.__dict__ for layer in backbone.tower_layers)


def test_gradients_reach_the_tower_the_same_under_checkpointing() -> None:
    backbone = tiny_backbone()
    backbone.model.train()
    inputs, found = rows(backbone), []
    inputs["pixel_values"] = inputs["pixel_values"].float()
    for checkpointing in (False, True):
        if checkpointing:
            recomputation.start(backbone.model)
        backbone.model.zero_grad()
        with compressing(backbone, build("tome", 9, backbone.shape)):
            loss = backbone.model(**inputs, use_cache=False).logits.square().sum()
        loss.backward()  # outside: recomputation must not need the engine
        found.append([p.grad.clone() for p in backbone.tower_layers[0].parameters()])
    assert all(torch.allclose(a, b) and b.abs().max() > 0 for a, b in zip(*found, strict=True) if a.abs().max() > 1e-4)
    assert sum(float(g.abs().max() > 1e-4) for g in found[0]) > 12


def test_budgets_and_backends_that_cannot_be() -> None:
    shape = tiny_backbone().shape
    assert list(ToMe(None, shape).offers()) == list(range(8, 17)) and build("tome", None, shape).tokens == 8
    with pytest.raises(UserError, match="tokens=7: tome on .* offers 8 to 16"):
        build("tome", 7, shape)
    with pytest.raises(UserError, match="method=tome: .*one visual token a patch"):
        build("tome", 8, replace(shape, grid=None))
    backbone = tiny_backbone()
    backbone.vision_tower.config._attn_implementation = "flash_attention_2"
    with (
        pytest.raises(UserError, match="needs attention=sdpa or eager"),
        compressing(backbone, build("tome", 8, shape)),
    ):
        backbone.core.get_image_features(torch.randn(1, 3, 16, 16))
