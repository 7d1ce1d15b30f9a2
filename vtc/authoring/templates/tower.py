"""MyMethod: keeps the patches whose keys in the vision tower are the longest."""

from torch import Tensor

from vtc.interface import Tower, TowerPruner, option


class MyMethod(TowerPruner):
    """Before the LLM, keeps the patches with the largest p-norm of their key in the tower's projected layer."""

    name = "my_method"
    about = "MyMethod: keeps the patches whose keys in the vision tower are the longest."
    default_share = 1 / 4
    p: float = option(2.0, "which norm")

    def rate(self, tower: Tower) -> Tensor:
        """[I, N], higher is kept; the base class does budgets, tiles and several images. A class that calls
        `tower.cls_attention` says `needs = (CLS,)`."""
        return tower.patch_keys(self.tower_layer).float().norm(p=self.p, dim=-1)
