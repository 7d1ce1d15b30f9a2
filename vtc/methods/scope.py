"""SCOPE (arXiv 2510.24214): saliency-coverage oriented token pruning."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vtc.allowed import number
from vtc.interface import Condensed, Tower, TowerCompressor, option
from vtc.methods.divprune import take_best


class SCOPE(TowerCompressor):
    """Before the LLM keeps the patches that add most to what is covered of the image, weighed by attention.

    A set S of patches covers patch u as far as c_u(S) = max(0, max over s in S of cos(u, s)), of the tower's features
    that are projected. A patch v adds g_v = Σ_u max(0, cos(u, v) − c_u(S)), and its score is g_v · a_v^α with a_v the
    CLS attention, mean over heads; in a tower without CLS the attention that a patch receives. The patch with the
    greatest score joins S, until `tokens` are in it. All are kept in raster order.

    The authors sum the attention over heads, which multiplies all scores by the same number. Where nothing is left to
    add, the earliest patches are taken. On tiles each has its share of the budget and covers itself.

    Any budget from 1 on.

    Args:
        tokens: default: a ninth (64 of 576).
    """

    name = "scope"
    about = "SCOPE: patches that cover most of what is not covered yet, weighed by attention (arXiv 2510.24214)."
    reference = "test_scope.py::test_equals_the_paper_by_loops"
    default_share = 1 / 9
    # α of the authors' code.
    alpha: float = option(
        1.0, "power of the attention; 0: coverage alone", allowed=number("a number from 0 on", least=0)
    )

    @torch.no_grad()
    def condense(self, tower: Tower, count: int | None) -> Condensed:
        assert count is not None
        saliency = tower.patch_attention(self.tower_layer).mean(1) ** self.alpha
        unit = F.normalize(tower.patch_features().float(), dim=-1)
        similar = unit @ unit.transpose(1, 2)  # [I, N, N]
        covered = similar.new_zeros(similar.shape[:2])
        rank, left = torch.zeros_like(saliency), torch.ones_like(saliency, dtype=torch.bool)
        for pick in range(count):
            gain = (similar - covered[:, :, None]).clamp(min=0).sum(1)
            best = take_best(gain * saliency, left, rank, count - pick)
            row = similar.gather(1, best[..., None].expand(-1, -1, similar.shape[2]))[:, 0]
            covered = torch.maximum(covered, row)
        return Condensed(~left)

    def own_flops(self, text: int) -> float:
        n = self.shape.visual_tokens or 0
        return 2.0 * n**2 * self.shape.vision.width * self.acts  # cosines
