"""ToMe (arXiv 2210.09461): token merging, your ViT but faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.errors import UserError
from vtc.interface import FIXED_COUNT, ONE_TOWER, PATCHWISE, WHOLE_IMAGES, FewerPatches, TowerUse, projected_layer


class ToMe(FewerPatches):
    """The r most similar patches merge in every layer of the tower, between attention and MLP (section 3).

    Bipartite soft matching: the tokens are dealt alternately into A and B; each of A finds the token of B with the most
    similar key (cosine of the keys' mean over heads); the r best of these pairs merge into their mean, weighted by the
    patches s that each token stands for. CLS never merges. Attention is proportional, softmax(q k^T / √d + log s).

    As many layers as lie before the projector merge, with one r for all (as small as the budget allows; never more than
    half of the patches), so that exactly `tokens` are left; the last layers merge what remains. A merged token stands
    in the place of its member in B, where the authors put A before B: for the LLM the tokens stay in raster order.

    The tower gets cheaper too. Budgets: from what halving in every layer leaves (16 → 8 in one layer) up.
    Proportional attention needs attention=sdpa or eager.

    Where the projector makes one visual token of a square of patches (Qwen-VL's merger, pixel shuffle), or tiles are
    unpadded and pooled by their grid (LLaVA-NeXT, LLaVA-OneVision), it is refused: what has merged stands in no grid,
    so that no squares are left, and to unmerge it, as for dense prediction, would give every visual token back.

    Args:
        tokens: default: a quarter, or the fewest that it can leave.
    """

    name = "tome"
    about = "ToMe: similar patches merge in every layer of the vision tower (arXiv 2210.09461)."
    reference = "test_tome.py::test_equals_the_paper_by_loops"
    needs = (PATCHWISE, ONE_TOWER, FIXED_COUNT, WHOLE_IMAGES)

    def tower(self) -> TowerUse | None:
        count = self.shape.visual_tokens or 0
        if self.tokens is None or self.tokens >= count:
            return None
        merges = schedule(count, self.tokens, projected_layer(self.shape) + 1)
        extra = self.shape.vision.cls

        def merge(layer: int, hidden: Tensor, keys: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
            return merged(hidden, keys, size, merges[layer], extra) if merges[layer] else (hidden, size)

        return TowerUse(merge=merge)

    def default_tokens(self) -> int | None:
        offers = self.offers()
        return max(offers[0], offers[-1] // 4)

    def offers(self) -> Sequence[int]:
        count = self.shape.visual_tokens or 0
        fewest = count
        for _ in range(projected_layer(self.shape) + 1):
            fewest -= fewest // 2
        return range(fewest, count + 1)


def schedule(patches: int, tokens: int, layers: int) -> list[int]:
    """Merges in each layer: the smallest constant r that gets from `patches` to `tokens`, cut where that is reached."""
    for r in range(1, patches + 1):
        left, merges = patches, []
        for _ in range(layers):
            merges.append(min(r, left // 2, left - tokens))
            left -= merges[-1]
        if left == tokens:
            return merges
    raise UserError(f"tokens={tokens}: {layers} layers can't merge {patches} patches into so few")


def merged(hidden: Tensor, keys: Tensor, size: Tensor, r: int, extra: int) -> tuple[Tensor, Tensor]:
    """One step: hidden [I, T, C], keys [I, H, T, d], size [I, T] → [I, T − r, C], [I, T − r]; `extra` tokens stay."""
    with torch.no_grad():
        metric = F.normalize(keys.float().mean(1), dim=-1)
        score = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)  # [I, A, B]
        score[:, : (extra + 1) // 2] = float("-inf")  # tokens before the patches
        score[:, :, : extra // 2] = float("-inf")
        best, partner = score.max(2)
        source = best.argsort(dim=1, descending=True, stable=True)[:, :r]  # of A
        target = 2 * partner.gather(1, source) + 1
        source = 2 * source
        stays = torch.ones_like(size, dtype=torch.bool).scatter(1, source, False)
        index = stays.nonzero()[:, 1].view(len(stays), -1)
    weight = size.gather(1, source)
    total = size.scatter_add(1, target, weight)
    moved = hidden.take_along_dim(source[..., None], 1) * weight[..., None]
    summed = (hidden * size[..., None]).scatter_add(1, target[..., None].expand_as(moved), moved)
    mean = torch.where((total > size)[..., None], summed / total[..., None], hidden).to(hidden.dtype)
    return mean.take_along_dim(index[..., None], 1), total.gather(1, index)
