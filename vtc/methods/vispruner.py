"""VisPruner (arXiv 2412.01818v2): exploiting visual cues for effective token pruning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number, whole
from vtc.interface import Condensed, Tower, TowerCompressor, option


class VisPruner(TowerCompressor):
    """Keeps important patches by CLS attention, and diverse ones among the others, before the LLM.

    Important (section 4.2): the floor(T·r) patches with the greatest CLS attention, mean over heads. Diverse: the
    others, from the most attended on, are dealt alternately into A and B; the `remove` tokens of A that are nearest to
    any of B (cosine of the tower's features) are duplicates and go; what is left of A, most similar first, and then B
    are dealt anew, until T − floor(T·r) are left. All are kept in raster order.

    Where an odd number is left, A has one more than B (the authors' code stops with an error there), and a round
    removes no more than A holds, so that every budget is met.

    Without CLS in the tower, the attention is what each patch receives (`Tower.patch_attention`). Any budget from 1 on.

    Args:
        tokens: default: a ninth (64 of 576).
    """

    name = "vispruner"
    about = "VisPruner: the most attended patches, and diverse ones among the others (arXiv 2412.01818v2)."
    reference = "test_vispruner.py::test_equals_the_paper_by_loops"
    default_share = 1 / 9
    # r of the paper.
    important: float = option(
        0.5, "share of the budget that attention chooses", allowed=number("0 to 1", least=0, most=1)
    )
    remove: int = option(8, "duplicates that go in a round", allowed=whole(1))  # as in the authors' code

    def condense(self, tower: Tower, count: int | None) -> Condensed:
        assert count is not None
        ranked = tower.patch_attention(self.tower_layer).mean(1).argsort(dim=1, descending=True, stable=True)
        first = int(count * self.important)
        diverse = distinct(tower.patch_features().detach(), ranked[:, first:], count - first, self.remove)
        chosen = torch.cat([ranked[:, :first], diverse], 1)
        return Condensed(torch.zeros_like(ranked, dtype=torch.bool).scatter(1, chosen, True))

    def own_flops(self, text: int) -> float:
        left, products = (self.shape.visual_tokens or 0) - int((self.tokens or 0) * self.important), 0
        while self.acts and left > (self.tokens or 0) - int((self.tokens or 0) * self.important):
            products += (left + 1) // 2 * (left // 2)
            left -= self.remove
        return 2.0 * products * self.shape.vision.width


def distinct(features: Tensor, index: Tensor, count: int, remove: int) -> Tensor:
    """[I, count] of the tokens `index` [I, R] of features [I, N, C], after the duplicates went round by round."""
    if not count:
        return index[:, :0]
    unit = F.normalize(features.float(), dim=-1)
    while index.shape[1] > count:
        a, b = index[:, ::2], index[:, 1::2]
        similar = unit.take_along_dim(a[..., None], 1) @ unit.take_along_dim(b[..., None], 1).transpose(1, 2)
        order = similar.amax(2).argsort(dim=1, descending=True, stable=True)
        gone = min(remove, index.shape[1] - count, a.shape[1])
        index = torch.cat([a.gather(1, order[:, gone:]), b], 1)
    return index
