"""PruMerge and PruMerge+ (arXiv 2403.15388): adaptive token reduction for efficient large multimodal models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.allowed import whole
from vtc.interface import Condensed, Tower, TowerCompressor, option, rank, resolve_tower_layer


class PruMerge(TowerCompressor):
    """The patches that CLS attends to stand out; each absorbs the patches with the nearest keys, before the LLM.

    a = softmax(q_CLS K^T / √C) over the whole width, one head (eq. 3). Without a budget the outliers are kept,
    a_j > Q3 + 1.5·IQR of the image's own a, and the greatest in any case (section 3.2). A kept token becomes
    y_i + Σ a_j y_j over the k patches whose keys are nearest by cosine (section 3.3), and one more token, Σ a_j y_j
    over all patches that were not kept, stands behind them: y are the tower's features, projected afterwards.

    With `plus`, spatially uniform patches are kept too: without a budget every floor(1 / 3r)-th in raster order (but at
    most every other), r being the share of the outliers; the authors' step is the same, but tied to 576 patches, of
    which it never takes the last. With a budget M there are M − 1 kept tokens and the fused one (M = 1: one token,
    nothing fused), of which, with `plus`, a quarter (rounded up) by attention and the others evenly over what is left:
    the proportion that the adaptive rule gives, and -0.115 in pocket's mean at 16 tokens, [-0.134, -0.097]. (The
    authors train PruMerge+ with half and half of 144 and the fused one: 72 by attention and every eighth patch from the
    fifth on, which stands there twice where it is both.) Kept tokens stay in raster order, where the authors leave them
    in the order of their attention. The projector runs once more, on the tokens that are left. k is an eighteenth of
    all patches, the authors' 32 of 576; with their 32 of pocket's 144 (`neighbours`) pocket's mean at 16 tokens is
    lower: -0.027 [-0.035, -0.019].

    Without CLS in the tower, the attention is what each patch receives (`Tower.patch_attention`). Any budget from 1 on.

    Args:
        tokens: None: as many as stand out, image by image.
    """

    name = "prumerge"
    about = "PruMerge: patches that stand out, as many as there are, absorb those with similar keys (arXiv 2403.15388)."
    reference = "test_prumerge.py::test_a_budget_equals_the_paper_by_loops"
    adaptive = True
    plus: bool = option(False, "PruMerge+: spatially uniform patches too")
    neighbours: int | None = option(
        None, "patches that a kept one absorbs; null: an eighteenth of all (32 of 576)", allowed=whole(0).or_null()
    )
    tower_layer: int = option(
        None,
        "whose queries and keys; null: the layer that is projected; -1: the authors' code on LLaVA-1.5",
        resolve=resolve_tower_layer,
    )

    def condense(self, tower: Tower, count: int | None) -> Condensed:
        attention = tower.patch_attention(self.tower_layer, heads=1)[:, 0]  # [I, N]
        kept = self.outliers(attention) if count is None else self.best(attention, max(1, count - 1))
        place, merged, fused = self.absorbed(tower, attention, kept)
        return Condensed(kept, place, merged, None if count == 1 else fused)

    def outliers(self, attention: Tensor) -> Tensor:
        """[I, N] bool: the kept ones without a budget."""
        count = attention.shape[1]
        low, high = attention.quantile(torch.tensor([0.25, 0.75], device=attention.device), dim=1, keepdim=True)
        kept = (attention > high + 1.5 * (high - low)).scatter(1, attention.argmax(1, keepdim=True), True)
        if self.plus:
            step = torch.div(count, 3 * kept.sum(1, keepdim=True), rounding_mode="floor").clamp(min=2)
            kept = kept | (torch.arange(count, device=kept.device) % step == 0)
        return kept

    def best(self, attention: Tensor, count: int) -> Tensor:
        """[I, N] bool: `count` kept ones an image."""
        top = -(-count // 4) if self.plus else count
        kept = rank(attention) < top
        if count > top:
            rest = (~kept).nonzero()[:, 1].view(len(kept), -1)
            evenly = (2 * torch.arange(count - top, device=rest.device) + 1) * rest.shape[1] // (2 * (count - top))
            kept = kept.scatter(1, rest[:, evenly], True)
        return kept

    def own_flops(self, text: int) -> float:
        """Keys compared and features absorbed, where the budget says how many are kept."""
        kept = max(1, (self.tokens or 0) - 1) * self.acts
        return 4.0 * kept * (self.shape.visual_tokens or 0) * self.shape.vision.width

    def absorbed(self, tower: Tower, attention: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Places [I, K] of the kept tokens (others follow where there are fewer), what they become, the fused one."""
        read, patches = tower.patch_features(), kept.shape[1]
        features = read.float()
        near = max(1, round(patches / 18)) if self.neighbours is None else self.neighbours
        place = kept.byte().argsort(dim=1, descending=True, stable=True)[:, : int(kept.sum(1).max()), None]
        keys = F.normalize(tower.patch_keys(self.tower_layer).float(), dim=-1)
        similar = (keys.take_along_dim(place, 1) @ keys.transpose(1, 2)).scatter(2, place, float("-inf"))
        index = similar.topk(min(near, patches - 1), dim=2).indices
        weight = torch.zeros_like(similar).scatter(2, index, attention[:, None].expand_as(similar).gather(2, index))
        merged = weight.scatter(2, place, 1.0) @ features
        rest = ~kept | kept.all(1, keepdim=True)  # an image of which all is kept is fused as a whole
        fused = (attention * rest)[:, None] @ features
        return place[..., 0], merged.to(read.dtype), fused.to(read.dtype)
