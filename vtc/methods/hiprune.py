"""HiPrune (arXiv 2508.00553): training-free visual token pruning via hierarchical attention."""

from __future__ import annotations

import torch

from vtc.allowed import number
from vtc.errors import UserError
from vtc.interface import BackboneShape, Condensed, Tower, TowerCompressor, TowerUse, option, rank, resolve_tower_layer


def object_layer_of(layer: int | None, shape: BackboneShape) -> int:
    """A user's object layer as an index from 0; None: 9 of 24 layers, counted from 1, scaled to the tower's depth."""
    if layer is None:
        return max(0, round(shape.vision.depth * 9 / 24) - 1)
    try:
        return resolve_tower_layer(layer, shape)
    except UserError as error:
        raise UserError(str(error).replace("tower_layer", "object_layer")) from None


class HiPrune(TowerCompressor):
    """Anchors by a middle layer of the tower, the patches beside them, and registers by its last, before the LLM.

    With a^l the attention that each patch receives in layer l, mean over heads and over all who pay it, CLS among them
    (section 3.2; also where there is a CLS token), of a budget T:

    - anchors are the round(α·T / 5) patches with the greatest a^l in the object layer;
    - buffers are the patches above, below, left and right of them;
    - registers are the patches with the greatest a in the layer that is projected, among all others, until T are kept.

    All are kept in raster order. The authors step by ±1 and ±24 in the raster sequence, so that the left neighbour of a
    row's first patch is the last one of the row before, and beyond the first and last patch they take these; here a
    patch at the border has fewer neighbours, and there is one register more. Where anchors and buffers are more than
    the budget (the authors' code stops with an error), buffers with the least attention in the last layer go. On
    tiles each has its share of the budget, and neighbours within the tile.

    The authors' object layer is 9 of CLIP's 24; on Qwen2.5-VL they take 16 of 32, which attends to the whole image,
    where the default, 12, attends within windows: `object_layer=15`. Any budget from 1 on.

    Args:
        tokens: default: a ninth (64 of 576).
    """

    name = "hiprune"
    about = "HiPrune: patches that a middle layer attends to, their neighbours, the last layer's (arXiv 2508.00553)."
    reference = "test_hiprune.py::test_equals_the_paper_by_loops"
    default_share = 1 / 9
    spatial = True
    # α of the authors' code.
    alpha: float = option(
        0.1, "share of the budget that is anchors and buffers", allowed=number("0 to 1", least=0, most=1)
    )
    object_layer: int = option(
        None, "the middle layer, from 0; null: 9 of 24, counted from 1, scaled to the tower", resolve=object_layer_of
    )

    def tower(self) -> TowerUse:
        return TowerUse(watch=frozenset({self.tower_layer, self.object_layer}))

    @torch.no_grad()
    def condense(self, tower: Tower, count: int | None) -> Condensed:
        assert count is not None
        objects = tower.patch_attention(self.object_layer, by_all=True).mean(1)
        last = tower.patch_attention(self.tower_layer, by_all=True).mean(1).double()
        anchor = rank(objects) < round(self.alpha * count / 5)
        beside = tower.neighbours()
        buffer = torch.zeros_like(last).scatter_add(1, beside.flatten(1), anchor.repeat_interleave(4, 1).double()) > 0
        return Condensed(rank(last + 2 * buffer + 4 * anchor) < count)  # attention is 1 at most

    def own_flops(self, text: int) -> float:
        vision = self.shape.vision
        seen = vision.tokens or vision.grid_side**2 + vision.cls
        return 2.0 * len(self.tower().watch) * seen**2 * vision.width * self.acts  # attention of each to each
