"""What methods read of a tower's attention, with and without CLS, against attention matrices written out in full.

For each family the reference starts from the hidden states that enter the layer, makes queries and keys of the weights
by itself, masks a dense N × N matrix by who may see whom (windows by their place in the picture), and merges scores as
the family merges features. Everything in float64; the softmax under test is float32.
"""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torch import Tensor

from vtc.backbones import anyres
from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.interface import Compressor, TowerUse
from vtc.interface import tower as tower_module
from vtc.interface.tower import evenly, received, views
from vtc.methods import build
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import collate, rows
from vtc.testing.runs import generation
from vtc.testing.tiny_llava import tiny_llava_next, tiny_llava_onevision
from vtc.testing.tiny_qwen import MERGE, PATCH, tiny_qwen2_5_vl, tiny_qwen2_vl, tiny_qwen3_vl
from vtc.testing.tiny_tiles import tiny_idefics3, tiny_internvl, tiny_smolvlm

FAMILIES = {
    "clip": lambda: tiny_backbone(),
    "siglip": lambda: tiny_backbone(tower="siglip"),
    "llava_next": lambda: tiny_llava_next(image_size=None, patch=2),
    "llava_onevision": lambda: tiny_llava_onevision(image_size=None),
    "qwen2": lambda: tiny_qwen2_vl(None),
    "qwen2.5": lambda: tiny_qwen2_5_vl(None),
    "qwen3": lambda: tiny_qwen3_vl(None),
    "internvl": lambda: tiny_internvl(None),
    "idefics3": lambda: tiny_idefics3(None),
    "smolvlm": lambda: tiny_smolvlm(None),
}
SIZES = {"qwen": [(32, 32), (48, 24), (24, 56), (40, 40)], "llava_onevision": [(12, 12), (48, 48), (20, 30), (60, 50)]}
OTHER = [(16, 16), (32, 16), (16, 48), (20, 30)]


def double(name: str, sharper: float = 4.0) -> Backbone:
    """In float64, queries scaled: random weights attend nearly evenly."""
    backbone = FAMILIES[name]()
    backbone.model.double()
    with torch.no_grad():
        for layer in backbone.tower_layers:
            attention = backbone.tower_attention(layer)
            if hasattr(attention, "qkv"):
                attention.qkv.weight[: attention.dim] *= sharper
            else:
                attention.q_proj.weight *= sharper
    return backbone


def inputs_of(backbone: Backbone, name: str) -> dict[str, Tensor]:
    if name in ("clip", "siglip"):
        inputs = batch(backbone, images=(1, 2, 1))
    else:
        sizes = SIZES.get(name.rstrip("0123456789."), OTHER)
        inputs = collate(backbone, rows(backbone, images=(1, 2, 1), sizes=sizes))
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


class Looks(Compressor):
    """Keeps every token and remembers what it saw of a layer."""

    name = "looks"
    seen = None
    layer = 0

    def layers(self):
        return {0}

    def tower(self):
        return TowerUse(watch=frozenset({self.layer}))

    def reduce(self, tokens, layer, context):
        self.seen = context.seen()
        return tokens


@torch.no_grad()
def looked(backbone: Backbone, inputs: dict[str, Tensor], layer: int, beams: int = 1):
    """(what was seen, the hidden states that entered the layer)."""
    method, entered = Looks(None, backbone.shape), []
    method.layer = layer
    hook = backbone.tower_layers[layer].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with compressing(backbone, method):
        if beams > 1:
            generation(backbone, inputs, num_beams=beams, count=2)
        else:
            backbone.model(**inputs, position_ids=backbone.positions(inputs))
    hook.remove()
    return method.seen, entered[0]


def read(seen) -> list[dict[int, float]]:
    """Of each image: visual token → its attention, mean over heads."""
    scores: list[dict[int, float]] = [{} for _ in range(len(seen))]
    (layer,) = seen.queries
    for view in views(seen, None):
        attention = view.tower.patch_attention(layer).mean(1)
        for image, token, values in zip(view.image.tolist(), view.token.tolist(), attention.tolist(), strict=True):
            scores[image] |= dict(zip(token, values, strict=True))
    return scores


# ---------------------------------------------------------------------- references
def dense(q: Tensor, k: Tensor, heads: int, sees: Tensor | None = None) -> Tensor:
    """[N] what each receives, mean over heads and over those that see it; q, k [N, C], sees [N, N]."""
    total = []
    for a, b in zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True):
        logits = a @ b.T / math.sqrt(a.shape[-1])
        if sees is not None:
            logits = logits.masked_fill(~sees, float("-inf"))
        total.append(logits.softmax(-1).sum(0) / (len(q) if sees is None else sees.sum(0)))
    return torch.stack(total).mean(0)


def cls_pays(q: Tensor, k: Tensor, heads: int) -> Tensor:
    rows = [
        (a[0] @ b.T / math.sqrt(a.shape[-1])).softmax(-1)[1:]
        for a, b in zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True)
    ]
    return torch.stack(rows).mean(0)


def of_pictures(backbone: Backbone, entered: Tensor, layer: int) -> list[Tensor]:
    """Scores [N] of each picture of a tower that sees them one by one."""
    block = backbone.tower_layers[layer]
    attention, heads = backbone.tower_attention(block), backbone.shape.vision.heads
    norm = block.layernorm_before if hasattr(block, "layernorm_before") else block.layer_norm1
    made = []
    for x in norm(entered).detach():
        q, k = attention.q_proj(x).detach(), attention.k_proj(x).detach()
        made.append(cls_pays(q, k, heads) if backbone.shape.vision.cls else dense(q, k, heads))
    return made


def squares(scores: Tensor, side: int) -> list[float]:
    """Means of side×side patches of a square picture, by loops."""
    width = math.isqrt(len(scores))
    grid = scores.view(width, width)
    return [
        float(sum(grid[side * y + i, side * x + j] for i in range(side) for j in range(side)) / side**2)
        for y in range(width // side)
        for x in range(width // side)
    ]


def qwen(backbone: Backbone, entered: Tensor, grids: list[list[int]], layer: int) -> list[list[float]]:
    """Of each picture the scores of its tokens, row by row. The place of each patch in the tower's sequence is worked
    out from its place in the picture, and so is who sees whom.
    """
    vision, block = backbone.model.config.vision_config, backbone.tower_layers[layer]
    window = getattr(vision, "window_size", None)
    cells = None if window is None else window // MERGE // PATCH
    inside = window is not None and layer not in vision.fullatt_block_indexes
    spots = []  # (picture, window, y, x) of each patch in sequence
    picture = 0
    for t, h, w in grids:
        tokens = []
        for n in range(t):
            for y in range(h // MERGE):
                for x in range(w // MERGE):
                    at = (0, 0) if cells is None else (y // cells, x // cells)
                    tokens.append(((picture + n, *at), (y, x)))
        for (number, *at), (y, x) in sorted(tokens, key=lambda token: token[0]):  # stable: row by row in a window
            for i in range(MERGE):
                for j in range(MERGE):
                    spots.append((number, tuple(at), MERGE * y + i, MERGE * x + j))
        picture += t
    x = block.norm1(entered)
    q, k, _ = torch.nn.functional.linear(x, block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, -1)
    heads, width = backbone.shape.vision.heads, q.shape[-1] // backbone.shape.vision.heads
    speed = [1e4 ** (-2 * n / (width // 2)) for n in range(width // 4)]
    angle = torch.tensor([[y * s for s in speed] + [x * s for s in speed] for _, _, y, x in spots]).double()

    def turned(states: Tensor) -> Tensor:
        a, b = states.view(len(states), heads, 2, width // 2).unbind(2)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], 2).flatten(1)

    sees = torch.tensor([[a[:1] == b[:1] and (not inside or a[1] == b[1]) for b in spots] for a in spots])
    scores = dense(turned(q), turned(k), heads, sees)
    merged: dict[tuple[int, int, int], list[float]] = {}
    for (number, _, y, x), score in zip(spots, scores.tolist(), strict=True):
        merged.setdefault((number, y // MERGE, x // MERGE), []).append(score)
    means = {place: sum(four) / len(four) for place, four in merged.items()}
    return [[means[place] for place in sorted(means) if place[0] == n] for n in range(picture)]


def expected(backbone: Backbone, name: str, inputs: dict[str, Tensor], entered: Tensor, layer: int):
    """Of each image: token → score, and the groups of tokens that share a budget: tiles, or the whole image."""
    if name.startswith("qwen"):
        whole = qwen(backbone, entered, inputs["image_grid_thw"].tolist(), layer)
        return [dict(enumerate(scores)) for scores in whole], [[list(range(len(scores)))] for scores in whole]
    pictures = of_pictures(backbone, entered, layer)
    if name in ("clip", "siglip"):
        return [dict(enumerate(s.tolist())) for s in pictures], [[list(range(len(s)))] for s in pictures]
    if name in ("internvl", "idefics3", "smolvlm"):
        images, groups = [], []
        tiles = [squares(scores, 2) for scores in pictures]
        for size in backbone.image_sizes(inputs["input_ids"]):
            own, tiles = tiles[: size // 16], tiles[size // 16 :]
            images.append(dict(enumerate(sum(own, []))))
            groups.append([list(range(16 * n, 16 * n + 16)) for n in range(len(own))])
        return images, groups
    # The model itself packs the scores of tiles as it packs their features, and the numbers of the tiles as well.
    config, sizes = backbone.model.config, inputs["image_sizes"]
    counts = [1 if alone else 0 for alone in backbone_tiled(inputs, len(sizes))]
    images, groups = [], []
    left = pictures
    for size, tiled in zip(sizes, counts, strict=True):
        layout = anyres.layout((int(size[0]), int(size[1])), config)
        count = 1 + layout.tiles[0] * layout.tiles[1] * tiled
        own, left = torch.stack(left[:count])[..., None], left[count:]
        newline = torch.full((1,), float("nan"), dtype=own.dtype)
        extra = (
            {"vision_aspect_ratio": "anyres_max_9"}
            if name == "llava_onevision"
            else {"vision_feature_select_strategy": "default"}
        )
        packed = backbone.core.pack_image_features([own], size[None], image_newline=newline, **extra)[0][0][:, 0]
        images.append({n: float(v) for n, v in enumerate(packed) if not v.isnan()})
        side = layout.base
        tile_of = dict.fromkeys(range(side * side), 0)
        if tiled:
            tall = layout.tiles[0] * side - 2 * layout.top
            wide = layout.tiles[1] * side - 2 * layout.left
            for y in range(layout.rows):
                for x in range(layout.columns):
                    near = [
                        max(0, math.ceil((n + 0.5) * (before / after) - 1)) + shift
                        for n, before, after, shift in (
                            (y, tall, layout.rows, layout.top),
                            (x, wide, layout.columns, layout.left),
                        )
                    ]
                    token = side * side + y * (layout.columns + 1) + x
                    tile_of[token] = 1 + near[0] // side * layout.tiles[1] + near[1] // side
        groups.append([[n for n in tile_of if tile_of[n] == t] for t in sorted({*tile_of.values()})])
    return images, groups


def backbone_tiled(inputs: dict[str, Tensor], images: int) -> list[bool]:
    counts = inputs.get("batch_num_images")
    return [True] * images if counts is None else [int(n) == 1 for n in counts for _ in range(int(n))]


LAYERS = [(name, layer) for name in FAMILIES for layer in ((0, 1, -1) if name == "qwen3" else (0, -1))]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_scores_are_those_of_the_whole_matrix(name: str, layer: int, monkeypatch) -> None:
    monkeypatch.setattr(tower_module, "BLOCK", 50)  # a few queries at a time
    backbone = double(name)
    inputs, layer = inputs_of(backbone, name), layer % backbone.shape.vision.depth
    seen, entered = looked(backbone, inputs, layer)
    want, _ = expected(backbone, name, inputs, entered, layer)
    got = read(seen)
    assert [[*g] for g in map(sorted, got)] == [[*w] for w in map(sorted, want)]
    assert len(got) == 4 and all(abs(g[n] - w[n]) < 1e-6 for g, w in zip(got, want, strict=True) for n in w)


@pytest.mark.parametrize("tokens", [1, 4, 9, 14])
@pytest.mark.parametrize("name", FAMILIES)
def test_exactly_the_best_of_each_picture_or_tile_are_kept(name: str, tokens: int) -> None:
    backbone = double(name)
    inputs = inputs_of(backbone, name)
    method = build("fastervlm", tokens, backbone.shape)
    _, entered = looked(backbone, inputs, method.tower_layer)
    scores, groups = expected(backbone, name, inputs, entered, method.tower_layer)
    visual, images = backbone.visual(inputs["input_ids"]), backbone.image_features(dict(inputs))
    want = []
    for score, parts, features in zip(scores, groups, images, strict=True):
        shares = evenly(tokens, [len(part) for part in parts])
        best = [sorted(part, key=lambda n: -score[n])[:share] for part, share in zip(parts, shares, strict=True)]
        newlines = sorted({*range(len(features))} - {*score})  # they stay only where no patch has to go
        want.append(sorted(sum(best, []) + newlines[: max(0, tokens - len(score))]))
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**inputs, position_ids=backbone.positions(inputs))
        kept = engine.report.kept
    place = 0
    for row, count in enumerate((1, 2, 1)):
        columns = visual[row].nonzero()[:, 0].tolist()
        here = []
        for _ in range(count):
            here += [columns[n] for n in want[place]]
            columns, place = columns[len(images[place]) :], place + 1
        assert kept[row] == sorted(here)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_beam_finds_its_images(name: str) -> None:
    backbone = double(name)
    inputs = inputs_of(backbone, name)
    alone, _ = looked(backbone, inputs, 0)
    beams, _ = looked(backbone, inputs, 0, beams=2)
    once, twice = read(alone), read(beams)
    assert [twice[n] for n in (0, 1, 2, 3, 4, 5, 6, 7)] == [once[n] for n in (0, 0, 1, 2, 1, 2, 3, 3)]


def test_blocks_make_no_difference(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 37, 8, generator=generator) for _ in range(2))
    whole = received(q, k)
    assert (whole.sum(-1) - 1).abs().max() < 1e-6
    for block in (1, 222, 1000):
        monkeypatch.setattr(tower_module, "BLOCK", block)
        assert (received(q, k) - whole).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llava_onevision"])
def test_videos_are_seen_frame_by_frame(name: str) -> None:
    """What is read of a video's pictures is what is read of them as images."""
    backbone = double(name)
    pictures = [noise(24, seed) for seed in range(4)]
    if name == "llava_onevision":
        clip = backbone.inputs(["what"], [[]], [[pictures]])
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in clip.items()}
        seen, entered = looked(backbone, inputs, 0)
        side = backbone.shape.vision.grid_side
        scores = torch.stack(of_pictures(backbone, entered, 0)).view(4, side * side, 1)
        pooled = backbone.core.apply_pooling(scores)[..., 0].tolist()
        got = read(seen)
        assert all(abs(g[n] - s[n]) < 1e-6 for g, s in zip(got, pooled, strict=True) for n in range(len(s)))
        return
    clip = backbone.inputs(["what"], [[pictures[0]]], [[pictures]])
    inputs = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in clip.items()}
    seen, _ = looked(backbone, inputs, 0)
    entered = torch.cat(
        [pixels_entered(backbone, inputs, medium) for medium in ("pixel_values", "pixel_values_videos")]
    )
    grids = [*inputs["image_grid_thw"].tolist(), *inputs["video_grid_thw"].tolist()]
    want = qwen(backbone, entered, grids, 0)
    got = read(seen)
    assert len(got) == len(want) == 3
    assert all(abs(g[n] - w[n]) < 1e-6 for g, w in zip(got, want, strict=True) for n in range(len(w)))


def pixels_entered(backbone: Backbone, inputs: dict[str, Tensor], medium: str) -> Tensor:
    entered: list[Tensor] = []
    hook = backbone.tower_layers[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    grids = inputs["image_grid_thw" if medium == "pixel_values" else "video_grid_thw"]
    with torch.no_grad():
        backbone.vision_tower(inputs[medium], grid_thw=grids)
    hook.remove()
    return entered[0]


def noise(side: int, seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())
