"""FasterVLM (arXiv 2412.01818v1): [CLS] attention is all you need for training-free visual token pruning."""

from __future__ import annotations

from torch import Tensor

from vtc.interface import Tower, TowerPruner


class FasterVLM(TowerPruner):
    """Keeps the patches to which the tower's CLS token attends most, before the LLM.

    The score of patch j is a_j = mean over heads of softmax(q_CLS K^T / √d)_j in the layer whose output LLaVA projects
    (section 3.2). The best are kept in raster order; the LLM never sees the others.

    Without CLS in the tower, the attention is what each patch receives (`Tower.patch_attention`). Any budget from 1 on.

    Args:
        tokens: default: a quarter (the paper's lightest reduction but one, 75 %).
    """

    name = "fastervlm"
    about = "FasterVLM: keeps the patches that CLS, or without it the other patches, attend to (arXiv 2412.01818v1)."
    reference = "test_fastervlm.py::test_keeps_what_cls_attends_to_most"
    default_share = 1 / 4

    def rate(self, tower: Tower) -> Tensor:
        return tower.patch_attention(self.tower_layer).mean(1)
