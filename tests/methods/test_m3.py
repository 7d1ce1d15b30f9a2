"""M3 against pooling written out in float64, and its training against each scale by itself."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from reference import decoder, embedded

from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.testing import batch, tiny_backbone


def pooled(x: torch.Tensor, grid: tuple[int, int], k: int) -> torch.Tensor:
    """[N, D] → the means over k×k cells, row by row, cell by cell, in float64."""
    x = x.double().view(*grid, -1)
    rows, columns = grid[0] // k, grid[1] // k
    cells = [x[r * k : r * k + k, c * k : c * k + k] for r in range(rows) for c in range(columns)]
    return torch.stack([cell.reshape(k * k, -1).mean(0) for cell in cells])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("grid", "tokens"), [(4, 1), (4, 4), (4, 16), (6, 1), (6, 4), (6, 9), (6, 36)])
def test_answers_from_the_means_of_square_cells(grid: int, tokens: int, seed: int) -> None:
    backbone = tiny_backbone(grid=grid, seed=seed)
    method = build("m3", tokens, backbone.shape)
    inputs = batch(backbone, seed=seed)
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    assert engine.report.layers == [[tokens] * 3] * backbone.shape.depth
    side = round((grid * grid / tokens) ** 0.5)
    for row in range(3):
        ids = inputs["input_ids"][row, inputs["attention_mask"][row].bool()]
        first, n = int((ids == backbone.image_token_id).nonzero()[0]), grid * grid
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            cells = pooled(x[first : first + n], (grid, grid), side).float()
            x = torch.cat([x[:first], cells, x[first + n :]])
            expected = backbone.model.lm_head(decoder(backbone, x, torch.arange(len(x))))
        after = len(ids) - first - n
        assert (got[row, -after:] - expected[-after:]).abs().max() < 1e-4


def test_scales_are_nested() -> None:
    """Eq. 1: a coarser scale is pooled from the next finer one that its cells are made of."""
    x = torch.randn(144, 5, generator=torch.Generator().manual_seed(0))
    for fine, coarse in ((1, 2), (2, 4), (3, 6), (2, 6), (6, 12)):
        half = pooled(x, (12, 12), fine)
        again = pooled(half, (12 // fine, 12 // fine), coarse // fine)
        assert torch.allclose(again, pooled(x, (12, 12), coarse))


@pytest.mark.parametrize(
    ("grid", "scales"),
    [
        ((12, 12), [1, 4, 9, 16, 36, 144]),
        ((24, 24), [1, 4, 9, 16, 36, 64, 144, 576]),
        ((12, 8), [6, 24, 96]),
        ((3, 7), [21]),
    ],
)
def test_scales_are_the_grids_that_square_cells_tile(grid: tuple[int, int], scales: list[int]) -> None:
    shape = replace(tiny_backbone().shape, grid=grid, visual_tokens=grid[0] * grid[1])
    assert build("m3", None, shape).scales == scales
    with pytest.raises(UserError, match=f"m3 on .* offers {', '.join(map(str, scales))}"):
        build("m3", 2, shape)


def test_a_grid_that_is_not_square_keeps_its_aspect() -> None:
    from vtc.methods.avgpool import pooled_grid

    for grid in ((12, 8), (6, 4), (24, 36), (5, 10)):
        shape = replace(tiny_backbone().shape, grid=grid, visual_tokens=grid[0] * grid[1])
        for tokens in build("m3", None, shape).scales:
            height, width = pooled_grid(tokens, grid)
            assert grid[0] // height == grid[1] // width and height * width == tokens


def test_it_adds_nothing_and_draws_what_it_is_told() -> None:
    shape = replace(tiny_backbone().shape, grid=(12, 12), visual_tokens=144)
    method = build("m3", 16, shape)
    assert method.extra_parameters == 0 and method.trained_for is None
    assert method.training_budgets(Random(0)) == [1, 4, 9, 16, 36, 144]
    few = build("m3", None, shape, scales_per_step=2)
    drawn = [few.training_budgets(Random(f"step {step}")) for step in range(600)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = [sum(scale in pair for pair in drawn) for scale in few.scales]
    assert all(150 < n < 250 for n in counts), counts  # 200 each
    assert drawn[:5] == [few.training_budgets(Random(f"step {step}")) for step in range(5)]
    assert build("m3", None, shape, scales=[36, 1, 144]).training_budgets(Random(0)) == [1, 36, 144]


@pytest.mark.parametrize(
    ("tokens", "options", "words"),
    [
        (None, {"scales": [1, 5]}, r"method.scales=\[1, 5\]: allowed: some of 1, 4, 16"),
        (None, {"scales": []}, r"method.scales=\[\]"),
        (4, {"scales": [1, 16]}, "tokens=4: m3 on .* offers 1, 16"),
        (None, {"scales_per_step": 0}, "scales_per_step=0: allowed: 1 to 3"),
        (None, {"scales_per_step": 4}, "scales_per_step=4: allowed: 1 to 3"),
        (2, {}, "tokens=2: m3 on .* offers 1, 4, 16"),
    ],
)
def test_what_it_can_not_do_is_refused(tokens: int | None, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build("m3", tokens, tiny_backbone().shape, **options)


def test_images_of_a_size_of_their_own_are_refused() -> None:
    shape = replace(tiny_backbone().shape, grid=None, visual_tokens=None, name="native")
    with pytest.raises(UserError, match="method=m3: native has no fixed grid"):
        build("m3", None, shape)
