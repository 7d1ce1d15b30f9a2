"""HiPrune, token by token from the attention matrices of two layers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_tower_scores import FAMILIES, Looks, inputs_of
from test_tower_scores import double as double_of
from tower_reference import double, equals, every_case, look, rows

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import Tower
from vtc.interface.tower import views
from vtc.methods import build
from vtc.testing import tiny_backbone


def received(seen) -> torch.Tensor:
    """[N]: mean over heads and over every query, CLS among them."""
    return seen.attention.mean((0, 1))[1:]


def chosen(middle: torch.Tensor, last: torch.Tensor, side: int, tokens: int, alpha: float) -> list[int]:
    anchors = middle.argsort(descending=True)[: round(tokens * alpha / 5)].tolist()
    buffers = set()
    for anchor in anchors:
        y, x = divmod(anchor, side)
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < side and 0 <= u < side:
                buffers.add(v * side + u)
    attended = last.argsort(descending=True).tolist()
    order = [*anchors, *(p for p in attended if p in buffers), *attended]
    return sorted(list(dict.fromkeys(order))[:tokens])


@every_case
@pytest.mark.parametrize(("tokens", "alpha"), [(4, 1.0), (6, 0.8)])
def test_equals_the_paper_by_loops(seed: int, grid: int, images: tuple, tokens: int, alpha: float) -> None:
    backbone = double(seed, grid, sharper=4.0)
    inputs = rows(backbone, images, seed)
    method = build("hiprune", tokens, backbone.shape, alpha=alpha, object_layer=1)
    made = []
    pixels = inputs["pixel_values"]
    for middle, last in zip(look(backbone, pixels, 1), look(backbone, pixels, 0), strict=True):
        kept = chosen(received(middle), received(last), grid, tokens, alpha)
        made.append(backbone.projector(last.features[kept]))
    equals(backbone, method, inputs, made)


def test_layers_of_the_paper() -> None:
    shape = tiny_backbone().shape
    clip = dataclasses.replace(shape, vision=dataclasses.replace(shape.vision, depth=24))
    assert build("hiprune", 4, clip).object_layer == 8  # the ninth
    with pytest.raises(UserError, match="method.object_layer=24: this tower has 24 layers"):
        build("hiprune", 4, clip, object_layer=24)


@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (1, 15), None])
def test_neighbours_in_pictures_of_any_shape(grid: tuple[int, int] | None) -> None:
    """Of a rectangle, and of a tile of 4 × 4 of which the last row was padding and is gone."""
    count, (height, width) = (12, (3, 4)) if grid is None else (15, grid)
    features = torch.zeros(2, 16, 1) if grid is None else torch.zeros(1, 30, 1)
    tower = Tower(
        features, patches=[torch.arange(count), torch.arange(count) + features.shape[1] // (2 - (grid is None))]
    )
    seen = [view.tower for view in views(tower, None, [grid, grid])]
    found = torch.cat([one.neighbours() for one in seen])
    assert len(found) == 2
    for beside in found.tolist():
        for token, four in enumerate(beside):
            y, x = divmod(token, width)
            spots = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            assert four == [v * width + u if 0 <= v < height and 0 <= u < width else token for v, u in spots]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_where_its_tokens_are(family: str) -> None:
    """In each picture that the tower saw, tokens fill a rectangle, row by row, in the order in which they stand."""
    backbone = double_of(family)

    class Watches(Looks):
        def reduce(self, tokens, layer, context):
            self.grids = context.grids
            return super().reduce(tokens, layer, context)

    inputs, method = inputs_of(backbone, family), Watches(None, backbone.shape)
    with compressing(backbone, method), torch.no_grad():
        backbone.model(**inputs, position_ids=backbone.positions(inputs))
    assert len(method.grids) == len(method.seen) == 4
    for view in views(method.seen, None, method.grids):
        for spots, token in zip(view.tower.spots.tolist(), view.token.tolist(), strict=True):
            height, width = (max(line) + 1 for line in zip(*spots, strict=True))
            assert spots == [[y, x] for y in range(height) for x in range(width)] and token == sorted(token)
