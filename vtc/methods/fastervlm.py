"""FasterVLM (arXiv 2412.01818v1): [CLS] attention is all you need for training-free visual token pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from vtc.interface import Tower, TowerPruner

if TYPE_CHECKING:
    from vtc.interface import BackboneShape


class FasterVLM(TowerPruner):
    """Keeps the patches to which the tower's CLS token attends most, before the LLM.

    The score of patch j is a_j = mean over heads of softmax(q_CLS K^T / √d)_j in the layer whose output LLaVA projects
    (section 3.2). The best are kept in raster order; the LLM never sees the others.

    Needs a tower with CLS. Any budget from 1 on.

    Args:
        tokens: default: a quarter (the paper's lightest reduction but one, 75 %).
        tower_layer: None: the projected layer, -2 in LLaVA-1.5.
    """

    name = "fastervlm"

    def rate(self, tower: Tower) -> Tensor:
        return tower.cls_attention(self.tower_layer).mean(1)

    @classmethod
    def default_tokens(cls, shape: BackboneShape, **options: Any) -> int | None:
        return shape.visual_tokens and max(1, shape.visual_tokens // 4)
