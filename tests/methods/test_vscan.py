"""VScan: its first stage by loops over windows and tokens, its second as PyramidDrop behind it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tower_reference import double, equals, every_case, look, rows

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.vscan import most_in_windows
from vtc.testing import tiny_backbone


def local_tokens(attention: list[float], height: int, width: int, side: int, count: int) -> list[int]:
    down, across = max(1, height // side), max(1, width // side)
    limit = math.ceil(count / (down * across))
    held: dict[tuple[int, int], int] = {}
    kept: list[int] = []
    for token in sorted(range(len(attention)), key=lambda i: -attention[i]):
        window = min(token // width // side, down - 1), min(token % width // side, across - 1)
        if len(kept) < count and held.get(window, 0) < limit:
            held[window] = held.get(window, 0) + 1
            kept.append(token)
    return kept


def first_stage(shallow, deep, visual, grid: int, count: int, local: float, side: int) -> torch.Tensor:
    def paid(seen) -> list[float]:
        return seen.attention[:, 0, 1:].mean(0).tolist()

    kept = local_tokens(paid(shallow), grid, grid, side, int(count * local))
    last = paid(deep)
    others = sorted((i for i in range(grid**2) if i not in kept), key=lambda i: -last[i])
    kept = sorted([*kept, *others[: count - len(kept)]])
    groups = {i: [visual[i]] for i in kept}
    for token in range(grid**2):
        if token not in kept:
            nearest = max(kept, key=lambda i: float(torch.cosine_similarity(visual[token], visual[i], dim=0)))
            groups[nearest].append(visual[token])
    return torch.stack([torch.stack(groups[i]).mean(0) for i in kept])


@every_case
@pytest.mark.parametrize(("tokens", "local", "window"), [(5, 0.5, 2), (7, 0.3, 3)])
def test_the_first_stage_equals_the_paper_by_loops(
    seed: int, grid: int, images: tuple, tokens: int, local: float, window: int
) -> None:
    backbone = double(seed, grid, sharper=4.0)
    inputs = rows(backbone, images, seed)
    method = build("vscan", tokens, backbone.shape, retained=1, local=local, window=window, local_layer=1)
    made, pixels = [], inputs["pixel_values"]
    for shallow, deep in zip(look(backbone, pixels, 1), look(backbone, pixels, 0), strict=True):
        visual = backbone.projector(deep.features).detach()
        made.append(first_stage(shallow, deep, visual, grid, tokens, local, window))
    equals(backbone, method, inputs, made)


def test_the_second_stage_is_pyramiddrops() -> None:
    backbone = double(sharper=4.0)
    inputs = rows(backbone)
    position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    both = build(
        "vscan+pyramiddrop",
        3,
        backbone.shape,
        vscan={"tokens": 9, "retained": 1, "window": 2},
        pyramiddrop={"layers": [2], "layer_scale": "none"},
    )
    whole = build("vscan", 3, backbone.shape, window=2, layer=2, layer_scale="none")
    logits = []
    for method in (both, whole):
        with compressing(backbone, method.eval()), torch.no_grad():
            logits.append(backbone.model(**inputs, position_ids=position).logits)
    assert torch.equal(logits[0], logits[1])
    assert whole.layer_tokens() == [9, 9, 3, 3][: backbone.shape.depth]


@pytest.mark.parametrize(
    ("height", "width", "side", "count"), [(5, 7, 3, 6), (4, 4, 6, 3), (9, 4, 4, 11), (1, 8, 3, 5)]
)
def test_windows_of_pictures_of_any_shape(height: int, width: int, side: int, count: int) -> None:
    attention = torch.rand(3, height * width, generator=torch.Generator().manual_seed(0))
    token = torch.arange(height * width)
    spots = torch.stack([token // width, token % width], -1).expand(3, -1, -1) + 2  # where they begin doesn't matter
    for row, kept in zip(attention, most_in_windows(attention, spots, side, count), strict=True):
        assert kept.nonzero()[:, 0].tolist() == sorted(local_tokens(row.tolist(), height, width, side, count))


def test_the_papers_layers_and_counts() -> None:
    shape = tiny_backbone(depth=32, grid=24).shape
    llava = dataclasses.replace(shape, vision=dataclasses.replace(shape.vision, depth=24))
    method = build("vscan", 32, llava)
    assert (method.local_layer, method.layer, method.leaves_of_tower()) == (5, 16, 96)
    assert sum(method.layer_tokens()) / 32 == 64
    assert build("vscan", 300, llava).leaves_of_tower() == 576
    with pytest.raises(UserError, match="method.local_layer=-25: this tower has 24 layers"):
        build("vscan", 32, llava, local_layer=-25)
