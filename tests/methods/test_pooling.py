"""Average pooling, LLaVolta and random dropping against plain loops."""

from __future__ import annotations

import pytest
import torch
from reference import decoder, embedded

from vtc.budget import compression_ratio
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build, make
from vtc.methods.avgpool import pooled_grid, raster_groups
from vtc.testing import batch, tiny_backbone


def expected_logits(
    backbone, inputs, row: int, layer: int, groups: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the text after the image, from lists of raster indices that are averaged before `layer`."""
    real = inputs["attention_mask"][row].bool()
    ids = inputs["input_ids"][row, real]
    first = int((ids == backbone.image_token_id).nonzero()[0])
    n = backbone.shape.visual_tokens

    def pool(x, position):
        means = torch.stack([x[[first + i for i in g]].mean(0) for g in groups])
        places = torch.tensor([sum(first + i for i in g) // len(g) for g in groups])
        x = torch.cat([x[:first], means, x[first + n :]])
        if layer == 0:  # the LLM never saw more
            return x, torch.arange(len(x))
        return x, torch.cat([position[:first], places, position[first + n :]])

    x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
    out = decoder(backbone, x, torch.arange(len(ids)), changes={layer: pool})
    return backbone.model.lm_head(out[first + len(groups) :]), real.nonzero()[first + n :, 0]


RUNS = {
    4: [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]],
    5: [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]],
}
CELLS = {
    4: [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
    8: [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15]],
}


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("dims", "tokens", "groups"), [(1, 4, RUNS[4]), (1, 5, RUNS[5]), (2, 4, CELLS[4])])
def test_pooling_is_the_mean_of_its_groups(layer: int, dims: int, tokens: int, groups) -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    method = build("avgpool", tokens, backbone.shape, layer=layer, dims=dims, layer_scale="none")
    with torch.no_grad(), compressing(backbone, method):
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    for row in range(3):
        with torch.no_grad():
            expected, places = expected_logits(backbone, inputs, row, layer, groups)
        assert (got[row, places] - expected).abs().max() < 1e-4


def test_raster_groups_differ_by_one_at_most() -> None:
    for n in (7, 16, 144):
        for count in range(1, n + 1):
            groups = raster_groups(torch.ones(1, n, dtype=torch.bool), count)[0]
            sizes = torch.bincount(groups, minlength=count)
            assert (groups.diff() >= 0).all() and sizes.max() - sizes.min() <= 1 and len(sizes) == count


def test_2d_offers_what_tiles_the_grid() -> None:
    assert pooled_grid(16, (12, 12)) == (4, 4) and pooled_grid(6, (12, 12)) in ((2, 3), (3, 2))
    assert pooled_grid(5, (12, 12)) is None and pooled_grid(64, (24, 24)) == (8, 8)
    with pytest.raises(UserError, match="tokens=5: avgpool on model offers 1, 2, 4, 8, 16"):
        build("avgpool", 5, tiny_backbone().shape, dims=2)
    with pytest.raises(UserError, match="method.dims=3"):
        build("avgpool", 4, tiny_backbone().shape, dims=3)


# ---------------------------------------------------------------------- LLaVolta
def test_training_stages_pool_with_their_stride_before_their_layer() -> None:
    backbone = tiny_backbone(depth=8, grid=4)
    method = build("llavolta", None, backbone.shape, scheme="four_wider_then_deeper").train()
    inputs, seen = batch(backbone), []
    for step in range(0, 100, 25):
        method.set_stage(step, 100)
        with torch.no_grad(), compressing(backbone, method) as engine:
            backbone.model(**inputs)
            seen.append([layer[0] for layer in engine.report.layers])
    # (2, 8), (2, 2), (16, 2), none at 32 layers; 2 → 2 and 16 → 4 at 8
    assert seen == [[16] * 2 + [2] * 6, [16] * 2 + [8] * 6, [16] * 4 + [8] * 4, [16] * 8]


def test_a_last_group_that_is_short_is_kept() -> None:
    backbone = tiny_backbone(grid=3)  # 9 = 8 + 1: the authors' code loses the ninth
    method = build("llavolta", None, backbone.shape, scheme=[{"layer": 2, "stride": 8}]).train()
    method.set_stage(0, 1)
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**batch(backbone))
    assert engine.report.tokens_out == [2, 2, 2]


def test_evaluation_is_uncompressed_unless_tokens_ask_for_pooling() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone)
    with torch.no_grad():
        plain = backbone.model(**inputs).logits
    trained = build("llavolta", None, backbone.shape)
    trained.train()
    trained.set_stage(0, 100)
    with torch.no_grad(), compressing(backbone, trained.eval()):
        assert torch.equal(backbone.model(**inputs).logits, plain)
    pooled, average = build("llavolta", 4, backbone.shape).eval(), build("avgpool", 4, backbone.shape, dims=1, layer=2)
    results = []
    for method in (pooled, average):
        with torch.no_grad(), compressing(backbone, method):
            results.append(backbone.model(**inputs).logits)
    assert torch.equal(*results)


def test_compression_ratios_of_table_1() -> None:
    from dataclasses import replace

    shape = replace(tiny_backbone().shape, depth=32, visual_tokens=576)
    for (layer, stride), percent in {(2, 8): 557, (2, 2): 188, (16, 8): 178, (16, 2): 133}.items():
        pooled = make("llavolta", 576 // stride, shape, layer=layer).layer_tokens()
        assert int(100 * compression_ratio(pooled, shape) + 0.5) == percent


# ---------------------------------------------------------------------- random
def test_the_draw_is_uniform_seeded_and_the_same_in_any_batch() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone, before=(2, 2, 2), after=(5, 5, 5))

    def kept(seed: int, rows: slice = slice(None)) -> list[list[int]]:
        with torch.no_grad(), compressing(backbone, build("random", 4, backbone.shape, seed=seed)) as engine:
            backbone.model(**{k: v[rows] for k, v in inputs.items()})
        return engine.report.kept

    assert kept(0) == kept(0) and kept(0)[2:] == kept(0, slice(2, 3))
    counts = torch.bincount(torch.tensor([i for seed in range(300) for i in kept(seed)[0]]), minlength=18)[2:18]
    assert counts.sum() == 1200 and (counts - 75).abs().max() < 35  # 4.7 standard deviations
