"""VisionZip (arXiv 2412.04467): longer is better but not necessary in vision language models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import number, one_of
from vtc.interface import Condensed, Tower, TowerCompressor, option, rank


class VisionZip(TowerCompressor):
    """Dominant tokens are kept, the others merged into a few contextual ones, all before the LLM.

    Dominant (section 3.2): the patches with the greatest CLS attention, summed over heads, in raster order. Contextual
    (section 3.3): of the other patches, every s-th in raster order is a target; each of the rest goes to the target
    with the most similar key (cosine of the keys' mean over heads), and a contextual token is target + mean of what
    went to it, in the tower's features, projected afterwards. They stand behind the dominant ones.

    A budget M splits into round(M · contextual_share) contextual tokens and the dominant rest. The default, 10/64,
    gives the paper's 54 + 10, 108 + 20 and 162 + 30; the authors' code takes both numbers from the user. In pocket's
    mean at 16 tokens neither `contextual_share=0` shows, +0.004 [-0.005, +0.012], nor `merge=mean`, +0.000 [-0.003,
    +0.004]. The authors count CLS itself among the dominant tokens; LLaVA never projects it, and here all are patches.
    The projector runs once more, on the contextual tokens alone.

    Without CLS in the tower, the attention is what each patch receives (`Tower.patch_attention`). Any budget from 1 on;
    up to 3 there are no contextual tokens by default.

    Args:
        tokens: default: a ninth (64 of 576).
    """

    name = "visionzip"
    about = "VisionZip: the most attended patches, the others merged into a few tokens (arXiv 2412.04467)."
    reference = "test_visionzip.py::test_equals_the_paper_by_loops"
    default_share = 1 / 9
    merge: str = option(
        "add",
        "add: a contextual token is target + mean of its group, as in the paper; mean: the group's mean",
        allowed=one_of("add", "mean"),
    )

    contextual_share: float = option(
        0.15625,
        "share of the budget that is contextual tokens (the paper's: 10 of 64); 0: dominant ones alone",
        allowed=number("from 0 to 1", least=0, most=1),
    )

    def condense(self, tower: Tower, count: int | None) -> Condensed:
        assert count is not None
        few = round(count * self.contextual_share)
        dominant = rank(tower.patch_attention(self.tower_layer).sum(1)) < count - few
        return Condensed(dominant, added=self.contextual(tower, ~dominant, few) if few else None)

    def contextual(self, tower: Tower, rest: Tensor, few: int) -> Tensor:
        """[I, few, C]: what becomes of the patches that are not dominant, `rest` [I, N] with equally many an image."""
        index = rest.nonzero()[:, 1].view(len(rest), -1, 1)  # [I, R, 1] in raster order
        features = tower.patch_features().take_along_dim(index, 1).float()
        keys = tower.patch_keys(self.tower_layer).unflatten(-1, (tower.heads, -1)).float().mean(2)
        keys = F.normalize(keys.take_along_dim(index, 1), dim=-1)
        count = index.shape[1]
        target = torch.arange(few, device=index.device) * (count // few)
        other = torch.ones(count, dtype=torch.bool, device=index.device).index_fill(0, target, False)
        nearest = (keys[:, other] @ keys[:, target].transpose(1, 2)).argmax(2)
        joins = F.one_hot(nearest, few).to(features.dtype).transpose(1, 2)  # [I, few, R - few]
        size = joins.sum(2, keepdim=True)
        total, own = joins @ features[:, other], features[:, target]
        merged = (own + total) / (1 + size) if self.merge == "mean" else own + total / size.clamp(min=1)
        return merged.to(tower.features.dtype)
