"""HoloV (arXiv 2510.02912): visual holistic context retention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number, whole
from vtc.interface import Condensed, Tower, TowerCompressor, option, rank
from vtc.interface.tower import evenly

EPSILON = 1e-6  # of the authors' code


class HoloV(TowerCompressor):
    """Each crop of the image keeps a share of the budget by its attention and diversity; in it, the most attended.

    The patches in raster order are cut into P crops of equal length, the first ones longer by one where they don't come
    out even. In each, with s_ij the cosine of patches i and j (0 where i = j) and n their number,

        μ_i = Σ_j s_ij / (n − 1),   v_i = Σ_j (s_ij − μ_i)² / (n − 1),

    and a patch scores a_i + α · v_i · mean(a) / (mean(v) + ε), with a the CLS attention, mean over heads, in the layer
    that is projected (without CLS what a patch receives). A crop's weight is the mean score of its patches, its share
    of the budget T floor(T · weight / Σ weights), and the crops with the greatest weights have one more each until T
    are dealt. In a crop the patches with the greatest attention stay.

    So it is in the authors' code. As the diversity is scaled to the attention crop by crop, it changes a crop's weight
    only by v / (v + ε): what it does is next to nothing, whatever α is. The authors compare projected tokens, here it
    is what the projector reads. They fill up with zeros what a crop can't hold of its share, here the other crops get
    it evenly; they keep the patches of a crop in the order of their attention, here all are in raster order. A crop of
    one patch weighs its attention. On Qwen2.5-VL the authors cut an image of N tokens into 1024·N / 576·T crops. On
    tiles each has its share of the budget and its own crops. The refetching of dropped tokens inside the LLM that the
    paper describes as optional is not in the authors' code, and not here. Any budget from 1 on.

    Args:
        tokens: default: a ninth (64 of 576).
    """

    name = "holov"
    about = "HoloV: a share of the budget for each crop of the image, by attention and diversity (arXiv 2510.02912)."
    reference = "test_holov.py::test_equals_the_authors_code_by_loops"
    default_share = 1 / 9
    crops: int = option(16, "P, or as many as there are patches", allowed=whole(1))  # as in the authors' code
    alpha: float = option(0.09, "weight of the diversity", allowed=number("a number from 0 on", least=0))

    @torch.no_grad()
    def condense(self, tower: Tower, count: int | None) -> Condensed:
        assert count is not None
        attention = tower.patch_attention(self.tower_layer).mean(1)
        patches = attention.shape[1]
        sizes = evenly(patches, [patches] * min(self.crops, patches))
        unit = F.normalize(tower.patch_features().float(), dim=-1)
        cut = zip(unit.split(sizes, 1), attention.split(sizes, 1), strict=True)
        weight = torch.stack([self.weight(x, a) for x, a in cut], 1)
        share = torch.tensor([dealt(count, w, sizes) for w in weight.tolist()], device=weight.device)
        kept = [rank(a) < n[:, None] for a, n in zip(attention.split(sizes, 1), share.T, strict=True)]
        return Condensed(torch.cat(kept, 1))

    def weight(self, unit: Tensor, attention: Tensor) -> Tensor:
        """[J] of a crop of n patches, their features [J, n, C] at unit length and their attention [J, n]."""
        count = attention.shape[1]
        if count == 1:
            return attention[:, 0] * 1e3
        similar = unit @ unit.transpose(1, 2)
        similar.diagonal(dim1=1, dim2=2).fill_(0)
        mean = similar.sum(2, keepdim=True) / (count - 1)
        diversity = (similar - mean).square().sum(2) / (count - 1)
        scaled = 1e3 * attention  # so that ε is small beside it
        score = scaled + self.alpha * diversity * (scaled.mean(1) / (diversity.mean(1) + EPSILON))[:, None]
        return score.mean(1)

    def own_flops(self, text: int) -> float:
        n = self.shape.visual_tokens or 0
        return 2.0 * n**2 / min(self.crops, n or 1) * self.shape.vision.width * self.acts  # cosines in each crop


def dealt(count: int, weights: list[float], sizes: list[int]) -> list[int]:
    """`count` tokens dealt to crops of these `sizes` (which hold more together) in proportion to their weights."""
    total = sum(weights) + EPSILON
    shares = [int(count * weight / total) for weight in weights]
    best = sorted(range(len(weights)), key=lambda crop: -weights[crop])
    for crop in best[: count - sum(shares)]:
        shares[crop] += 1
    held = [min(share, size) for share, size in zip(shares, sizes, strict=True)]
    room = [size - share for share, size in zip(held, sizes, strict=True)]
    more = evenly(count - sum(held), [room[crop] for crop in best])
    for crop, extra in zip(best, more, strict=True):
        held[crop] += extra
    return held
